"""Conversion pairs by today's real converters, built once and cached in ``build/bench-cache``.

Two families:

- ``mobilenet_v2``: published ImageNet weights (ONNX), carried to PyTorch by onnx2torch (through ``onnxfix.export``),
  back to ONNX by both exporters of torch.onnx, and to TFLite by litert-torch.
- ``keras_<net>``: Keras MobileNetV2, ResNet101 and InceptionV3 with seeded weights and batch-norm statistics calibrated
  on the photos, exported to SavedModel and TFLite, and carried to PyTorch through tf2onnx and onnx2torch.

Run as a script to build everything: ``python benchmarks/networks.py [family ...]``.
"""

from __future__ import annotations

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from photos import ROOT, data_root, photos, signed_unit

import onnxfix

CACHE = ROOT / "build" / "bench-cache"
CALIBRATION_PHOTOS = 64
KERAS_NETWORKS = {  # name -> (class in keras.applications, its module, input size)
    "mobilenet_v2": ("MobileNetV2", "mobilenet_v2", 224),
    "resnet101": ("ResNet101", "resnet", 224),
    "inception_v3": ("InceptionV3", "inception_v3", 299),
}


@dataclass(frozen=True)
class Pair:
    """A source and what a converter made of it."""

    name: str
    source: Path
    target: Path
    inputs: Callable[[int | None], np.ndarray]


def pairs(families: list[str] | None = None) -> list[Pair]:
    """All clean pairs, built if they are not in the cache; a conversion that fails is reported and left out."""
    wanted = families or ["mobilenet_v2", *(f"keras_{net}" for net in KERAS_NETWORKS)]
    found: list[Pair] = []
    for family in wanted:
        found += _mobilenet_pairs() if family == "mobilenet_v2" else _keras_pairs(family.removeprefix("keras_"))
    return found


def _mobilenet_pairs() -> list[Pair]:
    folder = mobilenet_v2()
    def inputs(count: int | None) -> np.ndarray:
        return signed_unit(photos(224, count))

    routes = {
        "onnx -> onnx2torch": "module.pt2",
        "onnx -> onnx2torch -> torch.onnx dynamo": "dynamo.onnx",
        "onnx -> onnx2torch -> torch.onnx TorchScript": "torchscript.onnx",
        "onnx -> onnx2torch -> litert-torch": "litert.tflite",
    }
    return [
        Pair(f"mobilenet_v2: {route}", folder / "source.onnx", folder / file, inputs)
        for route, file in routes.items() if (folder / file).exists()
    ]


def _keras_pairs(net: str) -> list[Pair]:
    folder = keras_network(net)
    routes = {"SavedModel": "saved_model", "TFLite": "model.tflite", "tf2onnx -> onnx2torch": "via_onnx.pt2"}
    return [
        Pair(f"keras {net}: {route}", folder / "model.keras", folder / file, lambda count: keras_inputs(net, count))
        for route, file in routes.items() if (folder / file).exists()
    ]


def keras_inputs(net: str, count: int | None = None) -> np.ndarray:
    """Photos with the preprocessing of one Keras network."""
    return keras_prepared(net, photos(KERAS_NETWORKS[net][2], count))


def keras_prepared(net: str, pictures: np.ndarray) -> np.ndarray:
    """Pictures in 0..255, ``[count, height, width, 3]``, with the preprocessing of one Keras network."""
    import keras

    preprocess = getattr(keras.applications, KERAS_NETWORKS[net][1]).preprocess_input
    return np.asarray(preprocess(pictures.copy()), np.float32)


def mobilenet_v2() -> Path:
    """Build the routes of the published MobileNetV2; the folder that holds them."""
    folder = CACHE / "mobilenet_v2"
    source = built(folder / "source.onnx", lambda path: shutil.copyfile(
        data_root() / "models" / "mobilenet_v2_imagenet_float.onnx", path))
    names = ("module.pt2", "dynamo.onnx", "torchscript.onnx", "litert.tflite")
    if all((folder / name).exists() for name in names):
        return folder
    import torch

    module = onnxfix.export(source, "pytorch")
    example = (torch.zeros(1, 224, 224, 3),)
    built(folder / "module.pt2", lambda path: torch.export.save(torch.export.export(module, example), path))
    built(folder / "dynamo.onnx", lambda path: torch.onnx.export(
        module, example, path, dynamo=True, external_data=False, verbose=False))
    built(folder / "torchscript.onnx", lambda path: torch.onnx.export(
        module, example, path, dynamo=False, opset_version=17))
    built(folder / "litert.tflite", lambda path: _litert(module, example, path))
    return folder


def keras_network(net: str) -> Path:
    """Build a seeded Keras network and its conversions; the folder that holds them."""
    folder = CACHE / f"keras_{net}"
    names = ("model.keras", "saved_model", "model.tflite", "via_onnx.pt2")
    if all((folder / name).exists() for name in names):
        return folder
    import keras

    path = built(folder / "model.keras", lambda path: _calibrated(net).save(path))
    model = keras.saving.load_model(path)
    built(folder / "saved_model", lambda path: model.export(path, verbose=False))
    built(folder / "model.tflite", lambda path: _tflite(folder / "saved_model", path))
    built(folder / "tf2onnx.onnx", lambda path: _tf2onnx(model, path))
    built(folder / "via_onnx.pt2", lambda path: onnxfix.export(folder / "tf2onnx.onnx", "pytorch", path))
    return folder


def _calibrated(net: str) -> Any:
    """A network whose batch-norm statistics are those of the photos, so that its outputs depend on the picture."""
    import keras

    keras.utils.set_random_seed(0)
    model = getattr(keras.applications, KERAS_NETWORKS[net][0])(weights=None)
    norms = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0  # the moving statistics become those of the last batch, in every layer at once
    model(keras_inputs(net, CALIBRATION_PHOTOS), training=True)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return model


def _litert(module: Any, example: tuple[Any, ...], path: Path) -> None:
    import litert_torch

    litert_torch.convert(module, example).export(str(path))


def _tflite(saved_model: Path, path: Path) -> None:
    import tensorflow as tf

    path.write_bytes(tf.lite.TFLiteConverter.from_saved_model(str(saved_model)).convert())


def _tf2onnx(model: Any, path: Path) -> None:
    import tensorflow as tf
    import tf2onnx

    spec = [tf.TensorSpec((1, *model.inputs[0].shape[1:]), tf.float32, name="image")]
    function = tf.function(lambda image: model(image, training=False), input_signature=spec)
    tf2onnx.convert.from_function(function, input_signature=spec, output_path=str(path))


def built(path: Path, build: Callable[[Path], Any]) -> Path:
    """Make ``path`` if it is not there; a half-written file never takes its name."""
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"partial-{path.name}")
    started = time.perf_counter()
    try:
        build(partial)
    except Exception as error:  # a converter's own crash is a result here, not a bug of ours
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        print(f"{path.parent.name}/{path.name}: conversion failed: {type(error).__name__}: {first}", flush=True)
        return path
    partial.replace(path)
    print(f"{path.parent.name}/{path.name}: {time.perf_counter() - started:.1f} s", flush=True)
    return path


if __name__ == "__main__":
    for pair in pairs(sys.argv[1:] or None):
        print(pair.name)
