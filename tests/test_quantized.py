"""Quantized targets: what a correct quantization costs is no fault; wrong constants, scales and ranges are."""

from __future__ import annotations

from functools import cache

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper

from onnxfix import FaultKind, compare, diagnose, repair
from onnxfix.diagnose.quantized import straightened
from onnxfix.model import load
from onnxfix.quantization import Quantization, is_quantized

SOURCE = """
<ir_version: 10, opset_import: ["": 19]>
net (float[N, 12] x) => (float[N, 4] y) {
    h = Gemm <transB = 1> (x, w1, b1)
    r = Relu (h)
    y = Gemm <transB = 1> (r, w2, b2)
}
"""
TARGET = """
<ir_version: 10, opset_import: ["": 19]>
net (float[N, 12] x) => (float[N, 4] y) {
    xq = QuantizeLinear (x, sx, zx)
    xd = DequantizeLinear (xq, sx, zx)
    w1d = DequantizeLinear <axis = 0> (w1, s1, z1)
    b1d = DequantizeLinear <axis = 0> (b1, t1, o1)
    h = Gemm <transB = 1> (xd, w1d, b1d)
    r = Relu (h)
    rq = QuantizeLinear (r, sr, zr)
    rd = DequantizeLinear (rq, sr, zr)
    w2d = DequantizeLinear (w2, s2, z2)
    b2d = DequantizeLinear (b2, t2, o2)
    g = Gemm <transB = 1> (rd, w2d, b2d)
    yq = QuantizeLinear (g, sy, zy)
    y = DequantizeLinear (yq, sy, zy)
}
"""


def built(text: str, constants: dict[str, np.ndarray]) -> onnx.ModelProto:
    model = onnx.parser.parse_model(text)
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items())
    for node in model.graph.node:
        node.name = node.output[0]
    onnx.checker.check_model(model)
    return model


def data() -> np.ndarray:
    return np.random.default_rng(1).standard_normal((60, 12)).astype(np.float32)


@cache
def floats() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "w1": rng.standard_normal((8, 12)).astype(np.float32), "b1": rng.standard_normal(8).astype(np.float32),
        "w2": rng.standard_normal((4, 8)).astype(np.float32), "b2": rng.standard_normal(4).astype(np.float32),
    }  # fmt: skip


def source() -> onnx.ModelProto:
    return built(SOURCE, floats())


def scheme(values: np.ndarray) -> Quantization:
    low, high = min(0.0, float(values.min())), max(0.0, float(values.max()))
    scale = float(np.float32((high - low) / 255))
    return Quantization(scale, int(np.clip(np.rint(-128 - low / scale), -128, 127)), "int8")


@cache
def integers() -> dict[str, np.ndarray]:
    """A correct quantization: the first layer by channel, the second by tensor, biases in int32."""
    c, x = floats(), data()
    h = np.maximum(x @ c["w1"].T + c["b1"], 0)
    ranges = {"x": scheme(x), "r": scheme(h), "y": scheme(h @ c["w2"].T + c["b2"])}
    s1 = (np.abs(c["w1"]).max(axis=1) / 127).astype(np.float32)
    s2 = np.asarray(np.abs(c["w2"]).max() / 127, np.float32)
    t1 = (np.float32(ranges["x"].scale) * s1).astype(np.float32)
    t2 = np.asarray(np.float32(ranges["r"].scale) * s2, np.float32)
    made = {
        "w1": np.rint(c["w1"] / s1[:, None]).astype(np.int8), "s1": s1, "z1": np.zeros(8, np.int8),
        "b1": np.rint(c["b1"] / t1).astype(np.int32), "t1": t1, "o1": np.zeros(8, np.int32),
        "w2": np.rint(c["w2"] / s2).astype(np.int8), "s2": s2, "z2": np.zeros((), np.int8),
        "b2": np.rint(c["b2"] / t2).astype(np.int32), "t2": t2, "o2": np.zeros((), np.int32),
    }  # fmt: skip
    for name, found in ranges.items():
        made[f"s{name}"] = np.asarray(found.scale, np.float32)
        made[f"z{name}"] = np.asarray(found.zero_point, np.int8)
    return made


