"""Faults at the boundary: inputs that are prepared in another way, outputs that are others, sizes that are frozen."""

from __future__ import annotations

import itertools

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import onnxfix
from onnxfix.diagnose.boundary.maps import InputMap
from onnxfix.errors import InputError
from onnxfix.inputs.catalogue import CATALOGUE, relation
from onnxfix.runtime.session import Session
from onnxfix.surgeon.apply import apply, reverted
from onnxfix.testing import InjectionError, inject, make_names_opaque
from onnxfix.testing.faults import boundary, outputs
from small_onnx import copied, images, network, node, normal, parse, repaired, value, with_value

CLASSIFIER = """net (float[N, 3, H, W] x) => (float[N, 12] y) {
    a = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (x, k, b) r = Relu(a) g = GlobalAveragePool(r) f = Flatten(g)
    z = Gemm <transB = 1> (f, w, c) y = Softmax(z) }"""
HEADS = """net (float[N, 6] x) => (float[N, 4] a, float[N, 4] b, float[N, 3] p) {
    h = Gemm <transB = 1> (x, w0, c0) r = Relu(h) a = Gemm <transB = 1> (r, w1, c1) b = Gemm <transB = 1> (r, w2, c2)
    q = Gemm <transB = 1> (r, w3, c3) p = Softmax(q) }"""
MAPS = """net (float[N, 3, 9, 9] x) => (float[N, 4, 9, 9] y) {
    a = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (x, k, b) r = Relu(a)
    y = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (r, w, c) }"""


def classifier(classes: int = 12, **changed: np.ndarray) -> onnx.ModelProto:
    own = {"k": normal(32, 3, 3, 3), "b": normal(32), "w": normal(classes, 32, scale=0.5), "c": normal(classes)}
    return parse(CLASSIFIER.replace("12", str(classes)), **own | changed)


def heads() -> onnx.ModelProto:
    weights = {f"w{k}": normal(n, 6 if k == 0 else 8, seed=k) for k, n in enumerate((8, 4, 4, 3))}
    return parse(HEADS, **weights, **{f"c{k}": normal(n, seed=k) for k, n in enumerate((8, 4, 4, 3))})


def maps() -> onnx.ModelProto:
    return parse(MAPS, k=normal(8, 3, 3, 3), b=normal(8), w=normal(4, 8, 3, 3, scale=0.5), c=normal(4))


NETS = {
    "classifier": (classifier(), normal(30, 3, 16, 16)), "heads": (heads(), normal(30, 6)),
    "maps": (maps(), normal(30, 3, 9, 9)), "network": (network(), images(30)),
}  # fmt: skip
OPERATORS = [operator.name for operator in (*boundary.OPERATORS, *outputs.OPERATORS)]
INSIDE = (None, "zero_bias", "remove_activation")


def planted(name: str, operator: str, inside: str | None) -> tuple[onnx.ModelProto, list]:
    """A network with a fault at its boundary and one inside, under names that mean nothing."""
    model, sites = NETS[name][0], []
    if inside:
        injection = inject(model, inside)
        model, sites = injection.model, [*injection.sites]
    injection = inject(model, operator)
    opaque = make_names_opaque(injection.model, seed=3)
    return opaque.model, [opaque.site(site) for site in (*injection.sites, *sites)]


@pytest.mark.parametrize("inside", INSIDE)
@pytest.mark.parametrize("operator", OPERATORS)
def test_a_fault_at_the_boundary_is_found_named_and_repaired_also_with_one_inside(operator, inside):
    for name in NETS:
        try:
            broken, sites = planted(name, operator, inside)
        except InjectionError:
            continue
        fix = repaired(NETS[name][0], broken, NETS[name][1])
        faults = fix.diagnosis.faults
        assert sorted(str(f.kind) for f in faults) == sorted(str(site.kind) for site in sites), faults
        for site in sites:
            assert any({site.node, *site.also} & set(fault.target_nodes) for fault in faults), (site, faults)
        return
    pytest.fail(f"{operator} fits none of the networks")


@pytest.mark.parametrize("operator", OPERATORS)
def test_patches_of_the_boundary_can_be_taken_back(operator):
    for name in NETS:
        try:
            broken, _ = planted(name, operator, None)
        except InjectionError:
            continue
        fix = repaired(NETS[name][0], broken, NETS[name][1])
        again = apply(fix.model.proto, [reverted(patch) for patch in reversed(fix.patches)])
        ours, theirs = (onnxfix.load(model) for model in (broken, again))
        assert [str(spec) for spec in theirs.outputs] == [str(spec) for spec in ours.outputs]
        assert [str(spec) for spec in theirs.inputs] == [str(spec) for spec in ours.inputs]
        feed = {ours.inputs[0].name: NETS[name][1][:1]}
        if operator != "freeze_input":  # its sizes are not the data's
            for a, b in zip(ours.run(feed).values(), theirs.run(feed).values(), strict=True):
                np.testing.assert_array_equal(a, b)
        return
    pytest.fail(f"{operator} fits none of the networks")


