"""Recurrent layers: written out, as loops, backwards, in both directions, they are the one layer that they compute."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from forms import constant, ints, normal, ops, parse, settle
from onnx import helper, numpy_helper
from recurrent_forms import GATES, STATES, Weights, Writer, cell, loop, model, unrolled

import onnxfix

STYLES = [("LSTM", "cut"), ("LSTM", "apart"), ("LSTM", "joined"), ("GRU", "cut"), ("GRU", "before"), ("GRU", "lerp"),
          ("GRU", "swapped"), ("RNN", "cut"), ("RNN", "joined")]


def layer(weights: Weights, steps: int = 5, *, backwards: bool = False, after: bool = True) -> onnx.ModelProto:
    """The op itself, from states of zeros, over ``x [T, N, I]``."""
    writer = Writer()
    attributes = {"hidden_size": weights.size, "direction": "reverse" if backwards else "forward"}
    if weights.op == "GRU":
        attributes["linear_before_reset"] = int(after)
    bias = np.concatenate([weights.bias, weights.inner])[None]
    answers = writer(weights.op, "x", writer.constant(weights.kernel.T[None].copy()),
                     writer.constant(weights.recurrent.T[None].copy()), writer.constant(bias), **attributes)
    result = writer("Squeeze", answers, writer.ints(1))
    return model(writer, [("x", [steps, "N", weights.inputs])], {result: [steps, "N", weights.size]})


@pytest.mark.parametrize(("op", "style"), STYLES)
@pytest.mark.parametrize("backwards", [False, True])
def test_a_loop_that_runs_a_cell_is_the_layer(op: str, style: str, backwards: bool) -> None:
    form = settle(loop(Weights(op), style=style, backwards=backwards, carried=backwards))
    assert ops(form).count(op) == 1
    assert "Loop" not in ops(form)


@pytest.mark.parametrize(("op", "style"), STYLES)
@pytest.mark.parametrize("zeros", [False, True])
def test_steps_written_out_are_the_layer(op: str, style: str, zeros: bool) -> None:
    form = settle(unrolled(Weights(op), style=style, zeros=zeros, backwards=zeros, stacked=not zeros))
    assert ops(form).count(op) == 1
    assert not {"Sigmoid", "Tanh", "Gemm", "MatMul"} & set(ops(form))


@pytest.mark.parametrize("op", GATES)
def test_loops_and_layers_meet(op: str) -> None:
    written = loop(Weights(op))
    del written.graph.output[1 : 1 + STATES[op]]
    assert onnxfix.is_isomorphic(written, layer(Weights(op)))


def test_a_gru_that_resets_before_its_product_is_another_layer() -> None:
    first, second = (settle(loop(Weights("GRU"), style=style)).proto for style in ("cut", "before"))
    resets = [a.i for m in (first, second) for n in m.graph.node for a in n.attribute if a.name == "linear_before_reset"]
    assert resets == [1, 0]


def test_a_step_with_a_weight_of_its_own_keeps_the_steps_around_it_apart() -> None:
    written = unrolled(Weights("LSTM"), steps=4)
    third = [n for n in written.graph.node if n.op_type == "MatMul"][2]
    (tensor,) = (t for t in written.graph.initializer if t.name == third.input[1])
    changed = numpy_helper.to_array(tensor).copy()
    changed[0, 0] += 1
    tensor.CopyFrom(numpy_helper.from_array(changed, tensor.name))
    assert "Sigmoid" in ops(settle(written))


def test_a_memory_that_is_read_elsewhere_keeps_the_steps() -> None:
    writer, weights = Writer(), Weights("LSTM")
    states: tuple[str, ...] = ("s0", "s1")
    memories = []
    for t in range(3):
        states = cell(writer, weights, writer("Gather", "x", writer.constant(np.int64(t)), axis=1), states)
        memories.append(states[1])
    result = writer("Add", writer("Add", memories[0], memories[1]), states[0])
    given = [("x", ["N", 3, weights.inputs]), *((f"s{k}", ["N", weights.size]) for k in range(2))]
    assert "LSTM" not in ops(settle(model(writer, given, {result: ["N", weights.size]})))


def test_a_loop_that_skips_places_stays() -> None:
    written = loop(Weights("GRU"), steps=4, carried=False)
    (node,) = (n for n in written.graph.node if n.op_type == "Loop")
    body = next(a.g for a in node.attribute if a.name == "body")
    step = next(n for n in body.node if n.op_type == "Gather")
    body.node.insert(0, helper.make_node("Mod", ["k", "inner_c0"], ["place"]))
    step.input[1] = "place"
    body.initializer.append(numpy_helper.from_array(np.array(2, np.int64), "two"))
    body.node[0].input[1] = "two"
    assert "Loop" in ops(settle(written))


def test_what_a_loop_carries_unchanged_is_read_from_outside() -> None:
    inside = """{ next = Add(v, w) q = Identity(w) }"""
    text = f"""(float[N] x, float[N] w0, int64 count) => (float[N] y) {{
        going = Constant<value = bool {{1}}>()
        y, last = Loop(count, going, x, w0) <body = b (int64 i, bool c, float[N] v, float[N] w)
            => (bool c, float[N] next, float[N] q) {inside}> }}"""
    feeds = {"x": normal(3), "w0": normal(3, seed=1), "count": np.array(4, np.int64)}
    form = settle(parse(text, opset=18), feeds)
    (node,) = form.proto.graph.node
    assert len(node.input) == 3


def test_both_directions_are_two_layers_side_by_side() -> None:
    weights = {"w": normal(2, 16, 3), "r": normal(2, 16, 4), "b": normal(2, 32)}
    head = "(float[5,N,3] x) => (float[5,N,8] y) { a = LSTM<hidden_size=4, direction=\"bidirectional\">(x, w, r, b) "
    both = parse(head + "t = Transpose<perm=[0,2,1,3]>(a) y = Reshape(t, s) }", **weights,
                 s=ints(0, 0, -1))
    form = settle(both)
    assert ops(form) == ["LSTM", "LSTM", "Concat", "Reshape"]
    halves = {f"{name}{k}": value[k : k + 1] for name, value in weights.items() for k in (0, 1)}
    apart = parse("""(float[5,N,3] x) => (float[5,N,8] y) {
        f = LSTM<hidden_size=4>(x, w0, r0, b0) turned = Slice(x, back, end, zero, back)
        g = LSTM<hidden_size=4>(turned, w1, r1, b1) fs = Squeeze(f, one) gs = Squeeze(g, one)
        again = Slice(gs, back, end, zero, back) y = Concat<axis=2>(fs, again) }""",
        **halves, back=ints(-1), end=ints(-(2**31)), zero=ints(0), one=ints(1))
    assert onnxfix.is_isomorphic(both, apart)
    assert ops(settle(apart)) == ops(form)


def test_reversing_full_sequences_twice_is_nothing() -> None:
    text = """(float[5,2,3] x) => (float[5,2,3] y) {
        a = ReverseSequence<time_axis=0, batch_axis=1>(x, n) b = Relu(x)
        c = ReverseSequence<time_axis=0, batch_axis=1>(a, n) y = Add(b, c) }"""
    assert "Slice" not in ops(settle(parse(text, n=ints(5, 5))))
    assert "ReverseSequence" in ops(settle(parse(text, n=ints(5, 4))))


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_the_last_state_is_the_last_step(direction: str) -> None:
    weights = {"w": normal(1, 12, 3), "r": normal(1, 12, 4)}
    text = f"""(float[5,N,3] x) => (float[1,N,4] y) {{
        all, y = GRU<hidden_size=4, direction="{direction}">(x, w, r) }}"""
    form = settle(parse(text, **weights))
    assert set(ops(form)) == {"GRU", "Slice", "Reshape"}
    assert constant(form, "Slice", 1).tolist() == [4 if direction == "forward" else 0]
