"""Canonicalization beside today's ONNX optimisers: time, peak memory and nodes left; growth; the way from TFLite.

``python benchmarks/canonical.py [--networks NAME ...] [--repeats N] [--blocks N ...] [--lowering-repeats N]``

Every measurement is a process of its own, and the tools take turns, so that a busy machine hits all alike. CPU time is
user and system time of the process; memory is its greatest resident size less that before the model was loaded.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import tables
from canonical_nets import NETWORKS, exported
from canonical_stacks import BLOCKS, stack

Tool = tuple[Callable[[str], Any], Callable[[Any], Any]]  # load, optimise
# Named as in the tables; onnxscript is measured on a ModelProto and on its own IR, which saves it two conversions.
TOOLS = ("onnxfix", "onnxscript", "onnxscript (IR)", "onnxslim", "onnxsim", "onnxoptimizer", "ORT basic")
COLUMNS = ["network", "tool", "CPU", "wall", "load + wall", "CPU / onnxfix", "peak memory", "of it loading", "nodes"]
GROWTH = ["stack", "blocks", "nodes", "nodes left", "CPU", "CPU per block", "against N log N"]
LOWERING = ["way", "CPU", "wall", "part of tf2onnx's wall"]


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure canonicalize beside other ONNX optimisers.")
    parser.add_argument("--measure", nargs=2, metavar=("WHAT", "PATH"), help=argparse.SUPPRESS)
    parser.add_argument("--networks", nargs="*", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--blocks", type=int, nargs="*", default=[10, 30, 100, 300, 1000])
    parser.add_argument("--lowering-repeats", type=int, default=3)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(MEASURES.get(options.measure[0], _optimise)(*options.measure)))
        return 0
    repeats = options.repeats
    sections = [
        ("Side by side", _SIDE.format(repeats=repeats), COLUMNS, _side_by_side(options.networks, repeats)),
        ("Growth", _GROWING, GROWTH, _growth(options.blocks)),
        ("From TFLite", _FROM_TFLITE.format(repeats=options.lowering_repeats), LOWERING,
         _lowering(options.lowering_repeats)),
    ]
    for title, _, columns, rows in sections:
        tables.show(title, columns, rows)
    print(f"written to {tables.write_sections('canonical', 'Canonicalization', _INTRODUCTION, sections)}")
    return 0


_INTRODUCTION = "Written by `make bench-canonical`."
_SIDE = (
    "Raw exports of torch.onnx (dynamo, `optimize=False`) at full size with seeded weights. Each tool in a fresh "
    "process, in turn, median of {repeats}. *CPU*, *wall*: optimising, the model loaded before (ORT basic loads in "
    "that time and writes its result to a file). *peak memory*: greatest resident size of the process less that "
    "before loading; *of it loading*: the same after loading. *nodes*: left in the main graph; ORT's fused ops count "
    "once each."
)
_GROWING = (
    "Stacks of N equal blocks with weights of their own. *against N log N*: how many times longer than N log N says "
    "from the row above it."
)
_FROM_TFLITE = (
    "Keras ResNet101 as a TFLite file. *onnxfix*: `onnxfix.load(path).canonical`; *tf2onnx*: "
    "`tf2onnx.convert.from_tflite` with its optimizers, as it comes. Imports not counted; in turn, median of {repeats}."
)


def _measured(what: str, path: Path | str) -> dict[str, float]:
    """One measurement in a process of its own."""
    command = [sys.executable, __file__, "--measure", what, str(path)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{what} failed on {path}: {done.stderr[-2000:]}")
    found: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def _medians(runs: list[dict[str, float]]) -> dict[str, float]:
    return {key: statistics.median(run[key] for run in runs) for key in runs[0]}


def _side_by_side(names: list[str], repeats: int) -> list[list[str]]:
    rows = []
    for name in names:
        path = exported(name)
        runs: dict[str, list[dict[str, float]]] = {tool: [] for tool in TOOLS}
        for _ in range(repeats):
            for tool in TOOLS:
                runs[tool].append(_measured(tool, path))
        found = {tool: _medians(runs[tool]) for tool in TOOLS}
        for tool, m in found.items():
            rows.append([
                name, tool, f"{m['cpu']:.2f} s", f"{m['wall']:.2f} s", f"{m['load'] + m['wall']:.2f} s",
                f"{m['cpu'] / found['onnxfix']['cpu']:.2f}", f"{m['peak']:.0f} MB", f"{m['loaded']:.0f} MB",
                f"{m['nodes']:.0f}",
            ])
            print("  ".join(rows[-1]), flush=True)
    return rows


def _growth(counts: list[int]) -> list[list[str]]:
    rows = []
    for kind in BLOCKS:
        before: tuple[int, float] | None = None
        for count in counts:
            m = _measured(f"stack of {kind}", str(count))
            grown = "" if before is None else f"{m['cpu'] / before[1] / _work(count) * _work(before[0]):.2f}"
            rows.append([kind, str(count), f"{m['given']:.0f}", f"{m['nodes']:.0f}", f"{m['cpu']:.2f} s",
                         f"{1000 * m['cpu'] / count:.1f} ms", grown])
            print("  ".join(rows[-1]), flush=True)
            before = count, m["cpu"]
    return rows


def _work(count: int) -> float:
    return count * math.log(count)


def _lowering(repeats: int) -> list[list[str]]:
    import networks

    path = networks.keras_network("resnet101") / "model.tflite"
    runs: dict[str, list[dict[str, float]]] = {"tf2onnx": [], "onnxfix from TFLite": []}
    for _ in range(repeats):
        for way, found in runs.items():
            found.append(_measured(way, path))
    medians = {way: _medians(found) for way, found in runs.items()}
    whole = medians["tf2onnx"]["wall"]
    return [[way, f"{m['cpu']:.2f} s", f"{m['wall']:.2f} s", f"{m['wall'] / whole:.3f}"] for way, m in medians.items()]


def _resident(field: str) -> float:
    """A size of this process in MB: ``VmRSS`` now, ``VmHWM`` the greatest so far."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def _optimise(name: str, path: str) -> dict[str, float]:
    """Load a model and optimise it with one tool."""
    load, optimise = _tool(name)
    before = _resident("VmRSS")
    started = time.perf_counter()
    model = load(path)
    loaded, loading = time.perf_counter(), time.process_time()
    high = _resident("VmHWM")
    result = optimise(model)
    wall, cpu = time.perf_counter() - loaded, time.process_time() - loading
    peak = _resident("VmHWM") - before
    graph = result().graph if callable(result) else result.graph
    nodes = sum(1 for _ in (graph if name == "onnxscript (IR)" else graph.node))
    return {"cpu": cpu, "wall": wall, "load": loaded - started, "peak": peak, "loaded": high - before,
            "nodes": nodes}


