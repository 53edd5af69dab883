"""What a very large model costs: time and peak memory of canonicalize, save, fingerprint and run, against its weights.

``python benchmarks/large_model.py [--gigabytes N]``

A stack of MatMul, Gemm and Conv layers with batch norms, scales and transposed weights, nearly all of which fold, is
written with external data, one weight at a time. Every step runs in a process of its own, whose peak resident memory is
the kernel's (``VmHWM``: mapped pages count), and whose peak of memory that is its own (``RssAnon``) is sampled.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import tables
from onnx import TensorProto, helper, numpy_helper

ROOT = Path(__file__).parents[1]
COLUMNS = ["step", "time", "peak resident memory", "of the weights", "peak own memory", "of the weights"]
STEPS = {
    "import only": "",
    "load": "onnxfix.load(path)",
    "load, canonicalize, save": "onnxfix.canonicalize(onnxfix.load(path)).save(out)",
    "fingerprint": "onnxfix.fingerprint(path)",
    "fingerprint of the canonical file": "onnxfix.fingerprint(out)",
    "run": "onnxfix.load(path).run({'x': numpy.ones((1, width), numpy.float32)})",
}
_GIGABYTE = 2**30


class Writer:
    """Writes a model whose weights go to a file as they are made."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.data = path.with_name(f"{path.name}.data").open("wb")
        self.constants: list[TensorProto] = []
        self.nodes: list[onnx.NodeProto] = []
        self.generator = np.random.default_rng(0)

    def weight(self, name: str, *shape: int, low: float = -0.02, high: float = 0.02) -> str:
        """Append a weight of random numbers."""
        content = self.generator.random(shape, np.float32) * np.float32(high - low) + np.float32(low)
        self.data.write(bytes(-self.data.tell() % 4096))
        entries = {"location": Path(self.data.name).name, "offset": self.data.tell(), "length": content.nbytes}
        tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=shape, data_location=TensorProto.EXTERNAL)
        for key, value in entries.items():
            tensor.external_data.add(key=key, value=str(value))
        self.data.write(content.data)
        self.constants.append(tensor)
        return name

    def node(self, op: str, *inputs: str, **attributes: object) -> str:
        """Append a node; its output is returned."""
        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [name], f"node_{name}", **attributes))
        return name


def write_model(path: Path, size: int, width: int = 4096) -> int:
    """Write a stack of layers with ``size`` bytes of weights or a little more; returns how many it has."""
    file = Writer(path)
    axes = numpy_helper.from_array(np.array([2, 3]), "axes")
    file.constants.append(axes)
    value, layer = "x", 0
    while file.data.tell() < size:
        value = file.node("Relu", _layer(file, value, layer, width))
        layer += 1
    file.nodes[-1].output[0] = "y"
    graph = helper.make_graph(
        file.nodes, "large", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", width])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", width])], file.constants,
    )
    file.data.close()
    onnx.save(helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)]), path)
    return file.path.with_name(f"{path.name}.data").stat().st_size


def _layer(file: Writer, value: str, layer: int, width: int) -> str:
    kernel = f"kernel{layer}"
    if layer % 3 == 0:
        product = file.node("MatMul", value, file.weight(kernel, width, width))
        return file.node("Add", product, file.weight(f"bias{layer}", width))
    if layer % 3 == 1:
        bias = file.weight(f"bias{layer}", width)
        dense = file.node("Gemm", value, file.weight(kernel, width, width), bias, transB=1)
        return file.node("Mul", dense, file.weight(f"scale{layer}", width, low=0.5, high=1.5))
    image = file.node("Unsqueeze", value, "axes")
    convolved = file.node("Conv", image, file.weight(kernel, width, width, 1, 1))
    norm = [file.weight(f"{part}{layer}", width, low=0.5, high=1.5) for part in ("gamma", "beta", "mean", "variance")]
    return file.node("Flatten", file.node("BatchNormalization", convolved, *norm))


def measure(step: str, folder: Path) -> dict[str, float]:
    """Run one step in a process of its own."""
    command = [sys.executable, __file__, "--step", step, "--folder", str(folder)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def perform(step: str, folder: Path) -> None:
    """Do one step here, and print what it took as JSON."""
    import onnxfix
    import onnxfix.canonical.identity
    import onnxfix.canonical.pipeline

    names = {"onnxfix": onnxfix, "numpy": np, "path": folder / "large.onnx", "out": folder / "canonical.onnx",
             "width": 4096}
    own, stop = [0.0], threading.Event()
    watch = threading.Thread(target=_sample, args=(own, stop), daemon=True)
    watch.start()
    started = time.perf_counter()
    exec(STEPS[step], names)
    took = time.perf_counter() - started
    stop.set()
    watch.join()
    print(json.dumps({"time": took, "peak": dict(_memory())["VmHWM"], "own": own[0]}))


def _sample(own: list[float], stop: threading.Event) -> None:
    while not stop.wait(0.005):
        own[0] = max(own[0], dict(_memory())["RssAnon"])


def _memory() -> Iterator[tuple[str, float]]:
    """The kernel's figures for this process, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, rest = line.partition(":")
        if name in ("VmHWM", "RssAnon"):
            yield name, int(rest.split()[0]) * 1024.0


def main() -> int:
    parser = argparse.ArgumentParser(description="Time and peak memory of a very large model.")
    parser.add_argument("--gigabytes", type=float, default=3.0)
    parser.add_argument("--step", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step is not None:
        perform(options.step, options.folder)
        return 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        weights = write_model(folder / "large.onnx", int(options.gigabytes * _GIGABYTE))
        rows = [row(step, measure(step, folder), weights) for step in STEPS]
    title = f"A model of {weights / _GIGABYTE:.2f} GB in external data"
    tables.show(title, COLUMNS, rows)
    text = (f"{title}. Resident memory counts the mapped pages of its file; own memory does not. Wanted is a peak "
            "below 1.3 of the weights, except for `run`, which is onnxruntime's. Written by `make bench-large`.")
    print(f"written to {tables.write('large-model', 'Very large models', text, COLUMNS, rows).relative_to(ROOT)}")
    return 0


def row(step: str, found: dict[str, float], weights: int) -> list[str]:
    """One step as cells."""
    cells = [step, f"{found['time']:.1f} s"]
    for key in ("peak", "own"):
        cells += [f"{found[key] / _GIGABYTE:.2f} GB", f"{found[key] / weights:.2f}"]
    print("  ".join(cells), flush=True)
    return cells


if __name__ == "__main__":
    raise SystemExit(main())
