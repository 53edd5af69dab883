"""Alignment: which node plays the role of which, when names mean nothing and some things are wrong."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import onnxfix
from onnxfix.align import Alignment, GraphView, align
from onnxfix.testing import make_names_opaque
from small_onnx import copied, network, node, normal, parse, with_attribute, with_node_after, with_value, without_node


def aligned(source: onnx.ModelProto, target: onnx.ModelProto) -> tuple[Alignment, set[tuple[str, str]]]:
    """Align a model with an opaque, reordered copy of another; lowered (target, source) names of the pairs."""
    opaque = make_names_opaque(target, seed=4)
    ours, theirs = onnxfix.load(source), onnxfix.load(reordered(opaque.model))
    inputs = {t.name: s.name for s, t in zip(ours.inputs, theirs.inputs, strict=True)}
    alignment = align(GraphView(ours.canonical), GraphView(theirs.canonical), inputs)
    old = {new: name for name, new in opaque.nodes.items()}
    source_names, target_names = ours.normal_form.provenance, theirs.normal_form.provenance
    pairs = {(old[target_names[t][0]], source_names[s][0]) for t, s in alignment.nodes.items()}
    return alignment, pairs


def reordered(model: onnx.ModelProto, seed: int = 0) -> onnx.ModelProto:
    """The same graph, its nodes in another topological order."""
    copy = copied(model)
    ready = {i.name for i in copy.graph.input} | {t.name for t in copy.graph.initializer} | {""}
    left, order = list(model.graph.node), []
    rng = np.random.default_rng(seed)
    while left:
        free = [k for k, n in enumerate(left) if set(n.input) <= ready]
        chosen = left.pop(int(rng.choice(free)))
        ready.update(chosen.output)
        order.append(chosen)
    del copy.graph.node[:]
    copy.graph.node.extend(order)
    return copy


def deep(blocks: int, seed: int = 0, **changed: np.ndarray) -> onnx.ModelProto:
    """Residual dense blocks, all alike but for their weights."""
    body, before = [], "x"
    constants = {"last": normal(6, 6, seed=seed + 99)}
    for k in range(blocks):
        body.append(f"m{k} = MatMul({before}, w{k}) s{k} = Add(m{k}, b{k}) t{k} = Tanh(s{k}) a{k} = Add({before}, t{k})")
        before = f"a{k}"
        constants[f"w{k}"] = normal(6, 6, seed=seed + k, scale=0.3)
        constants[f"b{k}"] = normal(6, seed=seed + k)
    text = f"net (float[N, 6] x) => (float[N, 6] y) {{ {' '.join(body)} y = MatMul({before}, last) }}"
    return parse(text, **constants | changed)


def every_node_with_itself(alignment, pairs):
    assert alignment.fraction == 1
    assert len(pairs) == len(alignment.source.nodes)
    assert all(ours == theirs for ours, theirs in pairs)


def test_equal_models_are_aligned_node_for_node():
    every_node_with_itself(*aligned(network(), network()))


def test_values_of_matched_nodes_correspond():
    alignment, _ = aligned(network(), network())
    assert alignment.values["image"] == "image"
    for theirs, ours in alignment.nodes.items():
        for t, s in zip(alignment.target.nodes[theirs].output, alignment.source.nodes[ours].output, strict=True):
            assert alignment.values[t] == s


def test_wrong_attributes_and_weights_do_not_matter():
    broken = with_attribute(network(), "left", dilations=[2, 2], pads=[2, 2, 2, 2])
    broken = with_value(
        broken, left_kernel=normal(4, 4, 3, 3, seed=8), right_kernel=normal(4, 4, 1, 1, seed=8),
        hidden_weight=normal(6, 128, seed=8), logits_bias=np.zeros(5, np.float32),
    )
    every_node_with_itself(*aligned(network(), broken))


@pytest.mark.parametrize("wrong", [("w2",), ("w2", "w5"), tuple(f"w{k}" for k in range(8))])
def test_repeated_layers_keep_their_places_when_weights_are_wrong(wrong):
    changed = {name: normal(6, 6, seed=500 + k, scale=0.3) for k, name in enumerate(wrong)}
    every_node_with_itself(*aligned(deep(8), deep(8, **changed)))


def test_layers_whose_weights_were_exchanged_keep_their_places():
    clean = {"w2": normal(6, 6, seed=2, scale=0.3), "w5": normal(6, 6, seed=5, scale=0.3)}
    every_node_with_itself(*aligned(deep(8), deep(8, w2=clean["w5"], w5=clean["w2"])))


@pytest.mark.parametrize("gone", ["stem_relu", "left_clip", "gate", "hidden_tanh"])
def test_all_but_a_missing_node_are_aligned(gone):
    alignment, pairs = aligned(network(), without_node(network(), gone))
    assert alignment.fraction == 1
    assert all(ours == theirs for ours, theirs in pairs)
    assert len(pairs) == len(alignment.source.nodes) - 1
    assert f"node_{gone}" not in {ours for _, ours in pairs}


def test_all_but_an_extra_node_are_aligned():
    alignment, pairs = aligned(network(), with_node_after(network(), "pooled", "Mul", np.float32(1.3)))
    assert all(ours == theirs for ours, theirs in pairs)
    assert len(pairs) == len(alignment.source.nodes) == len(alignment.target.nodes) - 1
    assert alignment.fraction == pytest.approx(len(pairs) / (len(pairs) + 1))


def test_a_missing_block_among_equal_ones_leaves_the_others_where_they_are():
    target = deep(6)
    for other in target.graph.node:
        other.input[:] = ["a2" if v == "a3" else v for v in other.input]
    for gone in ("m3", "s3", "t3", "a3"):
        target.graph.node.remove(node(target, gone))
    alignment, pairs = aligned(deep(6), target)
    assert alignment.fraction == 1
    assert all(ours == theirs for ours, theirs in pairs)
    assert {"node_m3", "node_t3", "node_a3"}.isdisjoint(ours for _, ours in pairs)


def test_branches_that_only_their_weights_tell_apart_are_told_apart():
    text = """net (float[N, 6] x) => (float[N, 6] y) {
        a = MatMul(x, wa) at = Tanh(a) b = MatMul(x, wb) bt = Tanh(b) c = MatMul(x, wc) ct = Tanh(c)
        ab = Add(at, bt) y = Add(ab, ct) }"""
    weights = {f"w{k}": normal(6, 6, seed=ord(k)) for k in "abc"}
    swapped = parse(text.replace("Add(at, bt)", "Add(bt, at)"), **weights)
    alignment, pairs = aligned(parse(text, **weights), swapped)
    assert alignment.fraction == 1
    assert {("node_a", "node_a"), ("node_b", "node_b"), ("node_c", "node_c")} <= pairs


@given(
    blocks=st.lists(st.sampled_from(["dense", "bias", "relu", "tanh", "residual", "scale"]), min_size=2, max_size=12),
    seed=st.integers(0, 1000),
)
@settings(max_examples=25, deadline=None)
def test_random_networks_are_aligned_with_themselves(blocks, seed):
    lines, constants, value, kept = [], {}, "x", "x"
    for k, block in enumerate(blocks):
        made = f"v{k}"
        op, operand = {
            "dense": ("MatMul", f"c{k}"), "bias": ("Add", f"c{k}"), "scale": ("Mul", f"c{k}"), "relu": ("Relu", None),
            "tanh": ("Tanh", None), "residual": ("Add", kept),
        }[block]  # fmt: skip
        if operand == f"c{k}":
            constants[operand] = normal(*((5, 5) if block == "dense" else (5,)), seed=seed + k)
        lines.append(f"{made} = {op}({value}{f', {operand}' if operand else ''})")
        kept, value = (value, made) if block == "residual" else (kept, made)
    net = parse(f"net (float[N, 5] x) => (float[N, 5] y) {{ {' '.join(lines)} y = Sigmoid({value}) }}", **constants)
    every_node_with_itself(*aligned(net, net))


def test_the_view_of_a_graph_knows_what_a_branch_captures():
    text = """net (float[N, 4] x, bool c) => (float[N, 4] y) {
        a = Tanh(x) b = Exp(x)
        y = If (c) <then_branch = t () => (float[N, 4] u) { u = Add(a, k) }, else_branch = e () => (float[N, 4] v) { v = Sigmoid(b) }> }"""
    view = GraphView(parse(text, k=normal(4)))
    assert view.operands("node_y") == ("c", "a", "b")
    nodes, ends = view.upstream("y", {"a"})
    assert nodes == ("node_b", "node_y")
    assert set(ends) == {"c", "a", "x"}
    assert sorted(view.digraph.predecessors("node_y")) == ["node_a", "node_b"]


@pytest.mark.parametrize("pair", [("w1", "w3"), ("q", "k")])
def test_swapped_weights_do_not_move_their_layers(pair):
    """Beside an op too many, so that both graphs are not the same but for weights."""
    body, before = [], "x"
    constants = {f"{n}{k}": normal(*s, seed=k + 9 * (n == "b"), scale=0.4) for k in range(5) for n, s in (
        ("w", (6, 6)), ("b", (6,)))} | {n: normal(6, 6, seed=40 + ord(n)) for n in "qk"} | {"c": normal(6, seed=3), "d": normal(6, seed=4)}
    for k in range(5):
        body.append(f"m{k} = MatMul({before}, w{k}) s{k} = Add(m{k}, b{k}) t{k} = Tanh(s{k})")
        before = f"t{k}"
    tail = (f"g = MatMul({before}, q) i = Add(g, c) h = MatMul({before}, k) j = Add(h, d) "
            "e = Sigmoid(i) f = Sigmoid(j) r = Sub(e, f) y = Sin(r)")  # fmt: skip
    text = f"net (float[N, 2, 6] x) => (float[N, 2, 6] y) {{ {' '.join(body)} {tail} }}"
    one, other = pair
    swapped = constants | {one: constants[other], other: constants[one]}
    faulty = parse(text.replace("t0 = Tanh(s0)", "u = Sin(s0) t0 = Tanh(u)").replace("Sin(r)", "Cos(r)"), **swapped)
    faults = onnxfix.diagnose(parse(text, **constants), make_names_opaque(faulty).model, normal(30, 2, 6)).faults
    assert sorted(str(fault.kind) for fault in faults) == ["graph", "graph", "weights", "weights"]
