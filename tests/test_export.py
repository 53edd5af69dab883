"""Models come out in another framework as they went in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

import onnxfix
from onnxfix.errors import ExportError
from onnxfix.frameworks.agreement import distance

RNG = np.random.default_rng(11)
CONVERTER_BUGS = [
    "o2t_pad_value_opset10", "o2t_resize_scale_rounding_shape", "o2t_squeeze_negative_axes",
    "x_o2t_avgpool_asymmetric", "x_o2t_depth_to_space_dcr", "x_o2t_identity_initializer", "x_o2t_reducemean_opset18",
]


def convnet() -> onnx.ModelProto:
    """A small net whose padding, opset and reduction today's onnx2torch does not take."""
    text = """<ir_version: 8, opset_import: ["" : 18]> g (float[N,3,15,15] image) => (float[N,5] scores, float[N,8] code) {
        a = Conv <auto_pad = "SAME_UPPER", strides = [2, 2]> (image, k, b)
        c = AveragePool <kernel_shape = [2, 2], strides = [2, 2], pads = [0, 0, 1, 1]> (a)
        d = HardSwish (c) m = ReduceMean <keepdims = 1> (d, axes)
        code = Squeeze (m, axes) scores = Gemm (code, w, v) }"""
    model = onnx.parser.parse_model(text)
    shapes = {"k": (8, 3, 3, 3), "b": (8,), "w": (8, 5), "v": (5,)}
    for name, shape in shapes.items():
        value = (RNG.standard_normal(shape) / 2).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([-1, -2], np.int64), "axes"))
    return model


def images(count: int) -> dict[str, np.ndarray]:
    return {"image": RNG.standard_normal((count, 3, 15, 15)).astype(np.float32)}


