"""Patches: data that can be stored, replayed on the untouched target, and taken back."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest

import onnxfix
from broken import BROKEN
from onnxfix.errors import OnnxFixError
from onnxfix.surgeon.apply import PatchError, apply, replayed, reverted
from onnxfix.surgeon.patch import Patch, ReplaceRegion, SetAttribute, SetConstant, SetParameter, patch_from_dict
from small_onnx import NOISE, images, network, node, normal, repaired, value

ZERO = np.zeros(4, np.float32)


def stored(patch: Patch) -> Patch:
    return patch_from_dict(json.loads(json.dumps(patch.to_dict())))


def same(a: onnx.ModelProto, b: onnx.ModelProto) -> bool:
    return a.SerializeToString(deterministic=True) == b.SerializeToString(deterministic=True)


PATCHES = {
    "parameter": SetParameter("stem_bias", ZERO, normal(4, seed=1, scale=0.3)),
    "parameter of some readers": SetParameter("zero", np.float32(-1) * np.ones(()), np.zeros(()), ("node_left_clip",)),
    "attribute": SetAttribute("node_left", "pads", [2, 2, 0, 0], [1, 1, 1, 1]),
    "attribute that was absent": SetAttribute("node_left", "auto_pad", "SAME_UPPER", None),
    "constant": SetConstant("stem_bias", ZERO, normal(4, seed=1, scale=0.3)),
    "region": ReplaceRegion(
        ("node_gate",), (onnx.helper.make_node("Mul", ["pooled", "two"], ["doubled"], "node_doubled"),),
        {"two": np.float32(2) * np.ones(1, np.float32)}, {("node_flat", 0): "doubled"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", PATCHES)
def test_what_is_stored_does_the_same(kind):
    patch = PATCHES[kind]
    again = stored(patch)
    assert type(again) is type(patch)
    assert again.describe() == patch.describe()
    assert again.to_dict() == patch.to_dict()
    assert same(apply(network(), [again]), apply(network(), [patch]))
    assert not same(apply(network(), [patch]), network())


@pytest.mark.parametrize("kind", ["parameter", "attribute", "attribute that was absent", "constant"])
def test_what_is_taken_back_is_as_before(kind):
    patch = PATCHES[kind]
    back = apply(apply(network(), [patch]), [reverted(patch)])
    assert sorted(a.SerializeToString() for n in back.graph.node for a in n.attribute) == sorted(
        a.SerializeToString() for n in network().graph.node for a in n.attribute
    )
    np.testing.assert_array_equal(value(back, "stem_bias"), value(network(), "stem_bias"))
    assert reverted(reverted(patch)).to_dict() == patch.to_dict()


@pytest.mark.parametrize("case", ["two at once", "a flatten order", "a dilation", "a clip bound"])
def test_a_repair_can_be_taken_back(case):
    broken = BROKEN[case][0]()
    fix = onnxfix.repair(network(), broken, images())
    back = apply(fix.model.proto, [reverted(patch) for patch in reversed(fix.patches)])
    x = {"image": images(4)}
    np.testing.assert_array_equal(onnxfix.load(back).run(x)["logits"], onnxfix.load(broken).run(x)["logits"])


def test_chosen_patches_are_taken_back_from_a_repair():
    fix = repaired(network(), BROKEN["two at once"][0](), images())
    assert len(fix.patches) > 1
    assert fix.revert() is fix.target
    for patch in fix.patches:
        rest = [p for p in fix.patches if p is not patch]
        assert same(fix.revert(patch).proto, replayed(fix.target.proto, rest))
        assert same(fix.revert(*rest).proto, replayed(fix.target.proto, [patch]))
    with pytest.raises(PatchError, match="not one of this repair"):
        fix.revert(PATCHES["attribute"])


@pytest.mark.parametrize("case", BROKEN)
def test_every_patch_is_needed(case):
    """Without any one of them the target still differs from the source by more than float noise."""
    fix = repaired(network(), BROKEN[case][0](), images())
    expected = onnxfix.load(network()).run({"image": images()})["logits"]
    scale = np.abs(expected).max()
    for patch in fix.patches:
        try:
            (answer,) = fix.revert(patch).run({"image": images()}).values()
        except OnnxFixError:
            continue  # without it the others do not fit, or the model does not run
        assert answer.shape != expected.shape or np.abs(answer - expected).max() > 10 * NOISE * scale


def test_a_graph_is_not_changed_in_place():
    before = network()
    for patch in PATCHES.values():
        apply(before, [patch])
    assert same(before, network())


def test_exactly_what_a_patch_says_changes():
    patched = apply(network(), [PATCHES["parameter"]])
    np.testing.assert_array_equal(value(patched, "stem_bias"), ZERO)
    others = [t.name for t in network().graph.initializer if t.name != "stem_bias"]
    assert all(np.array_equal(value(patched, name), value(network(), name)) for name in others)
    assert list(patched.graph.node) == list(network().graph.node)
    patched = apply(network(), [PATCHES["attribute"]])
    assert [n.name for n, m in zip(patched.graph.node, network().graph.node, strict=True) if n != m] == ["node_left"]


def test_a_parameter_changes_for_some_of_its_readers_only():
    two = network()
    node(two, "right").input[2] = "stem_bias"
    patched = apply(two, [SetParameter("stem_bias", ZERO, value(two, "stem_bias"), ("node_right",))])
    np.testing.assert_array_equal(value(patched, "stem_bias"), value(two, "stem_bias"))
    assert node(patched, "stem").input[2] == "stem_bias"
    np.testing.assert_array_equal(value(patched, node(patched, "right").input[2]), ZERO)


def test_a_replaced_region_goes_with_all_that_nothing_reads_any_more():
    patched = apply(network(), [PATCHES["region"]])
    onnx.checker.check_model(patched, full_check=True)
    assert "node_gate" not in {n.name for n in patched.graph.node}
    assert node(patched, "flat").input[0] == "doubled"
    order = [n.name for n in patched.graph.node]
    assert order.index("node_pooled") < order.index("node_doubled") < order.index("node_flat")


def test_two_outputs_can_change_places():
    text = "<ir_version: 9, opset_import: ['': 17]> net (float[2] x) => (float[2] a, float[2] b) { a = Exp(x) b = Neg(x) }"
    model = onnx.parser.parse_model(text.replace("'", '"'))
    patched = apply(model, [ReplaceRegion((), (), {}, {("", 0): "b", ("", 1): "a"})])
    x = {"x": np.array([0.5, 2], np.float32)}
    before, after = onnxfix.load(model).run(x), onnxfix.load(patched).run(x)
    assert list(after) == ["a", "b"]
    np.testing.assert_array_equal(after["a"], before["b"])
    np.testing.assert_array_equal(after["b"], before["a"])


@pytest.mark.parametrize(
    ("patch", "message"),
    [
        (SetParameter("absent", ZERO, ZERO), "no initializer absent"),
        (SetConstant("absent", ZERO, ZERO), "no initializer absent"),
        (SetAttribute("absent", "pads", [1], [0]), "no node absent"),
        (SetParameter("stem_bias", np.zeros(5, np.float32), ZERO), r"stem_bias has shape \[4\], the patch \[5\]"),
        (ReplaceRegion((), (), {}, {("absent", 0): "stem"}), "no node absent"),
    ],
)
def test_a_patch_that_does_not_fit_is_refused(patch, message):
    with pytest.raises(PatchError, match=message):
        apply(network(), [patch])


def test_a_replaced_region_cannot_be_taken_back():
    with pytest.raises(PatchError, match="start again from the untouched target"):
        reverted(PATCHES["region"])


def test_data_that_are_no_patch_are_refused():
    with pytest.raises(ValueError, match="'poem' is no kind of patch"):
        patch_from_dict({"patch": "poem"})


def test_a_patch_says_in_one_line_what_it_does():
    assert PATCHES["parameter"].describe() == "set stem_bias (4 of 4 values)"
    assert PATCHES["attribute"].describe() == "set pads of node_left to [2, 2, 0, 0]"
    assert PATCHES["constant"].describe() == "set stem_bias of the normal form"
    assert PATCHES["region"].describe() == "replace node_gate by Mul taken from the source"


def test_shapes_that_an_attribute_changes_are_not_declared_any_more():
    """A runtime that trusts the old ones writes into buffers that are too small."""
    graph = onnx.parser.parse_graph(
        "g (float[1, 1, 4, 4] x) => (float[n, c, h, v] y) <float[1, 1, 2, 2] a> "
        "{ a = MaxPool<kernel_shape=[1, 1], strides=[2, 2]>(x) b = Relu(a) y = Neg(b) }"
    )
    graph.node[0].name = "pool"
    proto = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    assert apply(proto, []).graph.value_info
    patched = apply(proto, [SetAttribute("pool", "strides", [1, 1], [2, 2])])
    assert not patched.graph.value_info
    assert onnxfix.load(patched).run({"x": np.ones((1, 1, 4, 4), np.float32)})["y"].shape == (1, 1, 4, 4)
