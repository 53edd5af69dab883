"""Write a model in another framework's form, checked against the original."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from onnxfix.errors import CanonicalizationError, ExportError
from onnxfix.frameworks import Framework
from onnxfix.model import Model, load


def export(
    model: Any, to: str, path: str | Path | None = None, *, inputs: Mapping[str, np.ndarray] | None = None
) -> Any:
    """Express a model in another framework, and check that it still computes the same.

    The model is legalised for the converter first (see :func:`onnxfix.canonical.legalize`), so that models on which
    today's converters crash, or which they get wrong, come through. The result is run in its own runtime beside the
    original.

    Args:
        model: Anything :func:`onnxfix.load` takes.
        to: ``"onnx"``, ``"pytorch"``, ``"keras"``, ``"tensorflow"`` or ``"tflite"``.
        path: Where to write it: ``.onnx``, ``.pt2``, ``.keras``, a SavedModel directory, ``.tflite``. Nothing is
            written when None. An existing file is replaced only by a complete one.
        inputs: Input name -> array on which to check the result; random inputs when None.

    Returns:
        An ``onnx.ModelProto``, a ``torch.nn.Module``, a ``keras.Model``, a TensorFlow concrete function, or the bytes
        of a TFLite file.

    Raises:
        ExportError: there is no way from this model there, or what came out does not agree with the model.
        LoadError: ``model`` cannot be read.
        MissingDependencyError: the converter is not installed.

    Example:
        >>> module = onnxfix.export("classifier.onnx", "pytorch", "classifier.pt2")     # doctest: +SKIP
    """
    if to not in _EXPORTERS:
        raise ExportError(f"there is no export to {to!r}: choose one of {', '.join(_EXPORTERS)}.")
    source = load(model)
    try:
        made, write = _EXPORTERS[to](source, inputs)
    except CanonicalizationError as error:
        raise ExportError(f"the model cannot be exported to {to}: {error}") from error
    if path is not None:
        _write(Path(path), write)
    return made


Write = Callable[[Path], None]


def _onnx(model: Model, inputs: Mapping[str, np.ndarray] | None) -> tuple[Any, Write]:
    return model.proto, lambda path: model.save(_with_suffix(path, ".onnx"))


def _pytorch(model: Model, inputs: Mapping[str, np.ndarray] | None) -> tuple[Any, Write]:
    if model.framework == Framework.PYTORCH:
        return model.native, model.save
    from onnxfix.frameworks.export_pytorch import save_module, to_module

    module = to_module(model, inputs)
    return module, lambda path: save_module(model, module, path)


def _tflite(model: Model, inputs: Mapping[str, np.ndarray] | None) -> tuple[Any, Write]:
    from onnxfix.frameworks.export_tflite import to_tflite

    data = to_tflite(model, inputs)
    return data, lambda path: _bytes(_with_suffix(path, ".tflite"), data)


def _keras(model: Model, inputs: Mapping[str, np.ndarray] | None) -> tuple[Any, Write]:
    if model.framework != Framework.KERAS:
        raise _no_way(model, Framework.KERAS)
    return model.native, model.save


def _tensorflow(model: Model, inputs: Mapping[str, np.ndarray] | None) -> tuple[Any, Write]:
    from onnxfix.frameworks.export_tensorflow import function_of, save_function

    if model.framework not in (Framework.KERAS, Framework.TENSORFLOW):
        raise _no_way(model, Framework.TENSORFLOW)
    return function_of(model), lambda path: save_function(model, path)


_EXPORTERS: dict[str, Callable[[Model, Mapping[str, np.ndarray] | None], tuple[Any, Write]]] = {
    "onnx": _onnx,
    "pytorch": _pytorch,
    "keras": _keras,
    "tensorflow": _tensorflow,
    "tflite": _tflite,
}


def _no_way(model: Model, to: Framework) -> ExportError:
    own = "keras and tensorflow" if to is Framework.TENSORFLOW else "keras"
    return ExportError(
        f"a {model.framework} model cannot be exported to {to}, only {own} models can: choose onnx, pytorch or tflite."
    )


def _with_suffix(path: Path, suffix: str) -> Path:
    if path.suffix.lower() != suffix:
        raise ExportError(f"{path.name} should end in {suffix} for this export.")
    return path


def _bytes(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def _write(path: Path, write: Write) -> None:
    """Write beside the destination first, so that no half-written file takes its name."""
    if not path.parent.is_dir():
        raise ExportError(f"the folder {path.parent} does not exist: create it first.")
    folder = Path(tempfile.mkdtemp(prefix=".onnxfix-", dir=path.parent))
    try:
        staged = folder / path.name
        write(staged)
        if path.is_dir():
            shutil.rmtree(path)
        for file in sorted(folder.iterdir()):
            file.replace(path.parent / file.name)
    except OSError as error:
        raise ExportError(f"{path} cannot be written: {error.strerror or error}.") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
