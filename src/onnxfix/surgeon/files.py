"""Write models and repairs to files: complete and verified, or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from onnxfix.errors import ExportError, OnnxFixError
from onnxfix.frameworks import Framework, adapter
from onnxfix.frameworks.onnx import with_initializers
from onnxfix.frameworks.onnx_files import keeps_external_data, write_onnx
from onnxfix.surgeon.patch import SetParameter

if TYPE_CHECKING:
    from onnxfix.compare import Comparison
    from onnxfix.model import Model
    from onnxfix.repair.result import Repair

_NATIVE_NOISE = 1e-4  # relative; two runtimes round a deep float32 network differently by up to this
_STATE_DICT = (".pt", ".pth")


def save_model(model: Model, parameters: Mapping[str, np.ndarray], path: Path) -> None:
    """Write a model, replacing an existing file only when the new one is complete.

    Args:
        model: The model.
        parameters: Lowered initializer name -> new value.
        path: ``.onnx`` writes the lowered graph of any framework, every other suffix the native format.

    Raises:
        ExportError: the format cannot express the model or a parameter, or the file cannot be written.
    """
    with staged(path) as file:
        _write(model, parameters, file)


def save_repair(repair: Repair, path: Path) -> None:
    """Write a repaired target in its own format or as ONNX, after proving the written file on the held-out data.

    Raises:
        ExportError: the format cannot express a patch, or the file cannot be written, or what was written does not
            reproduce the source; an existing file is then left as it was.
    """
    parameters = {} if _is_onnx(path) else _native_patches(repair, path)
    with staged(path) as file:
        if _is_onnx(path):
            external = keeps_external_data(repair.target.path)
            write_onnx(repair.model.proto, file, external=external)
        else:
            _write(repair.target, parameters, file)
        _prove(repair, _reload(repair, parameters, file), path)


def _is_onnx(path: Path) -> bool:
    return path.suffix.lower() == ".onnx"


def _write(model: Model, parameters: Mapping[str, np.ndarray], path: Path) -> None:
    if _is_onnx(path):
        external = keeps_external_data(model.path)
        write_onnx(with_initializers(model.proto, parameters) if parameters else model.proto, path, external=external)
        return
    unknown = [name for name in parameters if name not in model.parameters]
    if unknown:
        raise ExportError(
            f"{', '.join(unknown)} is no parameter of the {model.framework} model: save it as .onnx instead."
        )
    own = adapter(model.framework)
    own.write(model, own.edited(model, _set(model, parameters)) if parameters else model.native, path)


def _set(model: Model, parameters: Mapping[str, np.ndarray]) -> list[SetParameter]:
    return [SetParameter(name, value, value) for name, value in parameters.items()]


def _native_patches(repair: Repair, path: Path) -> dict[str, np.ndarray]:
    """The patches as new values of native parameters, which is all that can be written into a native file."""
    target = repair.target
    values: dict[str, np.ndarray] = {}
    for patch in repair.patches:
        fits = isinstance(patch, SetParameter) and patch.name in target.parameters and not patch.readers
        if not fits or not isinstance(patch, SetParameter):
            raise ExportError(
                f"the patch '{patch.describe()}' cannot be written into a {target.framework} {path.suffix} file: "
                "the repaired ONNX is available, save it as .onnx."
            )
        values[patch.name] = patch.value
    return values


def _reload(repair: Repair, parameters: Mapping[str, np.ndarray], path: Path) -> Model:
    """Load the written file; a ``state_dict`` is no model by itself and stands for the patched module in memory."""
    from onnxfix.model import load

    target = repair.target
    if target.framework == Framework.PYTORCH and path.suffix.lower() in _STATE_DICT and not _is_program(path):
        return replace(target, native=adapter(target.framework).edited(target, _set(target, parameters)))
    chunk = next(iter(repair.holdout.chunks(repair.source, target)))
    try:
        return load(path, chunk.target if target.framework == Framework.PYTORCH else None)
    except OnnxFixError as error:
        raise ExportError(f"what was written for {path.name} does not load again and was dropped: {error}") from error


def _is_program(path: Path) -> bool:
    from onnxfix.frameworks.torch_files import is_program

    return is_program(path)


def _prove(repair: Repair, written: Model, path: Path) -> None:
    """Refuse a file that, run in its own runtime, does not reproduce what the repair promises."""
    result = _compared(repair, written)
    promised = repair.verified
    worst = max(10 * promised.max_rel, _NATIVE_NOISE)
    if (result.equivalent or not promised.equivalent) and result.max_rel <= worst:
        return
    raise ExportError(
        f"the file written for {path.name} differs from the source by max_rel {result.max_rel:.2g} in its own runtime, "
        f"but the repair reached {promised.max_rel:.2g}, so it was dropped: save the repaired model as .onnx."
    )


def _compared(repair: Repair, written: Model) -> Comparison:
    from onnxfix.compare import Accumulator

    source, promised = repair.source, repair.verified
    accumulator = Accumulator.for_models(source, written, rtol=promised.rtol, atol=promised.atol)
    for chunk in repair.holdout.chunks(source, written):
        expected, actual = source.run(chunk.source), written.run_native(chunk.target)
        accumulator.add([*expected.values()], [*actual.values()], chunk.count)
    return accumulator.result(promised.noise)


@contextmanager
def staged(path: Path) -> Iterator[Path]:
    """A path of the same name in a hidden folder beside ``path``; what is written there moves to ``path`` at the end.

    The name stays, because a file may name its companions (external data); the folder is on the same file system, so
    that moving is atomic.
    """
    parent = path.parent
    if not parent.is_dir():
        raise ExportError(f"{path} cannot be written: {parent} is no folder.")
    try:
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=parent) as folder:
            file = Path(folder) / path.name
            yield file
            _move(file, path)
    except OSError as error:
        raise ExportError(f"{path} cannot be written: {error.strerror or error}.") from error


def _move(staged: Path, path: Path) -> None:
    """Put everything written beside ``staged`` in place, the file itself last, when its companions are there."""
    if not staged.exists():
        raise ExportError(f"{path} was not written.")
    if path.is_dir() and not staged.is_dir():
        raise ExportError(f"{path} is a directory: choose another name for the file.")
    for file in staged.parent.rglob("*"):
        if file.is_file():
            _flush(file)
    for companion in staged.parent.iterdir():
        if companion != staged:
            companion.replace(path.parent / companion.name)
    if not path.is_dir():
        staged.replace(path)
        return
    old = staged.parent / f"{path.name}.old"
    path.replace(old)  # a directory that is not empty cannot be replaced in one step
    try:
        staged.replace(path)
    except OSError:
        old.replace(path)
        raise
    shutil.rmtree(old)


def _flush(file: Path) -> None:
    with file.open("rb+") as handle:
        os.fsync(handle.fileno())
