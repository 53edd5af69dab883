"""The networks of the fault matrix, each as its converters make it in every framework.

``build/faults/<network>`` holds one file per framework. Batch-norm statistics are those of the network's own inputs,
so that its answers depend on them. A conversion that fails is left out, and so are the pairs that it would give.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import convergence_nets as nets
import numpy as np
from networks import built
from photos import ROOT, photos, signed_unit

import onnxfix

FOLDER = ROOT / "build" / "faults"
INPUTS = 64
CALIBRATION = 32
KERAS = ("MobileNetV2", "ResNet101", "InceptionV3", "DS-CNN", "dense autoencoder", "LSTM (Keras)")
TORCH = ("U-Net", "detector head", "BERT", "GPT-2", "ViT", "Swin", "LSTM (PyTorch)", "MobileNetV2 (PyTorch)")
NAMES = (*KERAS, *TORCH)
FILES = {"keras": "model.keras", "tensorflow": "saved_model", "tflite": "model.tflite", "pytorch": "module.pt2",
         "onnx": "model.onnx"}


@dataclass(frozen=True)
class Network:
    """One network in all the frameworks that its converters reach.

    Attributes:
        name: One of :data:`NAMES`.
        files: Framework -> the file or folder.
        data: Input name of the origin -> ``[64, ...]``.
    """

    name: str
    files: dict[str, Path]
    data: dict[str, np.ndarray]

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """Every ordered pair of frameworks."""
        return list(itertools.permutations(sorted(self.files), 2))


def network(name: str) -> Network:
    """Build a network if it is not there yet."""
    folder = FOLDER / name.replace(" ", "_").replace("(", "").replace(")", "")
    folder.mkdir(parents=True, exist_ok=True)
    if any(not (folder / file).exists() for file in FILES.values()) and not (folder / "data.npz").exists():
        (_build_keras if name in KERAS else _build_torch)(name, folder)
    with np.load(folder / "data.npz") as arrays:
        data = {key: arrays[key] for key in arrays}
    files = {framework: folder / file for framework, file in FILES.items() if (folder / file).exists()}
    return Network(name, files, data)


def _build_keras(name: str, folder: Path) -> None:
    model = nets.keras_network(name)
    data = _keras_data(model)
    calibrate_keras(model, data[:CALIBRATION])
    built(folder / "model.keras", model.save)
    built(folder / "saved_model", lambda path: model.export(path, verbose=False))
    built(folder / "model.tflite", lambda path: keras_tflite(model, path))
    built(folder / "model.onnx", lambda path: model.export(path, format="onnx", verbose=False))
    built(folder / "module.pt2", lambda path: onnxfix.export(folder / "model.onnx", "pytorch", path))
    np.savez(folder / "data.npz", **{model.inputs[0].name: data})


def _keras_data(model: Any) -> np.ndarray:
    shape = model.inputs[0].shape[1:]
    if len(shape) == 3 and shape[-1] == 3:
        return signed_unit(photos(shape[0], INPUTS))
    return np.random.default_rng(5).normal(size=(INPUTS, *shape)).astype(np.float32)


def calibrate_keras(model: Any, data: np.ndarray) -> None:
    """The moving statistics become those of one batch, in every layer at once."""
    import keras

    norms = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    model(data, training=True)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def keras_tflite(model: Any, path: Path) -> None:
    import keras
    import tensorflow as tf

    inputs = keras.Input(batch_shape=(1, *model.inputs[0].shape[1:]), name=model.inputs[0].name)
    fixed = keras.Model(inputs, model(inputs))  # recurrent layers convert with a fixed batch only
    path.write_bytes(tf.lite.TFLiteConverter.from_keras_model(fixed).convert())


def _build_torch(name: str, folder: Path) -> None:
    import torch

    module, example = nets.torch_network(name)
    data = [_more(value) for value in example]
    calibrate_torch(module, data)
    built(folder / "module.pt2", lambda path: torch.export.save(torch.export.export(module, example), path))
    built(folder / "model.onnx", lambda path: torch.onnx.export(
        module, example, path, dynamo=True, external_data=False, verbose=False))
    built(folder / "model.tflite", lambda path: _litert(module, example, path))
    for framework, file in FILES.items():  # what no converter of the framework's own makes
        if not (folder / file).exists():
            built(folder / file, lambda path, to=framework: onnxfix.export(folder / "model.onnx", to, path))
    inputs = onnxfix.load(folder / "module.pt2").inputs
    np.savez(folder / "data.npz", **{spec.name: value.numpy() for spec, value in zip(inputs, data, strict=True)})


def _more(example: Any) -> Any:
    """64 inputs like the example: photos, token ids, masks, noise."""
    import torch

    shape = (INPUTS, *example.shape[1:])
    random = np.random.default_rng(7)
    if example.dtype == torch.int64:
        high = int(example.max()) + 1
        # A mask of ones stays a mask, with some sequences shorter than others.
        value = random.integers(0, high, shape) if high > 2 else np.tril(np.ones((shape[1], shape[1]), np.int64))[
            random.integers(shape[1] // 2, shape[1], INPUTS)]
        return torch.from_numpy(np.ascontiguousarray(value))
    if len(shape) == 4 and shape[1] == 3:
        pictures = signed_unit(photos(shape[2], INPUTS)).transpose(0, 3, 1, 2)
        return torch.from_numpy(np.ascontiguousarray(pictures))
    return torch.from_numpy(random.normal(size=shape).astype(np.float32))


def calibrate_torch(module: Any, data: list[Any]) -> None:
    import torch

    norms = [part for part in module.modules() if isinstance(part, torch.nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
        norm.train()
    with torch.no_grad():
        module(*(value[:CALIBRATION] for value in data))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()


def _litert(module: Any, example: tuple[Any, ...], path: Path) -> None:
    import litert_torch

    litert_torch.convert(module, example).export(str(path))


def all_networks(names: list[str] | None = None) -> dict[str, Callable[[], Network]]:
    """Networks by name, built when asked for."""
    return {name: (lambda n=name: network(n)) for name in names or NAMES}


if __name__ == "__main__":
    for each in NAMES:
        print(each, sorted(network(each).files), flush=True)
