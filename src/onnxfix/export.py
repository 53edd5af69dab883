"""Write a model in another framework's form, checked against the original."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from onnxfix.errors import CanonicalizationError, ExportError, MissingDependencyError, OnnxFixError
from onnxfix.frameworks import Feeds, Framework
from onnxfix.frameworks.converters import check_suffix, converters, write
from onnxfix.model import Model, load
from onnxfix.surgeon.files import staged


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
        path: Where to write it: ``.onnx``, ``.pt2``, ``.keras``, ``.h5``, a SavedModel directory, a frozen ``.pb``,
            ``.tflite``. Nothing is written when None. An existing file is replaced only by a complete one.
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
    if to not in set(Framework):
        raise ExportError(f"there is no export to {to!r}: choose one of {', '.join(Framework)}.")
    source, target = load(model), Framework(to)
    if path is not None:
        check_suffix(target, Path(path))
    made = _made(source, target, inputs)
    if path is not None:
        with staged(Path(path)) as file:
            write(source, target, made, file)
    return made


def _made(source: Model, to: Framework, inputs: Feeds | None) -> Any:
    """What the first converter makes whose result agrees with the model.

    Raises:
        ExportError: why the first one failed.
    """
    failures: list[OnnxFixError] = []
    for converter in converters(source, to):
        try:
            made = converter.convert(source, inputs)
            if not converter.trusted:
                _check(source, to, made, inputs)
        except (CanonicalizationError, ExportError, MissingDependencyError) as error:
            failures.append(error)
        else:
            return made
    if not failures:
        raise ExportError(f"a {source.framework} model cannot be exported to {to}.")
    told = next((e for e in failures if not isinstance(e, MissingDependencyError)), failures[0])
    if isinstance(told, CanonicalizationError):
        raise ExportError(f"the model cannot be exported to {to}: {told}") from told
    raise told


def _check(source: Model, to: Framework, made: Any, inputs: Feeds | None) -> None:
    """Run what was made beside the model, in its own runtime, and refuse it where it answers differently."""
    if to == Framework.PYTORCH:
        from onnxfix.frameworks.export_pytorch import check_module

        check_module(source, made, inputs)
    elif to == Framework.TFLITE:
        from onnxfix.frameworks.export_tflite import check_tflite

        check_tflite(source, made, inputs)
    elif to in (Framework.KERAS, Framework.TENSORFLOW):
        from onnxfix.frameworks.export_tensorflow import check_tensorflow

        check_tensorflow(source, made, inputs)

