"""What a diagnosis costs: its time divided by that of running source and target once each over the same photos.

``python benchmarks/cost.py [--photos N] [--repeats N]``

The three are timed in turn, so that a busy machine hits all alike, and the median of the repeats is shown. Every
diagnosis starts from models that were only loaded: its canonicalization and alignment count.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import networks
import numpy as np
import tables
from photos import photos, signed_unit

import onnxfix
from onnxfix.inputs import Inputs
from onnxfix.testing import inject

COLUMNS = ["pair", "run both once", "diagnose clean", "ratio", "diagnose faulty", "ratio", "repair faulty", "ratio"]


def main() -> int:
    parser = argparse.ArgumentParser(description="Time diagnose and repair against running both models once.")
    parser.add_argument("--photos", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    mobilenet, resnet = networks.mobilenet_v2(), networks.keras_network("resnet101")
    pairs = {
        "MobileNetV2 ONNX / torch.onnx dynamo": (
            mobilenet / "source.onnx", mobilenet / "dynamo.onnx", signed_unit(photos(224, options.photos))),
        "ResNet101 Keras / TFLite": (
            resnet / "model.keras", resnet / "model.tflite", networks.keras_inputs("resnet101", options.photos)),
    }
    rows = [row(name, *pair, options.repeats) for name, pair in pairs.items()]
    title = f"Cost over {options.photos} photos, median of {options.repeats}"
    tables.show(title, COLUMNS, rows)
    text = f"{title}. *run both once*: `Model.run` of source and target over the photos. Written by `make bench`."
    print(f"written to {tables.write('cost', 'Cost', text, COLUMNS, rows).relative_to(networks.ROOT)}")
    return 0


def row(name: str, source_path: Any, target_path: Any, data: np.ndarray, repeats: int) -> list[str]:
    """Time one pair."""
    source, target = onnxfix.load(source_path), onnxfix.load(target_path)
    faulty = replace(target, proto=inject(target.proto, "perturb_weight").model)
    work: dict[str, Callable[[], Any]] = {
        "run": lambda: run_both(source, target, data),
        "clean": lambda: onnxfix.diagnose(replace(source), replace(target), data),
        "faulty": lambda: onnxfix.diagnose(replace(source), replace(faulty), data),
        "repair": lambda: onnxfix.repair(replace(source), replace(faulty), data),
    }
    run_both(source, target, data[:2])  # opens the sessions
    times: dict[str, list[float]] = {key: [] for key in work}
    for _ in range(repeats):
        for key, call in work.items():
            started = time.perf_counter()
            call()
            times[key].append(time.perf_counter() - started)
    median = {key: statistics.median(values) for key, values in times.items()}
    cells = [name, f"{median['run']:.2f} s"]
    for key in ("clean", "faulty", "repair"):
        cells += [f"{median[key]:.2f} s", f"{median[key] / median['run']:.2f}"]
    print("  ".join(cells), flush=True)
    return cells


def run_both(source: Any, target: Any, data: np.ndarray) -> None:
    """Run both models once over the photos, in the batches that a diagnosis uses."""
    for chunk in Inputs(data).chunks(source, target):
        source.run(chunk.source)
        target.run(chunk.target)


if __name__ == "__main__":
    raise SystemExit(main())
