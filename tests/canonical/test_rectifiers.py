"""Rectifiers and Softplus that converters spell out are one op."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from forms import normal, ops, parse, settle

from onnxfix.canonical import is_isomorphic

GIVEN = {
    "c": np.abs(normal(4, 1)) / 4, "n": -np.abs(normal(4, 1)) / 4, "k": np.float32(0.25), "minus": np.float32(-1),
    "zero": np.float32(0), "one": np.float32(1), "t": np.float32(20), "low": np.float32(5), "big": np.float32(100),
    "steep": np.float32(1.5), "column": normal(3, 1, 1),
}


def small(body: str) -> onnx.ModelProto:
    words = set(body.replace("(", " ").replace(")", " ").replace(",", " ").split())
    return parse(f"(float[N,4,5] x) => (float[N,4,5] y) {{ {body} }}",
                 **{k: v for k, v in GIVEN.items() if k in words})


@pytest.mark.parametrize(
    "body",
    [
        "p = Relu(x) m = Neg(x) q = Relu(m) s = Mul(n, q) y = Add(p, s)",
        "p = Relu(x) m = Mul(x, minus) q = Relu(m) s = Mul(q, c) y = Sub(p, s)",
        "p = Max(x, zero) q = Min(x, zero) s = Mul(q, c) y = Add(s, p)",
        "g = Greater(x, zero) s = Mul(x, c) y = Where(g, x, s)",
        "g = LessOrEqual(x, zero) s = Mul(c, x) y = Where(g, s, x)",
        "g = Less(zero, x) s = Mul(c, x) y = Where(g, x, s)",
        "s = Mul(x, c) y = Max(s, x)",
    ],
)
def test_rectifiers_with_slopes_are_prelu(body: str) -> None:
    assert ops(settle(small(body))) == ["PRelu"]
    assert is_isomorphic(small(body), small("y = PRelu(x, c)"))


@pytest.mark.parametrize(
    "body", ["s = Mul(x, k) y = Max(x, s)", "g = Greater(x, zero) s = Mul(x, k) y = Where(g, x, s)"]
)
def test_a_single_slope_is_a_leaky_relu(body: str) -> None:
    assert is_isomorphic(small(body), small("y = LeakyRelu <alpha = 0.25> (x)"))
    assert ops(settle(small(body))) == ["LeakyRelu"]


@pytest.mark.parametrize(
    "body",
    [
        "y = Softplus(x)",
        "g = Greater(x, t) s = Softplus(x) y = Where(g, x, s)",
        "g = Greater(x, t) e = Exp(x) a = Add(e, one) s = Log(a) y = Where(g, x, s)",
        "g = Less(x, t) e = Exp(x) a = Add(one, e) s = Log(a) y = Where(g, s, x)",
        "p = Relu(x) b = Abs(x) m = Neg(b) e = Exp(m) a = Add(e, one) s = Log(a) y = Add(p, s)",
    ],
)
def test_softplus_without_overflow(body: str) -> None:
    large = {"x": np.concatenate([normal(1, 4, 5) * 50, normal(1, 4, 5)])}
    assert ops(settle(small(body), large)) == ["Softplus"]


def test_tanh_of_a_softplus_that_overflows_is_mish() -> None:
    model = small("e = Exp(x) a = Add(e, one) s = Log(a) h = Tanh(s) y = Mul(x, h)")
    assert ops(settle(model, {"x": 40 * normal(2, 4, 5)})) == ["Mish"]


@pytest.mark.parametrize(
    "body",
    [
        "s = Mul(x, steep) y = Max(x, s)",
        "s = Mul(x, n) y = Max(x, s)",
        "g = Greater(x, one) s = Mul(x, c) y = Where(g, x, s)",
        "g = Greater(x, zero) s = Mul(x, c) y = Where(g, s, x)",
        "p = Relu(x) q = Relu(p) m = Neg(q) s = Mul(n, m) y = Add(p, s)",
        "p = Relu(x) m = Neg(x) q = Relu(m) s = Mul(n, q) y = Sub(s, p)",
        "g = Greater(x, low) s = Softplus(x) y = Where(g, x, s)",
        "g = Greater(x, big) e = Exp(x) a = Add(e, one) s = Log(a) y = Where(g, x, s)",
        "e = Exp(x) a = Add(e, one) y = Log(a)",
    ],
)
def test_other_things_stay(body: str) -> None:
    found = ops(settle(small(body)))
    assert "PRelu" not in found
    assert "LeakyRelu" not in found
    assert found != ["Softplus"]


def test_a_slope_that_makes_the_result_larger_is_none() -> None:
    model = parse("(float[1,4,5] x) => (float[3,4,5] y) { g = Greater(x, zero) s = Mul(x, column) y = Where(g, x, s) }",
                  zero=GIVEN["zero"], column=GIVEN["column"])
    assert "PRelu" not in ops(settle(model))
