from __future__ import annotations

import numpy as np
import onnx
import pytest
from forms import ints, normal, ops, parse, settle

from onnxfix.canonical import is_isomorphic
from onnxfix.canonical.pipeline import NormalForm


def attention(body: str, batch: str = "2", **constants: np.ndarray) -> NormalForm:
    """The scores of two heads over six steps, from queries and keys [B, 6, 2, 4]."""
    model = parse(
        f"(float[{batch},6,2,4] q, float[{batch},6,2,4] k) => (float[{batch},2,6,6] y) {{ {body} }}", **constants
    )
    return settle(model)


FOURFOLD = "a = Transpose<perm=[0,2,1,3]>(q) b = Transpose<perm=[0,2,3,1]>(k) s = MatMul(a, b) y = Softmax<axis=-1>(s)"


@pytest.mark.parametrize(
    "body",
    [
        # heads merged into the batch, as TFLite has it
        "c = Transpose<perm=[0,2,1,3]>(q) a = Reshape(c, flat) d = Transpose<perm=[0,2,1,3]>(k) e = Reshape(d, flat)"
        " b = Transpose<perm=[0,2,1]>(e) t = MatMul(a, b) s = Reshape(t, back) y = Softmax<axis=-1>(s)",
        # the same, with the Softmax before the heads are split
        "c = Transpose<perm=[0,2,1,3]>(q) a = Reshape(c, flat) d = Transpose<perm=[0,2,1,3]>(k) e = Reshape(d, flat)"
        " b = Transpose<perm=[0,2,1]>(e) t = MatMul(a, b) s = Softmax<axis=-1>(t) y = Reshape(s, back)",
    ],
)
def test_heads_merged_into_the_batch_are_heads(body: str) -> None:
    merged = attention(body, flat=ints(4, 6, 4), back=ints(2, 2, 6, 6))
    assert is_isomorphic(merged.proto, attention(FOURFOLD).proto)
    assert ops(merged).count("Transpose") == 2


def test_one_operand_may_have_ones_that_the_other_lacks() -> None:
    body = "(float[1,2,6,4] x, float[1,2,4,5] k) => (float[1,2,6,5] y) {{ {} y = MatMul(x, c) }}"
    same = settle(parse(body.format("c = Identity(k)")))
    dropped = settle(parse(body.format("c = Reshape(k, flat)"), flat=ints(2, 4, 5)))
    assert ops(same) == ["Reshape", "Reshape", "MatMul", "Reshape"]
    assert is_isomorphic(same.proto, dropped.proto)


def test_other_batches_are_not_merged() -> None:
    """[2, 3] and [3, 2] are not the same batch, though both are six."""
    body = "a = Reshape(x, flat) b = Reshape(k, flat) y = MatMul(a, b)"
    model = parse(f"(float[2,3,4,4] x, float[3,2,4,4] k) => (float[6,4,4] y) {{ {body} }}", flat=ints(6, 4, 4))
    assert ops(settle(model)) == ["Reshape", "Reshape", "MatMul"]


def test_a_transpose_that_only_a_reshape_reads_has_no_ones() -> None:
    text = "(float[3,4,1,2] x) => (float[8,3] y) {{ {} }}"
    whole = settle(parse(text.format("t = Transpose<perm=[1,3,0,2]>(x) y = Reshape(t, s)"), s=ints(8, 3)))
    squeezed = parse(
        text.format("z = Reshape(x, r) t = Transpose<perm=[1,2,0]>(z) y = Reshape(t, s)"), r=ints(3, 4, 2), s=ints(8, 3)
    )
    assert whole.proto.graph.node[1].op_type == "Transpose"
    assert is_isomorphic(whole.proto, settle(squeezed).proto)


@pytest.mark.parametrize("batch", ["1", "N"])
def test_a_sum_over_merged_axes_is_a_sum_over_the_map(batch: str) -> None:
    """Whether the map or the sequence of the sum is reshaped, and where, converters decide freely."""
    head = f"(float[{batch},6,4] s, float[{batch},2,3,4] x) => (float[{batch},5] y)"
    tail = "m = ReduceMean<keepdims=0>(r, axes) y = MatMul(m, w)"
    constants = {"w": normal(4, 5), "b": normal(4)}
    as_map = parse(f"{head} {{ t = Reshape(s, to) z = Add(t, x) q = Add(z, b) r = Relu(q) {tail} }}",
                   to=ints(-1, 2, 3, 4), axes=ints(1, 2), **constants)
    flat = parse(f"{head} {{ t = Reshape(x, to) z = Add(s, t) q = Add(z, b) r = Relu(q) {tail} }}",
                 to=ints(-1, 6, 4), axes=ints(1), **constants)
    assert is_isomorphic(settle(as_map).proto, settle(flat).proto)


def test_a_constant_may_have_ones_that_the_value_lacks() -> None:
    text = "(float[2,3] x) => (float[1,2,3] y) {{ {} y = Relu(z) }}"
    by_constant = settle(parse(text.format("z = Add(x, c)"), c=normal(1, 2, 3)))
    by_reshape = settle(parse(text.format("t = Reshape(x, s) z = Add(t, c)"), c=normal(2, 3), s=ints(1, 2, 3)))
    assert ops(by_constant) == ["Add", "Relu", "Reshape"]
    structure = [onnx.ModelProto.FromString(f.proto.SerializeToString()) for f in (by_constant, by_reshape)]
    assert is_isomorphic(*structure, weights=False)


def test_products_of_a_symbol_are_known_by_their_name() -> None:
    """Exporters name a merged batch ``2*N``; what splits it again gives N."""
    model = parse(
        "(float[N,2,4,3] x) => (float[N,2,4,3] y) { f = Reshape(x, s) r = Relu(f) y = Reshape(r, t) }",
        s=ints(-1, 4, 3), t=ints(-1, 2, 4, 3),
    )
    value = onnx.helper.make_tensor_value_info("f", onnx.TensorProto.FLOAT, ["2*N", 4, 3])
    model.graph.value_info.append(value)
    assert ops(settle(model)) == ["Relu"]


def test_equal_layers_with_large_kernels_are_one() -> None:
    text = "(float[N,80] x) => (float[N,80] y) { a = MatMul(x, v) b = MatMul(x, w) y = Add(a, b) }"
    kernel = normal(80, 80)
    assert ops(settle(parse(text, v=kernel, w=kernel.copy()))).count("Gemm") == 1
    other = kernel.copy()
    other[1, 1] += 1  # not among the elements by which large constants are looked up
    assert ops(settle(parse(text, v=kernel, w=other))).count("Gemm") == 2
