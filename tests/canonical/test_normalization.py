from __future__ import annotations

import numpy as np
import pytest
from rewrites import normal, ops, parse, rewrite

from onnxfix.canonical import is_isomorphic
from onnxfix.canonical.arithmetic import SpellArithmetic
from onnxfix.canonical.housekeeping import RemoveDeadCode
from onnxfix.canonical.normalization import FoldIntoLayerNorm, RecognizeLayerNorm

STATISTICS = """
    m = ReduceMean(x, axes) d = Sub(x, m) q = Mul(d, d) v = ReduceMean(q, axes) e = Add(v, eps) s = Sqrt(e)
"""
CONSTANTS = {"axes": np.array([-1]), "eps": np.float32(1e-3), "g": normal(5), "b": normal(5, seed=1)}


def recognized(body: str, **changed: np.ndarray) -> list[str]:
    constants = {**CONSTANTS, **changed}
    words = set(body.replace("(", " ").replace(")", " ").replace(",", " ").split())
    model = parse(
        f"(float[N,4,5] x) => (float[N,4,5] y) {{ {body} }}", **{k: v for k, v in constants.items() if k in words}
    )
    fold = FoldIntoLayerNorm()
    return ops(rewrite(model, SpellArithmetic(), RecognizeLayerNorm(), RemoveDeadCode(), fold, fold))


@pytest.mark.parametrize(
    "rest",
    [
        "n = Div(d, s) w = Mul(n, g) y = Add(w, b)",
        "r = Reciprocal(s) n = Mul(d, r) y = Mul(g, n)",
        "y = Div(d, s)",
        "r = Reciprocal(s) i = Mul(r, g) p = Mul(x, i) z = Mul(m, i) t = Sub(b, z) y = Add(p, t)",
        "r = Reciprocal(s) i = Mul(r, g) p = Mul(x, i) k = Neg(m) z = Mul(k, i) t = Add(z, b) y = Add(p, t)",
        "r = Reciprocal(s) p = Mul(x, r) z = Mul(m, r) y = Sub(p, z)",
    ],
)
def test_spelled_out_layer_normalization_is_recognized(rest: str) -> None:
    assert recognized(STATISTICS + rest) == ["LayerNormalization"]
    if "g" in rest:
        assert recognized(STATISTICS + rest, g=normal(1, 1, 5), axes=np.array([1, 2])) == ["LayerNormalization"]


@pytest.mark.parametrize(
    ("rest", "changed"),
    [
        ("r = Reciprocal(s) p = Mul(x, r) z = Mul(m, r) y = Add(p, z)", {}),
        ("r = Reciprocal(s) i = Mul(r, g) p = Mul(x, i) z = Mul(m, r) y = Sub(p, z)", {}),
        ("y = Div(x, s)", {}),
    ],
)
def test_other_things_are_not(rest: str, changed: dict[str, np.ndarray]) -> None:
    assert "LayerNormalization" not in recognized(STATISTICS + rest, **changed)


def test_an_epsilon_that_an_optimiser_left_out_is_none() -> None:
    """onnxscript drops the addition of 1e-12; the two are the same model."""
    head = "(float[N,4,5] x) => (float[N,4,5] y) { m = ReduceMean(x, axes) d = Sub(x, m) q = Mul(d, d)"
    tail = "y = Div(d, s) }"
    axes = {"axes": np.array([-1])}
    with_it = parse(f"{head} v = ReduceMean(q, axes) e = Add(v, eps) s = Sqrt(e) {tail}", eps=np.float32(1e-12), **axes)
    without = parse(f"{head} v = ReduceMean(q, axes) s = Sqrt(v) {tail}", **axes)
    assert ops(rewrite(without, RecognizeLayerNorm(), RemoveDeadCode())) == ["LayerNormalization"]
    assert is_isomorphic(with_it, without)
    visible = parse(f"{head} v = ReduceMean(q, axes) e = Add(v, eps) s = Sqrt(e) {tail}", eps=np.float32(1e-6), **axes)
    assert not is_isomorphic(visible, without)


def test_other_axes_are_normalized_between_transposes() -> None:
    found = recognized(STATISTICS + "n = Div(d, s) y = Mul(n, g)", axes=np.array([1]), g=normal(4, 1))
    assert found == ["Transpose", "LayerNormalization", "Transpose", "Mul"]


def test_a_factor_along_another_axis_is_not_folded() -> None:
    assert recognized(STATISTICS + "n = Div(d, s) y = Mul(n, g)", g=normal(4, 1)) == ["LayerNormalization", "Mul"]


def test_a_missing_bias_is_zeros() -> None:
    model = parse("(float[N,4,5] x) => (float[N,4,5] y) { y = LayerNormalization(x, g) }", g=normal(5))
    (norm,) = rewrite(model, FoldIntoLayerNorm())
    np.testing.assert_array_equal(norm.inputs[2].const_value.numpy(), np.zeros(5, np.float32))
