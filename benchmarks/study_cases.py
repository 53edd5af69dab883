"""The 15 conversions that the published study found to be wrong, made again with today's converters.

``build/study/<network>-<source>`` holds the source, seeded and calibrated on photos in its own framework's way, and
each conversion of it. Where no converter leads from one framework to the other, :func:`onnxfix.export` does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fault_networks
import numpy as np
from networks import built
from photos import ROOT, photos

import onnxfix
from onnxfix.frameworks.torchvision_ops import ensure_torchvision_importable
from onnxfix.inputs import Preparation

FOLDER = ROOT / "build" / "study"
SIZE = 96
CALIBRATION, REPAIR, HELD_OUT = 32, 32, 32  # photos, none of them used twice
FILES = {"keras": "model.keras", "tensorflow": "saved_model", "tflite": "model.tflite", "pytorch": "module.pt2"}
# How each framework's users prepare photos: torchvision, keras.applications, TensorFlow Hub; a TFLite file without
# metadata is fed the camera's bytes.
UNIT, RAW = Preparation(), Preparation(scale=1.0)
SIGNED = Preparation(scale=1 / 127.5, mean=(1.0,))
TORCHVISION = Preparation(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
CAFFE = Preparation(scale=1.0, mean=(103.939, 116.779, 123.68), order="BGR")
WAYS = {"pytorch": TORCHVISION, "tensorflow": UNIT, "tflite": RAW}
# Scale of a residual branch: seeded ResNets whose branches are as strong as their skips amplify float noise a
# thousandfold, which trained ones do not.
BRANCH = 0.2
TORCHVISION_NAMES = {"MobileNetV2": "mobilenet_v2", "InceptionV3": "inception_v3", "ResNet101": "resnet101"}


@dataclass(frozen=True)
class Case:
    """One erroneous conversion: the kinds and numbers of the faults that were repaired in it.

    Attributes:
        network: One of :data:`TORCHVISION_NAMES`.
        source: Framework of the source.
        target: Framework that it was converted to.
        weights: Weights and biases that had other values.
        attributes: Attributes that had other values.
        edits: Nodes too many, missing or replaced.
        layout: Whether the input's axes were taken for each other.
        dimensions: Whether the input had another size.
    """

    network: str
    source: str
    target: str
    weights: int = 0
    attributes: int = 0
    edits: int = 0
    layout: bool = False
    dimensions: bool = False

    @property
    def name(self) -> str:
        """``network: source -> target``."""
        return f"{self.network}: {self.source} -> {self.target}"


CASES = (
    Case("InceptionV3", "tensorflow", "tflite", weights=94),
    Case("InceptionV3", "pytorch", "keras", attributes=47, layout=True),
    Case("MobileNetV2", "keras", "tflite", weights=96),
    Case("MobileNetV2", "keras", "pytorch", attributes=6),
    Case("MobileNetV2", "tensorflow", "keras", attributes=40, edits=8),
    Case("MobileNetV2", "tensorflow", "tflite", weights=68),
    Case("MobileNetV2", "pytorch", "keras", attributes=39, layout=True),
    Case("MobileNetV2", "pytorch", "tensorflow", attributes=42),
    Case("ResNet101", "keras", "pytorch", weights=3, attributes=72, edits=2),
    Case("ResNet101", "tensorflow", "tflite", weights=178, attributes=33, edits=37),
    Case("ResNet101", "keras", "tflite", weights=178, attributes=33, edits=37),
    Case("ResNet101", "tensorflow", "keras", dimensions=True),
    Case("ResNet101", "tflite", "keras", dimensions=True),
    Case("ResNet101", "pytorch", "tensorflow", dimensions=True),
    Case("ResNet101", "pytorch", "tflite", dimensions=True),
)


def way(network: str, framework: str) -> Preparation:
    """How photos are prepared for a network in a framework."""
    return WAYS.get(framework, CAFFE if network == "ResNet101" else SIGNED)


def pictures() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Photos ``[n, SIZE, SIZE, 3]``, 0..255, to calibrate on, to repair with, to verify on."""
    every = photos(SIZE, CALIBRATION + REPAIR + HELD_OUT)
    return tuple(np.split(every, [CALIBRATION, CALIBRATION + REPAIR]))  # type: ignore[return-value]