def _tool(name: str) -> Tool:
    import onnx

    if name == "onnxfix":
        import onnxfix
        from onnxfix.canonical import pipeline  # noqa: F401 - imported on first use, which is no part of the work
        return onnx.load, onnxfix.canonicalize
    if name.startswith("onnxscript"):
        import onnx_ir
        from onnxscript import optimizer, rewriter
        return onnx_ir.load if "IR" in name else onnx.load, lambda m: rewriter.rewrite(optimizer.optimize(m))
    if name == "onnxslim":
        import onnxslim
        return onnx.load, onnxslim.slim
    if name == "onnxsim":
        import onnxsim
        return onnx.load, lambda model: onnxsim.simplify(model)[0]
    if name == "onnxoptimizer":
        import onnxoptimizer
        return onnx.load, onnxoptimizer.optimize
    return str, _ort_basic


def _ort_basic(path: str) -> Callable[[], Any]:
    import onnx
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    folder = tempfile.TemporaryDirectory()
    options.optimized_model_filepath = str(Path(folder.name) / "optimized.onnx")
    onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def result() -> Any:
        with folder:
            return onnx.load(options.optimized_model_filepath)

    return result


def _stacked(what: str, count: str) -> dict[str, float]:
    import onnxfix

    model = stack(what.removeprefix("stack of "), int(count))
    onnxfix.canonicalize(stack(what.removeprefix("stack of "), 2))  # imports and schemas
    started = time.process_time()
    result = onnxfix.canonicalize(model)
    return {"cpu": time.process_time() - started, "given": len(model.graph.node), "nodes": len(result.graph.node)}


def _tf2onnx(_: str, path: str) -> dict[str, float]:
    import tensorflow  # noqa: F401 - its import is no part of the conversion
    import tf2onnx

    wall, cpu = time.perf_counter(), time.process_time()
    tf2onnx.convert.from_tflite(path)
    return {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}


def _from_tflite(_: str, path: str) -> dict[str, float]:
    import tensorflow  # noqa: F401 - as above
    import tf2onnx  # noqa: F401

    import onnxfix

    wall, cpu = time.perf_counter(), time.process_time()
    _ = onnxfix.load(path).canonical
    return {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}


MEASURES: dict[str, Callable[[str, str], dict[str, float]]] = {
    **{f"stack of {kind}": _stacked for kind in BLOCKS}, "tf2onnx": _tf2onnx, "onnxfix from TFLite": _from_tflite,
}

if __name__ == "__main__":
    raise SystemExit(main())
