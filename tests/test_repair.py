"""Repair: the target comes back right, proved on data that the repair never saw, in its own framework."""

from __future__ import annotations

import copy
import json

import numpy as np
import onnx
import pytest

import onnxfix
from broken import BROKEN
from onnxfix.frameworks import Framework
from onnxfix.testing import inject, make_names_opaque
from small_keras import conv_net, to_tflite
from small_keras import images as photos
from small_onnx import (
    NOISE,
    images,
    network,
    node,
    normal,
    parse,
    repaired,
    summary,
    value,
    with_value,
    without_node,
)


@pytest.mark.parametrize("case", BROKEN)
def test_what_was_broken_is_repaired_and_proved(case):
    broken = make_names_opaque(BROKEN[case][0](), seed=2).model
    fix = repaired(network(), broken, images(), holdout=images(30, seed=5))
    assert fix.before.max_rel > 100 * NOISE
    assert (fix.after.count, fix.verified.count) == (20, 30)
    assert fix.patches
    # The repaired model is one that anybody can run.
    onnx.checker.check_model(fix.model.proto, full_check=True)
    found = fix.model.run({"image": images(7, seed=9)})["logits"]
    wanted = onnxfix.load(network()).run({"image": images(7, seed=9)})["logits"]
    assert np.abs(found - wanted).max() <= NOISE * np.abs(wanted).max()


WEIGHTS_AND_ATTRIBUTES = [
    "one weight changed", "a bias zeroed", "a kernel transposed", "a weight scaled", "a flatten order", "pads shifted", "a dilation",
    "a clip bound", "two at once",
]  # fmt: skip


@pytest.mark.parametrize("case", WEIGHTS_AND_ATTRIBUTES)
def test_weights_and_attributes_are_set_in_the_callers_own_graph(case):
    broken = BROKEN[case][0]()
    fix = repaired(network(), broken, images())
    assert all(patch.lowered for patch in fix.patches)
    assert [n.name for n in fix.model.proto.graph.node] == [n.name for n in broken.graph.node]
    ours, theirs = ({t.name: t for t in m.graph.initializer} for m in (network(), fix.model.proto))
    for name, tensor in ours.items():
        wanted = onnx.numpy_helper.to_array(tensor)
        np.testing.assert_allclose(onnx.numpy_helper.to_array(theirs[name]), wanted, rtol=1e-6, atol=1e-7)
    # What was right is not touched, to the last bit.
    changed = {patch.name for patch in fix.patches if hasattr(patch, "name")}
    before = {t.name: t.SerializeToString() for t in broken.graph.initializer}
    assert all(theirs[name].SerializeToString() == before[name] for name in before if name not in changed)


def test_a_clean_pair_is_left_alone():
    target = onnxfix.load(make_names_opaque(network()).model)
    fix = onnxfix.repair(network(), target, images())
    assert fix.success
    assert fix.patches == ()
    assert fix.model is target


def test_a_fifth_of_the_data_is_held_out_where_the_caller_holds_nothing_out():
    fix = onnxfix.repair(network(), BROKEN["pads shifted"][0](), images(25))
    assert (fix.after.count, fix.verified.count) == (20, 5)
    assert "5 of " in fix.holdout_note
    again = onnxfix.repair(network(), BROKEN["pads shifted"][0](), images(25), seed=0)
    assert again.verified.max_abs == fix.verified.max_abs


