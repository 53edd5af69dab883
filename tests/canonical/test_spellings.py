"""Spellings that converge: reductions, gathers, masks, scaled clips, blocks behind reshapes, axes of size one."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from forms import constant, ints, normal, ops, parse, settle

from onnxfix import is_isomorphic
from onnxfix.canonical import normal_form

INF = np.float32(np.inf)


@pytest.mark.parametrize("op", ["ReduceMean", "ReduceMax", "ReduceL2", "ReduceLogSumExp"])
def test_reductions_keep_their_axes(op: str) -> None:
    form = settle(parse(f"(float[N,1,6,5] x) => (float[N,5] y) {{ y = {op} <keepdims = 0> (x, a) }}", a=ints(1, 2)))
    assert ops(form) == [op, "Reshape"]
    assert constant(form, op, 1).tolist() == [2]


def test_the_mean_over_ones_is_the_value() -> None:
    assert ops(settle(parse("(float[N,1,5] x) => (float[N,5] y) { y = ReduceMean <keepdims = 0> (x, a) }", a=ints(1)))) == [
        "Reshape"
    ]


@pytest.mark.parametrize(
    ("index", "start", "end"),
    [(np.array(2), 2, 3), (np.array(-1), 5, 2**63 - 1), (ints(1, 2), 1, 3), (ints(-2, -1), 4, 2**63 - 1)],
)
def test_neighbouring_places_are_a_slice(index: np.ndarray, start: int, end: int) -> None:
    kept = "float[N,k,5]" if index.ndim else "float[N,5]"
    form = settle(parse(f"(float[N,6,5] x) => ({kept} y) {{ y = Gather <axis = 1> (x, i) }}", i=index.astype(np.int64)))
    assert ops(form)[0] == "Slice"
    assert [constant(form, "Slice", k).tolist() for k in (1, 2, 3)] == [[start], [end], [1]]


@pytest.mark.parametrize("index", [ints(0, 2), ints(2, 1), ints(1, 1)])
def test_other_places_are_gathered(index: np.ndarray) -> None:
    form = settle(parse("(float[N,6,5] x) => (float[N,2,5] y) { y = Gather <axis = 1> (x, i) }", i=index))
    assert ops(form) == ["Gather"]


def masked(mask: np.ndarray) -> np.ndarray:
    form = settle(parse("(float[N,3,3] x) => (float[N,3,3] y) { z = Add(x, m) y = Softmax <axis = 2> (z) }", m=mask))
    return constant(form, "Add", 1)


def test_masks_hide_with_the_lowest_number() -> None:
    lowest = np.finfo(np.float32).min
    causal = np.triu(np.full((3, 3), -INF), 1).astype(np.float32)
    np.testing.assert_array_equal(masked(causal), np.triu(np.full((3, 3), lowest), 1))


def test_a_row_that_is_hidden_altogether_stays_so() -> None:
    mask = np.zeros((3, 3), np.float32)
    mask[1] = -INF
    np.testing.assert_array_equal(masked(mask), mask)


def test_a_positive_scale_goes_through_a_clip_into_the_layer() -> None:
    text = """(float[N,4] x) => (float[N,3] y) {
        g = Gemm(x, w, b) c = Clip(g, low, high) y = Mul(c, s) }"""
    weights = {"w": normal(4, 3), "b": normal(3), "low": np.float32(0), "high": np.float32(6)}
    form = settle(parse(text, **weights, s=np.float32(0.5)))
    assert ops(form) == ["Gemm", "Clip"]
    assert constant(form, "Clip", 2) == 3
    assert ops(settle(parse(text, **weights, s=np.float32(-0.5)))) == ["Gemm", "Clip", "Mul"]


def test_scale_and_shift_of_a_norm_go_into_the_only_dense_layer_behind_it() -> None:
    text = "(float[N,5,4] x) => (float[N,5,3] y) { n = LayerNormalization(x, g, b) y = MatMul(n, w) }"
    form = settle(parse(text, g=normal(4), b=normal(4, seed=1), w=normal(4, 3)))
    assert ops(form) == ["LayerNormalization", "MatMul", "Add"]
    np.testing.assert_array_equal(constant(form, "LayerNormalization", 1), np.ones(4))


def test_a_norm_that_others_read_keeps_its_scale() -> None:
    text = "(float[N,5,4] x) => (float[N,5,4] y) { n = LayerNormalization(x, g, b) m = MatMul(n, w) y = Add(m, n) }"
    form = settle(parse(text, g=normal(4), b=normal(4, seed=1), w=normal(4, 4)))
    np.testing.assert_array_equal(constant(form, "LayerNormalization", 1), normal(4))




@pytest.mark.parametrize("batch", ["N", "1"])
def test_softmax_and_norms_before_or_behind_a_reshape(batch: str) -> None:
    first = f"(float[{batch},6,4] x) => (float[{batch},2,3,4] y) {{ r = Reshape(x, s) y = Softmax <axis = 3> (r) }}"
    second = f"(float[{batch},6,4] x) => (float[{batch},2,3,4] y) {{ r = Softmax <axis = 2> (x) y = Reshape(r, s) }}"
    models = [parse(text, s=ints(0, 2, 3, 4)) for text in (first, second)]
    assert is_isomorphic(*models)
    assert ops(settle(models[0])) == ["Softmax", "Reshape"]


def test_products_of_computed_matrices_have_no_batch_of_one() -> None:
    first = parse("(float[1,2,3,4] x) => (float[1,2,3,3] y) { t = Transpose <perm = [0, 1, 3, 2]> (x) y = MatMul(x, t) }")
    second = parse(
        """(float[1,2,3,4] x) => (float[1,2,3,3] y) {
            f = Reshape(x, s) t = Transpose <perm = [0, 2, 1]> (f) p = MatMul(f, t) y = Reshape(p, u) }""",
        s=ints(2, 3, 4), u=ints(1, 2, 3, 3),
    )
    settle(first)
    assert is_isomorphic(first, second)


def test_where_ones_stand_around_a_transpose_is_no_difference() -> None:
    first = parse(
        "(float[4,6] x) => (float[1,3,2,4] y) { r = Reshape(x, s) y = Transpose <perm = [1, 3, 2, 0]> (r) }",
        s=ints(4, 1, 2, 3),
    )
    second = parse(
        "(float[4,6] x) => (float[1,3,2,4] y) { r = Reshape(x, s) y = Transpose <perm = [0, 3, 2, 1]> (r) }",
        s=ints(1, 4, 2, 3),
    )
    settle(first)
    assert is_isomorphic(first, second)


def test_a_fixed_batch_and_a_symbolic_one_are_the_same_model() -> None:
    text = """(float[{0},3,4] x) => (float[{0},4,4] y) {{
        s = Shape(x) n = Gather(s, zero) k = Unsqueeze(n, zeros) w = Concat <axis = 0> (k, rest)
        e = Expand(token, w) y = Concat <axis = 1> (e, x) }}"""
    given = {"zero": np.array(0), "zeros": ints(0), "rest": ints(1, 4), "token": normal(1, 1, 4)}
    free, fixed = (parse(text.format(batch), **given) for batch in ("N", "1"))
    assert ops(settle(fixed)) == ["Concat"]
    assert "Expand" in ops(settle(free))
    assert is_isomorphic(free, fixed)
    assert is_isomorphic(fixed, free)
    assert not is_isomorphic(free, parse(text.format("1"), **{**given, "token": normal(1, 1, 4, seed=9)}))


def lstm(bias: np.ndarray | None, state: bool) -> onnx.ModelProto:
    operands = ", ".join(["x, w, r", "b" if bias is not None else "", "", *(["h, h"] if state else [])])
    weights = {"w": normal(1, 8, 3), "r": normal(1, 8, 2)}
    extra = {**({} if bias is None else {"b": bias}), **({"h": np.zeros((1, 4, 2), np.float32)} if state else {})}
    return parse(
        f"(float[5,4,3] x) => (float[5,1,4,2] y) {{ y, h_n, c_n = LSTM <hidden_size = 2> ({operands}) }}", **weights, **extra
    )


def test_recurrent_layers_leave_out_defaults_and_add_their_biases() -> None:
    bias = normal(1, 16)
    together = np.concatenate([bias[:, :8] + bias[:, 8:], np.zeros((1, 8), np.float32)], 1)
    assert is_isomorphic(lstm(bias, True), lstm(together, False))
    assert is_isomorphic(lstm(None, True), lstm(np.zeros((1, 16), np.float32), False))
    assert not is_isomorphic(lstm(bias, True), lstm(bias + np.float32(0.1), True))
    settle(lstm(bias, True))


def test_identities_in_bodies_are_no_difference() -> None:
    text = """(float[N,2] x, bool c) => (float[N,2] y) {{
        y = If (c) <then_branch = t () => (float[N,2] a) {{ {0} }}, else_branch = e () => (float[N,2] b) {{ b = Neg(x) }}> }}"""
    plain = parse(text.format("p = Relu(x) a = Exp(p)"))
    wrapped = parse(text.format("i = Identity(x) p = Relu(i) q = Identity(p) r = Exp(q) a = Identity(r)"))
    before = wrapped.SerializeToString(deterministic=True)
    assert is_isomorphic(plain, wrapped)
    assert wrapped.SerializeToString(deterministic=True) == before
    assert len(normal_form(wrapped).proto.graph.node) == 1


def test_values_joined_behind_reshapes_are_joined_before() -> None:
    first = parse(
        """(float[N,3,1,1] x, float[N,2,1,1] z) => (float[N,1,1,5] y) {
            a = Reshape(x, s) b = Reshape(z, t) y = Concat <axis = 3> (a, b) }""",
        s=ints(0, 1, 1, 3), t=ints(0, 1, 1, 2),
    )
    assert ops(settle(first)) == ["Concat", "Reshape"]


def test_padding_and_slicing_before_or_behind_a_reshape() -> None:
    text = """(float[N,2,3,5] x) => (float[N,6,4] y) {
        r = Reshape(x, s) p = Pad(r, pads) y = Slice(p, from, to, axis) }"""
    form = settle(parse(text, s=ints(0, 6, 5), pads=ints(0, 0, 2, 0, 0, 0), **{"from": ints(1), "to": ints(5), "axis": ints(2)}))
    assert ops(form) == ["Pad", "Slice", "Reshape"]
    split = parse("(float[N,6,5] x) => (float[N,2,3,7] y) { r = Reshape(x, s) y = Pad(r, pads) }",
                  s=ints(0, 2, 3, 5), pads=ints(0, 0, 0, 2, 0, 0, 0, 0))
    assert ops(settle(split)) == ["Pad", "Reshape"]
    cut = parse("(float[N,6,5] x) => (float[N,4,3,5] y) { r = Reshape(x, s) y = Pad(r, pads) }",
                s=ints(0, 2, 3, 5), pads=ints(0, 1, 0, 0, 0, 1, 0, 0))
    assert ops(settle(cut)) == ["Reshape", "Pad"]


def test_a_constant_that_one_number_fills_is_that_number() -> None:
    filled = np.full((3, 5), 1.5, np.float32)
    form = settle(parse("(float[N,3,5] x) => (float[N,3,5] y) { y = Mul (x, c) }", c=filled))
    assert constant(form, "Mul", 1).tolist() == 1.5


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        ("float[N,3,5]", np.full(5, 1.5, np.float32)),  # a scale by channel
        ("float[N,3,5]", np.zeros((3, 5), np.float32)),  # a weight that got lost
        ("float[N,1,5]", np.full((3, 5), 1.5, np.float32)),  # it widens what it scales
        ("float[N,M,5]", np.full((3, 5), 1.5, np.float32)),  # it may
    ],
)
def test_other_constants_keep_their_size(kind: str, content: np.ndarray) -> None:
    wide = kind.replace("N,1,", "N,3,").replace("N,M,", "N,3,")
    form = settle(parse(f"({kind} x) => ({wide} y) {{ s = Mul (x, c) y = Relu (s) }}", c=content), batch=3)
    assert constant(form, "Mul", 1).shape == content.shape


def test_a_sum_is_additions() -> None:
    form = settle(parse("(float[N,5] x, float[5] z) => (float[N,5] y) { y = Sum (x, c, z) }", c=normal(5)))
    assert sorted(set(ops(form))) == ["Add", "Reshape"]
