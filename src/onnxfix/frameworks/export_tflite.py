"""Any model as a TFLite file: TensorFlow's own converter for its own models, litert-torch for all others; checked."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from onnxfix.errors import ExportError, MissingDependencyError
from onnxfix.frameworks import Framework
from onnxfix.frameworks.agreement import disagreement
from onnxfix.frameworks.example_inputs import accepted_feeds
from onnxfix.frameworks.quiet import quiet
from onnxfix.frameworks.tflite import open_interpreter

if TYPE_CHECKING:
    from onnxfix.frameworks import Feeds
    from onnxfix.model import Model


def to_tflite(model: Model, inputs: Feeds | None = None) -> bytes:
    """The bytes of a float TFLite file that computes what ``model`` does.

    Args:
        model: The model. Open dimensions become 1, except where TensorFlow's own converter keeps them.
        inputs: Input name -> array on which to check the file; random ones when None.

    Raises:
        ExportError: no converter can express it, or its file answers differently.
        MissingDependencyError: the converter is not installed.
    """
    if model.framework == Framework.TFLITE:
        return bytes(model.native)
    failures: list[ExportError] = []
    ours = model.framework in (Framework.KERAS, Framework.TENSORFLOW)
    for convert in (_by_tensorflow, _by_litert_torch) if ours else (_by_litert_torch,):
        try:
            data = convert(model)
            check_tflite(model, data, inputs)
        except (ExportError, MissingDependencyError) as error:
            failures.append(error if isinstance(error, ExportError) else ExportError(str(error)))
            if isinstance(error, MissingDependencyError) and not ours:
                raise
        else:
            return data
    raise failures[0]


def fixed(proto: onnx.ModelProto, size: int = 1) -> onnx.ModelProto:
    """A copy of a graph whose open input dimensions have one size, with nothing said about shapes inside."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    del copy.graph.value_info[:]
    for info in copy.graph.input:
        for dim in info.type.tensor_type.shape.dim:
            if not dim.HasField("dim_value") or dim.dim_value <= 0:
                dim.dim_value = size
    for info in copy.graph.output:
        for dim in info.type.tensor_type.shape.dim:
            if not dim.HasField("dim_value"):
                dim.ClearField("dim_param")
    return copy


def _by_litert_torch(model: Model) -> bytes:
    from onnxfix.frameworks.export_pytorch import check_module, converted, first_line
    from onnxfix.frameworks.torch_call import to_tensor
    from onnxfix.frameworks.torch_lowering import quiet as quiet_torch
    from onnxfix.model import Model

    proto = fixed(model.proto)
    static = Model(proto=proto, native=proto)
    module = converted(proto, "litert-torch")
    check_module(static, module, None)
    try:
        with quiet(), quiet_torch():
            import litert_torch
    except ImportError as error:
        raise MissingDependencyError("litert-torch", "tflite", "writing a TFLite model") from error
    example = tuple(to_tensor(np.zeros(spec.shape or (), spec.dtype)) for spec in static.inputs)
    with tempfile.TemporaryDirectory(prefix="onnxfix-") as folder:
        path = Path(folder) / "model.tflite"
        try:
            with quiet(), quiet_torch():
                litert_torch.convert(module, example).export(str(path))
        except Exception as error:  # litert-torch lets torch's, jax's and its own errors through
            raise ExportError(f"litert-torch cannot express the model: {first_line(error)}.") from error
        return path.read_bytes()


def _by_tensorflow(model: Model) -> bytes:
    from onnxfix.frameworks.lowering_tf2onnx import first_line

    try:
        import tensorflow as tf
    except ImportError as error:
        raise MissingDependencyError("tensorflow", "tensorflow", "writing a TFLite model") from error
    failures: list[Exception] = []
    for attempt in (_whole, _one_by_one) if model.framework == Framework.KERAS else (_function,):
        try:
            with quiet():
                return attempt(model, tf)
        except Exception as error:  # the converter raises everything from ValueError to its own ConverterError
            failures.append(error)
    raise ExportError(
        f"TensorFlow's TFLite converter cannot express the model: {first_line(failures[0])}."
    ) from failures[0]


