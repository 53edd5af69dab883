from __future__ import annotations

import numpy as np
import onnx
import pytest
from forms import constant, ints, normal, ops, parse, settle


@pytest.mark.parametrize(
    "body",
    [
        "y = Flatten(x)",
        "y = Flatten <axis = -3> (x)",
        "y = Reshape(x, t)",
        "s = Shape(x) n = Gather(s, zero) m = Unsqueeze(n, zeros) c = Concat <axis = 0> (m, rest) y = Reshape(x, c)",
        "s = Shape <start = 0, end = 1> (x) c = Concat <axis = 0> (s, rest) y = Reshape(x, c)",
        "s = Shape(x) n = Slice(s, zeros, ones, zeros) c = Concat <axis = 0> (n, minus) y = Reshape(x, c)",
        "u = Unsqueeze(x, ones) r = Reshape(u, t)  q = Unsqueeze(r, ones) y = Squeeze(q, ones)",
    ],
)
def test_every_way_to_flatten_is_one_reshape(body: str) -> None:
    model = parse(
        f"(float[N,3,4,5] x) => (float[N,60] y) {{ {body} }}",
        t=ints(-1, 60), zero=np.array(0), zeros=ints(0), ones=ints(1), rest=ints(60), minus=ints(-1),
    )
    form = settle(model, batch=3)
    assert ops(form) == ["Reshape"]
    assert list(constant(form, "Reshape", 1)) == [0, 60]
    assert form.proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "N"


def test_sequence_lengths_stay_symbolic() -> None:
    """Heads are split off with the batch and the length both unknown."""
    model = parse(
        """(float[N,S,12] x) => (float[N,h,S,4] y) {
            s = Shape(x) n = Slice(s, zero, two, zero) c = Concat <axis = 0> (n, heads)
            r = Reshape(x, c) y = Transpose <perm = [0, 2, 1, 3]> (r) }""",
        zero=ints(0), two=ints(2), heads=ints(3, 4),
    )
    form = settle(model, {"x": normal(2, 7, 12)})
    assert ops(form) == ["Reshape", "Transpose"]
    assert list(constant(form, "Reshape", 1)) == [0, 0, 3, 4]


def test_a_target_that_no_constant_can_say_stays_computed() -> None:
    """[N, S, 4] -> [S, N, 4] by Reshape: neither dimension is in its place, and there is only one -1."""
    model = parse(
        "(float[N,S,4] x) => (float[S,N,4] y) { s = Shape(x) p = Gather(s, order) y = Reshape(x, p) }", order=ints(1, 0, 2)
    )
    assert ops(settle(model, {"x": normal(2, 3, 4)})) == ["Shape", "Gather", "Reshape"]


def test_equal_symbols_let_a_slice_and_an_expand_go() -> None:
    model = parse(
        """(float[N,4] x, float[N,4] z) => (float[N,4] y) {
            s = Shape(z) n = Gather(s, first) t = Slice(x, zero, n, zero) e = Expand(t, s) y = Relu(e) }""",
        first=ints(0), zero=ints(0),
    )
    assert ops(settle(model)) == ["Relu"]


def test_names_that_say_nothing_prove_nothing() -> None:
    """Exporters call every dimension they do not know '?': two of them need not be equal."""
    model = parse(
        "(float[N,4] x, float[M,4] z) => (float[K,4] y) { s = Shape(z) e = Expand(x, s) y = Relu(e) }"
    )
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "?"
    form = settle(model, {"x": normal(1, 4), "z": normal(3, 4)})
    assert "Expand" in ops(form)


def test_a_batch_frozen_into_a_target_is_left_out() -> None:
    model = parse("(float[N,4,1,1] x) => (float[1,4] y) { y = Reshape(x, t) }", t=ints(1, 4))
    form = settle(model, batch=1)
    assert list(constant(form, "Reshape", 1)) == [0, 4]


def test_reshapes_sink_through_elementwise_ops_and_cancel() -> None:
    model = parse(
        "(float[N,4,6] x) => (float[N,4,6] y) { f = Reshape(x, flat) r = Relu(f) m = Mul(r, two) y = Reshape(m, back) }",
        flat=ints(0, 24), back=ints(0, 4, 6), two=np.array(2, np.float32),
    )
    assert ops(settle(model)) == ["Relu", "Mul"]


@pytest.mark.parametrize(
    ("flat", "split", "bias", "passes"),
    [("8", "0, 2, 4", (2, 4), True), ("8", "0, 2, 4", (4,), False), ("8", "0, 2, 4", (2, 1), False), ("4,1,1", "0, 4", (4,), True),
     ("3,5", "0, 15", (15,), True)],
)
def test_a_bias_goes_through_a_reshape_that_keeps_it_whole(flat: str, split: str, bias: tuple[int, ...], passes: bool) -> None:
    result = "a, b, c" if split.count(",") == 2 else "a, b"
    model = parse(f"(float[N,{flat}] x) => (float[{result}] y) {{ r = Reshape(x, t) s = Add(r, b) y = Relu(s) }}",
                  t=ints(*map(int, split.split(","))), b=normal(*bias))
    assert ops(settle(model)) == (["Add", "Relu", "Reshape"] if passes else ["Reshape", "Add", "Relu"])


def test_value_info_holds_the_shape_of_every_value() -> None:
    model = parse("(float[N,3,8,8] x) => (float[N,5] y) { c = Conv(x, w) g = GlobalAveragePool(c) f = Flatten(g) y = Relu(f) }",
                  w=normal(5, 3, 3, 3))
    graph = settle(model).proto.graph
    known = {v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in (*graph.value_info, *graph.output)}
    assert all(known[name][0] == "N" for node in graph.node for name in node.output)
    assert isinstance(graph, onnx.GraphProto)


def test_a_new_axis_beside_nothing_gets_no_target_that_divides_by_zero() -> None:
    model = parse(
        """(float[2,6] x) => (float[0,1,3,1] y) {
            wrapped = Identity(e) s = Slice(x, b, wrapped, a, d) y = Unsqueeze(s, n) }""",
        b=ints(-1, 1), e=ints(-2147483648, 1), a=ints(-1, 0), d=ints(-2, 1), n=ints(-3, -1),
    )
    assert ops(settle(model)) == ["Slice", "Reshape"]