# What is folded into weights


@pytest.mark.parametrize(("before", "after"), itertools.permutations(CATALOGUE, 2))
def test_the_map_between_two_known_preparations_has_a_name(before, after):
    pixels = np.random.default_rng(0).uniform(0, 255, (50, 3))

    def prepared(how):
        raw = pixels[:, ::-1] if how.reverse else pixels
        return raw * np.resize(how.scale, 3) + np.resize(how.shift, 3)

    given, wanted = prepared(before), prepared(after)
    reverse = before.reverse != after.reverse
    moved = given[:, ::-1] if reverse else given
    fits = [np.polyfit(moved[:, c], wanted[:, c], 1) for c in range(3)]
    order = np.arange(3)[::-1] if reverse else np.arange(3)
    named = relation(np.array([f[0] for f in fits]), np.array([f[1] for f in fits]), order)
    plain = ("RGB", "BGR") if reverse and np.allclose(given[:, ::-1], wanted) else (before.name, after.name)
    assert named in (plain, (before.name, after.name)) or _same_map(named, before, after)


def _same_map(named, before, after) -> bool:
    """Another pair of preparations that the same map leads between."""
    by_name = {how.name: how for how in CATALOGUE}
    if named is None or named == ("RGB", "BGR"):
        return False
    a, b = by_name[named[0]], by_name[named[1]]

    def between(x, y):
        return [np.resize(y.scale, 3) / np.resize(x.scale, 3), a.reverse != b.reverse]

    return bool(np.allclose(between(a, b)[0], between(before, after)[0], rtol=1e-3))


def test_a_first_layer_made_for_bgr_in_0_to_255_is_put_right_where_it_is_stored():
    kernel = value(classifier(), "k")
    broken = classifier(k=(kernel[:, ::-1] / 255).astype(np.float32))
    fix = repaired(classifier(), broken, normal(30, 3, 16, 16))
    assert [str(f.kind) for f in fix.diagnosis.faults] == ["preprocessing"]
    assert [patch.name for patch in fix.patches] == ["k"]
    np.testing.assert_allclose(value(fix.model.proto, "k"), kernel, rtol=1e-5)


def test_a_kernel_scaled_by_no_known_factor_is_a_wrong_weight():
    broken = classifier(k=value(classifier(), "k") * np.float32(1.3))
    faults = onnxfix.diagnose(classifier(), broken, normal(20, 3, 16, 16)).faults
    assert [(str(f.kind), f.parameter) for f in faults] == [("weights", "k")]


def test_a_preparation_is_found_before_a_layout_whose_sizes_are_asked_for():
    """The front's value is read for its sizes as well, which is no use of its numbers."""
    rest = "c = Conv <pads = [1, 1, 1, 1]> (t, k) r = Relu(c) y = GlobalAveragePool(r) }"
    head = "net (float[N, 9, 9, 3] x) => (float[N, 8, 1, 1] y, int64[4] s) {"
    moved = "t = Transpose <perm = [0, 3, 1, 2]>"
    kernel = normal(8, 3, 3, 3)
    source = parse(f"{head} s = Shape(x) {moved}(x) {rest}", k=kernel)
    mean, std = np.float32([[[[0.4, 0.5, 0.6]]]]), np.float32([[[[0.2, 0.3, 0.4]]]])
    target = parse(f"{head} d = Sub(x, m) z = Div(d, v) s = Shape(z) {moved}(z) {rest}", k=kernel, m=mean, v=std)
    fix = onnxfix.repair(source, target, normal(20, 9, 9, 3))
    assert fix.success
    assert [fault.kind for fault in fix.diagnosis.faults] == ["preprocessing"]


def test_classes_in_another_order_are_put_right_in_the_last_layer():
    order = np.random.default_rng(0).permutation(12)
    good = classifier()
    broken = with_value(good, w=value(good, "w")[order], c=value(good, "c")[order], b=0 * value(good, "b"))
    fix = repaired(good, make_names_opaque(broken).model, normal(30, 3, 16, 16))
    assert [str(f.kind) for f in fix.diagnosis.faults] == ["output", "weights"]
    np.testing.assert_array_equal(np.argsort(fix.diagnosis.faults[0].actual), order)
    assert len(fix.patches) == 3


def test_weights_of_classes_rotated_without_their_bias_are_wrong_weights():
    good = classifier()
    broken = with_value(good, w=np.roll(value(good, "w"), 3, 0))
    faults = onnxfix.diagnose(good, broken, normal(20, 3, 16, 16)).faults
    assert [(str(f.kind), f.parameter) for f in faults] == [("weights", "w")]


def test_a_target_with_a_background_class_is_compared_without_it():
    good = classifier()
    wider = {n: np.concatenate([normal(*value(good, n)[:1].shape, seed=5), value(good, n)]) for n in ("w", "c")}
    broken = classifier(13, **wider, b=0 * value(good, "b"))
    fix = repaired(good, make_names_opaque(broken).model, normal(40, 3, 16, 16))
    assert [str(f.kind) for f in fix.diagnosis.faults] == ["output", "weights"]
    assert fix.model.outputs[0].shape == ("N", 12)
    assert fix.verified.label_discrepancy == 0


