"""The fault injector: what it plants is valid, visible, where it says, and reproducible."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import onnxruntime as ort
import pytest
from onnx import numpy_helper

from onnxfix.diagnose import FaultKind
from onnxfix.testing import InjectionError, inject, make_names_opaque

NETWORK = """
<ir_version: 9, opset_import: ["": 17]>
net (float[N, 3, 8, 8] image) => (float[N, 5] probabilities) {
    conv1 = Conv <kernel_shape = [3, 3], pads = [0, 0, 1, 1], strides = [2, 2]> (image, kernel1)
    norm1 = BatchNormalization <epsilon = 0.001> (conv1, gamma, beta, mean, variance)
    relu1 = Relu (norm1)
    conv2 = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (relu1, kernel2, bias2)
    clip2 = Clip (conv2, zero, six)
    conv3 = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (clip2, kernel3, bias3)
    clip3 = Clip (conv3, zero, six)
    rest = Sub (clip2, clip3)
    both = Concat <axis = 1> (rest, clip3)
    sharp = Softmax <axis = 1> (both)
    flat = Flatten <axis = 1> (sharp)
    hidden = MatMul (flat, dense1)
    shifted = Add (hidden, bias4)
    bent = Sigmoid (shifted)
    logits = Gemm <transB = 1> (bent, dense2, bias5)
    probabilities = Softmax <axis = -1> (logits)
}
"""
POOLED = """
<ir_version: 9, opset_import: ["": 17]>
pooled (float[1, 6, 5, 5] map) => (float[1, 4] scores) {
    pooled = GlobalAveragePool (map)
    flat = Flatten <axis = 1> (pooled)
    scores = Gemm (flat, dense, bias)
}
"""
SHAPES = {
    "kernel1": (4, 3, 3, 3), "kernel2": (4, 4, 3, 3), "kernel3": (4, 4, 3, 3), "bias2": (4,), "bias3": (4,),
    "gamma": (4,), "beta": (4,), "mean": (4,), "dense1": (128, 6), "bias4": (6,), "dense2": (5, 6), "bias5": (5,),
}


def build(text: str, **constants: np.ndarray) -> onnx.ModelProto:
    model = onnx.parser.parse_model(text)
    for name, value in constants.items():
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(value, np.float32), name))
    for node in model.graph.node:
        node.name = f"node_{node.output[0]}"
    onnx.checker.check_model(model)
    return model


@pytest.fixture(scope="module")
def network() -> onnx.ModelProto:
    rng = np.random.default_rng(7)
    # Small weights keep the softmax and the clips from saturating, where faults before them could not be seen.
    constants = {name: 0.3 * rng.standard_normal(shape) for name, shape in SHAPES.items()}
    # Variances small enough that a folded epsilon of another framework can be seen.
    return build(NETWORK, **constants, variance=rng.uniform(0.002, 0.1, 4), zero=0.0, six=1.5)


@pytest.fixture(scope="module")
def pooled() -> onnx.ModelProto:
    rng = np.random.default_rng(8)
    return build(POOLED, dense=rng.standard_normal((6, 4)), bias=rng.standard_normal(4))


def run(model: onnx.ModelProto, feed: np.ndarray) -> np.ndarray:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: feed})[0]


def images(seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((8, 3, 8, 8)).astype(np.float32)


def constants_of(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def nodes_of(model: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    return {node.name: node for node in model.graph.node}


def attributes_of(node: onnx.NodeProto) -> dict[str, object]:
    return {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}


def test_seeds_reach_different_places(network):
    assert len({inject(network, "perturb_weight", seed=seed).sites[0].parameter for seed in range(12)}) >= 3


WEIGHTS = ("perturb_weight", "round_weights_fp16", "transpose_kernel", "permute_channels", "sign_flip", "zero_bias",
           "swap_weights_between_layers")


@pytest.mark.parametrize("operator", WEIGHTS)
def test_exactly_the_named_weights_change(network, operator):
    injection = inject(network, operator, seed=2)
    clean, faulty = constants_of(network), constants_of(injection.model)
    changed = {name for name in clean if not np.array_equal(clean[name], faulty[name])}
    assert changed == {site.parameter for site in injection.sites}
    assert injection.model.graph.node == network.graph.node
    assert {site.kind for site in injection.sites} == {FaultKind.WEIGHTS}


@pytest.mark.parametrize(
    ("operator", "change"),
    [
        ("transpose_kernel", lambda w: w.swapaxes(2, 3)),
        ("sign_flip", lambda w: -w),
        ("round_weights_fp16", lambda w: w.astype(np.float16).astype(np.float32)),
    ],
)
def test_what_happens_to_a_weight(network, operator, change):
    injection = inject(network, operator, node="node_conv2")
    assert [site.parameter for site in injection.sites] == ["kernel2"]
    np.testing.assert_array_equal(constants_of(injection.model)["kernel2"], change(constants_of(network)["kernel2"]))


def test_one_element_is_perturbed(network):
    injection = inject(network, "perturb_weight", node="node_logits")
    delta = constants_of(injection.model)["dense2"] - constants_of(network)["dense2"]
    assert np.count_nonzero(delta) == 1


def test_permuted_channels_are_the_output_channels(network):
    for node, name, axis in (("node_conv2", "kernel2", 0), ("node_hidden", "dense1", 1), ("node_logits", "dense2", 0)):
        clean = constants_of(network)[name]
        faulty = constants_of(inject(network, "permute_channels", node=node).model)[name]
        rolled = [np.array_equal(faulty, np.roll(clean, shift, axis)) for shift in range(1, clean.shape[axis])]
        assert any(rolled), name


def test_dropping_a_bias_computes_what_zeroing_it_computes(network):
    for node in ("node_conv2", "node_logits", "node_shifted"):
        dropped, zeroed = inject(network, "drop_bias", node=node), inject(network, "zero_bias", node=node)
        np.testing.assert_array_equal(run(dropped.model, images()), run(zeroed.model, images()))
        assert dropped.sites[0].node == {"node_shifted": "node_hidden"}.get(node, node)
        assert len(constants_of(dropped.model)) == len(constants_of(network)) - 1


def test_count_plants_that_many(network):
    injection = inject(network, "sign_flip", count=4)
    assert len({site.node for site in injection.sites}) == 4


def test_a_shared_initializer_changes_for_the_chosen_node_only():
    text = """
    <ir_version: 9, opset_import: ["": 17]>
    twins (float[1, 2, 4, 4] x) => (float[1, 2, 4, 4] y) {
        a = Conv <kernel_shape = [1, 1]> (x, kernel)
        y = Conv <kernel_shape = [1, 1]> (a, kernel)
    }
    """
    model = build(text, kernel=np.array([[1, 2], [3, 5]]).reshape(2, 2, 1, 1))
    injection = inject(model, "sign_flip", node="node_y")
    feed = np.ones((1, 2, 4, 4), np.float32)
    np.testing.assert_array_equal(run(injection.model, feed), -run(model, feed))
    np.testing.assert_array_equal(constants_of(injection.model)["kernel"], constants_of(model)["kernel"])
    assert injection.sites[0].parameter in nodes_of(injection.model)["node_y"].input
    assert injection.sites[0].parameter != "kernel"


def test_a_weight_behind_a_transpose_is_changed_where_it_is_stored():
    text = """
    <ir_version: 9, opset_import: ["": 17]>
    lowered (float[1, 2, 5, 5] x) => (float[1, 3, 3, 3] y) {
        kernel = Transpose <perm = [3, 2, 0, 1]> (stored)
        y = Conv <kernel_shape = [3, 3]> (x, kernel)
    }
    """
    stored = np.random.default_rng(3).standard_normal((3, 3, 2, 3)).astype(np.float32)  # HWIO, as Keras stores it
    model = build(text, stored=stored)
    injection = inject(model, "transpose_kernel")
    assert injection.sites[0].parameter == "stored"
    np.testing.assert_array_equal(constants_of(injection.model)["stored"], stored.swapaxes(0, 1))


def test_shifted_pads_keep_the_shape(network):
    injection = inject(network, "shift_pads", node="node_conv1")
    assert injection.sites[0].parameter == "pads"
    assert attributes_of(nodes_of(injection.model)["node_conv1"])["pads"] == [1, 1, 0, 0]


def test_auto_pad_is_resolved_before_it_shifts():
    text = """
    <ir_version: 9, opset_import: ["": 17]>
    same (float[1, 1, 6, 6] x) => (float[1, 1, 3, 3] y) {
        y = Conv <auto_pad = "SAME_UPPER", kernel_shape = [3, 3], strides = [2, 2]> (x, kernel)
    }
    """
    injection = inject(build(text, kernel=np.arange(9.0).reshape(1, 1, 3, 3)), "shift_pads")
    attributes = attributes_of(injection.model.graph.node[0])
    assert attributes["pads"] == [1, 1, 0, 0]
    assert "auto_pad" not in attributes


def test_dilation_grows_with_its_pads(network):
    attributes = attributes_of(nodes_of(inject(network, "change_stride_dilation", node="node_conv2").model)["node_conv2"])
    assert (attributes["dilations"], attributes["pads"]) == ([2, 2], [2, 2, 2, 2])


def test_a_clip_bound_changes_for_one_clip_of_two(network):
    injection = inject(network, "change_clip_bound", node="node_clip3")
    names = nodes_of(injection.model)
    assert constants_of(injection.model)["six"] == np.float32(1.5)
    assert names["node_clip2"].input[2] == "six"
    assert names["node_clip3"].input[2] == injection.sites[0].parameter
    assert constants_of(injection.model)[injection.sites[0].parameter] < 1.5


def test_epsilon_changes_in_the_attribute_or_in_the_folded_weight(network):
    attribute = inject(network, "bn_epsilon")
    assert (attribute.sites[0].node, attribute.sites[0].parameter) == ("node_norm1", "epsilon")
    folded = inject(network, "bn_epsilon_folded")
    assert "node_norm1" not in nodes_of(folded.model)
    assert (folded.sites[0].node, folded.sites[0].parameter) == ("node_conv1", "kernel1")
    # Both take the same wrong epsilon, so folding it changes nothing but the rounding (6 ulp of float32 measured).
    np.testing.assert_allclose(run(folded.model, images()), run(attribute.model, images()), rtol=1e-5)


def test_a_removed_activation_is_named_by_the_node_before_it(network):
    injection = inject(network, "remove_activation", node="node_relu1")
    assert injection.sites[0].node == "node_norm1"
    assert "node_relu1" not in nodes_of(injection.model)
    assert nodes_of(injection.model)["node_conv2"].input[0] == "norm1"


def test_an_inserted_mul_scales_what_it_reads(pooled):
    injection = inject(pooled, "insert_mul", node="node_pooled")
    mul = nodes_of(injection.model)[injection.sites[0].node]
    factor = constants_of(injection.model)[mul.input[1]]
    feed = np.random.default_rng(0).standard_normal((1, 6, 5, 5)).astype(np.float32)
    expected = feed.mean((2, 3)) * factor @ constants_of(pooled)["dense"] + constants_of(pooled)["bias"]
    np.testing.assert_allclose(run(injection.model, feed), expected, rtol=1e-5, atol=1e-6)


def test_a_transpose_pair_encloses_the_op(network):
    injection = inject(network, "insert_transpose_pair", node="node_conv2")
    (site,) = injection.sites
    before, conv, after = (nodes_of(injection.model)[name] for name in (site.node, *site.also))
    assert conv.name == "node_conv2"
    assert (conv.input[0], after.input[0]) == (before.output[0], conv.output[0])
    assert attributes_of(before) == attributes_of(after) == {"perm": [0, 1, 3, 2]}


def test_the_flatten_order_becomes_channels_last(network):
    injection = inject(network, "permute_flatten")
    turn = nodes_of(injection.model)[injection.sites[0].node]
    assert attributes_of(turn) == {"perm": [0, 2, 3, 1]}
    assert nodes_of(injection.model)["node_flat"].input[0] == turn.output[0]


def test_without_a_map_to_flatten_the_dense_rows_are_permuted(pooled):
    injection = inject(pooled, "permute_flatten")
    assert (injection.sites[0].node, injection.sites[0].parameter) == ("node_scores", "dense")
    np.testing.assert_array_equal(
        constants_of(injection.model)["dense"], constants_of(pooled)["dense"][[0, 3, 1, 4, 2, 5]]
    )


def test_a_duplicated_node_is_applied_twice(network):
    injection = inject(network, "duplicate_node", node="node_bent")
    second = nodes_of(injection.model)[injection.sites[0].node]
    assert (second.op_type, list(second.input)) == ("Sigmoid", ["bent"])
    assert nodes_of(injection.model)["node_logits"].input[0] == second.output[0]


def test_swapped_operands(network):
    injection = inject(network, "swap_operands", node="node_rest")
    assert list(nodes_of(injection.model)["node_rest"].input) == ["clip3", "clip2"]


def test_a_path_is_read_and_data_decides_what_is_visible(tmp_path, pooled):
    onnx.save(pooled, tmp_path / "pooled.onnx")
    nothing = [{"map": np.zeros((1, 6, 5, 5), np.float32)}]  # on zeros, only the bias can be seen
    with pytest.raises(InjectionError, match=r"sign_flip fits 0 places.*changes the outputs by 0"):
        inject(tmp_path / "pooled.onnx", "sign_flip", data=nothing)
    assert inject(tmp_path / "pooled.onnx", "zero_bias", data=nothing).sites[0].parameter == "bias"


def test_refusals_say_why(pooled):
    with pytest.raises(InjectionError, match=r"no fault operator nonsense.*perturb_weight"):
        inject(pooled, "nonsense")
    with pytest.raises(InjectionError, match="fits 0 places of 3 nodes"):
        inject(pooled, "transpose_kernel")
    with pytest.raises(InjectionError, match="fits 1 places of 3 nodes, not 2"):
        inject(pooled, "zero_bias", count=2)


def test_a_model_that_fails_on_the_data_is_refused(network):
    data = [{spec.name: np.zeros((1, 1), np.float32) for spec in network.graph.input}]
    with pytest.raises(InjectionError, match="fails on the data before anything is planted"):
        inject(network, "zero_bias", data=data)


def test_opaque_names_hide_everything_and_change_nothing(network):
    opaque = make_names_opaque(network, seed=4)
    public = {"image", "probabilities"}
    old = set(nodes_of(network)) | {v for n in network.graph.node for v in (*n.input, *n.output)} - public
    new = {v for n in opaque.model.graph.node for v in (n.name, *n.input, *n.output)}
    assert old.isdisjoint(new)
    assert public <= new
    np.testing.assert_array_equal(run(opaque.model, images()), run(network, images()))
    assert make_names_opaque(network, seed=4).nodes == opaque.nodes
    assert make_names_opaque(network, seed=5).nodes != opaque.nodes


def test_ground_truth_follows_the_new_names(network):
    injection = inject(network, "zero_bias", node="node_conv2")
    opaque = make_names_opaque(injection.model)
    site = opaque.site(injection.sites[0])
    assert not constants_of(opaque.model)[site.parameter].any()
    assert site.parameter in nodes_of(opaque.model)[site.node].input


def test_opaque_names_reach_into_subgraphs():
    text = """
    <ir_version: 9, opset_import: ["": 17]>
    choose (float[3] x) => (float[3] y) {
        doubled = Add (x, x)
        total = ReduceSum <keepdims = 0> (x)
        zero = Constant <value_float = 0.0> ()
        up = Greater (total, zero)
        y = If (up) <
            then_branch = yes () => (float[3] kept) { kept = Identity (doubled) },
            else_branch = no () => (float[3] turned) { turned = Neg (doubled) }
        >
    }
    """
    model = build(text)
    opaque = make_names_opaque(model)
    assert b"doubled" not in opaque.model.SerializeToString()
    for sign in (1, -1):
        feed = sign * np.array([1, 2, 3], np.float32)
        np.testing.assert_array_equal(run(opaque.model, feed), run(model, feed))
