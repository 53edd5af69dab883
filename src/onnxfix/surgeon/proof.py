"""Proof of a written file: run by its own runtime in a fresh process, compared with the source on held-out data."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import onnx

from onnxfix.errors import ExportError, OnnxFixError
from onnxfix.surgeon.trial import UNREADABLE, as_read, interface, packed, unpacked

if TYPE_CHECKING:
    import numpy as np

    from onnxfix.compare import Comparison
    from onnxfix.inputs.inputs import Chunk
    from onnxfix.model import Model
    from onnxfix.repair.result import Repair

_NATIVE_NOISE = 1e-4  # relative; two runtimes round a deep float32 network differently by up to this
_TIME_LIMIT = 1800.0  # seconds, for the whole of the held-out data
_HERE = "It needs code of your own to be read, so it was proved in this process, not in a fresh one."


class Disproved(ExportError):
    """A file was written but is not what the repair promises."""


def proved(repair: Repair, written: Model, path: Path) -> tuple[Comparison, str]:
    """Compare a written file with the source, each in its own runtime.

    Args:
        repair: The repair.
        written: What the file holds: its lowered graph and framework.
        path: The file, which may still have a temporary place.

    Returns:
        The comparison, and a note on how the file was run; "" for a fresh process.

    Raises:
        Disproved: it does not run, or differs beyond the noise.
    """
    chunks = list(repair.holdout.chunks(repair.source, written))
    with tempfile.TemporaryDirectory(prefix="onnxfix-proof-") as name:
        folder, note = Path(name), ""
        code, log = _tried(folder, written, path, chunks)
        if code == 0:
            answers: Iterator[list[np.ndarray]] = (unpacked(folder / f"answers_{i:06}.npz") for i in range(len(chunks)))
        elif code == UNREADABLE:
            answers, note = _here(written, path, chunks, log), _HERE
        else:
            raise Disproved(f"what was written for {path.name} fails in its own runtime and was dropped: {log}")
        comparison = compared(repair, written, chunks, answers)
    judge(repair, comparison, path)
    return comparison, note


def compared(
    repair: Repair, written: Model, chunks: list[Chunk], answers: Iterator[list[np.ndarray]]
) -> Comparison:
    """The source's answers against those of the written file."""
    from onnxfix.compare import Accumulator

    source, promised = repair.source, repair.verified
    accumulator = Accumulator.for_models(source, written, rtol=promised.rtol, atol=promised.atol)
    for chunk, actual in zip(chunks, answers, strict=True):
        accumulator.add([*source.run(chunk.source).values()], actual, chunk.count)
    return accumulator.result(promised.noise)


def judge(repair: Repair, result: Comparison, path: Path) -> None:
    """Refuse a file that does not reproduce what the repair promises.

    Raises:
        Disproved: it differs by more than the noise.
    """
    promised = repair.verified
    worst = max(10 * promised.max_rel, 10 * (promised.noise or 0.0), _NATIVE_NOISE)
    if (result.equivalent or not promised.equivalent) and result.max_rel <= worst:
        return
    raise Disproved(
        f"the file written for {path.name} differs from the source by max_rel {result.max_rel:.2g} in its own runtime, "
        f"but the repair reached {promised.max_rel:.2g}, so it was dropped: save the repaired model as .onnx."
    )


def _tried(folder: Path, written: Model, path: Path, chunks: list[Chunk]) -> tuple[int, str]:
    """Run the file in a process of its own; its exit status and the last thing that it said."""
    job = {"framework": str(written.framework), "path": str(path.resolve()), "inputs": [s.name for s in written.inputs]}
    (folder / "job.json").write_text(json.dumps(job))
    onnx.save_model(interface(written.proto), folder / "interface.onnx")
    for index, chunk in enumerate(chunks):
        packed([chunk.target[spec.name] for spec in written.inputs], folder / f"feeds_{index:06}.npz")
    log = folder / "log.txt"
    command = [sys.executable, "-m", "onnxfix.surgeon.trial", str(folder)]
    places = [str(Path(__file__).parents[2]), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    with log.open("wb") as sink:
        try:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=sink, stderr=subprocess.STDOUT, timeout=_TIME_LIMIT,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, places))}, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return -1, f"it runs for more than {_TIME_LIMIT / 60:.0f} minutes."
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return done.returncode, lines[-1] if lines else f"its process ended with status {done.returncode}."


def _here(written: Model, path: Path, chunks: list[Chunk], log: str) -> Iterator[list[np.ndarray]]:
    """Run a file in this process, which may know what a fresh one does not: classes of the caller's own."""
    try:
        model = as_read(written.framework, path, interface(written.proto))
    except OnnxFixError as error:
        raise Disproved(f"what was written for {path.name} does not load again and was dropped: {log}") from error
    return native_answers(replace(written, native=model.native), chunks)


def native_answers(model: Model, chunks: list[Chunk]) -> Iterator[list[np.ndarray]]:
    """What a native object answers in this process."""
    for chunk in chunks:
        try:
            yield [*model.run_native(chunk.target).values()]
        except OnnxFixError as error:
            raise Disproved(f"what was written fails in its own runtime and was dropped: {error}") from error

