"""Write models to files: complete, or not at all."""

from __future__ import annotations

import ctypes
import os
import stat
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from onnxfix.errors import ExportError
from onnxfix.frameworks import adapter
from onnxfix.frameworks.onnx import with_initializers
from onnxfix.frameworks.onnx_files import keeps_external_data, write_onnx
from onnxfix.surgeon.patch import SetParameter

if TYPE_CHECKING:
    from onnxfix.model import Model

_WRITABLE = stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH
_HERE = -100  # AT_FDCWD of Linux
_RENAME_EXCHANGE = 2


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
    if path.exists() and not path.stat().st_mode & _WRITABLE:
        raise ExportError(f"{path} is write-protected: choose another name, or allow writing to it.")
    for file in staged.parent.rglob("*"):
        if file.is_file():
            _flush(file)
    for companion in staged.parent.iterdir():
        if companion != staged:
            companion.replace(path.parent / companion.name)
    if path.is_dir():
        _exchange(staged, path)
    else:
        staged.replace(path)
    _flush_folder(path.parent)


def _exchange(staged: Path, path: Path) -> None:
    """Put a folder in the place of one that is not empty: in one step where the system has one for it."""
    libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None
    if libc is not None and hasattr(libc, "renameat2"):
        done = libc.renameat2(_HERE, os.fsencode(staged), _HERE, os.fsencode(path), _RENAME_EXCHANGE)
        if done == 0:
            return  # what was there lies in the temporary folder now, and goes with it
    old = staged.parent / f"{path.name}.old"
    path.replace(old)
    try:
        staged.replace(path)
    except OSError:
        old.replace(path)
        raise


def _flush_folder(folder: Path) -> None:
    """Make the new names last; not every system can."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _flush(file: Path) -> None:
    with file.open("rb+") as handle:
        os.fsync(handle.fileno())
