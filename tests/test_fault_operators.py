"""Every fault operator: it fits some network, plants a valid fault that shows, says what it did, and obeys its seed."""

from __future__ import annotations

import json

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper

from onnxfix.diagnose import FaultKind
from onnxfix.testing import Injection, InjectionError, inject
from onnxfix.testing.faults import REGISTRY
from onnxfix.testing.visibility import random_batches, run_all, same_form

# Faults of the boundary change inputs and outputs and are tested with these.
BOUNDARY = {FaultKind.PREPROCESSING, FaultKind.INPUT_DIMENSIONS, FaultKind.OUTPUT}
OPERATORS = [
    name for name, operator in REGISTRY.items()
    if operator.kind not in BOUNDARY and not type(operator).__module__.endswith("boundary")
]

IMAGE = """
<ir_version: 10, opset_import: ["": 19]>
image (float[N, 3, 8, 8] image) => (float[N, 5] probabilities) {
    conv1 = Conv <kernel_shape = [3, 3], pads = [0, 0, 1, 1], strides = [2, 2]> (image, kernel1)
    norm1 = BatchNormalization <epsilon = 0.001> (conv1, gamma, beta, mean, variance)
    relu1 = Relu (norm1)
    conv2 = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (relu1, kernel2, bias2)
    norm2 = BatchNormalization <epsilon = 0.001> (conv2, beta, gamma, variance, mean2)
    clip2 = Clip (norm2, low, six)
    conv3 = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (clip2, kernel3, bias3)
    clip3 = Clip (conv3, low, six)
    rest = Sub (clip2, clip3)
    both = Concat <axis = 1> (rest, clip3)
    sharp = Softmax <axis = 1> (both)
    flat = Flatten <axis = 1> (sharp)
    hidden = MatMul (flat, dense1)
    shifted = Add (hidden, bias4)
    bent = Sigmoid (shifted)
    square = Gemm <transB = 1> (bent, dense3, bias4)
    joined = Add (square, bent)
    logits = Gemm <transB = 1> (joined, dense2, bias5)
    probabilities = Softmax <axis = -1> (logits)
}
"""
MAP = """
<ir_version: 10, opset_import: ["": 20]>
map (float[N, 8, 6, 6] x) => (float[N, 4] y) {
    padded = Pad <mode = "constant"> (x, pads)
    pooled = AveragePool <kernel_shape = [3, 3], pads = [1, 1, 1, 1], strides = [1, 1]> (padded)
    leaky = LeakyRelu <alpha = 0.1> (pooled)
    normed = InstanceNormalization <epsilon = 0.00001> (leaky, gamma, beta)
    sloped = PRelu (normed, slopes)
    wide = DepthToSpace <blocksize = 2, mode = "DCR"> (sloped)
    bent = Gelu <approximate = "none"> (wide)
    large = Resize <mode = "nearest", coordinate_transformation_mode = "asymmetric", nearest_mode = "floor">
        (bent, , scales)
    small = MaxPool <kernel_shape = [5, 1], strides = [4, 3]> (large)
    gate = GlobalAveragePool (small)
    gated = Mul (small, gate)
    scaled = Mul (gated, factor)
    mixed = Conv <kernel_shape = [1, 1]> (scaled, kernel)
    mean = ReduceMean <keepdims = 0> (mixed, axes)
    y = ReduceMax <keepdims = 0> (mean, last)
}
"""
SEQUENCE = """
<ir_version: 10, opset_import: ["": 19]>
sequence (int64[N, 6] ids) => (float[N, 4] y, float[N, 2] top) {
    words = Gather <axis = 0> (table, ids)
    normed = LayerNormalization <axis = -1, epsilon = 0.00001> (words, gamma, beta)
    running = CumSum (normed, axis)
    turned = Transpose <perm = [1, 0, 2]> (running)
    forward, fh, fc = LSTM <hidden_size = 4> (turned, W, R, B)
    one = Squeeze (forward, first)
    backward, bh = GRU <hidden_size = 4> (one, W3, R3, B3)
    two = Squeeze (backward, first)
    dropped = Dropout (two)
    part = Slice (dropped, start, end, zeroth)
    y = ReduceMean <keepdims = 0> (part, zeroth)
    top, where = TopK <axis = -1> (y, k)
}
"""
QUANTIZED = """
<ir_version: 10, opset_import: ["": 19]>
quantized (float[N, 6] x) => (float[N, 4] y) {
    q = QuantizeLinear (x, s0, z0)
    x1 = DequantizeLinear (q, s0, z0)
    w1 = DequantizeLinear (w, s1, z0)
    h = MatMul (x1, w1)
    r = Relu (h)
    p = QuantizeLinear (r, s2, z0)
    r1 = DequantizeLinear (p, s2, z0)
    y = MatMul (r1, v)
}
"""


def build(text: str, **constants: np.ndarray) -> onnx.ModelProto:
    model = onnx.parser.parse_model(text)
    for name, value in constants.items():
        array = np.asarray(value)
        array = array.astype(np.float32) if array.dtype == np.float64 else array
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    for node in model.graph.node:
        node.name = f"node_{node.output[0]}"
    onnx.checker.check_model(model)
    return model