def test_what_is_not_proved_on_held_out_data_is_no_success():
    # A branch that the repair's data never take is wrong, too: only the held-out data show it.
    text = """net (float[N, 4] x) => (float[N, 4] y) {
        e = Sub(x, far) m = ReduceMax <keepdims = 0> (e) c = Less(m, zero) a = MatMul(x, w)
        b = If (c) <then_branch = t () => (float[N, 4] u) { u = Tanh(a) }, else_branch = f () => (float[N, 4] v) { v = ELSE(a) }>
        y = Add(b, bias) }"""
    constants = {"w": normal(4, 4), "zero": np.float32(0), "far": np.float32(50), "bias": normal(4)}
    source = parse(text.replace("ELSE", "Sigmoid"), **constants)
    target = parse(text.replace("ELSE", "Softsign"), **(constants | {"bias": 2 * normal(4)}))
    fix = onnxfix.repair(source, target, normal(20, 4), holdout=100 + normal(20, 4))
    assert summary(fix.diagnosis.faults) == [("weights", "node_y", "bias")]
    assert fix.after.max_rel <= NOISE
    assert fix.verified.max_rel > 1e-3
    assert not fix.success


def test_only_the_wrong_reader_of_a_shared_weight_changes():
    text = "tied (float[N, 6] x) => (float[N, 6] y) { a = MatMul(x, w) b = Tanh(a) c = MatMul(b, w) d = Tanh(c) y = MatMul(d, w) }"
    weight = normal(6, 6, scale=0.5)
    source = parse(text.replace("MatMul(b, w)", "MatMul(b, w2)"), w=weight, w2=weight * np.float32(1.1))
    fix = repaired(source, parse(text, w=weight), normal(20, 6))
    (patch,) = fix.patches
    assert (patch.name, patch.readers) == ("w", ("node_c",))
    np.testing.assert_array_equal(value(fix.model.proto, "w"), weight)
    np.testing.assert_array_equal(value(fix.model.proto, node(fix.model.proto, "c").input[1]), weight * np.float32(1.1))


def test_a_shared_weight_that_is_wrong_everywhere_changes_in_place():
    text = "tied (float[N, 6] x) => (float[N, 6] y) { a = MatMul(x, w) b = Tanh(a) c = MatMul(b, w) d = Tanh(c) y = MatMul(d, w) }"
    weight = normal(6, 6, scale=0.5)
    fix = repaired(parse(text, w=weight), parse(text, w=weight * np.float32(1.1)), normal(20, 6))
    (patch,) = fix.patches
    assert (patch.name, patch.readers) == ("w", ())
    assert len(fix.model.proto.graph.initializer) == 1


def test_several_inputs_and_outputs_and_outputs_that_changed_places():
    text = """net (float[N, 4] a, float[N, 4] b) => (float[N, 4] s, float[N, 4] d) {
        p = MatMul(a, w) q = MatMul(b, v) t = Tanh(p) s = Add(t, q) d = Sub(t, q) }"""
    weights = {"w": normal(4, 4), "v": normal(4, 4, seed=1)}
    data = {"a": normal(20, 4, seed=8), "b": normal(20, 4, seed=9)}
    source = parse(text, **weights)
    repaired(source, with_value(source, v=weights["v"] * np.float32(1.1)), data)
    repaired(source, parse(text.replace("Sub(t, q)", "Sub(q, t)"), **weights), data)
    repaired(source, parse(text.replace("s, float[N, 4] d)", "d, float[N, 4] s)"), **weights), data)


def test_a_branch_with_another_body_is_replaced():
    text = """net (float[N, 4] x) => (float[N, 4] y) {
        a = MatMul(x, w) m = ReduceSum <keepdims = 0> (a) c = Greater(m, zero)
        b = If (c) <then_branch = t () => (float[N, 4] u) { u = THEN(a) }, else_branch = e () => (float[N, 4] v) { v = Sigmoid(a) }>
        y = MatMul(b, w) }"""
    constants = {"w": normal(4, 4), "zero": np.float32(0)}
    source, target = (parse(text.replace("THEN", op), **constants) for op in ("Tanh", "Relu"))
    repaired(source, target, normal(40, 4), holdout=normal(40, 4, seed=1), batch_size=1)


