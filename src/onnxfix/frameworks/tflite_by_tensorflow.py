"""Keras and TensorFlow models as TFLite files, by TensorFlow's own converter."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from onnxfix.errors import ExportError, MissingDependencyError
from onnxfix.frameworks.quiet import quiet

if TYPE_CHECKING:
    from onnxfix.frameworks import Feeds
    from onnxfix.model import Model


def by_saved_model(model: Model, feeds: Feeds | None) -> bytes:
    """A Keras model through a SavedModel; the batch stays open."""

    def attempt(tf: Any) -> bytes:
        with tempfile.TemporaryDirectory(prefix="onnxfix-") as folder:
            model.native.export(folder, verbose=False)
            return bytes(tf.lite.TFLiteConverter.from_saved_model(folder).convert())

    return _converted(attempt)


def by_frozen_function(model: Model, feeds: Feeds | None) -> bytes:
    """A Keras model whose variables are made constants first; the batch stays open."""
    return _converted(lambda tf: _frozen(model, tf, None))


def one_by_one(model: Model, feeds: Feeds | None) -> bytes:
    """A Keras model with a batch of one: the lists that recurrent layers keep need to know their size."""
    return _converted(lambda tf: _frozen(model, tf, 1))


def by_function(model: Model, feeds: Feeds | None) -> bytes:
    """A TensorFlow function as it is."""

    def attempt(tf: Any) -> bytes:
        converter = tf.lite.TFLiteConverter.from_concrete_functions([model.native.function], model.native.root)
        return bytes(converter.convert())

    return _converted(attempt)


def one_by_one_function(model: Model, feeds: Feeds | None) -> bytes:
    """A TensorFlow function, traced again with a batch of one and its variables made constants."""

    def attempt(tf: Any) -> bytes:
        from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

        given = model.native.function
        specs = [tf.TensorSpec([1 if k == 0 and n is None else n for k, n in enumerate(t.shape)], t.dtype)
                 for t in convert_variables_to_constants_v2(given).inputs]
        frozen = convert_variables_to_constants_v2(given)
        again = tf.function(lambda *tensors: frozen(*tensors), autograph=False).get_concrete_function(*specs)
        whole = convert_variables_to_constants_v2(again)
        return bytes(tf.lite.TFLiteConverter.from_concrete_functions([whole]).convert())

    return _converted(attempt)


def of_frozen(function: Any) -> bytes:
    """A function without variables."""
    return _converted(lambda tf: bytes(tf.lite.TFLiteConverter.from_concrete_functions([function]).convert()))


def _frozen(model: Model, tf: Any, batch: int | None) -> bytes:
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    from onnxfix.frameworks.export_tensorflow import function_of

    function = convert_variables_to_constants_v2(function_of(model, batch))
    return bytes(tf.lite.TFLiteConverter.from_concrete_functions([function], model.native).convert())


def _converted(attempt: Callable[[Any], bytes]) -> bytes:
    try:
        import tensorflow as tf
    except ImportError as error:
        raise MissingDependencyError("tensorflow", "tensorflow", "writing a TFLite model") from error
    try:
        with quiet():
            return in_order(attempt(tf))
    except Exception as error:  # the converter raises everything from ValueError to its own ConverterError
        raise ExportError(f"TensorFlow's TFLite converter cannot express the model: {_reason(error)}.") from error


def in_order(data: bytes) -> bytes:
    """The file with its outputs in the order that the signature's names count (``output_0``, ``output_1``, ...).

    The converter writes them in any order, and whoever reads outputs by position then gets the wrong ones.
    """
    from onnxfix.frameworks.export_tflite import natural
    from onnxfix.frameworks.flatbuffer import schema

    file = bytearray(data)
    model = schema().Model.GetRootAs(file, 0)
    if not model.SignatureDefsLength():
        return data
    signature = model.SignatureDefs(0)
    entries = [signature.Outputs(k) for k in range(signature.OutputsLength())]
    wanted = [entry.TensorIndex() for entry in sorted(entries, key=lambda e: natural(e.Name().decode()))]
    outputs = model.Subgraphs(signature.SubgraphIndex()).OutputsAsNumpy()  # a view of the file
    if sorted(outputs) == sorted(wanted):
        outputs[:] = wanted
    return bytes(file)


def _reason(error: Exception) -> str:
    """What the converter's pages of locations come to: the operator that it does not take, or their first line."""
    from onnxfix.frameworks.lowering_tf2onnx import first_line

    found = re.search(r"error: .*?('tf\.\w+' op [^\n]*|failed to legalize operation '[^']*')", str(error))
    return found[1].strip() if found else first_line(error)
