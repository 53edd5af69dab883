"""Faults planted in converted models, under meaningless names: found, named, repaired, verified?

``python benchmarks/planted_faults.py [--photos N] [--routes dynamo ...] [--networks mobilenet_v2 ...]``

Each fault of :data:`FAULTS` is planted alone, then :data:`TOGETHER` at once, in every route of the published
MobileNetV2; :data:`KERAS_FAULTS` in the seeded Keras networks. The result goes to ``docs/benchmarks``.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import networks
import numpy as np
import onnx
import tables
from networks import CACHE
from photos import photos, signed_unit
from scoring import Score, score

import onnxfix
from onnxfix.testing import Site, inject, make_names_opaque
from onnxfix.testing.faults import Graph

# (operator, how many places): the faults planted alone.
FAULTS = [
    ("perturb_weight", 1),
    ("zero_bias", 1),
    ("round_weights_fp16", 20),
    ("transpose_kernel", 1),
    ("shift_pads", 1),
    ("change_stride_dilation", 1),
    ("change_clip_bound", 1),
    ("remove_activation", 1),
    ("insert_mul", 1),
    ("insert_transpose_pair", 1),
    ("permute_flatten", 1),
]
# The faults planted all at once, in different places.
TOGETHER = ("perturb_weight", "zero_bias", "shift_pads", "change_clip_bound", "remove_activation")
# Faults of the seeded Keras networks.
KERAS_FAULTS = [("shift_pads", 4)]
ROUTES = {"dynamo": "dynamo.onnx", "torchscript": "torchscript.onnx", "litert": "litert.tflite", "pt2": "module.pt2"}
COLUMNS = ["target", "fault", "found", "first", "innocent", "labels differ", "max rel", "verified", "time", "result"]


@dataclass(frozen=True)
class Case:
    """One faulty target and its ground truth."""

    target_name: str
    fault: str
    source: Any
    target: Any
    sites: tuple[Site, ...]
    data: np.ndarray


def main() -> int:
    parser = argparse.ArgumentParser(description="Plant faults in converted models and repair them.")
    parser.add_argument("--photos", type=int, default=250)
    parser.add_argument("--routes", nargs="*", default=list(ROUTES), choices=ROUTES)
    everything = ["mobilenet_v2", *(f"keras_{net}" for net in networks.KERAS_NETWORKS)]
    parser.add_argument("--networks", nargs="*", default=everything, choices=everything)
    parser.add_argument("--faults", nargs="*", help="only these operators (together: all of TOGETHER at once)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rows, passed = [], True
    for case in cases(options):
        if options.faults and case.fault.split(" ")[0] not in options.faults:
            continue
        row, good = judge(case)
        rows.append(row)
        passed &= good
        print("  ".join(row), flush=True)
    tables.show(f"Planted faults, {options.photos} photos", COLUMNS, rows)
    if not options.faults and options.networks == everything:
        print(f"written to {report(rows, options).relative_to(networks.ROOT)}")
    return 0 if passed else 1


def report(rows: list[list[str]], options: argparse.Namespace) -> Path:
    """Write the table to ``docs/benchmarks``."""
    text = (
        f"Faults planted by `onnxfix.testing.inject` (seed {options.seed}) in converted models whose names were then "
        f"made meaningless; repaired on three quarters of {options.photos} photos, verified on the rest. *found*: "
        "planted faults that a finding names; *first*: the first finding is one of them; *innocent*: nodes named, "
        "though nothing was planted there; the differences are those after the repair. Written by `make bench-planted`."
    )
    return tables.write("planted-faults", "Planted faults", text, COLUMNS, rows)


def cases(options: argparse.Namespace) -> Iterator[Case]:
    """All cases, made one at a time."""
    if "mobilenet_v2" in options.networks:
        folder, data = networks.mobilenet_v2(), signed_unit(photos(224, options.photos))
        source = onnxfix.load(folder / "source.onnx")
        for route in options.routes:
            clean = onnxfix.load(folder / ROUTES[route]).proto
            name = f"mobilenet_v2 {route}"
            for operator, count in FAULTS:
                yield planted(name, source, clean, operator, count, data, options.seed)
            yield together(name, source, clean, data, options.seed)
    for net in networks.KERAS_NETWORKS:
        if f"keras_{net}" in options.networks:
            yield from keras_cases(net, options)


def keras_cases(net: str, options: argparse.Namespace) -> Iterator[Case]:
    """Pads shifted in four convolutions at once, and an epsilon changed before batch norm was folded."""
    folder, data = networks.keras_network(net), networks.keras_inputs(net, options.photos)
    source = onnxfix.load(folder / "model.keras")
    clean = onnxfix.load(folder / "model.tflite").proto
    for operator, count in KERAS_FAULTS:
        yield planted(f"keras {net} TFLite", source, clean, operator, count, data, options.seed)
    yield wrong_epsilon(net, source, clean, data)


def planted(
    name: str, source: Any, clean: onnx.ModelProto, operator: str, count: int, data: np.ndarray, seed: int
) -> Case:
    """One kind of fault, under opaque names."""
    injection = inject(clean, operator, count=count, seed=seed, data=feeds(clean, data))
    opaque = make_names_opaque(injection.model, seed=seed)
    fault = operator if count == 1 else f"{operator} x{count}"
    return Case(name, fault, source, opaque.model, tuple(map(opaque.site, injection.sites)), data)


def together(name: str, source: Any, clean: onnx.ModelProto, data: np.ndarray, seed: int) -> Case:
    """Several kinds at once, no two at the same node."""
    model, sites = clean, ()
    for number, operator in enumerate(TOGETHER):
        for attempt in range(100):
            injection = inject(model, operator, seed=seed + 100 * number + attempt, data=feeds(clean, data))
            taken = {node for site in sites for node in (site.node, *site.also)}
            if all(taken.isdisjoint((site.node, *site.also)) for site in injection.sites):
                break
        model, sites = injection.model, (*sites, *injection.sites)
    opaque = make_names_opaque(model, seed=seed)
    return Case(name, f"together ({len(TOGETHER)} at once)", source, opaque.model, tuple(map(opaque.site, sites)), data)


def feeds(proto: onnx.ModelProto, data: np.ndarray) -> list[dict[str, np.ndarray]]:
    """A few photos in the target's own layout: what a planted fault must be visible on."""
    spec = onnxfix.load(proto).inputs[0]
    channels_first = spec.shape is not None and spec.shape[1] == 3
    return [{spec.name: photo.transpose(0, 3, 1, 2) if channels_first else photo} for photo in (data[:1], data[1:2])]


