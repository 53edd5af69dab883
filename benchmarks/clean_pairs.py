"""Clean conversions from four origins, for the false-alarm benchmark.

- ``shared``: the 63 conversions of the shared data.
- ``real weights``: the published models of the shared data, and what today's converters make of them.
- ``networks``: those of the fault matrix and of the cost benchmark, from the framework they were written in to others.
- ``convergence``: the cells of the convergence matrix whose answers are those of the origin.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fault_networks
import networks
import numpy as np
import real_conversions
from photos import ROOT, data_root, photos, signed_unit
from shared_cases import cases

import onnxfix

CONVERGENCE = ROOT / "build" / "convergence"
COUNT = 8
Own = Callable[[onnxfix.Model], Any]


@dataclass(frozen=True)
class CleanPair:
    """A source and what a converter made of it.

    Attributes:
        key: Unique name.
        origin: Where the pair comes from, as in the module's docstring.
        converter: What made the target.
        source, target: Load the models.
        own: From the source to the pair's own data.
        scale: How pictures in 0..255, NHWC, are scaled for this pair; to [-1, 1] when None.
        quantized: Whether the target answers differently because it holds fewer bits on request.
    """

    key: str
    origin: str
    converter: str
    source: Callable[[], onnxfix.Model]
    target: Callable[[], onnxfix.Model]
    own: Own
    scale: Callable[[np.ndarray], np.ndarray] | None = None
    quantized: bool = False


def pairs(origins: list[str] | None = None) -> Iterator[CleanPair]:
    """All pairs of the wanted origins; those of the matrices only as far as these have been run."""
    for origin, make in ORIGINS.items():
        if not origins or origin in origins:
            yield from make()


def _shared() -> Iterator[CleanPair]:
    for case in cases("clean_conversions"):
        quantized = bool(case.facts.get("quantized"))
        yield CleanPair(case.name, "shared", case.facts["converter"], case.source, case.target,
                        lambda _, path=case.data: path, quantized=quantized)


def _files(key: str, origin: str, converter: str, source: Path, target: Path, own: Own, **options: Any) -> CleanPair:
    return CleanPair(f"{key}: {target.name}", origin, converter, lambda: onnxfix.load(source),
                     lambda: onnxfix.load(target), own, **options)


def _real() -> Iterator[CleanPair]:
    models = data_root() / "models"
    source = models / "mobilenet_v2_imagenet_float.onnx"
    made = {"onnx2torch": "module.pt2", "torch.onnx dynamo": "dynamo.onnx",
            "torch.onnx TorchScript": "torchscript.onnx", "litert-torch": "litert.tflite"}
    for converter, file in made.items():
        target = networks.CACHE / "mobilenet_v2" / file
        if target.exists():
            yield _files("MobileNetV2 ImageNet", "real weights", converter, source, target, _own_pictures)
    yield _files("MobileNetV2 ImageNet", "real weights", "TFLiteConverter int8", source,
                 models / "mobilenet_v2_imagenet_int8.tflite", _own_pictures, quantized=True)
    for name in real_conversions.SOURCES:
        scale = _unscaled if name == "resnet8" else None
        for converter, target in real_conversions.conversions(name).items():
            yield _files(name, "real weights", converter, real_conversions.source_of(name), target,
                         lambda _, n=name: real_conversions.data_of(n, COUNT), scale=scale,
                         quantized=converter.endswith(("fp16", "drq", "int8")))
    for file in ("resnet8_float.tflite", "resnet8_int8.tflite"):
        yield _files("resnet8", "real weights", "TFLiteConverter, published", real_conversions.source_of("resnet8"),
                     models / "resnet8_cifar10" / file, lambda _: real_conversions.data_of("resnet8", COUNT),
                     scale=_unscaled, quantized="int8" in file)


def _networks() -> Iterator[CleanPair]:
    for name in fault_networks.NAMES:
        net = fault_networks.network(name)
        origin = "keras" if name in fault_networks.KERAS else "pytorch"
        for framework, target in net.files.items():
            if framework != origin:
                yield _files(name, "networks", f"{origin} -> {framework}", net.files[origin], target,
                             lambda _, data=net.data: {key: value[:COUNT] for key, value in data.items()})
    for name in networks.KERAS_NETWORKS:
        folder = networks.CACHE / f"keras_{name}"
        routes = {"SavedModel": "saved_model", "TFLiteConverter f32": "model.tflite",
                  "tf2onnx + onnx2torch": "via_onnx.pt2"}
        for converter, file in routes.items():
            if (folder / file).exists():
                yield _files(f"{name}, full size", "networks", converter, folder / "model.keras", folder / file,
                             lambda _, n=name: networks.keras_inputs(n, COUNT),
                             scale=lambda pictures, n=name: networks.keras_prepared(n, pictures))


def _convergence() -> Iterator[CleanPair]:
    """Every route, and after each one optimiser, these taking turns."""
    turn = 0
    for results in sorted(CONVERGENCE.glob("*/results.json")):
        cells: dict[str, dict[str, Any]] = json.loads(results.read_text())
        agreeing = [cell for cell, result in cells.items() if cell != "raw" and result.get("counted")]
        optimised: dict[str, list[str]] = {}
        for cell in agreeing:
            if " + " in cell:
                optimised.setdefault(cell.split(" + ")[0], []).append(cell)
        chosen = [cell for cell in agreeing if " + " not in cell]
        for after in optimised.values():
            chosen.append(after[turn % len(after)])
            turn += 1
        for cell in chosen:
            yield _files(results.parent.name, "convergence", cell, results.with_name("raw.onnx"),
                         results.with_name(f"{cell}.onnx"), lambda model, path=results: _first_feed(model, path))


def _own_pictures(model: onnxfix.Model) -> np.ndarray:
    return signed_unit(photos(224, COUNT))


def _unscaled(pictures: np.ndarray) -> np.ndarray:
    return pictures


def _first_feed(model: onnxfix.Model, results: Path) -> dict[str, np.ndarray]:
    """The one input that the matrix was judged on."""
    with np.load(results.with_name("feeds.npz")) as arrays:
        feeds = [arrays[key] for key in sorted(arrays, key=int)]
    return {spec.name: feed for spec, feed in zip(model.inputs, feeds, strict=True)}


ORIGINS: dict[str, Callable[[], Iterator[CleanPair]]] = {
    "shared": _shared, "real weights": _real, "networks": _networks, "convergence": _convergence,
}
