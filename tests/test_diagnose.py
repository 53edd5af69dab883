"""Diagnosis: exactly what is wrong is named, and nothing that is not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

import onnxfix
from broken import BROKEN
from onnxfix.diagnose.soundness import sound
from onnxfix.testing import inject, make_names_opaque
from small_onnx import NOISE, copied, images, network, node, normal, parse, summary, value, with_value, without_node


def faults(source, target, data):
    """(kind, first guilty node, parameter) of each fault, in any order, and the diagnosis."""
    found = onnxfix.diagnose(source, target, data)
    return sorted(summary(found.faults), key=str), found


@pytest.mark.parametrize("case", BROKEN)
def test_what_was_broken_is_named_and_nothing_else(case):
    build, expected = BROKEN[case]
    found, diagnosis = faults(network(), build(), images())
    assert found == sorted(expected, key=str)
    assert not diagnosis.comparison.equivalent
    errors = [fault.local_error for fault in diagnosis.faults]
    assert errors == sorted(errors, reverse=True)
    assert all(fault.local_error > 10 * fault.noise for fault in diagnosis.faults)
    assert all(fault.message.endswith(".") and "\n" not in fault.message for fault in diagnosis.faults)


@pytest.mark.parametrize("case", BROKEN)
def test_names_may_mean_nothing(case):
    build, expected = BROKEN[case]
    opaque = make_names_opaque(build(), seed=6)
    old = {new: name for name, new in (*opaque.nodes.items(), *opaque.values.items())}
    found = onnxfix.diagnose(network(), opaque.model, images()).faults
    named = [(str(f.kind), old[f.target_nodes[0]], old.get(f.parameter, f.parameter)) for f in found]
    assert sorted(named, key=str) == sorted(expected, key=str)


def test_a_fault_says_where_on_both_sides_and_what_it_should_be():
    opaque = make_names_opaque(network(), seed=1)
    bias = opaque.values["right_bias"]
    broken = with_value(opaque.model, **{bias: 2 * value(network(), "right_bias")})
    (fault,) = onnxfix.diagnose(network(), broken, images()).faults
    assert fault.target_nodes == (opaque.nodes["node_right"],)
    assert fault.source_nodes == ("node_right",)
    assert (fault.parameter, fault.source_parameter) == (bias, "right_bias")
    np.testing.assert_allclose(fault.expected, value(network(), "right_bias"), rtol=1e-6)
    np.testing.assert_array_equal(fault.actual, 2 * value(network(), "right_bias"))
    assert fault.message == f"{bias} of {opaque.nodes['node_right']} is scaled by 2."


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda w: np.zeros_like(w), "was dropped (all zero)"),
        (lambda w: -w, "has the opposite sign"),
        (lambda w: w * np.float32(1.5), "is scaled by 1.5"),
        (lambda w: w.astype(np.float16).astype(np.float32), "was rounded to float16"),
        (lambda w: w.swapaxes(2, 3), "is spatially transposed (axes [0, 1, 3, 2])"),
        (lambda w: w[:, :, ::-1], "is flipped along axis 2"),
        (lambda w: w[[1, 2, 3, 0]], "has its axis 0 permuted"),
        (lambda w: w + (np.arange(w.size) == 3).reshape(w.shape).astype(np.float32), "differs in 1 of 144 values by up to 1"),
        (lambda w: np.where(np.arange(w.size).reshape(w.shape) == 3, np.float32(np.nan), w), "is not finite in 1 of 144 values"),
    ],
)
def test_the_message_says_what_happened_to_a_weight(change, words):
    broken = with_value(network(), left_kernel=np.ascontiguousarray(change(value(network(), "left_kernel"))))
    (fault,) = onnxfix.diagnose(network(), broken, images()).faults
    assert fault.message == f"left_kernel of node_left {words}."


def test_local_errors_are_those_of_the_region_alone():
    text = "net (float[N, 4] x) => (float[N, 4] y) { a = Add(x, p) b = Tanh(a) y = Add(b, q) }"
    source = parse(text, p=np.zeros(4, np.float32) + 1, q=np.ones(4, np.float32))
    target = parse(text, p=np.zeros(4, np.float32) + 3, q=np.full(4, 1.25, np.float32))
    x = normal(20, 4)
    found = {f.parameter: f.local_error for f in onnxfix.diagnose(source, target, x).faults}
    assert found["p"] == pytest.approx(2 / np.abs(x + 1).max(), rel=1e-5)
    assert found["q"] == pytest.approx(0.25 / np.abs(np.tanh(x + 1) + 1).max(), rel=1e-5)


# Nothing is wrong


def clean(source, target, data, before=NOISE):
    diagnosis = onnxfix.diagnose(source, target, data)
    assert diagnosis.faults == ()
    assert diagnosis.comparison.max_rel <= before
    assert diagnosis.comparison.equivalent
    return diagnosis


def test_a_renamed_copy_is_clean():
    assert clean(network(), make_names_opaque(network()).model, images()).aligned == 1


def in_half(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same network, its weights stored as float16 and cast."""
    copy = copied(model)
    for tensor in list(copy.graph.initializer):
        content = numpy_helper.to_array(tensor)
        if content.ndim:
            name = tensor.name
            tensor.CopyFrom(numpy_helper.from_array(content.astype(np.float16), f"{name}_half"))
            copy.graph.node.insert(0, onnx.helper.make_node("Cast", [f"{name}_half"], [name], f"cast_{name}", to=1))
    return copy


