"""RMS and L2 norms have one spelling, a quotient."""

from __future__ import annotations

import numpy as np
import pytest
from forms import ints, normal, ops, parse, settle

from onnxfix.canonical import is_isomorphic

GIVEN = {
    "axes": ints(-1), "eps": np.float32(1e-3), "root": np.float32(np.sqrt(1e-3)), "g": normal(5),
    "two": np.float32(2), "half": np.float32(-0.5), "minus": np.float32(-1),
}
MEAN = "q = Mul(x, x) m = ReduceMean(q, axes) e = Add(m, eps)"


def small(body: str, opset: int = 21):
    words = set(body.replace("(", " ").replace(")", " ").replace(",", " ").split())
    return parse(f"(float[N,4,5] x) => (float[N,4,5] y) {{ {body} }}", opset,
                 **{k: v for k, v in GIVEN.items() if k in words})


@pytest.mark.parametrize(
    "body",
    [
        f"{MEAN} s = Sqrt(e) r = Reciprocal(s) n = Mul(x, r) y = Mul(n, g)",
        f"{MEAN} s = Sqrt(e) r = Reciprocal(s) n = Mul(g, r) y = Mul(n, x)",
        f"{MEAN} s = Sqrt(e) w = Mul(x, g) y = Div(w, s)",
        f"{MEAN} r = Pow(e, half) n = Mul(x, r) y = Mul(g, n)",
        f"{MEAN} s = Sqrt(e) r = Pow(s, minus) n = Mul(x, r) y = Mul(g, n)",
        "q = Pow(x, two) m = ReduceMean(q, axes) e = Add(m, eps) s = Sqrt(e) n = Div(x, s) y = Mul(n, g)",
    ],
)
def test_norms_by_root_mean_square_are_quotients(body: str) -> None:
    form = settle(small(body))
    assert ops(form) == ["Mul", "ReduceMean", "Add", "Sqrt", "Div", "Mul"]
    assert is_isomorphic(small(body), small(f"{MEAN} s = Sqrt(e) n = Div(x, s) y = Mul(n, g)"))


@pytest.mark.parametrize(
    "body",
    [
        "q = Mul(x, x) s = ReduceSum(q, axes) c = Max(s, eps) t = Sqrt(c) r = Reciprocal(t) y = Mul(x, r)",
        "s = ReduceSumSquare(x, axes) c = Clip(s, eps) t = Sqrt(c) y = Div(x, t)",
        "n = ReduceL2(x, axes) c = Clip(n, root) r = Reciprocal(c) y = Mul(r, x)",
    ],
)
def test_norms_by_length_are_quotients(body: str) -> None:
    assert ops(settle(small(body))) == ["ReduceL2", "Clip", "Div"]
    assert is_isomorphic(small(body), small("n = ReduceL2(x, axes) c = Clip(n, root) y = Div(x, c)"))


@pytest.mark.parametrize(
    "body",
    [
        f"{MEAN} s = Sqrt(e) r = Reciprocal(s) z = Sigmoid(x) y = Mul(z, r)",
        "a = Abs(x) m = ReduceMean(a, axes) e = Add(m, eps) s = Sqrt(e) r = Reciprocal(s) y = Mul(x, r)",
    ],
)
def test_other_roots_keep_their_reciprocals(body: str) -> None:
    assert "Reciprocal" in ops(settle(small(body)))


def test_a_length_kept_from_zero_by_a_negative_number_stays() -> None:
    model = parse("(float[N,4,5] x) => (float[N,4,1] y) { a = ReduceSum(x, axes) c = Max(a, low) y = Sqrt(c) }",
                  axes=ints(-1), low=np.float32(-1))
    assert ops(settle(model, {"x": np.abs(normal(2, 4, 5))})) == ["ReduceSum", "Clip", "Sqrt"]


def test_the_op_of_a_newer_opset_is_the_quotient() -> None:
    newer = small("y = RMSNormalization <epsilon = 0.001> (x, g)", opset=23)
    form = settle(newer)
    assert form.proto.opset_import[0].version == 21
    assert is_isomorphic(newer, small(f"{MEAN} s = Sqrt(e) n = Div(x, s) y = Mul(n, g)"))
