"""Convergence matrix: does a network end in one normal form by whatever route it came?

``python benchmarks/convergence.py [--only NAME ...] [--shard I/N] [--redo ROUTE ...] [--judge]``. Conversions are kept
in ``build/convergence``, one folder for each network, so a run that was cut short goes on where it stopped; ``--judge``
judges what is there again. The table is written when every network has been judged.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time
from collections import Counter
from pathlib import Path
from typing import Any

import convergence_nets as nets
import numpy as np
import onnx
from photos import ROOT

from onnxfix.errors import InputError

CACHE = ROOT / "build" / "convergence"
NAMES = (*nets.KERAS, *nets.TORCH)
# A route counts where its answer is that of the origin: as far apart as float32 sums in another order may be.
SAME = 1e-3


def main() -> int:
    parser = argparse.ArgumentParser(description="Convert networks by every route and compare their normal forms.")
    parser.add_argument("--only", nargs="*", help=f"networks: {', '.join(NAMES)}")
    parser.add_argument("--shard", default="1/1", help="I/N: every Nth network, from the Ith")
    parser.add_argument("--judge", action="store_true", help="convert nothing; judge again what is there")
    parser.add_argument("--redo", nargs="*", default=[], help="routes to convert again")
    options = parser.parse_args()
    index, count = map(int, options.shard.split("/"))
    wanted = [n for n in (options.only or NAMES)][index - 1 :: count]
    spawn = multiprocessing.get_context("spawn")
    for name in wanted:  # a process for each: converters leak, and some crash
        for job in (() if options.judge else (convert,)) + (judge,):
            process = spawn.Process(target=job, args=(name, *((options.redo,) if job is convert else ())))
            process.start()
            process.join()
    if not options.only and count == 1:
        import convergence_tables

        print(f"written to {convergence_tables.write(CACHE, NAMES).relative_to(ROOT)}")
    return 0


def folder_of(name: str) -> Path:
    return CACHE / name.replace(" ", "_").replace("(", "").replace(")", "")


def convert(name: str, redo: list[str]) -> None:
    """Every route of one network, then every optimiser after it; what fails leaves its reason."""
    import convergence_routes as routes

    folder = folder_of(name)
    folder.mkdir(parents=True, exist_ok=True)
    table = routes.KERAS_ROUTES if name in nets.KERAS else routes.TORCH_ROUTES
    origin = None
    for route, convert_by in table.items():
        path = folder / f"{route}.onnx"
        if route in redo or not (path.exists() or path.with_suffix(".failed").exists()):
            if origin is None:
                origin = (routes.Origin(nets.keras_network(name)) if name in nets.KERAS
                          else routes.Origin(*nets.torch_network(name)))
                np.savez(folder / "feeds.npz", **{str(k): value for k, value in enumerate(origin.feeds)})
            _attempt(path, lambda by=convert_by, o=origin: by(o, folder))
        for peer, optimize in routes.PEERS.items():
            after = folder / f"{route} + {peer}.onnx"
            if path.exists() and (route in redo or not (after.exists() or after.with_suffix(".failed").exists())):
                _attempt(after, lambda by=optimize, p=path: by(onnx.load(p)))


def _attempt(path: Path, build: Any) -> None:
    started = time.perf_counter()
    for old in (path, path.with_suffix(".failed")):
        old.unlink(missing_ok=True)
    try:
        proto = build()
        if proto.ByteSize() == 0 or not proto.graph.node:
            raise RuntimeError("the result is empty")
        onnx.save(proto, path)
    except Exception as error:  # a converter's own crash is a result here
        cause = error.__cause__ or error  # torch.export wraps what went wrong in advice
        first = (str(cause).strip().splitlines() or [""])[0]
        path.with_suffix(".failed").write_text(f"{type(cause).__name__}: {first[:200]}")
        print(f"  {path.parent.name}/{path.stem}: {type(error).__name__}: {first[:120]}", flush=True)
        return
    print(f"  {path.parent.name}/{path.stem}: {time.perf_counter() - started:.1f} s", flush=True)


def judge(name: str) -> None:
    """Compare all that became of one network with its raw lowering; writes ``results.json``."""
    import convergence_routes as routes

    import onnxfix

    folder = folder_of(name)
    if not (folder / "raw.onnx").exists():
        return
    with np.load(folder / "feeds.npz") as data:
        feeds = [data[key] for key in sorted(data, key=int)]
    origin = onnxfix.load(folder / "raw.onnx")
    expected = list(origin.run(dict(zip([i.name for i in origin.inputs], feeds, strict=True))).values())
    table = routes.KERAS_ROUTES if name in nets.KERAS else routes.TORCH_ROUTES
    results: dict[str, dict[str, Any]] = {}
    for route in table:
        for cell in (route, *(f"{route} + {peer}" for peer in routes.PEERS)):
            failed = folder / f"{cell}.failed"
            if not (folder / f"{cell}.onnx").exists():
                results[cell] = {"failed": failed.read_text() if failed.exists() else "no source"}
                continue
            try:
                results[cell] = _cell(folder / f"{cell}.onnx", origin, feeds, expected)
            except onnxfix.OnnxFixError as error:
                results[cell] = {"error": f"{type(error).__name__}: {error}"}
            _peer(folder, cell, route, results[cell])
            print(f"  {name}: {cell}: {describe(results[cell])}", flush=True)
    (folder / "results.json").write_text(json.dumps(results, indent=1))


def _cell(path: Path, origin: Any, feeds: list[np.ndarray], expected: list[np.ndarray]) -> dict[str, Any]:
    import onnxfix

    model = onnxfix.load(path)
    named = _by_name(origin, model, feeds)
    started = time.perf_counter()
    canonical = model.canonical
    seconds = time.perf_counter() - started
    lowered = list(model.run(named).values())
    after = list(onnxfix.Model(proto=canonical).run(named).values())
    same = onnxfix.is_isomorphic(origin, model)
    first, second = (Counter(n.op_type for n in m.graph.node) for m in _of_one_batch(origin, model))
    return {
        "counted": _apart(expected, lowered) <= SAME, "apart": _apart(expected, lowered),
        "kept": _apart(lowered, after), "isomorphic": same, "seconds": round(seconds, 3),
        "equal": same and onnxfix.fingerprint(origin) == onnxfix.fingerprint(model),
        "nodes": len(canonical.graph.node), "more": dict(second - first), "less": dict(first - second),
    }


def _of_one_batch(origin: Any, model: Any) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """Both normal forms, the origin's with the batch of the model where that is fixed, so that they can be compared."""
    from onnxfix.canonical.pipeline import normal_form

    batch = next((spec.shape[0] for spec in model.inputs if spec.shape), None)
    if not isinstance(batch, int) or batch < 1:
        return origin.canonical, model.canonical
    return normal_form(origin.proto, batch=batch).proto, model.canonical


