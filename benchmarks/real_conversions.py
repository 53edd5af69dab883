"""What today's converters make of the trained Keras models of the shared data; ``build/alarms/models`` keeps it.

``ad01`` (a dense autoencoder) and ``resnet8`` (CIFAR-10) lie there as ``.h5``.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from networks import built
from photos import ROOT, data_root, photos

import onnxfix

FOLDER = ROOT / "build" / "alarms" / "models"
SOURCES = {"ad01": "ad01/ad01.h5", "resnet8": "resnet8_cifar10/resnet8.h5"}


def source_of(name: str) -> Path:
    """The Keras file."""
    return data_root() / "models" / SOURCES[name]


def data_of(name: str, count: int) -> np.ndarray:
    """``count`` inputs: photos in 0..255, or log-mel energies about as loud as the autoencoder's training data."""
    if name == "resnet8":
        return photos(32, count)
    return np.random.default_rng(3).normal(-30, 15, (count, 640)).clip(-84, 14).astype(np.float32)


def conversions(name: str) -> dict[str, Path]:
    """Converter -> file; one that failed is left out."""
    files = {converter: FOLDER / name / file for converter, (file, _) in CONVERTERS.items()}
    if not all(path.exists() for path in files.values()):
        import keras

        model = keras.saving.load_model(source_of(name), compile=False)
        for converter, (_, convert) in CONVERTERS.items():
            built(files[converter], lambda path, by=convert: by(model, path, name))
    return {converter: path for converter, path in files.items() if path.exists()}


def _tflite(*, half: bool = False, dynamic: bool = False, integers: bool = False) -> Callable[[Any, Path, str], None]:
    def convert(model: Any, path: Path, name: str) -> None:
        import tensorflow as tf

        converter = tf.lite.TFLiteConverter.from_keras_model(model)
        if half or dynamic or integers:
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if half:
            converter.target_spec.supported_types = [tf.float16]
        if integers:
            samples = data_of(name, 64)
            converter.representative_dataset = lambda: ([sample[None]] for sample in samples)
        path.write_bytes(converter.convert())

    return convert


def _tf2onnx(opset: int) -> Callable[[Any, Path, str], None]:
    def convert(model: Any, path: Path, name: str) -> None:
        import tensorflow as tf
        import tf2onnx

        spec = [tf.TensorSpec((None, *model.inputs[0].shape[1:]), tf.float32, name="x")]
        function = tf.function(lambda x: model(x, training=False), input_signature=spec)
        tf2onnx.convert.from_function(function, input_signature=spec, opset=opset, output_path=str(path))

    return convert


def _onnx2torch(model: Any, path: Path, name: str) -> None:
    import torch

    from onnxfix.frameworks.torchvision_ops import ensure_torchvision_importable

    ensure_torchvision_importable()
    import onnx2torch

    module = onnx2torch.convert(str(FOLDER / name / "tf2onnx13.onnx")).eval()
    example = torch.from_numpy(data_of(name, 1))
    torch.export.save(torch.export.export(module, (example,)), path)


def _torch_onnx(model: Any, path: Path, name: str) -> None:
    import torch

    module = torch.export.load(FOLDER / name / "onnx2torch.pt2").module()
    torch.onnx.export(module, (torch.from_numpy(data_of(name, 1)),), path, dynamo=True, external_data=False,
                      verbose=False)


CONVERTERS: dict[str, tuple[str, Callable[[Any, Path, str], Any]]] = {
    "Keras export": ("keras.onnx", lambda model, path, name: model.export(path, format="onnx", verbose=False)),
    "SavedModel": ("saved_model", lambda model, path, name: model.export(path, verbose=False)),
    "tf2onnx opset 13": ("tf2onnx13.onnx", _tf2onnx(13)),
    "tf2onnx opset 18": ("tf2onnx18.onnx", _tf2onnx(18)),
    "TFLiteConverter f32": ("float32.tflite", _tflite()),
    "TFLiteConverter fp16": ("float16.tflite", _tflite(half=True)),
    "TFLiteConverter drq": ("dynamic.tflite", _tflite(dynamic=True)),
    "TFLiteConverter int8": ("int8.tflite", _tflite(integers=True)),
    "tf2onnx + onnx2torch": ("onnx2torch.pt2", _onnx2torch),
    "tf2onnx + onnx2torch + torch.onnx dynamo": ("dynamo.onnx", _torch_onnx),
    "onnxfix.export": ("onnxfix.pt2", lambda model, path, name: onnxfix.export(model, "pytorch", path)),
}
