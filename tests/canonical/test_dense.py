from __future__ import annotations

import numpy as np
import pytest
from rewrites import normal, ops, parse, rewrite

from onnxfix.canonical.affine import MergeAffine
from onnxfix.canonical.arithmetic import SpellArithmetic
from onnxfix.canonical.bias import ExplicitBias
from onnxfix.canonical.defaults import ExplicitAttributes, WideIndices
from onnxfix.canonical.dense import LiftFlattening, SpellDense
from onnxfix.canonical.origins import parameters_of
from onnxfix.canonical.rewriting import array, origin_of


def test_matrix_products_become_gemm() -> None:
    graph = rewrite(parse("(float[N,3] x) => (float[N,4] y) { y = MatMul(x, w) }", w=normal(3, 4)), SpellDense())
    assert ops(graph) == ["Gemm"]
    np.testing.assert_array_equal(array(graph[0].inputs[2]), np.zeros(4, np.float32))


def test_products_of_higher_rank_stay() -> None:
    model = parse("(float[N,5,3] x) => (float[N,5,4] y) { y = MatMul(x, w) }", w=normal(3, 4))
    assert ops(rewrite(model, SpellDense())) == ["MatMul"]


@pytest.mark.parametrize("shape", [(4,), (1, 4), (1,), (), (1, 1)])
def test_gemm_factors_go_into_its_constants(shape: tuple[int, ...]) -> None:
    model = parse(
        "(float[N,3] x) => (float[N,4] y) { y = Gemm <alpha = 0.5, beta = 2.0, transB = 1> (x, w, c) }",
        w=normal(4, 3), c=normal(*shape),
    )
    (gemm,) = rewrite(model, SpellDense())
    assert gemm.attributes.get_float("alpha") == gemm.attributes.get_float("beta") == 1.0
    assert gemm.attributes.get_int("transB") == 0
    assert array(gemm.inputs[1]).shape == (3, 4)
    assert array(gemm.inputs[2]).shape == (4,)
    assert parameters_of(origin_of(gemm.inputs[2])) == ("c",)


def test_gemm_whose_bias_varies_by_row_keeps_it() -> None:
    model = parse("(float[4,4] x) => (float[4,4] y) { y = Gemm <beta = 2.0> (x, w, c) }", w=normal(4, 4), c=normal(4, 1))
    (gemm,) = rewrite(model, SpellDense())
    assert array(gemm.inputs[2]).shape == (4, 1)


def test_pointwise_convolution_of_one_position_is_dense() -> None:
    model = parse(
        "(float[N,3,1,1] x) => (float[N,4,1,1] y) { y = Conv(x, w, b) }", w=normal(4, 3, 1, 1), b=normal(4)
    )
    assert ops(rewrite(model, SpellDense())) == ["Reshape", "Gemm", "Reshape"]


@pytest.mark.parametrize(
    ("expression", "shape"),
    [("Conv <group = 2> (x, w)", (6, 2, 3, 3)), ("ConvTranspose <group = 2> (x, w)", (4, 3, 3, 3))],
)
def test_convolutions_get_a_bias(expression: str, shape: tuple[int, ...]) -> None:
    model = parse(f"(float[N,4,5,6] x) => (float[N,6,h,w] y) {{ y = {expression} }}", w=normal(*shape))
    graph = rewrite(model, ExplicitBias())
    np.testing.assert_array_equal(array(graph[0].inputs[2]), np.zeros(6, np.float32))


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("Sub(x, c)", ["Add"]),
        ("Sub(c, x)", ["Mul", "Add"]),
        ("Div(x, c)", ["Mul"]),
        ("Neg(x)", ["Mul"]),
        ("Div(one, x)", ["Reciprocal"]),
        ("Pow(x, two)", ["Mul"]),
    ],
)
def test_arithmetic_is_addition_and_multiplication(expression: str, expected: list[str]) -> None:
    constants = {"c": normal(3), "one": np.float32(1), "two": np.float32(2)}
    used = {name: value for name, value in constants.items() if f"{name})" in expression or f"({name}" in expression}
    model = parse(f"(float[N,3] x) => (float[N,3] y) {{ y = {expression} }}", **used)
    assert ops(rewrite(model, SpellArithmetic())) == expected