def _function(model: Model, tf: Any) -> bytes:
    converter = tf.lite.TFLiteConverter.from_concrete_functions([model.native.function], model.native.root)
    return bytes(converter.convert())


def _whole(model: Model, tf: Any) -> bytes:
    with tempfile.TemporaryDirectory(prefix="onnxfix-") as folder:
        model.native.export(folder, verbose=False)
        return bytes(tf.lite.TFLiteConverter.from_saved_model(folder).convert())


def _one_by_one(model: Model, tf: Any) -> bytes:
    """With a batch of one: the lists that recurrent layers keep need to know their size."""
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    from onnxfix.frameworks.export_tensorflow import function_of

    frozen = convert_variables_to_constants_v2(function_of(model, batch=1))
    return bytes(tf.lite.TFLiteConverter.from_concrete_functions([frozen], model.native).convert())


def check_tflite(model: Model, data: bytes, inputs: Feeds | None = None) -> None:
    """Refuse a file that, run in LiteRT, does not answer as the model does.

    Raises:
        ExportError: it does not run, or answers differently.
    """
    for feeds in accepted_feeds(model, inputs, batches=(1,)):
        expected = model.run(feeds)
        actual = _run(model, data, feeds)
        paired = _paired(expected, actual)
        problem = disagreement(expected, paired) if len(actual) == len(expected) else "number of outputs"
        if problem:
            raise ExportError(f"the TFLite file answers differently from the model ({problem}): export it to onnx.")


def _run(model: Model, data: bytes, feeds: Feeds) -> dict[str, np.ndarray]:
    """What LiteRT answers, in the order of the file's signature."""
    interpreter = open_interpreter(data)
    signatures = interpreter.get_signature_list()
    try:
        if signatures:
            key = next(iter(signatures))
            runner = interpreter.get_signature_runner(key)
            given = _named(list(signatures[key]["inputs"]), runner.get_input_details(), feeds)
            answers = runner(**given)
            return {name: answers[name] for name in sorted(answers, key=_natural)}
        details = interpreter.get_input_details()
        for detail, value in zip(details, feeds.values(), strict=True):
            interpreter.resize_tensor_input(detail["index"], value.shape)
        interpreter.allocate_tensors()
        for detail, value in zip(details, feeds.values(), strict=True):
            interpreter.set_tensor(detail["index"], value.astype(detail["dtype"]))
        interpreter.invoke()
        return {d["name"]: interpreter.get_tensor(d["index"]) for d in interpreter.get_output_details()}
    except (ValueError, RuntimeError) as error:
        raise ExportError(f"LiteRT fails on the TFLite file: {str(error).splitlines()[0]}.") from error


def _named(names: list[str], details: dict[str, Any], feeds: Feeds) -> dict[str, np.ndarray]:
    """Feeds by the signature's names: equal ones, else in order (``args_0``, ``args_1``, ...)."""
    plain = {re.sub(r"\W", "_", name): value for name, value in feeds.items()}
    ordered = sorted(names, key=_natural)
    if not set(ordered) <= set(plain):
        plain = dict(zip(ordered, feeds.values(), strict=True))
    return {name: plain[name].astype(details[name]["dtype"]) for name in ordered}


def _natural(name: str) -> list[tuple[int, str]]:
    """``output_10`` after ``output_9``."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def _paired(expected: Feeds, actual: Feeds) -> dict[str, np.ndarray]:
    """The file's outputs under the model's names: equal ones, else in order."""
    plain = {name.split(":")[0]: value for name, value in actual.items()}
    if set(plain) == {name.split(":")[0] for name in expected}:
        return {name: plain[name.split(":")[0]] for name in expected}
    return dict(zip(expected, actual.values(), strict=False))


