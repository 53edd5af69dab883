"""Regions: what of the target stands for what of the source, node by node and where nothing matches."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

import onnxfix
from onnxfix.align import Alignment, GraphView, Region, align, regions
from small_onnx import copied, network, node, normal, parse, with_node_after, with_value, without_node


def cut(source: onnx.ModelProto, target: onnx.ModelProto) -> tuple[Alignment, tuple[Region, ...], tuple[Region, ...]]:
    ours, theirs = onnxfix.load(source), onnxfix.load(target)
    inputs = {t.name: s.name for s, t in zip(ours.inputs, theirs.inputs, strict=True)}
    alignment = align(GraphView(ours.canonical), GraphView(theirs.canonical), inputs)
    return alignment, *regions(alignment)


def ops(view: GraphView, names: tuple[str, ...]) -> list[str]:
    return [view.nodes[name].op_type for name in names]


def only_gap(source: onnx.ModelProto, target: onnx.ModelProto) -> tuple[list[str], list[str]]:
    """Op types on both sides of the only gap."""
    alignment, nodes, gaps = cut(source, target)
    assert len(nodes) == len(alignment.nodes)
    assert len(gaps) == 1
    assert not gaps[0].matched
    return ops(alignment.source, gaps[0].source_nodes), ops(alignment.target, gaps[0].target_nodes)


def changed(output: str, op: str, inputs: list[str] | None = None, **attributes: object) -> onnx.ModelProto:
    copy = copied(network())
    own = node(copy, output)
    own.CopyFrom(onnx.helper.make_node(op, inputs or list(own.input), list(own.output), own.name, **attributes))
    onnx.checker.check_model(copy, full_check=True)
    return copy


def test_equal_models_have_one_region_per_node_and_no_gap():
    alignment, nodes, gaps = cut(network(), network())
    assert gaps == ()
    assert all(region.matched for region in nodes)
    assert [region.target_nodes for region in nodes] == [(name,) for name in alignment.nodes]
    # Every region is fed with the source's values for all that it reads.
    for region in nodes:
        assert set(region.feeds) == set(alignment.target.operands(region.target_nodes[0]))
        assert set(region.feeds.values()) == set(alignment.source.operands(region.source_nodes[0]))


def test_wrong_weights_make_no_gap():
    assert cut(network(), with_value(network(), stem_kernel=normal(4, 3, 3, 3, seed=9)))[2] == ()


@pytest.mark.parametrize(
    ("gone", "op"), [("stem_relu", "Relu"), ("left_clip", "Clip"), ("gate", "Sigmoid"), ("hidden_tanh", "Tanh")]
)
def test_a_missing_op_is_a_gap_with_nothing_on_the_targets_side(gone, op):
    assert only_gap(network(), without_node(network(), gone)) == ([op], [])


def test_an_extra_op_is_a_gap_with_nothing_on_the_sources_side():
    assert only_gap(network(), with_node_after(network(), "pooled", "Mul", np.float32(1.3))) == ([], ["Mul"])
    assert only_gap(network(), with_node_after(network(), "pooled", "Exp")) == ([], ["Exp"])


def test_a_replaced_op_is_a_gap_with_one_on_each_side():
    assert only_gap(network(), changed("hidden_tanh", "Sigmoid")) == (["Tanh"], ["Sigmoid"])
    pool = changed("pooled", "AveragePool", kernel_shape=[2, 2], strides=[2, 2])
    assert only_gap(network(), pool) == (["MaxPool"], ["AveragePool"])


@pytest.mark.parametrize(("output", "inputs"), [("edges", ["left_clip", "residual"]), ("both", ["residual", "edges"])])
def test_operands_in_the_wrong_order_are_a_gap_without_nodes(output, inputs):
    op = {"edges": "Sub", "both": "Concat"}[output]
    broken = changed(output, op, inputs, **({"axis": 1} if op == "Concat" else {}))
    assert only_gap(network(), broken) == ([], [])


def test_operands_that_commute_may_stand_in_any_order():
    assert cut(network(), changed("residual", "Add", ["stem_relu", "right"]))[2] == ()


def test_several_missing_ops_are_gaps_of_their_own():
    broken = without_node(without_node(network(), "stem_relu"), "hidden_tanh")
    alignment, _, gaps = cut(network(), broken)
    assert sorted(ops(alignment.source, gap.source_nodes)[0] for gap in gaps) == ["Relu", "Tanh"]


def test_a_missing_op_that_several_nodes_read_is_one_gap_with_all_its_readers():
    alignment, _, gaps = cut(network(), without_node(network(), "stem_relu"))
    (gap,) = gaps
    (readers,) = gap.readers
    assert sorted(alignment.target.nodes[place.node].op_type for place in readers) == ["Add", "Conv"]


def test_a_pad_folded_wrongly_into_a_pool_is_one_gap_of_both():
    text = "net (float[N, 3, 6, 6] x) => (float[N, 3, 3, 3] y) { a = Tanh(x) BODY b = Sigmoid(p) y = Mul(b, b) }"
    apart = "q = Pad(a, pads) p = MaxPool <kernel_shape = [3, 3], strides = [2, 2]> (q)"
    folded = "p = MaxPool <kernel_shape = [3, 3], strides = [2, 2], pads = [0, 0, 1, 1]> (a)"
    source = parse(text.replace("BODY", apart), pads=np.array([0, 0, 0, 0, 0, 0, 1, 1]))
    assert only_gap(source, parse(text.replace("BODY", folded))) == (["Pad", "MaxPool"], ["MaxPool"])


def test_what_a_branch_captures_is_fed_from_the_source():
    text = """net (float[N, 4] x) => (float[N, 4] y) {
        e = Exp(x) a = Tanh(e) m = ReduceSum <keepdims = 0> (a) c = Greater(m, z)
        y = If (c) <then_branch = t () => (float[N, 4] u) { u = Add(a, e) }, else_branch = f () => (float[N, 4] v) { v = Exp(a) }> }"""
    source = parse(text, z=np.float32(0))
    alignment, nodes, gaps = cut(source, source)
    assert gaps == ()
    (branch,) = (r for r in nodes if ops(alignment.target, r.target_nodes) == ["If"])
    assert set(branch.feeds) == set(alignment.target.operands(branch.target_nodes[0]))
    assert len(branch.feeds) == 3