def wrong_epsilon(net: str, source: Any, clean: onnx.ModelProto, data: np.ndarray) -> Case:
    """A TFLite file converted from the same network with another epsilon in one batch norm, before it was folded.

    The ground truth is what differs from the clean conversion: the constants, and the convolutions that read them.
    """
    path = CACHE / f"keras_{net}" / "wrong_epsilon.tflite"
    layer = _most_sensitive_norm(net)
    if not path.exists():
        _convert_with_epsilon(net, layer, path)
    target = onnxfix.load(path)
    before = {tensor.name: tensor.raw_data for tensor in clean.graph.initializer}
    changed = [t.name for t in target.proto.graph.initializer if before.get(t.name) != t.raw_data]
    graph = Graph(target.proto)
    sites = [
        Site(name, constant, onnxfix.FaultKind.WEIGHTS, f"epsilon of {layer} changed before folding")
        for constant in changed for name in graph.read_by(constant) if graph.nodes[name].op_type == "Conv"
    ]
    if not sites or len(sites) != len(changed):
        raise SystemExit(f"{path}: {len(changed)} constants changed, {len(sites)} of them in convolutions")
    return Case(f"keras {net} TFLite", f"epsilon before folding ({layer})", source, target, tuple(sites), data)


def _most_sensitive_norm(net: str) -> str:
    """The batch norm right after a convolution whose factors another epsilon changes most."""
    import keras

    model = keras.saving.load_model(CACHE / f"keras_{net}" / "model.keras")
    effects = {}
    for layer in model.layers:
        before = layer.input._keras_history.operation if isinstance(layer, keras.layers.BatchNormalization) else None
        if isinstance(before, keras.layers.Conv2D):
            variance = np.asarray(layer.moving_variance)
            effect = np.sqrt((variance + layer.epsilon) / (variance + other_epsilon(layer.epsilon)))
            effects[layer.name] = float(np.abs(effect - 1).max())
    return max(effects, key=effects.__getitem__)


def other_epsilon(epsilon: float) -> float:
    """The default of another framework: 1e-3 in Keras, 1e-5 in PyTorch."""
    return 1e-5 if epsilon > 1e-4 else 1e-3


def _convert_with_epsilon(net: str, layer: str, path: Path) -> None:
    import keras
    import tensorflow as tf

    model = keras.saving.load_model(CACHE / f"keras_{net}" / "model.keras")
    norm = model.get_layer(layer)
    norm.epsilon = other_epsilon(norm.epsilon)
    path.write_bytes(tf.lite.TFLiteConverter.from_keras_model(model).convert())


def judge(case: Case) -> tuple[list[str], bool]:
    """Repair one case; its row and whether everything held."""
    held_out = len(case.data) // 4
    started = time.perf_counter()
    try:
        repair = onnxfix.repair(case.source, case.target, case.data[held_out:], holdout=case.data[:held_out])
    except onnxfix.OnnxFixError as error:
        return [case.target_name, case.fault, *["-"] * 7, f"FAILED: {error}"], False
    return _row(case, score(repair, case.sites), time.perf_counter() - started)


def _row(case: Case, result: Score, seconds: float) -> tuple[list[str], bool]:
    return [
        case.target_name, case.fault, f"{result.found}/{result.planted}", "yes" if result.first else "NO",
        str(result.innocent), f"{result.labels:.1%}", f"{result.max_rel:.1e}", "yes" if result.verified else "NO",
        f"{seconds:.0f} s", "passed" if result.passed else "FAILED",
    ], result.passed


if __name__ == "__main__":
    raise SystemExit(main())