def test_a_quotient_that_is_rounded_stays() -> None:
    """3 / 0.3 is 10 in float32, 3 * (1 / 0.3) may not be: floor would make a whole step of it."""
    for divisor, expected in ((0.3, ["Div", "Floor"]), (0.25, ["Mul", "Floor"])):
        model = parse(
            "(float[N,3] x) => (float[N,3] y) { q = Div(x, c) y = Floor(q) }", c=np.float32(divisor)
        )
        assert ops(rewrite(model, SpellArithmetic())) == expected


def test_a_quotient_that_is_rounded_later_stays_and_chains_before_it_are_not_merged() -> None:
    model = parse(
        "(float[N,3] x) => (float[N,3] y) { q = Div(x, c) a = Add(q, c) r = Reshape(a, s) y = Floor(r) }",
        c=np.float32(0.3), s=np.array([-1, 3]),
    )
    assert ops(rewrite(model, SpellArithmetic())) == ["Div", "Add", "Reshape", "Floor"]
    model = parse(
        "(float[N,3] x) => (float[N,3] y) { a = Add(x, c) m = Mul(a, c) y = Floor(m) }", c=np.float32(0.3)
    )
    assert ops(rewrite(model, MergeAffine())) == ["Add", "Mul", "Floor"]


def test_attributes_are_spelled_out() -> None:
    model = parse(
        "(float[N,3,5,6] x) => (float[w,h,4,N] y) { c = Conv(x, k) s = Softmax(c) y = Transpose(s) }", k=normal(4, 3, 2, 2)
    )
    conv, softmax, transpose = rewrite(model, ExplicitAttributes())
    assert {k: v.value for k, v in conv.attributes.items()} == {
        "auto_pad": "NOTSET", "dilations": (1, 1), "group": 1, "kernel_shape": (2, 2), "pads": (0, 0, 0, 0), "strides": (1, 1)
    }
    assert softmax.attributes.get_int("axis") == 3
    assert list(transpose.attributes.get_ints("perm")) == [3, 2, 1, 0]


def test_flattening_before_a_dense_layer_moves_behind_it() -> None:
    model = parse(
        "(float[N,5,3] x) => (float[N,5,4] y) { f = Reshape(x, flat) g = Gemm(f, w, b) y = Reshape(g, back) }",
        w=normal(3, 4), b=normal(4), flat=np.array([-1, 3]), back=np.array([-1, 5, 4]),
    )
    assert ops(rewrite(model, LiftFlattening())) == ["MatMul", "Add", "Reshape", "Reshape"]


@pytest.mark.parametrize("shape", ["N,1,3", "N,1,1,3"])
def test_dropping_ones_before_a_dense_layer_stays(shape: str) -> None:
    model = parse(
        f"(float[{shape}] x) => (float[N,4] y) {{ f = Reshape(x, flat) y = Gemm(f, w, b) }}",
        w=normal(3, 4), b=normal(4), flat=np.array([0, 3]),
    )
    assert ops(rewrite(model, LiftFlattening())) == ["Reshape", "Gemm"]


def test_flattening_of_heads_before_a_dense_layer_keeps_the_sequence() -> None:
    model = parse(
        "(float[2,5,3,2] x) => (float[2,5,4] y) { f = Reshape(x, flat) g = Gemm(f, w, b) y = Reshape(g, back) }",
        w=normal(6, 4), b=normal(4), flat=np.array([10, 6]), back=np.array([2, 5, 4]),
    )
    graph = rewrite(model, LiftFlattening())
    assert ops(graph) == ["Reshape", "MatMul", "Add"]
    assert array(graph[0].inputs[1]).tolist() == [2, 5, 6]


def test_constant_indices_are_wide() -> None:
    (gather,) = rewrite(
        parse("(float[N,3] x) => (float[N,2] y) { y = Gather <axis = 1> (x, i) }", i=np.array([0, 2], np.int32)), WideIndices()
    )
    assert array(gather.inputs[1]).dtype == np.int64