def test_the_axes_of_a_reduction_are_set_where_the_opset_writes_them():
    text = "net (float[N, 5, 5] x) => (float[N, 5] y) { a = MatMul(x, w) s = ReduceMean <axes = [AX], keepdims = 0> (a) y = MatMul(s, w) }"
    source, target = (parse(text.replace("AX", axis), w=normal(5, 5)) for axis in "12")
    fix = repaired(source, target, normal(20, 5, 5))
    assert fix.patches[0].to_dict() == {"patch": "attribute", "node": "node_s", "attribute": "axes", "value": [1], "previous": [2]}


def test_batch_norm_statistics_that_depend_on_each_other_are_set_together():
    text = """net (float[N, 3, 5, 5] x) => (float[N, 4, 3, 3] y) {
        c = Conv <kernel_shape = [3, 3]> (x, k) n = BatchNormalization (c, g, s, m, v) y = Relu(n) }"""
    constants = {n: np.abs(normal(4, seed=ord(n))) + np.float32(0.2) for n in "gsmv"} | {"k": normal(4, 3, 3, 3)}
    source = parse(text, **constants)
    target = with_value(source, m=np.zeros(4, np.float32), v=np.ones(4, np.float32))
    fix = repaired(source, target, normal(20, 3, 5, 5))
    assert {patch.name for patch in fix.patches} == {"m", "v"}
    np.testing.assert_allclose(value(fix.model.proto, "m"), constants["m"], rtol=1e-5)
    np.testing.assert_allclose(value(fix.model.proto, "v"), constants["v"], rtol=1e-5)


def test_a_target_that_makes_nan_is_repaired():
    text = "net (float[N, 4] x) => (float[N, 4] y) { s = MatMul(x, w) q = Abs(s) r = Sqrt(q) y = MatMul(r, w) }"
    source = parse(text, w=normal(4, 4))
    repaired(source, without_node(source, "q"), normal(20, 4))


@pytest.mark.parametrize("operator", ["insert_transpose_pair", "duplicate_node", "change_axis", "round_weights_fp16"])
def test_injected_faults_are_repaired(operator):
    for seed in range(2):
        opaque = make_names_opaque(inject(network(), operator, seed=seed).model, seed=seed)
        repaired(network(), opaque.model, images(seed=seed))


# Frameworks


@pytest.fixture(scope="module")
def torch_net():
    import torch

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = torch.nn.Conv2d(3, 6, 3, padding=1, bias=False)
            self.norm = torch.nn.BatchNorm2d(6)
            self.deep = torch.nn.Conv2d(6, 6, 3, padding=1, groups=6)
            self.shared = torch.nn.Linear(6, 6)
            self.out = torch.nn.Linear(6, 4)

        def forward(self, x):
            y = torch.relu(self.norm(self.stem(x)))
            y = (y + torch.nn.functional.hardswish(self.deep(y))).mean((2, 3))
            return self.out(self.shared(torch.tanh(self.shared(y))))

    torch.manual_seed(0)
    net = Net().eval()
    with torch.no_grad():
        net.norm.running_mean.normal_(std=0.3)
        net.norm.running_var.uniform_(0.2, 1)
        net.norm.weight.uniform_(0.5, 1.5)
    return net


def torch_inputs():
    import torch

    return (torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)),)


@pytest.fixture(scope="module")
def exported(torch_net, tmp_path_factory):
    """The same network by both of PyTorch's exporters."""
    import torch

    folder = tmp_path_factory.mktemp("exported")
    batch = torch.export.Dim("n", min=1, max=64)
    torch.onnx.export(
        torch_net, torch_inputs(), folder / "dynamo.onnx", dynamo=True, external_data=False, dynamic_shapes=({0: batch},), verbose=False
    )
    torch.onnx.export(
        torch_net, torch_inputs(), folder / "script.onnx", dynamo=False, dynamic_axes={"x": {0: "n"}}, input_names=["x"], opset_version=17
    )
    return {name: onnx.load(folder / f"{name}.onnx") for name in ("dynamo", "script")}


