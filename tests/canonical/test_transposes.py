from __future__ import annotations

import numpy as np
import pytest
from forms import constant, ints, normal, ops, parse, settle

from onnxfix.canonical.origins import parameters_of

TO_LAST, TO_FIRST = "perm = [0, 2, 3, 1]", "perm = [0, 3, 1, 2]"


@pytest.mark.parametrize(
    "op",
    ["Relu(t)", "Sigmoid(t)", "Softmax <axis = -1> (t)", "Softmax <axis = 1> (t)", "LeakyRelu(t)", "HardSwish(t)",
     "PRelu(t, c)", "Where(m, t, c)", "Pow(t, two)", "Tile(t, r)", "Pad(t, p)", "Slice(t, s, e, a)", "Resize(t, , sc)",
     "ReduceMax <keepdims = 1> (t, a)", "Gather <axis = 3> (t, i)", "Expand(t, shape)", "Concat <axis = 3> (t, t)"],
)
def test_transposes_around_an_op_cancel(op: str) -> None:
    model = parse(
        f"(float[N,3,4,5] x) => (float[N,h,i,j] y) {{ t = Transpose <{TO_LAST}> (x) u = {op} y = Transpose <{TO_FIRST}> (u) }}",
        c=normal(3), m=np.array([True, False, True]), two=np.array(2, np.float32), r=ints(1, 1, 2, 3),
        p=ints(0, 1, 0, 2, 0, 0, 3, 0), s=ints(1, 0), e=ints(3, 2), a=ints(2, 3), i=ints(2, 0),
        sc=np.array([1, 2, 3, 1], np.float32), shape=ints(1, 1, 1, 3),
    )
    assert "Transpose" not in ops(settle(model))


def test_a_tiled_batch_keeps_its_name_on_the_way_through_a_transpose() -> None:
    model = parse(
        f"""(float[N,1,4,4] x) => (float[b,h,w,i,c] y) {{
            t = Transpose <{TO_FIRST}> (x) u = Tile(t, r) y = Unsqueeze(u, a) }}""",
        r=ints(1, 1, 2, 1), a=ints(-2),
    )
    assert ops(settle(model)) == ["Tile", "Reshape", "Transpose"]


def test_reduction_without_kept_dimensions_takes_the_transpose_in() -> None:
    model = parse(
        f"(float[N,3,4,5] x) => (float[N,3] y) {{ t = Transpose <{TO_LAST}> (x) y = ReduceMax <keepdims = 0> (t, a) }}",
        a=ints(1, 2),
    )
    assert "Transpose" not in ops(settle(model))


def test_two_equally_transposed_operands_share_one_transpose_after() -> None:
    model = parse(
        f"""(float[N,3,4,5] a, float[N,3,4,5] b) => (float[N,4,5,3] y) {{
            s = Transpose <{TO_LAST}> (a) t = Transpose <{TO_LAST}> (b) y = Add(s, t) }}"""
    )
    assert ops(settle(model)) == ["Add", "Transpose"]


def test_residual_around_a_convolution_reuses_the_transpose_at_the_input() -> None:
    model = parse(
        f"""(float[N,4,5,3] x) => (float[N,4,5,3] y) {{
            t = Transpose <{TO_FIRST}> (x) c = Conv(t, w) u = Transpose <{TO_LAST}> (c) y = Add(x, u) }}""",
        w=normal(3, 3, 1, 1),
    )
    assert ops(settle(model)) == ["Transpose", "Conv", "Add", "Transpose"]


