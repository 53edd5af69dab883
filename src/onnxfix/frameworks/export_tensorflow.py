"""Keras and TensorFlow models as TensorFlow functions and SavedModel directories."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxfix.errors import ExportError
from onnxfix.frameworks import Framework
from onnxfix.frameworks.agreement import disagreement
from onnxfix.frameworks.example_inputs import accepted_feeds
from onnxfix.frameworks.quiet import quiet

if TYPE_CHECKING:
    from onnxfix.frameworks import Feeds
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


def from_keras(model: Model, feeds: Feeds | None) -> Any:
    """The concrete function of a Keras model, its batch open."""
    return function_of(model)


def save_tensorflow(model: Model, to: Framework, made: Any, path: Path) -> None:
    """Write a SavedModel directory, a frozen ``.pb`` graph, or a ``.keras`` or ``.h5`` file.

    Raises:
        ExportError: the framework refuses it.
    """
    import tensorflow as tf

    try:
        with quiet():
            if to == Framework.KERAS:
                made.save(str(path))
            elif path.suffix.lower() == ".pb":
                path.write_bytes(_frozen(made).graph.as_graph_def().SerializeToString(deterministic=True))
            elif model.framework == Framework.KERAS:
                model.native.export(str(path), verbose=False)
            else:
                own = model.framework == Framework.TENSORFLOW and model.native.root
                tf.saved_model.save(own or tf.Module(), str(path), signatures=made)
    except Exception as error:  # TensorFlow's errors share no base with the ValueErrors of its argument checks
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ExportError(f"{to} cannot save the model: {first}.") from error


def _frozen(function: Any) -> Any:
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    return convert_variables_to_constants_v2(function) if function.captured_inputs else function


def check_tensorflow(model: Model, made: Any, inputs: Feeds | None = None) -> None:
    """Refuse a Keras model or a TensorFlow function that does not answer as the model does.

    Raises:
        ExportError: it fails, or answers differently.
    """
    for feeds in accepted_feeds(model, inputs):
        expected = model.run(feeds)
        paired = dict(zip(expected, _answers(made, feeds), strict=False))
        problem = disagreement(expected, paired)
        if problem:
            raise ExportError(f"what was made answers differently from the model ({problem}): export it to onnx.")


def _answers(made: Any, feeds: Feeds) -> list[np.ndarray]:
    import tensorflow as tf

    tensors = [tf.constant(value) for value in feeds.values()]
    try:
        with quiet():
            if hasattr(made, "structured_input_signature"):
                answer = made(*tensors)
            else:
                answer = made(tensors if len(tensors) > 1 else tensors[0], training=False)
    except Exception as error:  # whatever TensorFlow raises
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ExportError(f"what was made fails on a random input: {first}.") from error
    return [np.asarray(value) for value in tf.nest.flatten(answer)]


def _open(shape: tuple[int | str | None, ...], batch: int | None) -> list[int | None]:
    sizes = [dim if isinstance(dim, int) else None for dim in shape]
    return [batch, *sizes[1:]] if sizes and sizes[0] is None else sizes
