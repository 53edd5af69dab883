"""A lowering that computes something else than the native model is named, and never passed on silently."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

import onnxfix
from onnxfix.errors import LoweringError, UnfaithfulLoweringError
from onnxfix.frameworks.faithful import verify_lowering

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Softplus(threshold=1))
        self.second = nn.Conv2d(4, 2, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x)).mean((2, 3))


@pytest.fixture(scope="module")
def net() -> onnxfix.Model:
    torch.manual_seed(0)
    return onnxfix.load(Net().eval(), torch.randn(2, 3, 8, 8), verify=True)


def with_wrong(model: onnxfix.Model, name: str) -> onnxfix.Model:
    """The same native model, one lowered parameter changed: what a converter's fault looks like."""
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    tensor = next(t for t in proto.graph.initializer if t.name == name)
    tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor) + np.float32(0.5), name))
    return replace(model, proto=proto)


@pytest.mark.parametrize(("parameter", "layer"), [("first.0.bias", "first.0"), ("second.weight", "second")])
def test_the_first_wrong_layer_is_named(net: onnxfix.Model, parameter: str, layer: str) -> None:
    with pytest.raises(UnfaithfulLoweringError, match="a fault of the lowering, not of the model") as caught:
        onnxfix.load(with_wrong(net, parameter), verify=True)
    assert caught.value.layer == layer
    assert layer in str(caught.value)
    assert any("conv" in name.lower() for name in caught.value.nodes)


def test_without_verify_nothing_runs(net: onnxfix.Model) -> None:
    broken = with_wrong(net, "second.weight")
    assert onnxfix.load(broken) is broken


def test_it_is_a_lowering_error(net: onnxfix.Model) -> None:
    with pytest.raises(LoweringError):
        verify_lowering(with_wrong(net, "first.0.bias"), torch.randn(1, 3, 8, 8))


def test_keras_layers_are_named_too() -> None:
    keras = pytest.importorskip("keras")
    keras.utils.set_random_seed(1)
    native = keras.Sequential([
        keras.Input((6, 6, 3)), keras.layers.Conv2D(4, 3, name="stem"), keras.layers.ReLU(name="act"),
        keras.layers.GlobalAveragePooling2D(name="pool"), keras.layers.Dense(2, name="head"),
    ])
    model = onnxfix.load(native, verify=True)
    kernel = next(name for name in model.parameters if "head" in name and "kernel" in name)
    with pytest.raises(UnfaithfulLoweringError) as caught:
        verify_lowering(with_wrong(model, kernel))
    assert caught.value.layer is not None
    assert "head" in caught.value.layer


def test_quantized_files_are_allowed_their_steps(shared_data: Path) -> None:
    pytest.importorskip("ai_edge_litert")
    onnxfix.load(shared_data / "models" / "ad01" / "ad01_int8.tflite", verify=True)


class Encoder(nn.Module):
    def __init__(self, **options: bool) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, norm=nn.LayerNorm(8), **options)
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor, pad: torch.Tensor) -> torch.Tensor:
        return self.head(self.encoder(x, src_key_padding_mask=pad))


@pytest.mark.parametrize("options", [{}, {"enable_nested_tensor": False}])
def test_padded_places_hold_what_the_encoder_leaves_there_in_inference(options: dict[str, bool]) -> None:
    torch.manual_seed(0)
    module = Encoder(**options).eval()
    x = torch.randn(3, 5, 8)
    at_the_end = torch.tensor([[0, 0, 0, 1, 1], [0, 0, 0, 0, 1], [0, 0, 0, 0, 0]], dtype=torch.bool)
    model = onnxfix.load(module, (x, torch.zeros_like(at_the_end)), verify=True)
    assert "forward" not in module.encoder.__dict__  # the caller's module is as it was
    in_between = torch.tensor([[0, 1, 0, 1, 1], [0, 0, 0, 0, 1], [0, 0, 0, 0, 0]], dtype=torch.bool)
    for pad in (at_the_end, in_between):
        with torch.no_grad():
            expected = module(x, pad).numpy()
        (answer,) = model.run({"x": x.numpy(), "pad": pad.numpy()}).values()
        np.testing.assert_allclose(answer, expected, rtol=0, atol=2e-6)