@pytest.fixture(scope="module")
def torch_source(torch_net):
    return onnxfix.load(torch_net, torch_inputs())


@pytest.mark.parametrize("exporter", ["dynamo", "script"])
def test_pytorchs_exporters_make_no_fault_and_a_planted_one_is_repaired(torch_source, exported, exporter):
    fix = onnxfix.repair(torch_source, exported[exporter], images(20))
    assert fix.success
    assert fix.patches == ()
    opaque = make_names_opaque(inject(exported[exporter], "sign_flip", seed=1).model, seed=1)
    fix = repaired(torch_source, opaque.model, images(20))
    assert [str(fault.kind) for fault in fix.diagnosis.faults] == ["weights"]


@pytest.mark.parametrize(
    ("name", "spoil"),
    [
        ("shared.weight", lambda p: p * 1.1),
        ("deep.bias", lambda p: p * 0),
        ("stem.weight", lambda p: p.transpose(2, 3).contiguous()),
        ("norm.running_mean", lambda p: p * 0),
        ("out.weight", lambda p: p.half().float()),
    ],
)
def test_a_pytorch_module_gets_its_parameter_back(torch_net, torch_source, name, spoil):
    import torch

    spoiled = copy.deepcopy(torch_net)
    with torch.no_grad():
        spoiled.state_dict()[name].copy_(spoil(torch_net.state_dict()[name]))
    target = onnxfix.load(spoiled, torch_inputs())
    fix = repaired(torch_source, target, images(20))
    assert {fault.native_parameter for fault in fix.diagnosis.faults} == {name}
    assert fix.model.framework == Framework.PYTORCH
    np.testing.assert_allclose(fix.model.native.state_dict()[name], torch_net.state_dict()[name], rtol=1e-5, atol=1e-6)
    assert not torch.equal(spoiled.state_dict()[name], torch_net.state_dict()[name])


@pytest.fixture(scope="module")
def keras_pair():
    net = conv_net()
    return onnxfix.load(net), to_tflite(net)


def test_kerass_own_conversion_is_clean(keras_pair, tmp_path):
    source, flat = keras_pair
    (tmp_path / "net.tflite").write_bytes(flat)
    fix = onnxfix.repair(source, tmp_path / "net.tflite", photos(20))
    assert fix.success
    assert fix.diagnosis.faults == ()


def test_a_tflite_file_gets_its_bias_back(keras_pair, tmp_path):
    source, flat = keras_pair
    (tmp_path / "net.tflite").write_bytes(flat)
    clean = onnxfix.load(tmp_path / "net.tflite")
    site = inject(clean, "zero_bias", seed=0).sites[0]
    raw = value(clean.proto, site.parameter).tobytes()
    assert flat.count(raw) == 1
    (tmp_path / "broken.tflite").write_bytes(flat.replace(raw, bytes(len(raw))))
    fix = repaired(source, tmp_path / "broken.tflite", photos(20))
    (fault,) = fix.diagnosis.faults
    assert (fault.kind, fault.parameter) == (onnxfix.FaultKind.WEIGHTS, site.parameter)
    fix.save(tmp_path / "fixed.tflite")
    fixed = onnxfix.load(tmp_path / "fixed.tflite")
    (wanted,) = source.run_native({source.inputs[0].name: photos(9, seed=4)}).values()
    (found,) = fixed.run_native({fixed.inputs[0].name: photos(9, seed=4)}).values()
    assert np.abs(found - wanted).max() <= NOISE * np.abs(wanted).max()


# Models that real converters broke