def target(**changed: np.ndarray) -> onnx.ModelProto:
    return built(TARGET, integers() | changed)


def constants(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}


def test_a_correct_quantization_has_no_fault_and_explains_the_whole_difference():
    fix = repair(source(), target(), data())
    assert fix.diagnosis.faults == ()
    assert not fix.before.equivalent
    assert fix.before.explained == fix.verified.explained == 1.0
    assert fix.success
    assert fix.patches == ()
    assert diagnose(source(), target(), data()).faults == ()


def test_the_straightened_model_is_the_float_one_to_half_a_step():
    model = load(target())
    assert is_quantized(model.proto)
    assert not is_quantized(source())
    straight = straightened(model)
    assert [q.value for q in straight.quantizers] == ["x", "r", "g"]
    feed = {"x": data()}
    expected, actual = load(source()).run(feed)["y"], straight.model.run(feed)["y"]
    # Weights are off by up to half a step: 2^-8 of the largest, over 12 and 8 summands.
    np.testing.assert_allclose(actual, expected, atol=2**-8 * 20 * np.abs(expected).max() / np.sqrt(8))


@pytest.mark.parametrize(
    ("name", "wrong", "kind"),
    [
        ("b1", np.zeros(8, np.int32), FaultKind.WEIGHTS),
        ("w1", np.roll(integers()["w1"], 1, 0), FaultKind.WEIGHTS),
        ("w2", -integers()["w2"], FaultKind.WEIGHTS),
        ("s2", integers()["s2"] * np.float32(2), FaultKind.PRECISION),
        ("s1", integers()["s1"] * np.float32(0.25), FaultKind.PRECISION),
        ("z2", np.asarray(9, np.int8), FaultKind.PRECISION),
    ],
)
def test_a_wrong_constant_is_set_right_on_the_file_s_own_grid(name, wrong, kind):
    fix = repair(source(), target(**{name: wrong}), data())
    (fault,) = fix.diagnosis.faults
    assert (fault.kind, fault.parameter) == (kind, name)
    assert fix.success
    assert fix.before.explained < 1
    repaired = constants(fix.model.proto)[name]
    assert repaired.dtype == integers()[name].dtype
    # Scales are fitted to weights that were rounded, so they come back to half a step of 127.
    np.testing.assert_allclose(repaired, integers()[name], rtol=2e-3 if repaired.dtype.kind == "f" else 0)
    assert [p.name for p in fix.patches] == [name]


def test_an_op_that_is_missing_is_put_between_what_stays_quantized():
    text = SOURCE.replace("y = Gemm <transB = 1> (r,", "t = Tanh (r) y = Gemm <transB = 1> (t,")
    fix = repair(built(text, floats()), target(), data())
    (fault,) = fix.diagnosis.faults
    ops = [node.op_type for node in fix.model.proto.graph.node]
    assert fault.kind == FaultKind.GRAPH
    assert fix.success
    assert "Tanh" in ops
    assert ops.count("QuantizeLinear") == 3
    assert sum(node.op_type == "DequantizeLinear" for node in fix.model.proto.graph.node) == 7


@pytest.mark.parametrize("factor", [0.1, 100.0])
def test_a_range_that_does_not_fit_is_set_right(factor, tmp_path):
    wrong = np.asarray(integers()["sr"] * factor, np.float32)
    fix = repair(source(), target(sr=wrong), data())
    (fault,) = fix.diagnosis.faults
    assert fault.kind == FaultKind.PRECISION
    assert fault.parameter == "sr"
    assert "rq" in fault.target_nodes
    assert (fault.reproducer(tmp_path / "shown") / "model.onnx").exists()
    assert fix.success
    # The bias behind it keeps the scale of its input times the weight's, which tells the right one.
    np.testing.assert_allclose(constants(fix.model.proto)["sr"], integers()["sr"], rtol=1e-6)