def test_pytorch_answers_the_same_for_every_batch_size_and_from_its_file(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    source = onnxfix.load(convnet())
    module = onnxfix.export(source, "pytorch", tmp_path / "net.pt2")
    assert not module.training
    written = onnxfix.load(tmp_path / "net.pt2")
    assert [spec.name for spec in written.inputs] == ["image"]
    for count in (1, 3):
        feeds = images(count)
        expected = list(source.run(feeds).values())
        with torch.no_grad():
            direct = [tensor.numpy() for tensor in module(torch.from_numpy(feeds["image"]))]
        for answers in (direct, list(written.run_native(feeds).values())):
            assert len(answers) == 2
            assert max(distance(want, got) for want, got in zip(expected, answers, strict=True)) < 1e-5


def test_tflite_answers_the_same_and_squeezes(tmp_path: Path) -> None:
    pytest.importorskip("litert_torch")
    source = onnxfix.load(convnet())
    data = onnxfix.export(source, "tflite", tmp_path / "net.tflite")
    assert (tmp_path / "net.tflite").read_bytes() == data
    feeds = images(1)
    written = onnxfix.load(tmp_path / "net.tflite")
    answers = written.run_native({written.inputs[0].name: feeds["image"]})
    for want, got in zip(source.run(feeds).values(), answers.values(), strict=True):
        assert distance(want, got) < 1e-5


def test_onnx_is_the_lowered_graph(tmp_path: Path) -> None:
    source = onnxfix.load(convnet())
    assert onnxfix.export(source, "onnx", tmp_path / "net.onnx") is source.proto
    assert onnx.load(tmp_path / "net.onnx") == source.proto


def test_keras_goes_to_a_saved_model_a_tflite_file_and_pytorch(tmp_path: Path) -> None:
    keras = pytest.importorskip("keras")
    layers = keras.layers
    keras.utils.set_random_seed(3)
    model = keras.Sequential([
        keras.Input((9, 9, 2)), layers.Conv2D(4, 3, strides=2, padding="same"), layers.AveragePooling2D(2, padding="same"),
        layers.Flatten(), layers.Dense(3, activation="softmax"),
    ])
    x = RNG.standard_normal((2, 9, 9, 2)).astype(np.float32)
    expected = np.asarray(model(x))
    function = onnxfix.export(model, "tensorflow", tmp_path / "saved")
    np.testing.assert_allclose(function(x).numpy(), expected, rtol=0, atol=1e-6)
    saved = onnxfix.load(tmp_path / "saved")
    np.testing.assert_allclose(next(iter(saved.run({saved.inputs[0].name: x}).values())), expected, rtol=0, atol=1e-6)
    assert onnxfix.export(model, "tflite")[4:8] == b"TFL3"
    assert onnxfix.export(model, "keras") is model
    import torch

    with torch.no_grad():
        answer = onnxfix.export(model, "pytorch")(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(answer, expected, rtol=0, atol=1e-6)


def test_recurrent_keras_layers_become_tflite_with_a_batch_of_one() -> None:
    keras = pytest.importorskip("keras")
    keras.utils.set_random_seed(3)
    model = keras.Sequential([keras.Input((4, 3)), keras.layers.LSTM(5), keras.layers.Dense(2)])
    lite = onnxfix.load(onnxfix.export(model, "tflite"))
    x = RNG.standard_normal((1, 4, 3)).astype(np.float32)
    (answer,) = lite.run_native({lite.inputs[0].name: x}).values()
    np.testing.assert_allclose(answer, np.asarray(model(x)), rtol=0, atol=1e-6)


def test_open_sizes_stay_open_in_an_exported_program(tmp_path: Path) -> None:
    """The initial states of the recurrent layer are expanded to the batch by shape arithmetic."""
    torch = pytest.importorskip("torch")

    class Tagger(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.GRU(3, 4, batch_first=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x)[0][:, -1]

    torch.manual_seed(0)
    module = Tagger().eval()
    lowered = onnxfix.load(onnxfix.load(module, torch.zeros(2, 5, 3)).proto)
    onnxfix.export(lowered, "pytorch", tmp_path / "tagger.pt2")
    x = torch.randn(3, 5, 3)
    answer = onnxfix.load(tmp_path / "tagger.pt2").run_native({"x": x.numpy()})
    np.testing.assert_allclose(next(iter(answer.values())), module(x).detach().numpy(), rtol=0, atol=1e-6)


def test_halves_of_an_open_size_are_computed_on_numbers(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    text = """<ir_version: 8, opset_import: ["" : 17]> g (float[N,6] x) => (float[h,6] y) {
        s = Shape (x) n = Gather (s, first) d = Div (n, two) e = Cast <to = 7> (d) u = Unsqueeze (e, axis)
        y = Slice (x, axis, u) }"""
    model = onnx.parser.parse_model(text)
    for name, value in {"first": np.array(0), "two": np.array(2), "axis": np.array([0])}.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(value.astype(np.int64), name))
    module = onnxfix.export(model, "pytorch", tmp_path / "half.pt2")
    x = RNG.standard_normal((7, 6)).astype(np.float32)
    np.testing.assert_array_equal(module(torch.from_numpy(x)).numpy(), x[:3])
    (answer,) = onnxfix.load(tmp_path / "half.pt2").run_native({"x": x}).values()
    np.testing.assert_array_equal(answer, x[:3])


def test_the_callers_inputs_are_checked() -> None:
    pytest.importorskip("torch")
    text = """<ir_version: 8, opset_import: ["" : 17]> g (int64[N] i) => (float[N,2] y) {
        shifted = Sub (i, base) y = Gather (table, shifted) }"""
    model = onnx.parser.parse_model(text)
    for name, value in {"base": np.int64(100), "table": np.eye(3, 2, dtype=np.float32)}.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(value), name))
    with pytest.raises(ExportError, match="no random input"):
        onnxfix.export(model, "pytorch")
    module = onnxfix.export(model, "pytorch", inputs={"i": np.array([100, 102])})
    assert module.training is False


@pytest.mark.parametrize("case", CONVERTER_BUGS)
def test_what_onnx2torch_crashes_on_or_gets_wrong_comes_through(case: str, shared_data: Path) -> None:
    torch = pytest.importorskip("torch")
    folder = shared_data / "converter_bugs" / case
    source = onnxfix.load(folder / "source.onnx")
    module = onnxfix.export(source, "pytorch")
    data = np.load(folder / "data.npz")
    samples = {name.partition("__")[2] for name in data.files}
    for number in sorted(samples):
        suffix = f"__{number}" if number else ""
        feeds = {spec.name: data[spec.name + suffix] for spec in source.inputs}
        with torch.no_grad():
            answer = module(*(torch.from_numpy(value) for value in feeds.values()))
        (expected,) = source.run(feeds).values()
        assert answer.shape == expected.shape
        assert distance(expected, answer.numpy()) < 1e-5


def test_errors_say_what_is_available(tmp_path: Path) -> None:
    model = convnet()
    with pytest.raises(ExportError, match="choose one of onnx, pytorch, keras, tensorflow, tflite"):
        onnxfix.export(model, "caffe")
    with pytest.raises(ExportError, match=r"\.pt2"):
        onnxfix.export(model, "pytorch", tmp_path / "net.bin")
    with pytest.raises(ExportError, match="is no folder"):
        onnxfix.export(model, "onnx", tmp_path / "nowhere" / "net.onnx")
    assert not list(tmp_path.iterdir())
    unsupported = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[4,4] x) => (float y) { y = Det (x) }'
    )
    with pytest.raises(ExportError, match="Det"):
        onnxfix.export(unsupported, "pytorch")