def _by_name(origin: Any, model: Any, feeds: list[np.ndarray]) -> dict[str, np.ndarray]:
    """Feeds in a model's own input names, layout and dtypes: inputs correspond by position, or by dtype and shape."""
    named, left = {}, list(feeds)
    read = {name for node in model.proto.graph.node for name in node.input}
    for spec in model.inputs:
        if spec.name not in read:  # tf2onnx leaves the inputs of constants that it folded
            shape = [d if isinstance(d, int) and d > 0 else 1 for d in spec.shape or ()]
            named[spec.name] = np.zeros(shape, spec.dtype)
            continue
        if not left:
            raise InputError(f"{spec.name} is an input that the origin does not have")
        shape = tuple(d if isinstance(d, int) and d > 0 else None for d in spec.shape or ())
        fitting = next((v for v in left if _fits(v.shape, shape)), None)
        value = left[0] if fitting is None else fitting
        left = [v for v in left if v is not value]
        if fitting is None:
            first = np.moveaxis(value, -1, 1)
            value = first if _fits(first.shape, shape) else np.moveaxis(value, 1, -1)
        named[spec.name] = np.ascontiguousarray(value.astype(spec.dtype))
    return named


def _fits(shape: tuple[int, ...], wanted: tuple[int | None, ...]) -> bool:
    return len(shape) == len(wanted) and all(w in (None, d) for d, w in zip(shape, wanted, strict=True))


def _apart(first: list[np.ndarray], second: list[np.ndarray]) -> float:
    """Greatest difference relative to the greatest value; layout of the outputs aside."""
    if len(first) != len(second) or any(a.size != b.size for a, b in zip(first, second, strict=True)):
        return float("inf")
    worst = 0.0
    for a, b in zip(first, second, strict=True):
        if a.shape != b.shape:
            moved = (np.moveaxis(b, -1, 1), np.moveaxis(b, 1, -1))
            b = next((m for m in moved if m.shape == a.shape), b.reshape(a.shape))
        worst = max(worst, float(np.abs(a.astype(np.float64) - b).max() / max(np.abs(a).max(), 1e-30)))
    return worst


def _peer(folder: Path, cell: str, route: str, result: dict[str, Any]) -> None:
    """Whether an optimiser's own output is the same graph as what it makes of the raw lowering."""
    from onnxfix.canonical.identity import isomorphic
    from onnxfix.canonical.topology import topology

    _, _, peer = cell.partition(" + ")
    reference = folder / f"raw + {peer}.onnx"
    if not peer or route == "raw" or not reference.exists():
        return
    graphs = [topology(onnx.load(p)) for p in (reference, folder / f"{cell}.onnx")]
    result["peer"] = isomorphic(*graphs, weights=True, rtol=1e-4, atol=1e-5)


def describe(result: dict[str, Any]) -> str:
    """One cell in words."""
    if "failed" in result:
        return "conversion failed"
    if "error" in result:
        return f"error: {result['error'][:120]}"
    if not result["counted"]:
        return f"not counted: {result['apart']:.1e} from the origin, {'iso' if result['isomorphic'] else 'not iso'}"
    kept = "" if result["kept"] < 1e-4 else f", VALUES CHANGED {result['kept']:.1e}"
    if result["isomorphic"]:
        return ("equal" if result["equal"] else "isomorphic") + kept
    apart = sum(result["more"].values()) + sum(result["less"].values())
    return f"{apart} nodes differ: +{result['more']} -{result['less']}{kept}"


if __name__ == "__main__":
    raise SystemExit(main())
