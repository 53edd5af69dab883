from __future__ import annotations

import numpy as np
import onnx
import pytest
from forms import constant, ints, normal, ops, parse, random_feeds, settle

from onnxfix.canonical import normal_form
from onnxfix.canonical.guard import check_values
from onnxfix.canonical.origins import invert, parameters_of
from onnxfix.errors import CanonicalizationError


@pytest.mark.parametrize(
    "body",
    ["Identity(x)", "Dropout(x)", "Dropout(x, half, off)", "Cast <to = 1> (x)", "Reshape(x, same)", "Reshape(x, open)",
     "Transpose <perm = [0, 1, 2]> (x)", "Expand(x, ones)", "Tile(x, ones)", "Slice(x, zeros, huge)", "Pad(x, nothing)",
     "Concat <axis = 1> (x)", "Mul(x, one)", "Div(x, one)", "Add(nil, x)", "Sub(x, nil)", "Sum(x)", "Slice(x, zeros, full)"],
)
def test_what_computes_nothing_is_removed(body: str) -> None:
    model = parse(
        f"(float[N,3,4] z) => (float[N,3,4] y) {{ x = Sigmoid(z) u = {body} y = Tanh(u) }}",
        same=ints(0, 3, 4), open=ints(-1, 3, 4), ones=ints(1, 1, 1), zeros=ints(0, 0, 0), huge=ints(2**62, 2**62, 2**62),
        full=ints(2**31 - 1, 3, 4), nothing=ints(0, 0, 0, 0, 0, 0), one=np.ones(1, np.float32), nil=np.zeros((), np.float32),
        half=np.float32(0.5), off=np.array(False),
    )
    assert ops(settle(model)) == ["Sigmoid", "Tanh"]


@pytest.mark.parametrize(
    ("body", "kept"),
    [("Mul(x, wide)", "Mul"), ("Add(x, tall)", "Add"), ("Expand(x, three)", "Expand"), ("Slice(x, zeros, two)", "Slice"),
     ("Dropout(x, half, on)", "Dropout")],
)
def test_what_looks_like_a_no_op_but_changes_the_value_is_kept(body: str, kept: str) -> None:
    """Ones and zeros that broadcast x to a larger shape, dropout in training."""
    model = parse(
        f"(float[1,4] x) => (float[a,b] y) {{ u = {body} y = Relu(u) }}", wide=np.ones((3, 4), np.float32),
        tall=np.zeros((3, 1), np.float32), three=ints(3, 4), zeros=ints(0, 0), two=ints(1, 2), half=np.float32(0.5),
        on=np.array(True),
    )
    assert kept in ops(normal_form(model))


def test_folded_constants_remember_their_expression_and_invert_it() -> None:
    model = parse(
        """(float[N,6] x) => (float[N,4] y) {
            t = Transpose <perm = [1, 0]> (k) u = Mul(t, s) v = Sqrt(q) w = Div(u, v) y = MatMul(x, w) }""",
        k=normal(4, 6), s=normal(4, seed=1), q=np.abs(normal(4, seed=2)) + 1,
    )
    form = settle(model)
    assert ops(form) == ["Gemm"]
    origin = form.origins["gemm_0.b"]
    assert parameters_of(origin) == ("k", "s", "q")
    wanted = constant(form, "Gemm", 1) + 1
    found = invert(origin, "k", wanted, form.parameters)
    scale = form.parameters["s"] / np.sqrt(form.parameters["q"])
    np.testing.assert_allclose(found.T * scale, wanted, rtol=1e-5)


def test_constant_nodes_are_parameters_of_their_output_name() -> None:
    model = parse("(float[N,2] x) => (float[N,2] y) { c = Constant <value_floats = [2.0, 3.0]> () d = Exp(c) y = Mul(x, d) }")
    form = settle(model)
    assert list(form.parameters) == ["c"]
    assert parameters_of(form.origins["mul_0.b"]) == ("c",)


def test_folding_does_not_grow_the_model() -> None:
    model = parse("(float[1000,1000] x) => (float[1000,1000] y) { e = Expand(c, shape) y = Max(x, e) }",
                  c=normal(1000), shape=ints(1000, 1000))
    assert sum(t.ByteSize() for t in normal_form(model).proto.graph.initializer) < 10_000


def test_unused_parts_go() -> None:
    model = parse("(float[N,2] x) => (float[N,2] y) { y = Relu(x) u = Mul(x, big) v = Exp(u) }", big=normal(100, 2))
    form = settle(parse("(float[N,2] x) => (float[N,2] y) { y = Relu(x) }"))
    assert normal_form(model).proto == form.proto


def test_the_guard_names_the_output_that_changed() -> None:
    model = parse("(float[N,3] x) => (float[N,2] good, float[N,2] bad) { good = MatMul(x, w) bad = MatMul(x, v) }",
                  w=normal(3, 2), v=normal(3, 2, seed=1))
    feeds = random_feeds(model, 4)
    canonical = normal_form(model, check=feeds).proto
    (name,) = (n.input[1] for n in canonical.graph.node if n.output[0] == "bad")
    (tensor,) = (t for t in canonical.graph.initializer if t.name == name)
    tensor.CopyFrom(onnx.numpy_helper.from_array(normal(3, 2, seed=1) * np.float32(1.01), name))
    with pytest.raises(CanonicalizationError, match="changes output bad"):
        check_values(model, canonical, feeds)
