"""Ops too many, exchanged or turned round in the caller's graph are named as such, though the normal form hides them."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest

import onnxfix
from onnxfix.surgeon.apply import apply, reverted
from onnxfix.surgeon.patch import SetNode, patch_from_dict
from onnxfix.testing import make_names_opaque
from small_onnx import NOISE, normal, parse

FOLDED = """
net (float[N, 3, 8, 8] image) => (float[N, 4, 8, 8] result) {
    first = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (image, k1, b1)
    first_relu = Relu (first)
    second = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (first_relu, k2, b2)
    tanh = Tanh (second)
    third = Conv <kernel_shape = [1, 1]> (tanh, k3, b3)
    result = Sub (third, tanh)
}
"""
SPELLED_OUT = """
net (float[N, 3, 8, 8] image) => (float[N, 4, 8, 8] result) {
    first = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (image, k1, b1)
    first_relu = Relu (first)
    second = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (first_relu, plain_k2)
    scaled = Mul (second, scale)
    shifted = Add (scaled, shift)
    tanh = Tanh (shifted)
    third = Conv <kernel_shape = [1, 1]> (tanh, k3, b3)
    result = Sub (third, tanh)
}
"""
SCALE, KERNEL = 1 + 0.3 * normal(4, 1, 1, seed=9), normal(4, 4, 3, 3, seed=2, scale=0.3)
SHARED = {
    "k1": normal(4, 3, 3, 3, scale=0.3), "b1": normal(4, seed=1), "k3": normal(4, 4, 1, 1, seed=3),
    "b3": normal(4, seed=4),
}  # fmt: skip
SHIFT = normal(4, 1, 1, seed=5)


def source() -> onnx.ModelProto:
    """The network with the scale folded into its second kernel."""
    return parse(FOLDED, k2=KERNEL * SCALE.reshape(4, 1, 1, 1), b2=SHIFT.reshape(4), **SHARED)


def target(text: str = SPELLED_OUT) -> onnx.ModelProto:
    """The network with the scale as an op of its own."""
    return parse(text, plain_k2=KERNEL, scale=SCALE, shift=SHIFT, **SHARED)


WRONG = {
    "applied twice": ("scaled = Mul (second, scale)", "once = Mul (second, scale)\n scaled = Mul (once, scale)",
                      "node_scaled", "graph"),
    "exchanged": ("scaled = Mul (second, scale)", "scaled = Add (second, scale)", "node_scaled", "graph"),
    "turned round": ("result = Sub (third, tanh)", "result = Sub (tanh, third)", "node_result", "graph"),
    "rounded on the way": (
        "scaled = Mul (second, scale)",
        "half = Cast <to = 10> (second)\n single = Cast <to = 1> (half)\n scaled = Mul (single, scale)",
        "node_half", "precision"),
}  # fmt: skip


@pytest.mark.parametrize("right, wrong, guilty, kind", WRONG.values(), ids=WRONG)
def test_one_op_is_named_and_set_right(right, wrong, guilty, kind):
    broken = target(SPELLED_OUT.replace(right, wrong))
    opaque = make_names_opaque(broken, seed=3)
    data = {"image": normal(12, 3, 8, 8, seed=6)}
    fix = onnxfix.repair(source(), opaque.model, data)
    (fault,) = fix.diagnosis.faults
    assert fault.kind == kind
    assert opaque.nodes[guilty] in fault.target_nodes
    assert len(fault.target_nodes) <= 2
    assert fix.success
    assert fix.verified.max_rel < NOISE


def test_the_patch_is_data_that_can_be_taken_back():
    broken = target(SPELLED_OUT.replace(*WRONG["exchanged"][:2]))
    (patch,) = onnxfix.repair(source(), broken, {"image": normal(12, 3, 8, 8, seed=6)}).patches
    assert isinstance(patch, SetNode)
    again = patch_from_dict(json.loads(json.dumps(patch.to_dict())))
    repaired = apply(broken, [again])
    assert repaired == target()
    assert apply(repaired, [reverted(again)]) == broken


def test_a_wrong_weight_beside_a_superfluous_op_is_a_fault_of_its_own():
    broken = target(SPELLED_OUT.replace(*WRONG["applied twice"][:2]))
    for tensor in broken.graph.initializer:
        if tensor.name == "k3":
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.flip(SHARED["k3"], 0).copy(), "k3"))
    fix = onnxfix.repair(source(), broken, {"image": normal(12, 3, 8, 8, seed=6)})
    assert {fault.target_nodes[0] for fault in fix.diagnosis.faults} == {"node_scaled", "node_third"}
    assert [fault.parameter for fault in fix.diagnosis.faults] == [None, "k3"]
    assert fix.success


def test_a_clean_pair_needs_no_edit():
    assert onnxfix.diagnose(source(), target(), {"image": normal(12, 3, 8, 8, seed=6)}).faults == ()