def networks() -> list[onnx.ModelProto]:
    rng = np.random.default_rng(7)

    def some(*shape: int) -> np.ndarray:
        return 0.3 * rng.standard_normal(shape)

    image = build(
        IMAGE, kernel1=some(4, 3, 3, 3), kernel2=some(4, 4, 3, 3), kernel3=some(4, 4, 3, 3), bias2=some(4),
        bias3=some(4), gamma=1 + some(4), beta=0.5 + some(4), mean=some(4), mean2=rng.uniform(0.1, 0.5, 4),
        variance=rng.uniform(0.002, 0.1, 4), low=-0.2, six=1.5, dense1=some(128, 6), dense2=some(5, 6),
        dense3=some(6, 6), bias4=some(6), bias5=some(5),
    )  # fmt: skip
    planes = build(
        MAP, pads=np.array([0, 0, 1, 1, 0, 0, 1, 1]), gamma=1 + some(8), beta=some(8), slopes=some(8, 1, 1),
        scales=np.array([1, 1, 1.5, 1.5], np.float32), factor=0.7, kernel=some(4, 2, 1, 1), axes=np.array([2]),
        last=np.array([2]),
    )  # fmt: skip
    sequence = build(
        SEQUENCE, table=some(9, 5), gamma=1 + some(5), beta=some(5), axis=np.array(1), W=some(1, 16, 5),
        R=some(1, 16, 4), B=some(1, 32), W3=some(1, 12, 4), R3=some(1, 12, 4), B3=some(1, 24), first=np.array([1]),
        start=np.array([1]), end=np.array([4]), zeroth=np.array([0]), k=np.array([2]),
    )  # fmt: skip
    quantized = build(
        QUANTIZED, s0=0.03, z0=np.array(0, np.int8), w=rng.integers(-100, 100, (6, 4)).astype(np.int8), s1=0.01,
        s2=0.05, v=some(4, 4),
    )  # fmt: skip
    return [image, planes, sequence, quantized]


@pytest.fixture(scope="module")
def planted() -> dict[str, tuple[onnx.ModelProto, Injection]]:
    """Each operator in the first network that it fits."""
    found = {}
    for network in networks():
        for operator in OPERATORS:
            if operator not in found:
                try:
                    found[operator] = network, inject(network, operator, seed=5)
                except InjectionError:
                    continue
    return found


def test_there_are_operators_for_each_way_to_convert_wrongly(planted):
    assert len(OPERATORS) >= 70
    kinds = {site.kind for _, injection in planted.values() for site in injection.sites}
    assert kinds >= {
        FaultKind.WEIGHTS, FaultKind.HYPERPARAMETERS, FaultKind.GRAPH, FaultKind.TENSOR_LAYOUT, FaultKind.PRECISION,
        FaultKind.MODE,
    }  # fmt: skip


@pytest.mark.parametrize("operator", OPERATORS)
def test_it_plants_a_valid_fault_that_shows(planted, operator):
    network, injection = planted[operator]
    onnx.checker.check_model(injection.model, full_check=True)
    names = {node.name for node in injection.model.graph.node}
    assert injection.sites
    for site in injection.sites:
        assert site.node in names
        assert set(site.also) <= names
    assert injection.visible
    assert all(change > 1e-5 for change in injection.changes)
    batches = random_batches(network, np.random.default_rng(1))
    clean, faulty = run_all(network, batches), run_all(injection.model, batches)
    assert same_form(clean, faulty)
    if operator != "overflow_float16":
        assert all(np.isfinite(v).all() for out in faulty for v in out.values())


@pytest.mark.parametrize("operator", OPERATORS)
def test_the_seed_decides(planted, operator):
    network, injection = planted[operator]
    again = inject(network, operator, seed=5)
    assert again.model.SerializeToString() == injection.model.SerializeToString()
    assert again.sites == injection.sites


def test_the_ground_truth_is_plain_data(planted):
    told = json.loads(json.dumps(planted["change_clip_bound"][1].to_dict()))
    assert told["operator"] == "change_clip_bound"
    assert told["visible"] is True
    assert told["sites"][0]["kind"] == "hyperparameters"
    weight = planted["sign_flip"][1].to_dict()["sites"][0]
    assert weight["expected"]["max"] == -weight["actual"]["min"]


def test_a_fault_that_the_data_hide_is_planted_when_asked_for():
    text = """
    <ir_version: 10, opset_import: ["": 19]>
    bounded (float[N, 4] x) => (float[N, 4] y) { y = Clip (x, low, high) }
    """
    model = build(text, low=-1e3, high=1e3)
    with pytest.raises(InjectionError, match="changes the outputs by 0"):
        inject(model, "change_clip_bound")
    hidden = inject(model, "change_clip_bound", visible=False)
    assert not hidden.visible
    assert hidden.changes == (0.0,)
