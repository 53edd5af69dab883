"""What stands at the boundary of a model or of a layer and makes no difference: unread inputs, widths, ones, rows."""

from __future__ import annotations

import numpy as np
import pytest
from forms import ints, normal, ops, parse, settle

from onnxfix.canonical import is_isomorphic


def test_inputs_that_nothing_reads_do_not_count() -> None:
    plain = parse("(float[N,3] x) => (float[N,3] y) { y = Relu(x) }")
    more = parse("(float[1,3] left, float[N,3] x) => (float[N,3] y) { y = Relu(x) }")
    assert is_isomorphic(plain, more)
    read = parse("(float[1,3] left, float[N,3] x) => (float[N,3] y) { z = Relu(x) y = Add(z, left) }")
    assert not is_isomorphic(plain, read)


def test_indices_of_32_and_64_bits_are_the_same() -> None:
    text = "({}[N,5] i) => (float[N,5,3] y) {{ y = Gather(table, i) }}"
    wide, narrow = (parse(text.format(kind), table=normal(7, 3)) for kind in ("int64", "int32"))
    assert is_isomorphic(wide, narrow)
    assert not is_isomorphic(wide, parse(text.format("int32"), table=normal(7, 3, seed=1)))


@pytest.mark.parametrize(
    "body",
    ["f = Reshape(i, flat) g = Gather(table, f) y = Reshape(g, back)", "u = Unsqueeze(i, last) y = GatherND(table, u)"],
)
def test_rows_are_gathered_by_the_indices_as_they_come(body: str) -> None:
    given = {"flat": ints(-1), "back": ints(-1, 5, 3), "last": ints(-1)}
    model = parse(f"(int64[N,5] i) => (float[N,5,3] y) {{ {body} }}", table=normal(7, 3),
                  **{name: value for name, value in given.items() if name in body})
    form = settle(model, {"i": np.array([[0, 6, 2, 2, -1], [1, 1, 1, 0, 3]])})
    assert ops(form) == ["Gather"]


@pytest.mark.parametrize(
    ("shape", "form"),
    [
        ("1,1", ["Reshape", "Gemm", "Reshape"]),
        ("1,1,1", ["Reshape", "Gemm", "Reshape"]),
        ("N,1", ["MatMul", "Add"]),
        ("N,1,1", ["MatMul", "Add"]),
    ],
)
def test_a_dense_layer_on_one_vector_is_a_gemm_and_others_keep_their_rank(shape: str, form: list[str]) -> None:
    model = parse(f"(float[{shape},3] x) => (float[{shape},4] y) {{ m = MatMul(x, w) y = Add(m, b) }}",
                  w=normal(3, 4), b=normal(4))
    assert ops(settle(model)) == form


def test_a_sequence_in_a_batch_of_one_is_one_with_or_without_the_batch() -> None:
    head, tail = "(float[1,6,4] x) => (float[1,6,4] y)", "n = LayerNormalization(s, g) p = MatMul(n, v)"
    given = {"w": normal(4, 4, seed=1), "v": normal(4, 4, seed=2), "g": normal(4), "perm": ints(1, 6, 4)}
    batched = parse(f"{head} {{ t = Reshape(x, apart) u = Transpose<perm=[0,1,3,2]>(t) f = Reshape(u, perm)"
                    f" m = MatMul(f, w) s = Add(m, x) {tail} y = Relu(p) }}", apart=ints(1, 6, 2, 2), **given)
    bare = parse(f"{head} {{ t = Reshape(x, apart) u = Transpose<perm=[0,2,1]>(t) f = Reshape(u, flat) q = Reshape(x, flat)"
                 f" m = MatMul(f, w) s = Add(m, q) {tail} r = Relu(p) y = Reshape(r, perm) }}",
                 apart=ints(6, 2, 2), flat=ints(6, 4), **given)
    assert is_isomorphic(settle(batched).proto, settle(bare).proto)


def test_a_norm_whose_scale_went_into_one_of_its_readers_keeps_it() -> None:
    """TFLite's converter folds the scale into the dense layers and writes it again for the residual."""
    head = "(float[N,5,4] x) => (float[N,5,4] y)"
    g, b, w, c = normal(4), normal(4, seed=1), normal(4, 4), normal(4, seed=2)
    whole = parse(f"{head} {{ n = LayerNormalization(x, g, b) m = MatMul(n, w) d = Add(m, c) y = Add(n, d) }}",
                  g=g, b=b, w=w, c=c)
    split = parse(
        f"{head} {{ n = LayerNormalization(x, ones) m = MatMul(n, v) d = Add(m, e)"
        " s = Mul(n, g) t = Add(s, b) y = Add(t, d) }",
        ones=np.ones(4, np.float32), g=g, b=b, v=g[:, None] * w, e=c + b @ w,
    )
    settled = settle(split)
    assert ops(settled) == ["LayerNormalization", "MatMul", "Add", "Add"]
    assert is_isomorphic(whole, split)
