from __future__ import annotations

import pytest
from forms import ints, normal, ops, parse, settle

from onnxfix.canonical import is_isomorphic


@pytest.mark.parametrize("op", ["Mul", "Add"])
def test_a_reshape_of_ones_beside_a_longer_constant_is_a_transpose(op: str) -> None:
    head = "(float[N,4,5,6] x) => (float[N,5,6,4] y) { m = ReduceMean(x, axes)"
    given = {"axes": ints(1), "c": normal(4)}
    reshaped = parse(f"{head} r = Reshape(m, to) y = {op}(r, c) }}", to=ints(0, 5, 6, 1), **given)
    transposed = parse(f"{head} r = Transpose <perm = [0, 2, 3, 1]> (m) y = {op}(r, c) }}", **given)
    assert ops(settle(reshaped)) == ["ReduceMean", op, "Transpose"]
    assert is_isomorphic(reshaped, transposed)


def test_a_constant_that_is_one_along_them_leaves_the_reshape() -> None:
    model = parse(
        "(float[N,4,5,6] x) => (float[N,5,6,1] y) { m = ReduceMean(x, axes) r = Reshape(m, to) y = Mul(r, c) }",
        axes=ints(1), to=ints(0, 5, 6, 1), c=normal(5, 6, 1),
    )
    assert "Transpose" not in ops(settle(model))


def test_a_layer_norm_whose_means_are_reshaped_into_the_other_layout_is_recognized() -> None:
    """onnxruntime turns Transposes of the means into Reshapes, and moves that of the map behind them."""
    model = parse(
        """(float[N,4,5,6] x) => (float[N,5,6,4] y) {
            m = ReduceMean(x, axes) d = Sub(x, m) q = Mul(d, d) v = ReduceMean(q, axes) e = Add(v, eps) s = Sqrt(e)
            r = Reciprocal(s) rt = Reshape(r, to) i = Mul(rt, g) mt = Reshape(m, to) k = Neg(mt) z = Mul(k, i)
            t = Add(z, b) xt = Transpose <perm = [0, 2, 3, 1]> (x) p = Mul(xt, i) y = Add(p, t) }""",
        axes=ints(1), to=ints(0, 5, 6, 1), g=normal(4), b=normal(4, seed=1), eps=normal(1)[0] ** 2 + 1,
    )
    assert ops(settle(model)) == ["Transpose", "LayerNormalization"]
