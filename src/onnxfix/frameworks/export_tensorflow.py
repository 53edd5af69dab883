"""Keras and TensorFlow models as TensorFlow functions and SavedModel directories."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxfix.errors import ExportError
from onnxfix.frameworks import Framework
from onnxfix.frameworks.quiet import quiet

if TYPE_CHECKING:
    from onnxfix.model import Model


def function_of(model: Model, batch: int | None = None) -> Any:
    """The concrete function of a Keras or TensorFlow model; of a Keras model, for one batch size or any."""
    if model.framework == Framework.TENSORFLOW:
        return model.native.function
    import tensorflow as tf

    specs = [tf.TensorSpec(_open(spec.shape or (), batch), spec.dtype, spec.name) for spec in model.inputs]
    native = model.native

    def call(*tensors: Any) -> Any:
        import keras

        structure = getattr(native, "_inputs_struct", None)
        packed = list(tensors) if len(tensors) > 1 else tensors[0]
        given = packed if structure is None else keras.tree.pack_sequence_as(structure, list(tensors))
        return native(given, training=False)

    with quiet():
        return tf.function(call, autograph=False).get_concrete_function(*specs)


def save_function(model: Model, path: Path) -> None:
    """Write a SavedModel directory.

    Raises:
        ExportError: TensorFlow refuses it.
    """
    import tensorflow as tf

    if path.suffix:
        raise ExportError(f"a TensorFlow model is exported as a SavedModel directory, not as {path.suffix}.")
    try:
        with quiet():
            if model.framework == Framework.KERAS:
                model.native.export(str(path), verbose=False)
                return
            holder = model.native.root or tf.Module()
            tf.saved_model.save(holder, str(path), signatures=model.native.function)
    except Exception as error:  # TensorFlow's errors share no base with the ValueErrors of its argument checks
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ExportError(f"TensorFlow cannot save the model: {first}.") from error


def _open(shape: tuple[int | str | None, ...], batch: int | None) -> list[int | None]:
    sizes = [dim if isinstance(dim, int) else None for dim in shape]
    return [batch, *sizes[1:]] if sizes and sizes[0] is None else sizes