def test_weights_stored_in_float16_are_no_fault():
    clean(network(), in_half(network()), images(), before=1e-3)


def test_weights_rounded_to_a_power_of_two_are_as_close_as_the_wider_step_lets_them_be():
    # Above a power of two the steps of float16 are twice as wide as below it.
    weight = value(network(), "hidden_weight")
    above = (np.sign(weight) * 2.0**-4 * (1 + 0.49 * 2.0**-10)).astype(np.float32)
    source = with_value(network(), hidden_weight=above)
    clean(source, in_half(source), images(), before=1e-3)


def test_a_wrong_weight_stored_in_float16_is_a_fault():
    half = in_half(with_value(network(), left_kernel=value(network(), "left_kernel") * np.float32(1.2)))
    found, _ = faults(network(), half, images())
    assert [(kind, parameter) for kind, _, parameter in found] == [("weights", "left_kernel_half")]


def test_weights_rounded_to_float16_and_stored_in_float32_are_a_fault():
    rounded = value(network(), "left_kernel").astype(np.float16).astype(np.float32)
    found, diagnosis = faults(network(), with_value(network(), left_kernel=rounded), images())
    assert found == [("weights", "node_left", "left_kernel")]
    assert "rounded to float16" in diagnosis.faults[0].message


HIDDEN = {
    "a ReLU of what is positive": (
        "net (float[N, 4] x) => (float[N, 4] y) { s = Sigmoid(x) a = Relu(s) y = MatMul(a, w) }",
        "net (float[N, 4] x) => (float[N, 4] y) { s = Sigmoid(x) y = MatMul(s, w) }",
    ),
    "a bound that is never reached": (
        "net (float[N, 4] x) => (float[N, 4] y) { s = MatMul(x, w) y = Clip(s, low, high) }",
        "net (float[N, 4] x) => (float[N, 4] y) { s = MatMul(x, w) y = Clip(s, low, higher) }",
    ),
    "a leak of what is positive": (
        "net (float[N, 4] x) => (float[N, 4] y) { s = Exp(x) a = Relu(s) y = MatMul(a, w) }",
        "net (float[N, 4] x) => (float[N, 4] y) { s = Exp(x) a = LeakyRelu(s) y = MatMul(a, w) }",
    ),
    "a branch that is never taken": (
        """net (float[N, 4] x) => (float[N, 4] y) { s = Exp(x) m = ReduceSum <keepdims = 0> (s) c = Greater(m, low) a = MatMul(x, w)
        y = If (c) <then_branch = t () => (float[N, 4] u) { u = Tanh(a) }, else_branch = e () => (float[N, 4] v) { v = Exp(a) }> }""",
        """net (float[N, 4] x) => (float[N, 4] y) { s = Exp(x) m = ReduceSum <keepdims = 0> (s) c = Greater(m, low) a = MatMul(x, w)
        y = If (c) <then_branch = t () => (float[N, 4] u) { u = Tanh(a) }, else_branch = e () => (float[N, 4] v) { v = Sin(a) }> }""",
    ),
}