# Sizes


def frozen(model: onnx.ModelProto, batch: int | str) -> onnx.ModelProto:
    """One sample baked into a Reshape in the place of the Flatten."""
    copy = copied(model)
    flat = node(copy, "flat")
    flat.op_type = "Reshape"
    del flat.attribute[:]
    flat.input.append("shape")
    copy.graph.initializer.append(numpy_helper.from_array(np.array([1, 128]), "shape"))
    for info in (*copy.graph.input, *copy.graph.output):
        dim = info.type.tensor_type.shape.dim[0]
        dim.CopyFrom(type(dim)(dim_value=batch) if isinstance(batch, int) else type(dim)(dim_param=batch))
    return copy


def test_a_batch_that_a_file_fixes_to_one_is_no_fault():
    assert onnxfix.diagnose(network(), frozen(network(), 1), images()).faults == ()


def test_a_batch_that_only_a_reshape_fixes_is_freed():
    fix = repaired(network(), make_names_opaque(frozen(network(), "N")).model, images())
    assert [str(f.kind) for f in fix.diagnosis.faults] == ["input_dimensions"]


def test_a_height_and_width_fixed_in_the_file_are_freed_where_the_data_have_others():
    broken = copied(classifier())
    for dim in list(broken.graph.input[0].type.tensor_type.shape.dim)[2:]:
        dim.dim_value = 16
    fix = repaired(classifier(), broken, normal(20, 3, 24, 20))
    assert [(str(f.kind), f.parameter) for f in fix.diagnosis.faults] == [("input_dimensions", "x")]
    assert onnxfix.diagnose(classifier(), broken, normal(20, 3, 16, 16)).faults == ()


def test_time_first_and_rows_for_columns_are_layouts():
    source = parse("net (float[N, 7, 5] x) => (float[N, 7, 4] y) { a = MatMul(x, k) y = Tanh(a) }", k=normal(5, 4))
    target = parse(
        "net (float[7, N, 5] x) => (float[N, 7, 4] y) { t = Transpose <perm = [1, 0, 2]> (x) a = MatMul(t, k) y = Tanh(a) }",
        k=normal(5, 4),
    )
    fix = repaired(source, target, normal(20, 7, 5))
    assert [str(f.kind) for f in fix.diagnosis.faults] == ["tensor_layout"]
    kernel = {"k": normal(4, 3, 3, 2)}
    source = parse("net (float[N, 3, 8, 9] x) => (float[N, 4, 6, 8] y) { y = Conv <kernel_shape = [3, 2]> (x, k) }", **kernel)
    target = parse(
        "net (float[N, 3, 9, 8] x) => (float[N, 4, 6, 8] y) { t = Transpose <perm = [0, 1, 3, 2]> (x) y = Conv <kernel_shape = [3, 2]> (t, k) }",
        **kernel,
    )
    fix = repaired(source, target, normal(20, 3, 8, 9))
    assert [str(f.kind) for f in fix.diagnosis.faults] == ["tensor_layout"]


def test_data_that_the_source_cannot_take_are_refused_as_before():
    with pytest.raises(InputError, match="shape"):
        onnxfix.diagnose(network(), network(), normal(4, 3, 9, 9))


# The algebra of input maps


def some_map(seed: int) -> InputMap:
    rng = np.random.default_rng(seed)
    way = InputMap.identity(4).transposed(tuple(int(a) for a in rng.permutation(4)))
    way = way.taken(int(rng.integers(4)), rng.permutation(3))
    return way.affine(rng.uniform(0.5, 2, (1, 1, 3, 1)), rng.normal(size=(1, 3, 1, 1))).transposed((0, 2, 1, 3))


@pytest.mark.parametrize("seed", range(10))
def test_input_maps_compose_invert_and_are_written_as_nodes(seed):
    a, b = some_map(seed), some_map(seed + 100)
    x = np.random.default_rng(seed).normal(size=(3, 3, 3, 3))
    np.testing.assert_allclose(b.after(a)(x), b(a(x)), rtol=1e-12)
    inverse = a.inverse()
    assert inverse is not None
    np.testing.assert_allclose(inverse(a(x)), x, rtol=1e-9, atol=1e-12)
    assert inverse.after(a).is_identity()
    nodes, constants = a.nodes("x", "y", np.dtype(np.float64))
    infos = [helper.make_tensor_value_info(n, onnx.TensorProto.DOUBLE, [3] * 4) for n in "xy"]
    tensors = [numpy_helper.from_array(v, n) for n, v in constants.items()]
    graph = helper.make_graph(nodes, "map", infos[:1], infos[1:], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    np.testing.assert_allclose(Session(model).run({"x": x})["y"], a(x), rtol=1e-12)
