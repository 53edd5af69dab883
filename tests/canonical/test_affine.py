from __future__ import annotations

import numpy as np
import pytest
from rewrites import normal, ops, parse, rewrite

from onnxfix.canonical.affine import FoldAffineAfter, FoldAffineBefore, MergeAffine, SplitBatchNorm
from onnxfix.canonical.bias import ExplicitBias
from onnxfix.canonical.origins import parameters_of
from onnxfix.canonical.rewriting import lowered_of, origin_of

BATCH_NORM = {"gamma": normal(4, seed=1), "beta": normal(4, seed=2), "mean": normal(4, seed=3), "var": np.abs(normal(4, seed=4)) + 0.1}


def test_batch_norm_goes_into_the_convolution_before_it() -> None:
    model = parse(
        """(float[N,3,5,6] x) => (float[N,4,3,4] y) {
            [conv] c = Conv(x, w)
            [bn] y = BatchNormalization <epsilon = 0.001> (c, gamma, beta, mean, var)
        }""",
        w=normal(4, 3, 3, 3), **BATCH_NORM,
    )
    graph = rewrite(model, ExplicitBias(), SplitBatchNorm(), FoldAffineAfter())
    assert ops(graph) == ["Conv"]
    assert lowered_of(graph[0]) == ("conv", "bn")
    assert set(parameters_of(origin_of(graph[0].inputs[1]))) == {"w", "gamma", "var"}
    assert set(parameters_of(origin_of(graph[0].inputs[2]))) == {"gamma", "beta", "mean", "var"}


@pytest.mark.parametrize(("groups", "rows", "columns"), [(1, 3, 4), (2, 4, 2), (4, 4, 1)])
def test_batch_norm_goes_into_transposed_convolutions_of_any_group(groups: int, rows: int, columns: int) -> None:
    model = parse(
        f"""(float[N,{rows},5,6] x) => (float[N,4,h,w] y) {{
            c = ConvTranspose <group = {groups}, strides = [2, 2]> (x, k, b)
            y = BatchNormalization (c, gamma, beta, mean, var)
        }}""",
        k=normal(rows, columns, 3, 3), b=normal(4, seed=9), **BATCH_NORM,
    )
    assert ops(rewrite(model, SplitBatchNorm(), FoldAffineAfter())) == ["ConvTranspose"]


@pytest.mark.parametrize(
    ("shape", "folded"),
    [((4, 1, 1), True), ((1, 4, 1, 1), True), ((), True), ((1,), True), ((4,), False), ((1, 4), False), ((4, 1), False)],
)
def test_only_constants_per_channel_are_folded(shape: tuple[int, ...], folded: bool) -> None:
    """The map is 4 wide and has 4 channels: a [4] factor acts on the width."""
    model = parse(
        "(float[N,3,4,4] x) => (float[N,4,4,4] y) { c = Conv(x, w, b) d = Mul(c, s) y = Add(t, d) }",
        w=normal(4, 3, 1, 1), b=normal(4), s=normal(*shape, seed=1), t=normal(*shape, seed=2),
    )
    assert ops(rewrite(model, FoldAffineAfter())) == (["Conv"] if folded else ["Conv", "Mul", "Add"])


def test_a_value_that_others_read_is_not_scaled() -> None:
    for text in (
        "(float[N,3,4,4] x) => (float[N,4,4,4] y) { c = Conv(x, w, b) d = Mul(c, s) y = Add(c, d) }",
        "(float[N,3,4,4] x) => (float[N,4,4,4] c, float[N,4,4,4] y) { c = Conv(x, w, b) y = Mul(c, s) }",
    ):
        model = parse(text, w=normal(4, 3, 1, 1), b=normal(4), s=normal(4, 1, 1))
        assert "Mul" in ops(rewrite(model, FoldAffineAfter()))


def test_dense_layers_take_scale_and_shift() -> None:
    model = parse(
        "(float[N,3] x) => (float[N,4] y) { c = Gemm(x, w, b) d = Mul(c, s) y = Add(d, t) }",
        w=normal(3, 4), b=normal(4), s=normal(4, seed=1), t=normal(1, 4),
    )
    assert ops(rewrite(model, FoldAffineAfter())) == ["Gemm"]
    model = parse(
        "(float[N,5,3] x) => (float[N,5,4] y) { c = MatMul(x, w) y = Mul(c, s) }", w=normal(3, 4), s=normal(4, seed=1)
    )
    assert ops(rewrite(model, FoldAffineAfter())) == ["MatMul"]


@pytest.mark.parametrize(("pads", "left"), [("0, 0, 0, 0", ["Conv"]), ("1, 1, 1, 1", ["Add", "Conv"])])
@pytest.mark.parametrize("groups", [1, 2])
def test_shift_before_a_convolution_is_folded_only_without_padding(pads: str, left: list[str], groups: int) -> None:
    model = parse(
        f"""(float[N,4,5,6] x) => (float[N,6,h,w] y) {{
            d = Add(x, t)
            y = Conv <pads = [{pads}], group = {groups}> (d, k, b)
        }}""",
        k=normal(6, 4 // groups, 3, 3), b=normal(6), t=normal(4, 1, 1, seed=2),
    )
    assert ops(rewrite(model, FoldAffineBefore())) == left


@pytest.mark.parametrize("groups", [1, 2])
def test_scale_before_a_padded_convolution_is_folded(groups: int) -> None:
    model = parse(
        f"""(float[N,4,5,6] x) => (float[N,6,h,w] y) {{
            d = Mul(x, s)
            y = Conv <pads = [1, 1, 1, 1], group = {groups}> (d, k, b)
        }}""",
        k=normal(6, 4 // groups, 3, 3), b=normal(6), s=normal(4, 1, 1, seed=2),
    )
    assert ops(rewrite(model, FoldAffineBefore())) == ["Conv"]


def test_scale_and_shift_before_a_dense_layer_are_folded() -> None:
    model = parse(
        "(float[N,3] x) => (float[N,4] y) { m = Mul(x, s) a = Add(m, t) y = Gemm(a, w, b) }",
        w=normal(3, 4), b=normal(4), s=normal(3, seed=1), t=normal(3, seed=2),
    )
    assert ops(rewrite(model, FoldAffineBefore(), FoldAffineBefore())) == ["Gemm"]


def test_chains_become_one_scale_and_one_shift() -> None:
    model = parse(
        """(float[N,3,4,4] x) => (float[N,3,4,4] y) {
            a = Add(x, t) b = Mul(a, s) c = Mul(u, b) y = Add(c, t)
        }""",
        s=np.float32(0.5), t=normal(3, 1, 1), u=normal(3, 1, 1, seed=3),
    )
    merge = MergeAffine()
    assert ops(rewrite(model, merge, merge, merge)) == ["Mul", "Add"]


def test_chains_whose_constant_would_grow_are_left() -> None:
    model = parse(
        "(float[N,3,4,5] x) => (float[N,3,4,5] y) { a = Mul(x, s) y = Mul(a, t) }", s=normal(3, 1, 1), t=normal(5)
    )
    assert ops(rewrite(model, MergeAffine())) == ["Mul", "Mul"]