def with_constants(text: str, **changed: np.ndarray) -> onnx.ModelProto:
    constants = {"w": normal(4, 4), "low": np.float32(-50), "high": np.float32(50), "higher": np.float32(60)} | changed
    return parse(text, **{name: c for name, c in constants.items() if f"{name})" in text or f"{name}," in text})


@pytest.mark.parametrize("beside", [1.0, 1.1])
@pytest.mark.parametrize("case", HIDDEN)
def test_what_the_data_do_not_show_is_no_fault(case, beside):
    # Also beside a real fault, when the whole models differ.
    source, target = (text.replace("y = ", "z = ").replace("[N, 4] y", "[N, 5] y")[:-1] + "y = MatMul(z, last) }" for text in HIDDEN[case])
    last = normal(4, 5)
    found, _ = faults(with_constants(source, last=last), with_constants(target, last=last * np.float32(beside)), normal(20, 4))
    assert found == ([] if beside == 1 else [("weights", "node_y", "last")])


CHAIN = """net (float[N, 3, 6, 6] x) => (float[N, 5, 6, 6] y) {
    BODY
    t = Tanh(c) y = Conv <kernel_shape = [1, 1]> (t, last, bias) }"""


def moved(first: bool, bias: np.ndarray) -> onnx.ModelProto:
    """A per-channel factor before a convolution, or behind it; Sin keeps it from being folded elsewhere."""
    before = "s = Sin(x) a = Mul(s, f) c = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (a, k)"
    behind = "s = Sin(x) b = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (s, k) c = Mul(b, f)"
    body = CHAIN.replace("BODY", before if first else behind)
    return parse(body, f=np.float32(3), k=normal(4, 3, 3, 3, scale=0.3), last=normal(5, 4, 1, 1), bias=bias)


def test_a_factor_moved_past_a_convolution_is_no_fault():
    bias = normal(5)
    clean(moved(True, bias), moved(False, bias), normal(20, 3, 6, 6))
    found, _ = faults(moved(True, bias), moved(False, 0 * bias), normal(20, 3, 6, 6))
    assert found == [("weights", "node_y", "bias")]


ACROSS = """net (float[N, 4] x) => (float[N, 3] y) {
    a = MatMul(x, w) b = Relu(a) c = MatMul(b, v) d = Tanh(c) e = MatMul(d, u) y = Add(e, bias) }"""


@pytest.mark.parametrize("how", ["a factor", "an order"])
@pytest.mark.parametrize(("wrong", "node_name"), [(None, ""), ("u", "node_e"), ("bias", "node_y")])
def test_weights_that_compensate_each_other_are_innocent_beside_a_fault(how, wrong, node_name):
    w, v, order = normal(4, 4), normal(4, 4, seed=1), [2, 0, 3, 1]
    source = parse(ACROSS, w=w, v=v, u=normal(4, 3), bias=normal(3))
    w, v = (w * np.float32(3), v / np.float32(3)) if how == "a factor" else (w[:, order], v[order])
    target = parse(ACROSS, w=w, v=v, u=normal(4, 3), bias=normal(3))
    if wrong is None:
        clean(source, target, normal(20, 4))
        return
    broken = with_value(target, **{wrong: value(target, wrong) * np.float32(1.2)})
    assert faults(source, broken, normal(20, 4))[0] == [("weights", node_name, wrong)]


