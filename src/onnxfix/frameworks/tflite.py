"""TensorFlow Lite: lowered by tf2onnx, run by the LiteRT interpreter, written back into the flatbuffer in place."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np
import onnx

from onnxfix.errors import ExportError, InputError, LoadError, LoweringError, MissingDependencyError, RuntimeFailure
from onnxfix.frameworks import Feeds, Framework, Lowered
from onnxfix.frameworks.flatbuffer import Flatbuffer
from onnxfix.frameworks.lowering_tf2onnx import first_line, owners, require, same_content
from onnxfix.frameworks.quiet import quiet
from onnxfix.frameworks.sniff import Content, claims, expect
from onnxfix.frameworks.writing import refusal, sorted_patches

if TYPE_CHECKING:
    from onnxfix.model import Model
    from onnxfix.surgeon.patch import Patch

_IDENTIFIER = b"TFL3"


class TFLiteAdapter:
    """Reads, runs and writes ``.tflite`` files."""

    framework = Framework.TFLITE

    def __init__(self) -> None:
        self._interpreters: WeakKeyDictionary[Model, Any] = WeakKeyDictionary()

    def recognises(self, obj: object) -> bool:
        """A ``.tflite`` path, a file that is one by content, or the bytes of one."""
        if isinstance(obj, Path):
            return claims(obj, (Content.TFLITE,))
        return isinstance(obj, bytes | bytearray | memoryview) and bytes(obj[4:8]) == _IDENTIFIER

    def lower(self, obj: Any, inputs: Any = None) -> Lowered:
        """Lower a file or its bytes; tensors keep their names, constants stay verbatim."""
        path = obj if isinstance(obj, Path) else None
        what = str(path) if path else "The TFLite model"
        if path:
            expect(path, (Content.TFLITE,), "a TFLite file")
        data = path.read_bytes() if path else bytes(obj)
        require("tflite", "loading a TFLite file")
        file = Flatbuffer(data, what)
        proto = lower_file(file)
        verbatim = {
            tensor.name: tensor.name
            for tensor in proto.graph.initializer
            if tensor.name in file.constants and same_content(tensor, file.value(file.constants[tensor.name]))
        }
        return Lowered(proto, data, verbatim, owners(proto, file.operators), path)

    def run(self, model: Model, feeds: Feeds) -> dict[str, np.ndarray]:
        """Run the LiteRT interpreter (built-in kernels, no delegate) on one batch."""
        interpreter = self._interpreters.get(model)
        if interpreter is None:
            interpreter = self._interpreters[model] = open_interpreter(model.native)
        _invoke(interpreter, _by_input(model, feeds))
        details = sorted_outputs(interpreter, model)
        return {name: interpreter.get_tensor(index).copy() for name, index in details.items()}

    def activations(self, model: Model, feeds: Feeds) -> dict[str, np.ndarray]:
        """Every tensor that an operator computes, by tensor name."""
        interpreter = open_interpreter(model.native, keep_all=True)
        _invoke(interpreter, _by_input(model, feeds))
        file = Flatbuffer(model.native, "The TFLite model")
        computed = {index for op in file.graph.operators for index in op.outputs if index >= 0}
        found = {}
        for index in sorted(computed):
            try:
                found[file.tensor_names[index]] = interpreter.get_tensor(index).copy()
            except ValueError:  # an operator's scratch or resource tensor holds no data
                continue
        return found

    def with_parameters(self, model: Model, parameters: Mapping[str, np.ndarray]) -> bytes:
        """The file's bytes with the named constants replaced in place."""
        return Flatbuffer(model.native, str(model.path or "The TFLite model")).replaced(parameters)

    def edited(self, model: Model, patches: Sequence[Patch]) -> bytes:
        """The file's bytes with the patches in it; every other byte stays."""
        from onnxfix.frameworks.tflite_editing import edited_file

        values, others = sorted_patches(model, patches)
        if not others:
            try:
                return self.with_parameters(model, values)
            except ExportError:
                pass  # a constant that needs a place of its own first
        try:
            return edited_file(model, patches)
        except ExportError as error:
            raise refusal(model, [*others, *patches][0], str(error).rstrip(".")) from error

    def write(self, model: Model, native: bytes, path: Path) -> None:
        """Write the bytes of a TFLite file."""
        if path.suffix.lower() != ".tflite":
            raise ExportError(f"A TFLite model is saved as .tflite or .onnx, not as {path.suffix or 'a directory'}.")
        path.write_bytes(native)

    def read(self, path: Path) -> bytes:
        """The bytes of a TFLite file."""
        expect(path, (Content.TFLITE,), "a TFLite file")
        return path.read_bytes()

    def save(self, model: Model, parameters: Mapping[str, np.ndarray], path: Path) -> None:
        """Write the file with the named constants replaced; every other byte stays."""
        self.write(model, self.with_parameters(model, parameters), path)