def test_gate_per_channel_meets_the_map_in_either_layout() -> None:
    """Squeeze and excitation: TFLite multiplies [N,H,W,C] by [N,1,1,C], PyTorch [N,C,H,W] by [N,C,1,1]."""
    kernel = normal(3, 3)
    last = parse(
        f"""(float[N,3,4,5] x) => (float[N,3,4,5] y) {{
            t = Transpose <{TO_LAST}> (x) m = ReduceMean <keepdims = 0> (t, a) g = MatMul(m, w)
            r = Reshape(g, shape) s = Sigmoid(r) u = Mul(t, s) y = Transpose <{TO_FIRST}> (u) }}""",
        a=ints(1, 2), w=kernel, shape=ints(-1, 1, 1, 3),
    )
    first = parse(
        """(float[N,3,4,5] x) => (float[N,3,4,5] y) {
            p = GlobalAveragePool(x) c = Conv(p, w) s = Sigmoid(c) y = Mul(s, x) }""",
        w=np.ascontiguousarray(kernel.T).reshape(3, 3, 1, 1),
    )
    assert ops(settle(last)) == ops(settle(first))
    assert "Transpose" not in ops(settle(last))


def test_flatten_order_goes_into_the_rows_of_the_kernel() -> None:
    model = parse(
        f"""(float[N,3,4,5] x) => (float[N,7] y) {{
            t = Transpose <{TO_LAST}> (x) f = Reshape(t, shape) r = Relu(f) y = MatMul(r, w) }}""",
        shape=ints(-1, 60), w=normal(60, 7),
    )
    form = settle(model)
    assert ops(form) == ["Relu", "Reshape", "Gemm"]
    expected = normal(60, 7).reshape(4, 5, 3, 7).transpose(2, 0, 1, 3).reshape(60, 7)
    np.testing.assert_array_equal(constant(form, "Gemm", 1), expected)
    assert parameters_of(form.origins["gemm_0.b"]) == ("w",)


def test_transpose_passes_a_reshape_that_keeps_its_blocks_apart() -> None:
    model = parse(
        f"""(float[N,3,4,5] x) => (float[N,3,20] y) {{
            t = Transpose <{TO_LAST}> (x) r = Reshape(t, shape) y = Transpose <perm = [0, 2, 1]> (r) }}""",
        shape=ints(0, 20, 3),
    )
    assert ops(settle(model)) == ["Reshape"]


def test_transpose_that_mixes_with_a_reshape_stays() -> None:
    """[C, H, W] -> [W, H, C] flattened is no reshape of [C, H, W]."""
    model = parse(
        "(float[N,3,4,5] x) => (float[N,60] y) { t = Transpose <perm = [0, 3, 2, 1]> (x) y = Reshape(t, shape) }",
        shape=ints(0, 60),
    )
    assert ops(settle(model)) == ["Transpose", "Reshape"]


def test_transpose_that_only_moves_ones_is_a_reshape() -> None:
    model = parse(f"(float[N,3,1,1] x) => (float[N,1,1,3] y) {{ y = Transpose <{TO_LAST}> (x) }}")
    assert ops(settle(model)) == ["Reshape"]


@pytest.mark.parametrize("scaling", ["Mul(x, s)", "Pad(x, p)"])
def test_padding_and_scaling_reach_the_convolution_across_the_boundary_transpose(scaling: str) -> None:
    model = parse(
        f"(float[N,4,5,3] x) => (float[N,2,h,i] y) {{ m = {scaling} t = Transpose <{TO_FIRST}> (m) y = Conv(t, w) }}",
        s=normal(3), p=ints(0, 1, 2, 0, 0, 0, 1, 0), w=normal(2, 3, 3, 3),
    )
    assert ops(settle(model)) == ["Transpose", "Conv"]


def test_a_vector_beside_a_transposed_map_stays_on_its_own_axis() -> None:
    """A [5] constant varies along the last axis of whatever it meets: after pushing, along the channels."""
    model = parse(
        f"(float[N,5,4,3] x) => (float[N,4,3,5] y) {{ t = Transpose <{TO_LAST}> (x) r = Relu(t) y = Mul(r, c) }}", c=normal(5)
    )
    form = settle(model)
    assert ops(form) == ["Relu", "Mul", "Transpose"]
    assert constant(form, "Mul", 1).shape == (5, 1, 1)