@st.composite
def networks(draw):
    """Convolutions with or without bias, batch norm, activation and residual, then dense layers."""
    seed = draw(st.integers(0, 10_000))
    rng = np.random.default_rng(seed)
    body, constants, x, channels = [], {}, "x", 3
    for k in range(draw(st.integers(1, 4))):
        size, wide, group = draw(st.sampled_from([1, 3])), draw(st.sampled_from([channels, 4])), 1
        if draw(st.booleans()):
            wide = group = channels
        constants[f"k{k}"] = rng.normal(0, 0.4, (wide, channels // group, size, size)).astype(np.float32)
        inputs = f"{x}, k{k}"
        if draw(st.booleans()):
            constants[f"b{k}"] = rng.normal(size=wide).astype(np.float32)
            inputs += f", b{k}"
        pad = size // 2
        body.append(f"c{k} = Conv <kernel_shape = [{size}, {size}], pads = [{pad}, {pad}, {pad}, {pad}], group = {group}> ({inputs})")
        before, channels, x = x if wide == channels else None, wide, f"c{k}"
        if draw(st.booleans()):
            for name, low in (("g", 0.5), ("s", -0.5), ("m", -0.5), ("v", 0.2)):
                constants[f"{name}{k}"] = rng.uniform(low, low + 1, wide).astype(np.float32)
            body.append(f"n{k} = BatchNormalization <epsilon = 0.001> ({x}, g{k}, s{k}, m{k}, v{k})")
            x = f"n{k}"
        op = draw(st.sampled_from(["", "Relu", "Tanh", "HardSwish"]))
        if op:
            body.append(f"r{k} = {op}({x})")
            x = f"r{k}"
        if before and draw(st.booleans()):
            body.append(f"e{k} = Add({x}, {before})")
            x = f"e{k}"
    constants["dense"] = rng.normal(0, 0.2, (channels * 25, 4)).astype(np.float32)
    constants["bias"] = rng.normal(size=4).astype(np.float32)
    body.append(f"flat = Flatten({x}) y = Gemm(flat, dense, bias)")
    return parse(f"net (float[N, 3, 5, 5] x) => (float[N, 4] y) {{ {' '.join(body)} }}", **constants), seed


@given(case=networks())
@settings(max_examples=12, deadline=None)
def test_random_networks_are_clean_against_themselves_optimised_by_onnxruntime_offline(case, tmp_path_factory):
    """Another converter's result: constants folded, batch norms and factors fused, names and order its own."""
    import onnxruntime as ort

    model, seed = case
    path = tmp_path_factory.mktemp("fused") / "fused.onnx"
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(path)
    ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    fused = onnx.load(path)
    opaque = make_names_opaque(fused, seed=seed).model
    clean(model, opaque, normal(16, 3, 5, 5, seed=seed))


@given(networks(), st.sampled_from(["perturb_weight", "sign_flip", "zero_bias", "permute_channels"]))
@settings(max_examples=12, deadline=None)
def test_one_wrong_weight_of_a_random_network_is_found(case, operator):
    model, seed = case
    injection = inject(model, operator, seed=seed, node=None)
    opaque = make_names_opaque(injection.model, seed=seed)
    site = opaque.site(injection.sites[0])
    found = onnxfix.diagnose(model, opaque.model, normal(16, 3, 5, 5, seed=seed)).faults
    assert [fault.parameter for fault in found] == [site.parameter]
    assert site.node in found[0].target_nodes


# Other models


def test_a_shared_weight_of_which_one_reader_is_wrong():
    text = "tied (float[N, 6] x) => (float[N, 6] y) { a = MatMul(x, w) b = Tanh(a) c = MatMul(b, w) d = Tanh(c) y = MatMul(d, w) }"
    weight = normal(6, 6, scale=0.5)
    other = parse(text.replace("MatMul(b, w)", "MatMul(b, w2)"), w=weight, w2=weight * np.float32(1.1))
    assert faults(parse(text, w=weight), other, normal(20, 6))[0] == [("weights", "node_c", "w2")]
    # The other way round: the target reads one weight where the source has two.
    assert faults(other, parse(text, w=weight), normal(20, 6))[0] == [("weights", "node_c", "w")]


AXES = {
    "Softmax": ("net (float[N, 5, 5] x) => (float[N, 5, 5] y) { a = MatMul(x, w) s = Softmax <axis = AXIS> (a) y = MatMul(s, w) }", "axis"),
    "ReduceMean": (
        "net (float[N, 5, 5] x) => (float[N, 5] y) { a = MatMul(x, w) s = ReduceMean <axes = [AXIS], keepdims = 0> (a) y = MatMul(s, w) }",
        "axes",
    ),
    "CumSum": ("net (float[N, 5, 5] x) => (float[N, 5, 5] y) { a = MatMul(x, w) s = CumSum(a, axisAXIS) y = MatMul(s, w) }", None),
    "Concat": ("net (float[N, 5, 5] x) => (float[N, ROWS] y) { a = MatMul(x, w) s = Concat <axis = AXIS> (a, x) y = Flatten(s) }", "axis"),
}


@pytest.mark.parametrize("op", AXES)
def test_a_wrong_axis(op):
    text, parameter = AXES[op]
    def model(axis):
        constants = {f"axis{axis}": np.int64(axis)} if op == "CumSum" else {}
        return parse(text.replace("AXIS", str(axis)).replace("ROWS", "50"), w=normal(5, 5), **constants)
    expected = [("hyperparameters", "node_s", parameter or "axis2")]
    assert faults(model(1), model(2), normal(20, 5, 5))[0] == expected


TWO = """net (float[N, 4] a, float[N, 4] b) => (float[N, 4] s, float[N, 4] d) {
    p = MatMul(a, w) q = MatMul(b, v) t = Tanh(p) s = Add(t, q) d = Sub(t, q) }"""


def test_models_of_several_inputs_and_outputs():
    source = parse(TWO, w=normal(4, 4), v=normal(4, 4, seed=1))
    data = {"a": normal(20, 4, seed=8), "b": normal(20, 4, seed=9)}
    clean(source, make_names_opaque(source).model, data)
    wrong = with_value(source, v=value(source, "v") * np.float32(1.1))
    assert faults(source, wrong, data)[0] == [("weights", "node_q", "v")]
    turned = parse(TWO.replace("Sub(t, q)", "Sub(q, t)"), w=normal(4, 4), v=normal(4, 4, seed=1))
    found, diagnosis = faults(source, turned, data)
    assert found == [("graph", "node_d", None)]
    assert diagnosis.comparison.per_output[0].max_rel <= NOISE


BRANCH = """net (float[N, 4] x) => (float[N, 4] y) {
    a = MatMul(x, w) m = ReduceSum <keepdims = 0> (a) c = Greater(m, zero)
    b = If (c) <then_branch = t () => (float[N, 4] u) { u = Tanh(a) }, else_branch = e () => (float[N, 4] v) { v = Sigmoid(a) }>
    y = MatMul(b, last) }"""


def branching(text=BRANCH, **changed):
    return parse(text, **({"w": normal(4, 4), "last": normal(4, 4, seed=1), "zero": np.float32(0)} | changed))


def test_control_flow_passes_through():
    clean(branching(), make_names_opaque(branching()).model, normal(24, 4))
    wrong = branching(last=normal(4, 4, seed=1) * np.float32(1.1))
    assert faults(branching(), wrong, normal(24, 4))[0] == [("weights", "node_y", "last")]
    wrong = branching(w=normal(4, 4) * np.float32(1.1))
    assert faults(branching(), wrong, normal(24, 4))[0] == [("weights", "node_a", "w")]
    found, diagnosis = faults(branching(), branching(BRANCH.replace("Tanh(a)", "Relu(a)")), normal(24, 4))
    assert found == [("graph", "node_b", None)]
    assert "has another body" in diagnosis.faults[0].message


def test_a_target_that_makes_nan_is_diagnosed():
    text = "net (float[N, 4] x) => (float[N, 4] y) { s = MatMul(x, w) q = Abs(s) r = Sqrt(q) y = MatMul(r, w) }"
    source = parse(text, w=normal(4, 4))
    found, diagnosis = faults(source, without_node(source, "q"), normal(20, 4))
    assert found == [("graph", "node_s", None)]
    assert diagnosis.comparison.max_rel == np.inf


def test_a_batch_norm_with_another_epsilon_is_one_fault():
    text = """net (float[N, 3, 5, 5] x) => (float[N, 4, 3, 3] y) {
        c = Conv <kernel_shape = [3, 3]> (x, k) n = BatchNormalization <epsilon = EPS> (c, g, s, m, v) y = Relu(n) }"""
    rng = np.random.default_rng(0)
    constants = {n: rng.uniform(0.01, 0.2, 4).astype(np.float32) for n in "gsmv"} | {"k": normal(4, 3, 3, 3)}
    source, target = (parse(text.replace("EPS", eps), **constants) for eps in ("0.001", "0.00001"))
    found, diagnosis = faults(source, target, normal(20, 3, 5, 5))
    assert found == [("hyperparameters", "node_n", "epsilon")]
    assert diagnosis.faults[0].message == "epsilon of node_n is 1e-05 instead of 0.001."


def test_an_activation_missing_behind_a_batch_norm_is_missing_after_the_batch_norm():
    text = """net (float[N, 3, 5, 5] x) => (float[N, 4, 3, 3] y) {
        c = Conv <kernel_shape = [3, 3]> (x, k) n = BatchNormalization (c, g, s, m, v) r = Relu(n) y = Conv <kernel_shape = [1, 1]> (r, l) }"""
    constants = {n: np.abs(normal(4, seed=ord(n))) for n in "gsmv"} | {"k": normal(4, 3, 3, 3), "l": normal(4, 4, 1, 1)}
    source = parse(text, **constants)
    assert faults(source, without_node(source, "r"), normal(20, 3, 5, 5))[0] == [("graph", "node_n", None)]


def test_channels_last_against_channels_first():
    first = """net (float[N, 3, 6, 6] x) => (float[N, 4] y) {
        c = Conv <kernel_shape = [3, 3]> (x, k, b) r = Tanh(c) p = GlobalAveragePool(r) y = Flatten(p) }"""
    last = """net (float[N, 6, 6, 3] image) => (float[N, 4] scores) {
        t = Transpose <perm = [0, 3, 1, 2]> (image) c = Conv <kernel_shape = [3, 3]> (t, k, b) r = Tanh(c)
        u = Transpose <perm = [0, 2, 3, 1]> (r) scores = ReduceMean <axes = [1, 2], keepdims = 0> (u) }"""
    constants = {"k": normal(4, 3, 3, 3), "b": normal(4)}
    data = normal(20, 3, 6, 6)
    clean(parse(first, **constants), parse(last, **constants), data)
    clean(parse(last, **constants), parse(first, **constants), data.transpose(0, 2, 3, 1))
    wrong = parse(last, **(constants | {"b": np.zeros(4, np.float32)}))
    assert faults(parse(first, **constants), wrong, data)[0] == [("weights", "node_c", "b")]


def test_a_pad_folded_wrongly_into_a_max_pool():
    text = "net (float[N, 3, 6, 6] x) => (float[N, 3, 3, 3] y) { a = Conv <kernel_shape = [1, 1]> (x, k) BODY }"
    apart = "q = Pad(a, pads) y = MaxPool <kernel_shape = [3, 3], strides = [2, 2]> (q)"
    folded = "y = MaxPool <kernel_shape = [3, 3], strides = [2, 2], pads = [0, 0, 1, 1]> (a)"
    kernel = np.eye(3, dtype=np.float32)[:, :, None, None]
    source = parse(text.replace("BODY", apart), k=kernel, pads=np.array([0, 0, 0, 0, 0, 0, 1, 1]))
    target = parse(text.replace("BODY", folded), k=kernel)
    negative = -np.abs(normal(20, 3, 6, 6)) - 0.1
    assert faults(source, target, negative)[0] == [("graph", "node_y", None)]
    # What is padded with is never the largest of positive numbers.
    assert onnxfix.diagnose(source, target, -negative).faults == ()


def test_a_node_is_needed_that_the_target_never_had():
    wrong = copied(network())
    node(wrong, "both").input[:] = ["left_clip", "residual"]
    (fault,) = onnxfix.diagnose(network(), wrong, images()).faults
    assert fault.kind == onnxfix.FaultKind.GRAPH
    assert fault.source_nodes == ("node_edges",)
    assert "missing" in fault.message


def test_a_diagnosis_reads_as_data_and_as_text():
    diagnosis = onnxfix.diagnose(network(), BROKEN["two at once"][0](), images())
    data = diagnosis.to_dict()
    assert [fault["kind"] for fault in data["faults"]] == ["hyperparameters", "weights"]
    assert data["faults"][0]["expected"] == [1, 1, 1, 1]
    assert data["faults"][0]["actual"] == [2, 2, 0, 0]
    assert data["aligned"] == 1
    assert repr(diagnosis).startswith("Diagnosis(2 faults, first: pads of node_left is [2, 2, 0, 0] instead of [1, 1, 1, 1].;")


def resized(nearest_mode: str, size: str) -> onnx.ModelProto:
    """A resize to 5 x 13, given by factors or by sizes."""
    return onnx.parser.parse_model(f"""
        <ir_version: 10, opset_import: ["": 18]>
        resizing (float[1, 3, 8, 9] x) => (float[1, 3, 5, 13] y)
        <float[4] factors = {{1.0, 1.0, 0.625, 1.4444444}}, int64[4] sizes = {{1, 3, 5, 13}}> {{
            r = Relu(x)
            y = Resize<mode = "nearest", coordinate_transformation_mode = "half_pixel",
                       nearest_mode = "{nearest_mode}">(r, , {size})
        }}""")


def test_of_settings_that_differ_only_the_one_that_matters_is_named():
    # A unit in the last place of a factor is another output shape: factors must not be taken for noisy values.
    data = np.random.default_rng(0).normal(size=(6, 3, 8, 9)).astype(np.float32)
    diagnosis = onnxfix.diagnose(resized("round_prefer_ceil", "factors"), resized("floor", ", sizes"), data)
    assert [(fault.kind, fault.parameter) for fault in diagnosis.faults] == [("hyperparameters", "nearest_mode")]


ROUNDED = """net (float[N, 1, 10, 20] x) => (float[N, 1, 10, 20] y) { p = Conv(x, a) q = Mul(p, b) i = QuantizeLinear(q, s, z)
    y = DequantizeLinear(i, s, z) }"""


def test_a_normal_form_is_trusted_where_only_rounding_tells_it_from_the_model():
    """Folding two factors moves values by float noise, which a quantizer turns into whole steps."""
    edges = {"x": ((np.arange(-100, 100) + 0.5) / 0.77).astype(np.float32).reshape(1, 1, 10, 20)}
    right, wrong = (
        onnxfix.load(parse(text, a=np.float32([[[[1.1]]]]), b=np.float32(0.7), s=np.float32(1), z=np.int8(0)))
        for text in (ROUNDED, ROUNDED.replace("Mul(p, b)", "Add(p, b)"))
    )
    assert sound(right, edges, "target") == (right, "")
    mistaken = replace(right)
    mistaken.__dict__["normal_form"] = wrong.normal_form
    assert "not faithful" in sound(mistaken, edges, "target")[1]


NORMED = """net (float[N, 6] x) => (float[N, 8] y) { h = MatMul(x, w) a = Add(h, b) m = Mul(a, g) n = Add(m, s)
    y = Relu(n) }"""


@pytest.mark.parametrize(
    ("text", "changed", "guilty", "parameter", "says"),
    [(NORMED.replace("a = Add(h, b) m = Mul(a, g)", "m = Mul(h, g)"), {}, "MatMul", "bias", "folded without"),
     (NORMED, {"b": 1.25}, "Add", "b", "scaled by 1.25")],
)  # fmt: skip
def test_a_wrong_bias_before_a_norm_is_named_and_no_constant_that_could_make_up_for_it(
    text, changed, guilty, parameter, says
):
    constants = {"w": normal(6, 8), "b": normal(8), "g": 1 + normal(8, seed=1) ** 2, "s": 4 + normal(8, seed=2)}
    spoiled = {name: content * changed.get(name, 1) for name, content in constants.items() if f" {name})" in text}
    fix = onnxfix.repair(parse(NORMED, **constants), parse(text, **spoiled), normal(40, 6, seed=3))
    [fault] = fix.diagnosis.faults
    assert fix.success
    assert fault.parameter == parameter and says in fault.message
    ops = {n.name: n.op_type for n in fix.target.proto.graph.node}
    assert {ops[n] for n in fault.target_nodes if n in ops} == {guilty}