def models(case: Case) -> tuple[Path, Path]:
    """Source and clean conversion, built if they are not there."""
    folder = FOLDER / f"{case.network}-{case.source}"
    folder.mkdir(parents=True, exist_ok=True)
    source, target = folder / FILES[case.source], folder / FILES[case.target]
    if not source.exists():
        (_torch_source if case.source == "pytorch" else _keras_source)(case, folder)
    if not target.exists():
        built(target, lambda path: _CONVERTERS.get((case.source, case.target), _exported(case))(source, path))
    return source, target


def _keras_source(case: Case, folder: Path) -> None:
    import keras

    keras.utils.set_random_seed(0)
    model = getattr(keras.applications, case.network)(weights=None, input_shape=(SIZE, SIZE, 3))
    random = np.random.default_rng(0)
    for layer in model.layers:
        if case.network == "ResNet101" and layer.name.endswith("_3_bn"):
            layer.gamma.assign(np.full(layer.gamma.shape, BRANCH, np.float32))
        if case.network == "MobileNetV2" and layer.name.endswith("project_BN"):
            # Else what follows sees nothing but values around zero, and needs no bias once its norm is folded in.
            layer.beta.assign(random.normal(0, 0.1, layer.beta.shape))
    fault_networks.calibrate_keras(model, way(case.network, case.source)(pictures()[0]))
    if case.source == "keras":
        built(folder / FILES["keras"], model.save)
    elif case.source == "tensorflow":
        built(folder / FILES["tensorflow"], lambda path: model.export(path, verbose=False))
    else:
        built(folder / FILES["tflite"], lambda path: fault_networks.keras_tflite(model, path))


def _torch_source(case: Case, folder: Path) -> None:
    import torch

    ensure_torchvision_importable()
    import torchvision

    torch.manual_seed(0)
    options: dict[str, Any] = {"aux_logits": False, "init_weights": True} if case.network == "InceptionV3" else {}
    module = getattr(torchvision.models, TORCHVISION_NAMES[case.network])(weights=None, **options)
    for path, part in module.named_modules():
        if case.network == "ResNet101" and path.endswith("bn3"):
            torch.nn.init.constant_(part.weight, BRANCH)
    data = torch.from_numpy(np.ascontiguousarray(TORCHVISION(pictures()[0]).transpose(0, 3, 1, 2)))
    module.train()
    for part in module.modules():
        if isinstance(part, torch.nn.Dropout):
            part.eval()
    fault_networks.calibrate_torch(module, [data])
    module.eval()
    free = {0: torch.export.Dim("batch", min=1, max=1024)}
    program = torch.export.export(module, (data[:2],), dynamic_shapes=(free,))
    built(folder / FILES["pytorch"], lambda path: torch.export.save(program, path))


def _keras_tflite(source: Path, path: Path) -> None:
    import keras

    fault_networks.keras_tflite(keras.saving.load_model(source), path)


def _keras_pytorch(source: Path, path: Path) -> None:
    import keras

    graph, model = path.with_suffix(".onnx"), keras.saving.load_model(source)
    model(np.zeros((1, SIZE, SIZE, 3), np.float32))  # Keras exports what was called once
    model.export(graph, format="onnx", verbose=False)
    onnxfix.export(graph, "pytorch", path)
    graph.unlink()


def _saved_model_tflite(source: Path, path: Path) -> None:
    import tensorflow as tf

    path.write_bytes(tf.lite.TFLiteConverter.from_saved_model(str(source)).convert())


def _torch_tflite(source: Path, path: Path) -> None:
    import litert_torch
    import torch

    module = torch.export.load(source).module()
    litert_torch.convert(module, (torch.zeros(1, 3, SIZE, SIZE),)).export(str(path))


def _exported(case: Case) -> Callable[[Path, Path], Any]:
    def export(source: Path, path: Path) -> None:
        model = onnxfix.load(source)
        data = onnxfix.Inputs(pictures()[0][:2], preprocess=way(case.network, case.source))
        onnxfix.export(model, case.target, path, inputs=next(iter(data.feeds(model))))

    return export


_CONVERTERS: dict[tuple[str, str], Callable[[Path, Path], Any]] = {
    ("keras", "tflite"): _keras_tflite,
    ("keras", "pytorch"): _keras_pytorch,
    ("tensorflow", "tflite"): _saved_model_tflite,
    ("pytorch", "tflite"): _torch_tflite,
}


if __name__ == "__main__":
    for each in CASES:
        print(each.name, *models(each), flush=True)
