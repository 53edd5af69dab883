"""The ways from a model to another framework, in the order in which they are to be tried."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxfix.errors import ExportError
from onnxfix.frameworks import Framework

if TYPE_CHECKING:
    from onnxfix.frameworks import Feeds
    from onnxfix.model import Model

# A model, and inputs that show the sizes of its open dimensions (or None), to the other framework's object.
Convert = Callable[["Model", "Feeds | None"], Any]

SUFFIXES: dict[Framework, tuple[str, ...]] = {
    Framework.ONNX: (".onnx",),
    Framework.PYTORCH: (".pt2",),
    Framework.KERAS: (".keras", ".h5", ".hdf5"),
    Framework.TENSORFLOW: ("", ".pb"),
    Framework.TFLITE: (".tflite",),
}


@dataclass(frozen=True)
class Converter:
    """One way to convert.

    Attributes:
        name: Which tools it uses, for people.
        convert: What it does; raises ExportError, MissingDependencyError or CanonicalizationError.
        trusted: It hands on what is there already, so that nothing can go wrong.
    """

    name: str
    convert: Convert
    trusted: bool = False


def converters(model: Model, to: Framework) -> tuple[Converter, ...]:
    """The converters from a model's framework to another one, the best first; none where there is no way."""
    ways = _WAYS[to](model)
    return (_AS_IT_IS[to], *ways) if model.framework == to and to in _AS_IT_IS else tuple(ways)


_AS_IT_IS = {
    to: Converter("as it is", lambda model, feeds: model.native, trusted=True)
    for to in (Framework.PYTORCH, Framework.KERAS, Framework.TFLITE)
} | {
    Framework.TENSORFLOW: Converter("as it is", lambda model, feeds: model.native.function, trusted=True)
}


def write(model: Model, to: Framework, made: Any, path: Path) -> None:
    """Write what a converter made.

    Args:
        model: The model that was converted.
        to: The framework that it was converted to.
        made: What the converter made.
        path: Where; its suffix must be the framework's.

    Raises:
        ExportError: another suffix, or the framework refuses to write it.
    """
    check_suffix(to, path)
    if to == Framework.ONNX:
        from onnxfix.frameworks.onnx_files import keeps_external_data, write_onnx

        write_onnx(made, path, external=keeps_external_data(model.path))
    elif to == Framework.TFLITE:
        path.write_bytes(made)
    elif made is model.native and to != Framework.TENSORFLOW:
        model.save(path)
    elif to == Framework.PYTORCH:
        from onnxfix.frameworks.export_pytorch import save_module

        save_module(model, made, path)
    else:
        from onnxfix.frameworks.export_tensorflow import save_tensorflow

        save_tensorflow(model, to, made, path)


def is_written_as(framework: Framework, path: Path) -> bool:
    """Whether a file of that suffix can hold a model of the framework, or at least its weights."""
    more = (".pt", ".pth") if framework == Framework.PYTORCH else ()
    return path.suffix.lower() in (*SUFFIXES[framework], *more)


def check_suffix(to: Framework, path: Path) -> None:
    """Refuse a path whose suffix is not the framework's.

    Raises:
        ExportError: it is not.
    """
    if path.suffix.lower() not in SUFFIXES[to]:
        wanted = " or ".join(suffix or "a directory, without suffix" for suffix in SUFFIXES[to])
        raise ExportError(f"{path.name} should end in {wanted} for a {to} model.")


def _to_onnx(model: Model) -> list[Converter]:
    ways = [Converter(_LOWERINGS[model.framework], lambda model, feeds: model.proto, trusted=True)]
    if model.framework == Framework.PYTORCH:
        from onnxfix.frameworks.export_onnx import by_torch_export, by_torchscript

        ways += [
            Converter("torch.onnx, optimised", by_torch_export),
            Converter("torch.onnx through TorchScript", by_torchscript),
        ]
    if model.framework == Framework.KERAS:
        from onnxfix.frameworks.export_onnx import by_keras

        ways.append(Converter("keras export", by_keras))
    return ways


