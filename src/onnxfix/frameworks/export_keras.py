"""Any model as a Keras model, a TensorFlow function or a TFLite file, by way of a Keras model built op by op."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from onnxfix.errors import ExportError, MissingDependencyError
from onnxfix.frameworks.export_tflite import with_fixed_sizes, with_open_batch
from onnxfix.frameworks.quiet import quiet

if TYPE_CHECKING:
    from onnxfix.frameworks import Feeds
    from onnxfix.model import Model


def to_keras(model: Model, feeds: Feeds | None) -> Any:
    """A functional Keras model, its batch open."""
    return _built(with_open_batch(model, feeds))


def to_keras_fixed(model: Model, feeds: Feeds | None) -> Any:
    """A functional Keras model, every size fixed."""
    return _built(with_fixed_sizes(model, feeds))


def to_function(model: Model, feeds: Feeds | None) -> Any:
    """A TensorFlow function, its batch open and its weights constants."""
    return _function(to_keras(model, feeds))


def to_function_fixed(model: Model, feeds: Feeds | None) -> Any:
    """The same with every size fixed."""
    return _function(to_keras_fixed(model, feeds))


def to_tflite(model: Model, feeds: Feeds | None) -> bytes:
    """A TFLite file, its batch open."""
    from onnxfix.frameworks.tflite_by_tensorflow import of_frozen

    return of_frozen(to_function(model, feeds))


def to_tflite_fixed(model: Model, feeds: Feeds | None) -> bytes:
    """A TFLite file, every size fixed."""
    from onnxfix.frameworks.tflite_by_tensorflow import of_frozen

    return of_frozen(to_function_fixed(model, feeds))


def _built(model: Model) -> Any:
    from onnxfix.canonical.legalization import legalize
    from onnxfix.frameworks.keras_building import build

    try:
        import keras
    except ImportError as error:
        raise MissingDependencyError("keras", "tensorflow", "writing a Keras model") from error
    if keras.backend.backend() != "tensorflow":
        raise ExportError("Keras does not run on TensorFlow here: set KERAS_BACKEND=tensorflow and start again.")
    legal = legalize(model.proto, "keras")
    try:
        with quiet():
            return build(legal)
    except ExportError:
        raise
    except Exception as error:  # Keras and TensorFlow let all their kinds of errors through
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ExportError(f"Keras cannot express the model: {first}.") from error


def _function(keras_model: Any) -> Any:
    """The model's function with its weights made constants."""
    import tensorflow as tf
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    specs = [tf.TensorSpec(tensor.shape, tensor.dtype, tensor.name) for tensor in keras_model.inputs]

    def call(*tensors: Any) -> list[Any]:  # of a dict, TensorFlow sorts the keys
        answers = keras_model(list(tensors) if len(tensors) > 1 else tensors[0], training=False)
        return list(answers) if isinstance(answers, list | tuple) else [answers]

    with quiet():
        return convert_variables_to_constants_v2(tf.function(call, autograph=False).get_concrete_function(*specs))