@pytest.mark.parametrize(("slot", "name"), [(1, "scale"), (2, "zero")])
def test_integers_that_are_widened_otherwise_than_made_are_told(slot, name):
    model = target()
    other = np.asarray(integers()["sr"] * 2, np.float32) if slot == 1 else np.asarray(integers()["zr"] + 40, np.int8)
    model.graph.initializer.append(numpy_helper.from_array(other, name))
    next(n for n in model.graph.node if n.name == "rd").input[slot] = name
    fix = repair(source(), model, data())
    (fault,) = fix.diagnosis.faults
    assert fault.kind == FaultKind.PRECISION
    assert (fault.target_nodes[0], fault.parameter) == ("rd", name)
    assert fix.success


def test_several_faults_are_told_apart():
    wrong = {"b1": np.zeros(8, np.int32), "w2": -integers()["w2"], "sx": np.asarray(integers()["sx"] / 300, np.float32)}
    fix = repair(source(), target(**wrong), data())
    assert {fault.parameter for fault in fix.diagnosis.faults} == set(wrong)
    assert fix.success


def test_integer_inputs_and_outputs_take_and_give_floats():
    model = target()
    graph = model.graph
    first, last = graph.node[0], graph.node[-1]
    graph.node.remove(first)
    graph.node.remove(last)
    del graph.input[:], graph.output[:]
    graph.input.append(onnx.helper.make_tensor_value_info("xq", onnx.TensorProto.INT8, ["N", 12]))
    graph.output.append(onnx.helper.make_tensor_value_info("yq", onnx.TensorProto.INT8, ["N", 4]))
    narrow = compare(source(), model, data())
    wide = compare(source(), target(), data())
    assert narrow.max_abs == pytest.approx(wide.max_abs, rel=1e-6)
    assert repair(source(), model, data()).success


def test_a_difference_beyond_rounding_is_a_fault_even_where_it_is_small():
    bias = integers()["b1"].copy()
    bias[3] += 40  # steps; rounding leaves half of one
    (fault,) = diagnose(source(), target(b1=bias), data()).faults
    assert (fault.kind, fault.parameter) == (FaultKind.WEIGHTS, "b1")


def dynamic(**changed: np.ndarray) -> onnx.ModelProto:
    """Weights in int8, activations by the range of the batch, as onnxruntime's dynamic quantization writes it."""
    text = """
    <ir_version: 10, opset_import: ["": 19]>
    net (float[N, 12] x) => (float[N, 4] y) {
        xq, xs, xz = DynamicQuantizeLinear (x)
        m = MatMulInteger (xq, w1, xz, z1)
        mf = Cast <to = 1> (m)
        ms = Mul (xs, s1)
        h0 = Mul (mf, ms)
        h = Add (h0, b1)
        r = Relu (h)
        rq, rs, rz = DynamicQuantizeLinear (r)
        n = MatMulInteger (rq, w2, rz, z2)
        nf = Cast <to = 1> (n)
        ns = Mul (rs, s2)
        g0 = Mul (nf, ns)
        y = Add (g0, b2)
    }
    """
    c = floats()
    s1, s2 = (np.asarray(np.abs(c[w]).max() / 127, np.float32) for w in ("w1", "w2"))
    values = {
        "w1": np.rint(c["w1"].T / s1).astype(np.int8), "s1": s1, "z1": np.zeros((), np.int8), "b1": c["b1"],
        "w2": np.rint(c["w2"].T / s2).astype(np.int8), "s2": s2, "z2": np.zeros((), np.int8), "b2": c["b2"],
    }  # fmt: skip
    return built(text, values | changed)


def test_dynamic_quantization_is_right_as_it_is():
    fix = repair(source(), dynamic(), data())
    assert fix.diagnosis.faults == ()
    assert fix.success
    assert fix.before.explained == 1.0


@pytest.mark.parametrize(("name", "kind"), [("w1", FaultKind.WEIGHTS), ("b2", FaultKind.WEIGHTS)])
def test_a_wrong_constant_of_a_dynamic_quantization_is_found(name, kind):
    right = constants(dynamic())[name]
    fix = repair(source(), dynamic(**{name: np.roll(right, 1, -1)}), data())
    (fault,) = fix.diagnosis.faults
    assert (fault.kind, fault.parameter) == (kind, name)
    assert fix.success
    np.testing.assert_allclose(constants(fix.model.proto)[name], right, rtol=1e-6)