def open_interpreter(data: bytes, *, keep_all: bool = False) -> Any:
    """A LiteRT interpreter without delegates, so that every platform runs the same kernels.

    Raises:
        MissingDependencyError: neither LiteRT nor TensorFlow is installed.
        LoadError: the interpreter refuses the file.
    """
    interpreter_class, resolver = _runtime()
    try:
        with quiet():
            return interpreter_class(
                model_content=data,
                experimental_op_resolver_type=resolver.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
                experimental_preserve_all_tensors=keep_all,
                num_threads=os.cpu_count(),
            )
    except (ValueError, RuntimeError) as error:
        raise LoadError(f"LiteRT refuses the TFLite model: {first_line(error)}.") from error


def _runtime() -> tuple[Callable[..., Any], Any]:
    try:
        from ai_edge_litert.interpreter import Interpreter, OpResolverType

        return Interpreter, OpResolverType
    except ImportError:
        pass
    try:
        with quiet():
            import tensorflow as tf

        return tf.lite.Interpreter, tf.lite.experimental.OpResolverType
    except ImportError as error:
        raise MissingDependencyError("ai-edge-litert", "tflite", "running a TFLite model") from error


def lower_file(file: Flatbuffer) -> onnx.ModelProto:
    """The lowered graph of a checked file.

    Raises:
        LoweringError: the file has no ONNX form.
    """
    with quiet():
        return _lowered(file)


def _lowered(file: Flatbuffer) -> onnx.ModelProto:
    """Build tf2onnx's graphs from the checked file and map them to ONNX."""
    from onnxfix.frameworks.lowering_tf2onnx import to_onnx
    from onnxfix.frameworks.tflite_graph import graphs, without_landmarks

    try:
        main, subgraphs = graphs(file, _static_shapes(file))
    except LoweringError:
        raise
    except Exception as error:  # tf2onnx's reader raises whatever it stumbles over
        raise LoweringError(f"{file.what} has no ONNX form: {first_line(error)}.") from error
    proto = to_onnx(main, subgraphs, tflite=True, what=file.what)
    without_landmarks(proto)
    return proto


def _static_shapes(file: Flatbuffer) -> dict[int, list[int]]:
    """Tensor index -> shape as the interpreter infers it; shapes stored in the file are not always right."""
    try:
        interpreter = open_interpreter(file.data)
        interpreter.allocate_tensors()
    except (LoadError, MissingDependencyError, ValueError, RuntimeError):
        return {}  # such as an operator of another runtime: the stored shapes must do
    return {d["index"]: [int(n) for n in d["shape_signature"]] for d in interpreter.get_tensor_details()}


def sorted_outputs(interpreter: Any, model: Model) -> dict[str, int]:
    """Output name -> tensor index, in the model's output order."""
    details = interpreter.get_output_details()
    return {spec.name: detail["index"] for spec, detail in zip(model.outputs, details, strict=True)}


def _by_input(model: Model, feeds: Feeds) -> list[np.ndarray]:
    missing = [spec.name for spec in model.inputs if spec.name not in feeds]
    if missing:
        raise InputError(f"no data for input {', '.join(missing)}: the data has {', '.join(feeds) or 'nothing'}.")
    return [np.asarray(feeds[spec.name]) for spec in model.inputs]


def _invoke(interpreter: Any, arrays: list[np.ndarray]) -> None:
    details = interpreter.get_input_details()
    try:
        for detail, array in zip(details, arrays, strict=True):
            if tuple(detail["shape"]) != array.shape:
                interpreter.resize_tensor_input(detail["index"], array.shape)
        interpreter.allocate_tensors()
        interpreter.reset_all_variables()  # an earlier run leaves recurrent states behind
        for detail, array in zip(details, arrays, strict=True):
            interpreter.set_tensor(detail["index"], array)
        interpreter.invoke()
    except (ValueError, RuntimeError) as error:
        raise RuntimeFailure(f"LiteRT fails on this input: {first_line(error)}.") from error