_LOWERINGS = {
    Framework.ONNX: "as it is",
    Framework.PYTORCH: "torch.onnx, mended",
    Framework.KERAS: "tf2onnx, mended",
    Framework.TENSORFLOW: "tf2onnx, mended",
    Framework.TFLITE: "tf2onnx, mended",
}


def _to_pytorch(model: Model) -> list[Converter]:
    from onnxfix.frameworks.export_pytorch import by_onnx2torch, by_onnx2torch_canonical

    return [
        Converter("onnx2torch on the legalised graph", by_onnx2torch),
        Converter("onnx2torch on the legalised normal form", by_onnx2torch_canonical),
    ]


def _to_tflite(model: Model) -> list[Converter]:
    """Ways that keep the batch open come first."""
    from onnxfix.frameworks import export_tflite as lite
    from onnxfix.frameworks import tflite_by_tensorflow as tensorflow
    from onnxfix.frameworks.export_keras import to_tflite, to_tflite_fixed

    is_open = has_open_batch(model)
    fixed = ", sizes fixed" if _has_open_sizes(model) else ""
    ways = []
    if model.framework == Framework.KERAS:
        ways += [
            Converter("tf.lite from a SavedModel", tensorflow.by_saved_model),
            Converter("tf.lite from a frozen function", tensorflow.by_frozen_function),
            Converter("tf.lite with a batch of one", tensorflow.one_by_one),
        ]
    if model.framework == Framework.TENSORFLOW:
        ways += [
            Converter("tf.lite from the function", tensorflow.by_function),
            Converter("tf.lite with a batch of one", tensorflow.one_by_one_function),
        ]
    if model.framework == Framework.PYTORCH and is_open:
        ways.append(Converter("litert-torch on the module", lite.by_module))
    if is_open:
        ways.append(Converter("Keras and tf.lite on the legalised graph", to_tflite))
    if model.framework == Framework.PYTORCH:
        ways.append(Converter(f"litert-torch on the module{fixed}", lite.by_module_fixed))
    if is_open and model.framework != Framework.PYTORCH:
        ways.append(Converter("litert-torch on the legalised graph", lite.by_legalised))
    return [
        *ways,
        Converter(f"litert-torch on the legalised graph{fixed}", lite.by_legalised_fixed),
        Converter(f"Keras and tf.lite on the legalised graph{fixed}", to_tflite_fixed),
        Converter(f"litert-torch on the legalised normal form{fixed}", lite.by_canonical_fixed),
    ]


def _to_keras(model: Model) -> list[Converter]:
    from onnxfix.frameworks.export_keras import to_keras, to_keras_fixed

    return _built(model, "Keras", to_keras, to_keras_fixed)


def _to_tensorflow(model: Model) -> list[Converter]:
    from onnxfix.frameworks.export_keras import to_function, to_function_fixed
    from onnxfix.frameworks.export_tensorflow import from_keras

    own = [Converter("the Keras model's own function", from_keras)] if model.framework == Framework.KERAS else []
    return own + _built(model, "Keras and TensorFlow", to_function, to_function_fixed)


def _built(model: Model, tools: str, open_batch: Convert, fixed: Convert) -> list[Converter]:
    """The two ways of building a model op by op in Keras."""
    name = f"{tools} on the legalised graph"
    ways = [Converter(name, open_batch)] if has_open_batch(model) else []
    return [*ways, Converter(name + (", sizes fixed" if _has_open_sizes(model) else ""), fixed)]


def has_open_batch(model: Model) -> bool:
    """Whether the first dimension of every input is open."""
    return bool(model.inputs) and all(spec.shape and not isinstance(spec.shape[0], int) for spec in model.inputs)


def _has_open_sizes(model: Model) -> bool:
    return any(not isinstance(size, int) for spec in model.inputs for size in spec.shape or ())


_WAYS: dict[Framework, Callable[[Model], list[Converter]]] = {
    Framework.ONNX: _to_onnx,
    Framework.PYTORCH: _to_pytorch,
    Framework.KERAS: _to_keras,
    Framework.TENSORFLOW: _to_tensorflow,
    Framework.TFLITE: _to_tflite,
}