def test_the_quantized_autoencoder_has_nine_wrong_biases_and_what_quantization_costs(shared_data):
    folder = shared_data / "models" / "ad01"
    data = np.random.default_rng(0).standard_normal((60, 640)).astype(np.float32)
    fix = onnxfix.repair(folder / "ad01.h5", folder / "ad01_int8.tflite", data)
    layers = ["dense", *(f"dense_{k}" for k in range(1, 9))]
    assert [fault.kind for fault in fix.diagnosis.faults] == [onnxfix.FaultKind.WEIGHTS] * 9
    assert sorted(fault.source_nodes[-1] for fault in fix.diagnosis.faults) == layers
    assert fix.success
    # What is left is what a correct quantization costs: with int8 throughout, some percent of the range.
    assert fix.before.explained < 1 == fix.after.explained == fix.verified.explained
    assert fix.verified.max_rel < 0.1


def test_the_published_autoencoder(shared_data, tmp_path):
    folder = shared_data / "models" / "ad01"
    data = np.random.default_rng(0).standard_normal((120, 640)).astype(np.float32)
    target = onnxfix.load(folder / "ad01_fp32.tflite")
    fix = repaired(folder / "ad01.h5", target, data)
    assert 0.01 < fix.before.max_rel < 0.02
    # One bias of each dense layer but the last; named by Keras layer and by TFLite tensor.
    layers = ["dense", *(f"dense_{k}" for k in range(1, 9))]
    faults = {fault.source_nodes[-1]: fault for fault in fix.diagnosis.faults}
    assert len(fix.diagnosis.faults) == 9
    assert sorted(faults) == layers
    for layer, fault in faults.items():
        assert fault.kind == onnxfix.FaultKind.WEIGHTS
        assert fault.native_parameter == f"functional_1/{layer}/BiasAdd/ReadVariableOp/resource"
        assert fault.expected.shape == fault.actual.shape == (8 if layer == "dense_4" else 128,)
    fix.save(tmp_path / "fixed.tflite")
    fixed = onnxfix.load(tmp_path / "fixed.tflite")
    ours, theirs = ({t.name: t.raw_data for t in m.proto.graph.initializer} for m in (target, fixed))
    assert {name for name in ours if ours[name] != theirs[name]} == {f.native_parameter for f in faults.values()}
    before, after = ((folder / "ad01_fp32.tflite").read_bytes(), (tmp_path / "fixed.tflite").read_bytes())
    assert len(before) == len(after)
    same = bytearray(after)
    for fault in faults.values():
        old, new = (np.ascontiguousarray(v, np.float32).tobytes() for v in (fault.actual, fault.expected))
        at = before.index(old)
        assert after[at : at + len(new)] == new
        same[at : at + len(old)] = old
    assert bytes(same) == before
    source = onnxfix.load(folder / "ad01.h5")
    unseen = np.random.default_rng(1).standard_normal((50, 640)).astype(np.float32)
    (wanted,) = source.run_native({source.inputs[0].name: unseen}).values()
    (found,) = fixed.run_native({fixed.inputs[0].name: unseen}).values()
    assert np.abs(found - wanted).max() <= 1e-5 * np.abs(wanted).max()


def test_the_published_resnet_is_clean(shared_data):
    folder = shared_data / "models" / "resnet8_cifar10"
    data = np.random.default_rng(0).uniform(0, 255, (20, 32, 32, 3)).astype(np.float32)
    diagnosis = onnxfix.diagnose(folder / "resnet8.h5", folder / "resnet8_float.tflite", data)
    assert diagnosis.faults == ()
    assert diagnosis.comparison.equivalent
    assert diagnosis.comparison.label_discrepancy == 0


CONVERTER_BUGS = {
    "slim_conv_mul_width": {"/c/Conv_output_0"},
    "onnxoptimizer_pad_maxpool": {"node_max_pool2d"},
    "t2o_ts_softplus_threshold": {"/s/Softplus"},
    "tf2onnx_floormod_negative": {"FloorMod", "Div__6", "Mul__7"},
}


def converted(folder):
    case = json.loads((folder / "case.json").read_text())
    source = folder / "source.pt2"
    return source if source.exists() else folder / case["source"].rstrip("/"), folder / case["target"]


