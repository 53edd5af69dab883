"""One op, operand or constant that spoils a compound is named alone, not with all that the compound is made of."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

import onnxfix
from onnxfix.diagnose.anchors import Anchors, telling
from onnxfix.testing import make_names_opaque
from small_onnx import NOISE, normal, parse

STEPS, INPUTS, SIZE = 5, 3, 4
STEP = """
    x{t} = Gather <axis = 1> (x, place{t})
    given{t} = Gemm (x{t}, kernel, bias)
    own{t} = MatMul (h{p}, recurrent)
    gates{t} = Add (given{t}, own{t})
    in{t}, out{t}, keep{t}, new{t} = Split <axis = 1> (gates{t})
    in_gate{t} = Sigmoid (in{t})
    out_gate{t} = Sigmoid (out{t})
    keep_gate{t} = Sigmoid (keep{t})
    fresh{t} = Tanh (new{t})
    kept{t} = Mul (keep_gate{t}, c{p})
    added{t} = Mul (in_gate{t}, fresh{t})
    c{t} = Add (kept{t}, added{t})
    seen{t} = Tanh (c{t})
    h{t} = Mul (out_gate{t}, seen{t})
"""


def spelled_out(right: str = "", wrong: str = "") -> onnx.ModelProto:
    """An LSTM step by step, a line of it exchanged."""
    steps = "".join(STEP.format(t=t, p=t - 1) for t in range(STEPS))
    text = f"net (float[1, {STEPS}, {INPUTS}] x) => (float[1, 2] y) {{ {steps} y = Gemm (h{STEPS - 1}, head, shift) }}"
    assert right in text
    weights = {
        "kernel": normal(INPUTS, 4 * SIZE, seed=1), "recurrent": normal(SIZE, 4 * SIZE, seed=2),
        "bias": normal(4 * SIZE, seed=3), "head": normal(SIZE, 2, seed=4), "shift": normal(2, seed=5),
    }  # fmt: skip
    weights |= {f"place{t}": np.array(t, np.int64) for t in range(STEPS)}
    weights |= {"h-1": np.zeros((1, SIZE), np.float32), "c-1": np.zeros((1, SIZE), np.float32)}
    weights["other"] = -weights["recurrent"]
    used = {name.replace("-1", "_start"): value for name, value in weights.items()}
    text = (text.replace(right, wrong) if right else text).replace("-1", "_start")
    return parse(text, **{name: value for name, value in used.items() if name != "other" or "other" in text})


WRONG = {
    "an activation is missing": (
        "added2 = Mul (in_gate2, fresh2)", "added2 = Mul (in_gate2, new2)", {"node_gates2", "node_in2"}, "graph"),
    "another activation": ("fresh2 = Tanh (new2)", "fresh2 = Softsign (new2)", {"node_fresh2"}, "graph"),
    "an operand of its own": ("own2 = MatMul (h1, recurrent)", "own2 = MatMul (h1, other)", {"node_own2"}, "weights"),
    "another op": ("c2 = Add (kept2, added2)", "c2 = Sub (kept2, added2)", {"node_c2"}, "graph"),
    "one op too many": (
        "seen2 = Tanh (c2)", "once2 = Tanh (c2)\n seen2 = Tanh (once2)", {"node_once2", "node_seen2"}, "graph"),
    "rounded on the way": (
        "seen2 = Tanh (c2)", "half2 = Cast <to = 10> (c2)\n single2 = Cast <to = 1> (half2)\n seen2 = Tanh (single2)",
        {"node_half2", "node_single2"}, "precision"),
    "the wrong state": ("kept2 = Mul (keep_gate2, c1)", "kept2 = Mul (keep_gate2, c0)", {"node_kept2"}, "graph"),
}  # fmt: skip


@pytest.mark.parametrize("right, wrong, guilty, kind", WRONG.values(), ids=WRONG)
def test_the_odd_step_is_named_and_set_right(right, wrong, guilty, kind):
    opaque = make_names_opaque(spelled_out(right, wrong), seed=3)
    fix = onnxfix.repair(spelled_out(), opaque.model, {"x": normal(12, STEPS, INPUTS, seed=6)})
    (fault,) = fix.diagnosis.faults
    assert fault.kind == kind
    assert {opaque.nodes[name] for name in guilty}.issuperset(fault.target_nodes)
    assert fix.success
    assert fix.verified.max_rel < NOISE


def test_values_are_known_by_their_content_in_any_order():
    value = normal(2, 3, 4)
    anchors = Anchors([value, np.zeros((2, 3), np.float32)])
    assert anchors.count == 1
    assert anchors.find(np.ascontiguousarray(value.transpose(2, 0, 1))) == 0
    assert anchors.find(value * np.float32(1 + 1e-6)) == 0
    assert anchors.find(value * np.float32(1.001)) is None
    assert anchors.find(value, {0}) is None


def test_masks_and_constants_tell_nothing():
    assert not telling(np.full(8, 3.0, np.float32))
    assert not telling(np.array([0, -1e9] * 4, np.float32))
    assert not telling(np.array([1.0, np.inf, 2.0, 3.0], np.float32))
    assert telling(normal(8))
