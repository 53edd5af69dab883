"""Keras models that are built op by op answer what the graph does, for any batch, and survive their file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

import onnxfix
from onnxfix.canonical.legalization import legalize
from onnxfix.errors import ExportError
from onnxfix.frameworks.export_keras import to_keras, to_keras_fixed
from onnxfix.frameworks.keras_building import build_on
from small_onnx import images, network, normal

keras = pytest.importorskip("keras")
X = "float[N,6,7,9] x"
# What a float32 op of at most a few hundred terms stays below, relative to its largest value.
NOISE = 1e-5


def model_of(body: str, inputs: str = X, opset: int = 17, **constants: np.ndarray) -> onnx.ModelProto:
    model = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["": {opset}]> g ({inputs}) => (float y) {{ {body} }}')
    model.graph.output[0].ClearField("type")
    if "GroupNorm" in body:  # onnx does not infer it
        model.graph.output[0].type.CopyFrom(model.graph.input[0].type)
    for name, value in constants.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(value), name))
    return onnx.shape_inference.infer_shapes(model)


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def answered(model: onnx.ModelProto, batch: int = 3) -> tuple[np.ndarray, np.ndarray, object]:
    source = onnxfix.load(model)
    feeds = {
        spec.name: normal(*(n if isinstance(n, int) else batch for n in spec.shape), seed=k, scale=2)
        for k, spec in enumerate(source.inputs)
    }
    feeds = {name: value.astype(spec.dtype) for (name, value), spec in zip(feeds.items(), source.inputs, strict=True)}
    (expected,) = source.run(feeds).values()
    built = to_keras(source, None)
    actual = built(list(feeds.values()) if len(feeds) > 1 else next(iter(feeds.values())), training=False)
    return expected, np.asarray(actual), built


CASES = {
    "convolution": ("y = Conv <pads = [1, 2, 0, 1], strides = [2, 1]> (x, w, b)", {"w": normal(5, 6, 3, 2), "b": normal(5)}),
    "convolution of groups": ("y = Conv <group = 3, dilations = [2, 1]> (x, w)", {"w": normal(9, 2, 2, 3)}),
    "convolution by channel": ("y = Conv <group = 6, pads = [1, 1, 1, 1]> (x, w, b)", {"w": normal(12, 1, 3, 3), "b": normal(12)}),
    "convolution by channel, strides differ": ("y = Conv <group = 6, strides = [2, 3]> (x, w)", {"w": normal(6, 1, 3, 3)}),
    "convolution, strides and dilations": ("y = Conv <strides = [2, 2], dilations = [2, 3]> (x, w)", {"w": normal(4, 6, 2, 2)}),
    "transposed convolution": (
        "y = ConvTranspose <strides = [2, 3], pads = [1, 0, 1, 2], output_padding = [1, 0]> (x, w, b)",
        {"w": normal(6, 4, 3, 2), "b": normal(4)},
    ),
    "transposed convolution of groups": ("y = ConvTranspose <group = 2, strides = [3, 3]> (x, w)", {"w": normal(6, 2, 2, 2)}),
    "max pool": ("y = MaxPool <kernel_shape = [3, 2], pads = [1, 0, 1, 1], strides = [2, 2]> (x)", {}),
    "average pool": ("y = AveragePool <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (x)", {}),
    "average pool, padding counts": (
        "y = AveragePool <kernel_shape = [3, 3], pads = [1, 1, 1, 1], count_include_pad = 1> (x)", {},
    ),
    "whole map": ("a = GlobalAveragePool (x) b = GlobalMaxPool (x) y = Sub (a, b)", {}),
    "dense": ("f = Flatten (x) y = Gemm <alpha = 0.5, beta = 2.0, transB = 1> (f, w, b)", {"w": normal(4, 378), "b": normal(4)}),
    "product": ("t = Transpose <perm = [0, 1, 3, 2]> (x) y = MatMul (x, t)", {}),
    "layouts": (
        "c = Conv (x, w) r = Relu (c) s = Mul (r, k) p = Concat <axis = 1> (s, r) t = Transpose <perm = [0, 2, 3, 1]> (p) "
        "y = Add (t, v)", {"w": normal(4, 6, 2, 2), "k": normal(4, 1, 1), "v": normal(8)},
    ),
    "moves": (
        "c = Conv (x, w) s = Slice (c, a, e, d) p = Pad <mode = \"reflect\"> (s, q) l = ReduceMean <axes = [1], keepdims = 0> (p) "
        "y = Unsqueeze (l, d)",
        {"w": normal(4, 6, 1, 1), "a": ints(1), "e": ints(-1), "d": ints(2), "q": ints(0, 0, 1, 0, 0, 0, 0, 2)},
    ),
    "split": ("a, b = Split <axis = 1> (x, n) g = GlobalMaxPool (b) y = Mul (a, g)", {"n": ints(3, 3)}),
    "softmax over channels": ("c = Conv (x, w) y = Softmax <axis = 1> (c)", {"w": normal(4, 6, 1, 1)}),
    "the largest": ("v, i = TopK <axis = 2, largest = 0> (x, k) f = Cast <to = 1> (i) y = Add (v, f)", {"k": ints(3)}),
    "the place of the largest": ("i = ArgMax <axis = 1, keepdims = 0> (x) y = Cast <to = 1> (i)", {}),
    "running sums": ("y = CumSum <exclusive = 1, reverse = 1> (x, a)", {"a": ints(3)}),
    "resize": (
        "y = Resize <mode = \"linear\", coordinate_transformation_mode = \"half_pixel\"> (x, , s)",
        {"s": np.array([1, 1, 2, 1.5], np.float32)},
    ),
    "functions": (
        "a = HardSwish (x) b = Elu <alpha = 0.7> (x) c = LeakyRelu <alpha = 0.2> (x) d = Clip (x, lo, hi) e = Erf (x) "
        "f = Celu <alpha = 0.5> (x) y = Sum (a, b, c, d, e, f)", {"lo": np.float32(-1), "hi": np.float32(0.5)},
    ),
    "normalizations": (
        "c = Conv (x, w) b = BatchNormalization <epsilon = 0.01> (c, s, t, m, v) i = InstanceNormalization <epsilon = 0.1> "
        "(b, s, t) y = LayerNormalization <axis = -2, epsilon = 0.01> (i, k, l)",
        {"w": normal(4, 6, 1, 1), "s": normal(4), "t": normal(4), "m": normal(4), "v": normal(4) ** 2, "k": normal(7, 9),
         "l": normal(9)},
    ),
    "normalization of vectors": (
        "f = Flatten (x) b = BatchNormalization (f, s, t, m, v) e = Unsqueeze (b, a) "
        "c = BatchNormalization (e, o, o, o, o) l = LayerNormalization (c, s) y = Add (l, x0)",
        {"s": normal(378), "t": normal(378), "m": normal(378), "v": normal(378) ** 2, "a": ints(1),
         "o": np.ones(1, np.float32), "x0": normal(1)},
    ),
    "normalization by computed numbers": (
        "s = ReduceMean <keepdims = 0> (x, a) y = LayerNormalization <epsilon = 0.1> (x, s, s)", {"a": ints(0, 1, 2)},
    ),
    "normalization of groups": ("y = GroupNormalization <num_groups = 2, epsilon = 0.01> (x, s, s)", {"s": normal(6)}),
    "root mean square": ("y = RMSNormalization <epsilon = 0.1> (x, s)", {"s": normal(9)}),
    "gelu": ("a = Gelu (x) b = Gelu <approximate = \"tanh\"> (x) c = Add (b, b) y = Add (a, c)", {}),
    "named like an op": ("relu = Relu (x) y = Mul (relu, relu)", {}),
}  # fmt: skip


LAYERS = {
    "activations": (
        "a = Tanh (x) b = Elu <alpha = 0.5> (a) c = LeakyRelu <alpha = 0.2> (b) d = Relu (c) e = Clip (d, lo, hi) "
        "y = Softmax <axis = 2> (e)", {"lo": np.float32(0), "hi": np.float32(0.7)},
    ),
    "merges": (
        "c = Conv (x, w) s = Sub (c, x) m = Max (s, x, c) p = Mul (m, k) q = Concat <axis = 1> (p, x) y = Add (q, t)",
        {"w": normal(6, 6, 1, 1), "k": np.float32(0.3), "t": np.array([[0.5]], np.float32)},
    ),
    "broadcast": ("s = GlobalAveragePool (x) y = Mul (x, s)", {}),
    "maps": (
        "p = Pad (x, n) a = AveragePool <kernel_shape = [2, 3], strides = [2, 1]> (p) m = MaxPool <kernel_shape = [2, 2]> (a) "
        "t = Transpose <perm = [0, 3, 1, 2]> (m) y = Reshape (t, z)", {"n": ints(0, 0, 1, 0, 0, 0, 0, 2), "z": ints(0, 8, -1)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", LAYERS)
def test_layers_mean_the_same_as_functions(what: str) -> None:
    body, constants = LAYERS[what]
    source = onnxfix.load(model_of(body, **constants))
    legal = legalize(source.proto, "keras")
    x = keras.Input((6, 7, 9))
    (tensor,) = build_on(legal, {"x": x}, set(), layers=True).values()
    built = keras.Model(x, tensor)
    value = normal(3, 6, 7, 9, scale=2)
    (expected,) = source.run({"x": value}).values()
    np.testing.assert_allclose(np.asarray(built(value)), expected, rtol=0, atol=NOISE * np.abs(expected).max())
    functions = {type(operation).__name__ for operation in built.operations if not isinstance(operation, keras.Layer)}
    # Between layouts tensors are transposed by a function; a merging layer does not broadcast as ONNX does.
    assert functions <= ({"Transpose", "Multiply"} if what == "broadcast" else {"Transpose"})


@pytest.mark.parametrize("what", CASES)
def test_each_op_means_the_same(what: str) -> None:
    body, constants = CASES[what]
    expected, actual, _ = answered(model_of(body, opset=23 if "Norm" in body or "Gelu" in body else 17, **constants))
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual, expected, rtol=0, atol=NOISE * np.abs(expected).max())


def test_whole_numbers_divide_towards_zero() -> None:
    expected, actual, _ = answered(model_of("q = Div (x, d) m = Mod <fmod = 1> (x, d) y = Add (q, m)", "int64[N,5] x", d=ints(-3)))
    np.testing.assert_array_equal(actual, expected)
    assert actual.dtype == expected.dtype


def test_elements_are_replaced_where_all_sizes_are_known() -> None:
    index = np.array([[[0, -1, 2]], [[3, 1, 0]]])
    model = model_of("y = ScatterElements <axis = 2> (x, i, u)", "float[2,3,5] x", i=index, u=normal(2, 1, 3))
    source, x = onnxfix.load(model), normal(2, 3, 5)
    np.testing.assert_array_equal(np.asarray(to_keras_fixed(source, None)(x)), source.run({"x": x})["y"])


def test_a_table_is_an_embedding() -> None:
    table = normal(9, 4)
    built = to_keras(onnxfix.load(model_of("y = Gather (t, x)", "int64[N,5] x", t=table)), None)
    (layer,) = [layer for layer in built.layers if isinstance(layer, keras.layers.Embedding)]
    np.testing.assert_array_equal(layer.get_weights()[0], table)
    index = np.array([[0, 8, 3, 3, 1]])
    np.testing.assert_array_equal(np.asarray(built(index)), table[index])


def test_there_are_no_transposes_between_convolutions() -> None:
    body = "a = Conv (x, w) r = Relu (a) b = Conv (r, v) s = Add (b, r) y = GlobalAveragePool (s)"
    _, _, built = answered(model_of(body, w=normal(4, 6, 1, 1), v=normal(4, 4, 1, 1)))
    assert sum(type(operation).__name__ == "Permute" for operation in built.operations) == 2


def test_the_file_holds_it_all(tmp_path: Path) -> None:
    onnxfix.export(network(), "keras", tmp_path / "net.keras")
    again = keras.models.load_model(tmp_path / "net.keras")
    assert again.input_names == ["image"] if hasattr(again, "input_names") else True
    expected = onnxfix.load(network()).run({"image": images(4)})["logits"]
    np.testing.assert_allclose(np.asarray(again(images(4))), expected, rtol=0, atol=NOISE * np.abs(expected).max())
    onnxfix.export(network(), "tensorflow", tmp_path / "saved")
    (answer,) = onnxfix.load(tmp_path / "saved").run_native({"image": images(4)}).values()
    np.testing.assert_allclose(answer, expected, rtol=0, atol=NOISE * np.abs(expected).max())


def test_outputs_keep_their_order_in_tensorflow() -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 9, opset_import: ["": 17]> g (float[N,3] x) => (float[N,3] z, float[N,3] a) { z = Abs (x) a = Neg (x) }'
    )
    x = normal(4, 3)
    z, a = onnxfix.export(model, "tensorflow")(keras.ops.convert_to_tensor(x))
    np.testing.assert_array_equal(z, np.abs(x))
    np.testing.assert_array_equal(a, -x)


def test_what_has_no_form_is_named() -> None:
    with pytest.raises(ExportError, match="Det"):
        to_keras(onnxfix.load(model_of("y = Det (x)", "float[N,4,4] x")), None)
    with pytest.raises(ExportError, match="constant"):
        to_keras(onnxfix.load(model_of("y = Identity (c)", "float[N,4] x", c=normal(3))), None)
