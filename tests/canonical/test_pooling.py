from __future__ import annotations

import numpy as np
import pytest
from forms import settle
from rewrites import ops, parse, rewrite

from onnxfix.canonical.defaults import ExplicitAttributes
from onnxfix.canonical.pooling import SpellPools
from onnxfix.canonical.reductions import SpellReductions

AXES = np.array([-1, 2])


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("ReduceMean(x, axes)", ["GlobalAveragePool"]),
        ("ReduceMax(x, axes)", ["GlobalMaxPool"]),
        ("AveragePool <kernel_shape = [5, 6], count_include_pad = 1> (x)", ["GlobalAveragePool"]),
        ("MaxPool <kernel_shape = [5, 6], strides = [3, 3]> (x)", ["GlobalMaxPool"]),
        ("AveragePool <kernel_shape = [5, 5]> (x)", ["AveragePool"]),
        ("AveragePool <kernel_shape = [5, 6], pads = [1, 1, 1, 1]> (x)", ["AveragePool"]),
    ],
)
def test_pools_over_the_whole_map(expression: str, expected: list[str]) -> None:
    model = parse(f"(float[N,3,5,6] x) => (float[N,3,h,w] y) {{ y = {expression} }}", axes=AXES)
    if "axes" not in expression:
        del model.graph.initializer[:]
    assert ops(rewrite(model, ExplicitAttributes(), SpellPools())) == expected


def test_reduction_that_drops_the_axes_is_reshaped() -> None:
    model = parse("(float[N,3,5,6] x) => (float[N,3] y) { y = ReduceMean <keepdims = 0> (x, axes) }", axes=AXES)
    assert ops(rewrite(model, SpellReductions(), SpellPools())) == ["GlobalAveragePool", "Reshape"]


def test_sequences_are_reduced() -> None:
    model = parse("(float[N,3,5] x) => (float[N,3,1] y) { y = GlobalAveragePool(x) }")
    assert ops(rewrite(model, SpellPools())) == ["ReduceMean"]


@pytest.mark.parametrize(("size", "left"), [(7, 0), (8, 1)])
def test_ceil_mode_is_dropped_where_it_makes_no_difference(size: int, left: int) -> None:
    model = parse(
        f"""(float[N,3,{size},7] x) => (float[N,3,h,w] y) {{
            y = MaxPool <kernel_shape = [3, 3], strides = [2, 2], ceil_mode = 1> (x)
        }}"""
    )
    graph = rewrite(model, ExplicitAttributes(), SpellPools())
    assert graph[0].attributes.get_int("ceil_mode") == left


@pytest.mark.parametrize("op", ["MaxPool", "AveragePool", "AveragePool count_include_pad = 1,"])
def test_windows_that_onnx_counts_and_runtimes_do_not(op: str) -> None:
    op, _, attribute = op.partition(" ")
    model = parse(
        f"""(float[N,2,3,4,4] x) => (float[N,2,h,w,d] y) {{
            y = {op} <{attribute} kernel_shape = [2, 2, 2], strides = [3, 3, 1], ceil_mode = 1> (x)
        }}"""
    )
    (pool,) = settle(model).proto.graph.node
    assert list(next(a.ints for a in pool.attribute if a.name == "pads")) == [0, 0, 0, 0, 1, 0]


def test_pools_of_same_size_round_up_once() -> None:
    model = parse(
        """(float[N,5,2] x) => (float[N,5,w] y) {
            y = AveragePool <auto_pad = "SAME_LOWER", ceil_mode = 1, kernel_shape = [1], strides = [3]> (x) }"""
    )
    settle(model)
