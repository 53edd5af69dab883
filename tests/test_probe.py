"""The probe: one run gives every region its own error, however many are wrong before it."""

from __future__ import annotations

import math

import numpy as np
import onnx
import pytest

import onnxfix
from onnxfix.align import GraphView, Region, align, regions
from onnxfix.runtime.probe import LocalError, Probe, measure, piece
from onnxfix.runtime.session import Session
from small_onnx import images, network, normal, parse, value, with_value


def probe(source: onnx.ModelProto, target: onnx.ModelProto) -> tuple[Probe, dict[str, int]]:
    """A probe of all regions; lowered target node -> index of its region."""
    ours, theirs = onnxfix.load(source), onnxfix.load(target)
    inputs = {t.name: s.name for s, t in zip(ours.inputs, theirs.inputs, strict=True)}
    alignment = align(GraphView(ours.canonical), GraphView(theirs.canonical), inputs)
    nodes, gaps = regions(alignment)
    chosen: tuple[Region, ...] = (*nodes, *gaps)
    made = Probe(alignment.source, alignment.target, chosen)
    behind = theirs.normal_form.provenance
    return made, {behind[r.target_nodes[0]][0]: k for k, r in enumerate(chosen) if r.target_nodes}


def test_an_error_is_seen_where_it_is_and_not_where_it_arrives():
    broken = with_value(network(), stem_bias=np.zeros(4, np.float32), logits_bias=np.zeros(5, np.float32))
    made, index = probe(network(), broken)
    made.run({"image": images(8)}, {"image": images(8)})
    errors = {name: made.errors()[k] for name, k in index.items()}
    guilty = {name for name, error in errors.items() if error.max_difference > 0}
    assert guilty == {"node_stem", "node_logits"}
    # A bias adds a constant: the difference is the largest of its values, whatever the data.
    for name in guilty:
        bias = value(network(), name.removeprefix("node_") + "_bias")
        assert errors[name].max_difference == pytest.approx(np.abs(bias).max(), rel=1e-5)
        assert errors[name].rms_difference == pytest.approx(np.sqrt(np.mean(bias**2)), rel=1e-5)


def test_errors_are_relative_to_what_the_source_makes():
    made, index = probe(network(), with_value(network(), logits_bias=value(network(), "logits_bias") + 1))
    outputs, _ = made.run({"image": images(8)}, {"image": images(8)})
    error = made.errors()[index["node_logits"]]
    assert error.max_source == pytest.approx(np.abs(outputs[0]).max(), rel=1e-6)
    assert error.relative == pytest.approx(1 / np.abs(outputs[0]).max(), rel=1e-5)
    assert error.relative_rms == pytest.approx(1 / np.sqrt(np.mean(outputs[0] ** 2)), rel=1e-5)