@pytest.mark.parametrize("name", CONVERTER_BUGS)
def test_what_a_converter_really_broke(shared_data, name):
    folder = shared_data / "converter_bugs" / name
    fix = repaired(*converted(folder), folder / "data.npz")
    assert fix.before.max_rel > 0.05
    assert CONVERTER_BUGS[name] & set(fix.diagnosis.faults[0].target_nodes)
    assert all(set(fault.target_nodes) <= CONVERTER_BUGS[name] for fault in fix.diagnosis.faults)


def test_what_the_runtime_breaks_is_not_blamed_on_the_model(shared_data):
    folder = shared_data / "converter_bugs" / "k2o_zeropad_maxpool_ort_fusion"
    diagnosis = onnxfix.diagnose(*converted(folder), folder / "data.npz")
    assert diagnosis.faults == ()
    assert diagnosis.comparison.equivalent
    assert len(diagnosis.notes) == 1
    assert diagnosis.notes[0].startswith("This is the runtime's fault, not the model's: onnxruntime's default graph optimisations")


MOMENTS = """
net (float[N, 6] x) => (float[N, 4] y) {
    m = MatMul (x, w)
    n = BatchNormalization <epsilon = 0.001> (m, scale, shift, mean, variance)
    y = Relu (n)
}
"""


def test_mean_and_variance_in_each_others_place_are_set_right_together():
    # One makes the kernel wrong, both make the bias behind it wrong.
    mean, variance = np.abs(normal(4, seed=3)), np.abs(normal(4, seed=4)) + np.float32(0.3)
    kept = dict(w=normal(6, 4), scale=normal(4, seed=1), shift=normal(4, seed=2))
    source = parse(MOMENTS, mean=mean, variance=variance, **kept)
    target = parse(MOMENTS, mean=variance, variance=mean, **kept)
    fix = onnxfix.repair(source, target, normal(40, 6, seed=5))
    assert {name for fault in fix.diagnosis.faults for name in fault.target_nodes} == {"node_n"}
    assert fix.success
    assert fix.verified.max_rel <= NOISE


def test_an_exchange_that_the_opset_does_not_know_is_not_tried():
    # ReduceSum takes its axes as an operand from opset 13, ReduceMean from 18.
    text = "net (float[N, 7, 8] x) => (float[N, 7, 8] y) {{ m = MatMul(x, w) r = {} s = Sub(m, r) y = MatMul(s, v) }}"
    weights = dict(w=normal(8, 8), v=normal(8, 8, seed=2))
    source = parse(text.format("ReduceMean<axes = [2], keepdims = 1>(m)"), **weights)
    target = parse(text.format("ReduceSum<keepdims = 1>(m, axes)"), axes=np.array([2]), **weights)
    fix = onnxfix.repair(source, target, normal(16, 7, 8, seed=5))
    assert [(str(f.kind), f.target_nodes[0]) for f in fix.diagnosis.faults] == [("graph", "node_r")]
    assert fix.success


def test_a_weight_that_makes_up_for_another_scale_comes_after_what_changed_it():
    text = "net (float[N, 8] x) => (float[N, 5] y) {{ h = MatMul(x, u) t = Tanh(h) {} y = MatMul(q, w) }}"
    shared, weight = dict(u=normal(8, 6, scale=0.5)), normal(6, 5)
    source = parse(text.format("s = Mul(t, seven) r = Round(s) q = Clip(r, low, seven)"), w=weight / np.float32(7),
                   seven=np.float32(7), low=np.float32(-8), **shared)
    target = parse(text.format("i = QuantizeLinear(t, scale, zero) q = DequantizeLinear(i, scale, zero)"), w=weight,
                   scale=np.float32(1 / 127), zero=np.int8(0), **shared)
    fix = onnxfix.repair(source, target, normal(40, 8, seed=5))
    assert {"node_q", "node_i"} <= set(fix.diagnosis.faults[0].target_nodes)
    assert fix.success
    assert fix.verified.max_rel <= NOISE