def test_the_outputs_of_both_models_leave_the_probe_unchanged():
    broken = with_value(network(), stem_bias=np.zeros(4, np.float32))
    made, _ = probe(network(), broken)
    source, target = made.run({"image": images(8)}, {"image": images(8, seed=3)})
    np.testing.assert_allclose(source[0], Session(network()).run({"image": images(8)})["logits"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(target[0], Session(broken).run({"image": images(8, seed=3)})["logits"], rtol=1e-4, atol=1e-5)


def test_chunks_add_up():
    broken = with_value(network(), left_kernel=value(network(), "left_kernel") * np.float32(1.01))
    whole, index = probe(network(), broken)
    whole.run({"image": images(12)}, {"image": images(12)})
    parts, _ = probe(network(), broken)
    for k in range(0, 12, 4):
        parts.run({"image": images(12)[k : k + 4]}, {"image": images(12)[k : k + 4]})
    a, b = whole.errors()[index["node_left"]], parts.errors()[index["node_left"]]
    assert a.max_difference == pytest.approx(b.max_difference, rel=1e-6)
    assert a.rms_difference == pytest.approx(b.rms_difference, rel=1e-5)
    assert a.rms_source == pytest.approx(b.rms_source, rel=1e-5)


def test_the_fewest_telling_chunks_are_chosen():
    text = "net (float[N, 2] x) => (float[N, 2] y) { a = Mul(x, p) b = Tanh(a) y = Mul(b, q) }"
    first, both = np.array([2, 1], np.float32), np.array([3, 5], np.float32)
    target = parse(text, p=first + np.array([1, 0], np.float32), q=both + np.array([0, 1], np.float32))
    made, index = probe(parse(text, p=first, q=both), target)
    guilty = [index["node_a"], index["node_y"]]
    for x in ([[1.0, 0.0]], [[0.0, 1.0]], [[1.0, 1.0]]):
        made.run({"x": np.array(x, np.float32)}, {"x": np.array(x, np.float32)})
    assert made.telling_chunks(guilty) == [(2, guilty)]
    assert made.telling_chunks([index["node_a"]]) == [(0, [index["node_a"]])]
    assert made.telling_chunks([]) == []


def test_what_follows_a_region_that_makes_nan_is_innocent():
    text = "net (float[N, 4] x) => (float[N, 4] y) { a = MatMul(x, w) b = OP(a) r = Sqrt(b) y = MatMul(r, v) }"
    weights = {"w": normal(4, 4), "v": normal(4, 4, seed=1)}
    made, index = probe(parse(text.replace("OP", "Abs"), **weights), parse(text.replace("OP", "Sin"), **weights))
    _, target = made.run({"x": normal(8, 4)}, {"x": normal(8, 4)})
    assert np.isnan(target[0]).any()
    errors = made.errors()
    assert errors[index["node_r"]].relative == 0
    assert errors[index["node_y"]].relative == 0
    assert errors[index["node_b"]].relative > 0.1


def test_a_piece_computes_what_it_computes_inside():
    model = onnxfix.load(network())
    view = GraphView(model.canonical)
    conv, pool = (next(n for n in view.nodes.values() if n.op_type == op) for op in ("Conv", "MaxPool"))
    nodes, _ = view.upstream(pool.output[0], {conv.output[0]})
    whole = Session(piece(view, list(view.nodes), view.inputs, [conv.output[0], pool.output[0]]))
    inside, wanted = whole.run({"image": images(4)}).values()
    cut = Session(piece(view, nodes, [conv.output[0]], [pool.output[0]]))
    np.testing.assert_array_equal(cut.run({conv.output[0]: inside})[pool.output[0]], wanted)


# measure

NAN, INF = np.nan, np.inf


def arrays(*values: list[float]) -> list[np.ndarray]:
    return [np.array(v, np.float32) for v in values]


def test_local_error_of_arrays():
    error = measure(arrays([1, -4]), arrays([1.5, -4]))
    assert (error.max_difference, error.max_source, error.relative) == (0.5, 4, 0.125)
    assert error.rms_difference == pytest.approx(0.5 / math.sqrt(2))
    assert error.relative_rms == pytest.approx(0.5 / math.sqrt(17))


@pytest.mark.parametrize("same", [[NAN, 1], [INF, 1], [-INF, 1], [-3.4e38, 1]])
def test_nan_infinity_and_masks_equal_themselves(same):
    assert measure(arrays(same), arrays(same)).relative == 0


def test_a_mask_may_be_filled_with_another_number_of_its_kind():
    assert measure(arrays([-3.4e38, 1]), arrays([-INF, 1])).relative == 0


@pytest.mark.parametrize(("source", "target"), [([NAN, 1], [0, 1]), ([0, 1], [NAN, 1]), ([INF, 1], [-INF, 1]), ([2, 1], [INF, 1])])
def test_nan_and_infinity_differ_from_all_else(source, target):
    assert measure(arrays(source), arrays(target)).relative == INF


def test_a_difference_to_nothing_is_infinite():
    assert measure(arrays([0, 0]), arrays([0, 1e-9])).relative == INF
    assert measure(arrays([0, 0]), arrays([0, 0])).relative == 0


def test_another_shape_is_broken_and_says_so():
    error = measure(arrays([1, 2]), arrays([1, 2, 3]))
    assert error.broken == "its output has shape [3] instead of [2]"
    assert error.relative == INF


def test_errors_join_to_the_worse():
    a, b = LocalError(1, 3, 8, 4), LocalError(2, 4, 5, 3)
    assert a.joined(b) == LocalError(2, 5, 8, 5)
    assert a.joined(LocalError(broken="why")).broken == "why"
