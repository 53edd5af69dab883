"""Keras 3 models: lowered with their variables as arguments, run by Keras, written back variable by variable."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from onnxfix.errors import ExportError, InputError, LoweringError, RuntimeFailure
from onnxfix.frameworks import Feeds, Framework, Lowered
from onnxfix.frameworks.lowering_tf2onnx import first_line, operator_of, owners, require, same_content
from onnxfix.frameworks.quiet import quiet
from onnxfix.frameworks.sniff import Content, claims
from onnxfix.frameworks.writing import sorted_patches

if TYPE_CHECKING:
    from onnxfix.model import Model
    from onnxfix.surgeon.patch import Patch

_FILES = (Content.HDF5, Content.KERAS_ZIP)


class KerasAdapter:
    """Reads, runs and writes ``keras.Model`` objects, ``.keras`` and ``.h5`` files."""

    framework = Framework.KERAS

    def recognises(self, obj: object) -> bool:
        """A ``.keras`` or ``.h5`` path, or an instance of ``keras.Model``."""
        if isinstance(obj, Path):
            return claims(obj, _FILES)
        return any(c.__module__.split(".")[0] == "keras" and c.__name__ == "Model" for c in type(obj).__mro__)

    def lower(self, obj: Any, inputs: Any = None) -> Lowered:
        """Lower a model; initializers carry the variables' paths, graph inputs and outputs Keras's names."""
        require("tensorflow", "loading a Keras model")
        path = obj if isinstance(obj, Path) else None
        with quiet():
            if path:
                from onnxfix.frameworks.keras_files import load_file

                obj = load_file(path)
            proto, layers = _lowered(obj, str(path or f"The Keras model {obj.name}"))
        by_path = variables(obj)
        verbatim = {
            tensor.name: tensor.name
            for tensor in proto.graph.initializer
            if tensor.name in by_path and same_content(tensor, np.asarray(by_path[tensor.name]))
        }
        return Lowered(proto, obj, verbatim, layers, path)

    def run(self, model: Model, feeds: Feeds) -> dict[str, np.ndarray]:
        """Run ``keras.Model.predict_on_batch``."""
        names = [spec.name for spec in model.outputs]
        arrays = _by_input(model, feeds)
        try:
            with quiet():
                outputs = model.native.predict_on_batch(_packed(model.native, arrays))
        except Exception as error:  # Keras lets TensorFlow's whole family of errors through
            raise RuntimeFailure(f"Keras fails on this input: {first_line(error)}.") from error
        return {name: np.asarray(value) for name, value in zip(names, _flat(outputs), strict=True)}

    def activations(self, model: Model, feeds: Feeds) -> dict[str, np.ndarray]:
        """Every layer's output by layer path; further outputs and further calls get ``#1``, ``#2`` ... appended."""
        from onnxfix.frameworks.keras_calls import watched

        found: dict[str, np.ndarray] = {}

        def record(path: str, _: Any, outputs: Any) -> None:
            for value in _flat(outputs):
                count = sum(1 for name in found if name.split("#")[0] == path)
                found[f"{path}#{count}" if count else path] = np.asarray(value)

        arrays = _by_input(model, feeds)
        with quiet(), watched(model.native, lambda path: None, record):
            outputs = model.native(_packed(model.native, arrays), training=False)
        names = [spec.name for spec in model.outputs]
        return {**found, **{n: np.asarray(v) for n, v in zip(names, _flat(outputs), strict=True) if n not in found}}

    def with_parameters(self, model: Model, parameters: Mapping[str, np.ndarray]) -> Any:
        """A copy of the model whose named variables have the given values."""
        from onnxfix.frameworks.keras_files import copied

        with quiet():
            copy = copied(model.native)
            # Weights keep their order through a copy; their paths may not.
            originals = list(variables(model.native).items())
            for (name, original), mine in zip(originals, variables(copy).values(), strict=True):
                mine.assign(_fitting(name, original, parameters[name]) if name in parameters else original)
        unknown = sorted(set(parameters) - {name for name, _ in originals})
        if unknown:
            raise ExportError(f"The Keras model has no variable {', '.join(unknown)}.")
        return copy

    def edited(self, model: Model, patches: Sequence[Patch]) -> Any:
        """A copy of the model with the patches in it: in variables, configurations of layers, and its graph."""
        from onnxfix.frameworks.keras_structure import restructured

        values, others = sorted_patches(model, patches)
        return restructured(model, patches) if others else self.with_parameters(model, values)

    def write(self, model: Model, native: Any, path: Path) -> None:
        """Write ``.keras`` or ``.h5``; into a copy of the original file where it has the same suffix."""
        from onnxfix.frameworks.keras_writing import save_file

        with quiet():
            save_file(model, native, path)

    def read(self, path: Path) -> Any:
        """The Keras model of a file."""
        from onnxfix.frameworks.keras_files import load_file

        with quiet():
            return load_file(path)

    def save(self, model: Model, parameters: Mapping[str, np.ndarray], path: Path) -> None:
        """Write the model with the named variables replaced."""
        self.write(model, self.with_parameters(model, parameters), path)


def variables(model: Any) -> dict[str, Any]:
    """A model's variables by path, paths made unique by ``_1``, ``_2`` ... where Keras repeats them."""
    from onnxfix.frameworks.tf_function import unique

    kept = list(model.variables)
    return dict(zip(unique(v.path for v in kept), kept, strict=True))


def _lowered(model: Any, what: str) -> tuple[onnx.ModelProto, dict[str, str]]:
    """Trace the model with its variables as arguments, and lower the trace."""
    from onnxfix.frameworks.tf_function import FlatGraph, flatten, lower_graph, unique

    by_path = variables(model)
    function, op_layers, input_names = _traced(model, what)
    graph_def, captured = flatten(function, {})
    tensors = function.inputs
    slots = [t.op.name for t in tensors[: len(by_path)]]
    parameters = {
        slot: (name, np.asarray(variable))
        for slot, (name, variable) in zip(slots, by_path.items(), strict=True)
    }
    arguments = tensors[len(by_path) : len(by_path) + len(input_names)]
    outputs = unique(_output_names(model, len(function.outputs)))
    graph = FlatGraph(
        graph_def,
        {t.name: name for t, name in zip(arguments, input_names, strict=True)},
        tuple((t.name, name) for t, name in zip(function.outputs, outputs, strict=True)),
        {**parameters, **captured},
    )
    proto = lower_graph(graph, what)
    values = {f"{op}:{port}": layer for op, layer in op_layers.items() for port in range(4)}
    return proto, owners(proto, values, lambda name: op_layers.get(operator_of(name, op_layers) or ""))


def traced(model: Any) -> None:
    """Run a model once on symbolic inputs, as lowering does."""
    _traced(model, f"The Keras model {model.name}")


def _traced(model: Any, what: str) -> tuple[Any, dict[str, str], list[str]]:
    """The concrete function ``(variables, inputs) -> outputs``, op name -> layer path, and the input names."""
    import tensorflow as tf

    from onnxfix.frameworks.keras_calls import watched
    from onnxfix.frameworks.tf_function import unique

    signature = _input_signature(model, what)
    by_path = list(variables(model).values())
    place = {id(v): index for index, v in enumerate(by_path)}
    op_layers: dict[str, str] = {}

    def call(values: list[Any], inputs: list[Any]) -> list[Any]:
        state = [[values[place[id(v)]] for v in group]
                 for group in (model.trainable_variables, model.non_trainable_variables)]
        outputs, _ = model.stateless_call(*state, _packed(model, inputs), training=False)
        return _flat(outputs)

    def after(path: str, start: int, _: Any) -> None:
        for op in tf.compat.v1.get_default_graph().get_operations()[start:]:
            op_layers.setdefault(op.name, path)  # an inner layer ends first and keeps its own

    def before(_: str) -> int:
        return len(tf.compat.v1.get_default_graph().get_operations())

    specs = [tf.TensorSpec(v.shape, v.dtype) for v in by_path]
    try:
        with watched(model, before, after):
            function = tf.function(call, autograph=False).get_concrete_function(specs, [s for _, s in signature])
    except LoweringError:
        raise
    except Exception as error:  # a model's own call() may raise anything
        raise LoweringError(f"{what} cannot be traced: {first_line(error)}.") from error
    return function, op_layers, unique(name for name, _ in signature)


def _input_signature(model: Any, what: str) -> list[tuple[str, Any]]:
    """Name and ``tf.TensorSpec`` of each input, flat."""
    import keras
    import tensorflow as tf

    if keras.backend.backend() != "tensorflow":
        raise LoweringError(
            f"{what} runs on Keras's {keras.backend.backend()} backend, which cannot be lowered: set "
            "KERAS_BACKEND=tensorflow and load it again."
        )
    if not model.built:
        raise LoweringError(f"{what} has not been built: call it once on example data first.")
    symbolic = getattr(model, "inputs", None)
    if symbolic:
        return [(t.name, tf.TensorSpec(t.shape, t.dtype)) for t in symbolic]
    shapes = getattr(model, "_build_shapes_dict", None)
    if not shapes:
        raise LoweringError(f"{what} does not know its input shapes: call it once on example data first.")
    return [  # the batch is the one of the first call, and free
        (name.removesuffix("_shape"), tf.TensorSpec((None, *shape[1:]), model.input_dtype))
        for name, shape in shapes.items() if shape is not None
    ]


def _output_names(model: Any, count: int) -> list[str]:
    """The names of the layers that the outputs come from."""
    names = list(getattr(model, "output_names", None) or [])
    if not names:  # a Sequential has none of its own
        names = [tensor._keras_history.operation.name for tensor in getattr(model, "outputs", None) or []]
    return names if len(names) == count else [f"output_{index}" for index in range(count)]


def _packed(model: Any, inputs: list[Any]) -> Any:
    """The inputs in the structure that the model's call takes."""
    import keras

    structure = getattr(model, "_inputs_struct", None)
    if structure is not None:
        return keras.tree.pack_sequence_as(structure, list(inputs))
    return inputs[0] if len(inputs) == 1 else list(inputs)


def _flat(outputs: Any) -> list[Any]:
    import keras

    return [value for value in keras.tree.flatten(outputs) if value is not None]


def _by_input(model: Model, feeds: Feeds) -> list[np.ndarray]:
    missing = [spec.name for spec in model.inputs if spec.name not in feeds]
    if missing:
        raise InputError(f"no data for input {', '.join(missing)}: the data has {', '.join(feeds) or 'nothing'}.")
    return [np.asarray(feeds[spec.name]) for spec in model.inputs]


def _fitting(name: str, original: Any, value: np.ndarray) -> np.ndarray:
    if tuple(original.shape) != value.shape:
        raise ExportError(
            f"The Keras variable {name} is {list(original.shape)} and cannot take {list(value.shape)}: save the "
            "repaired model as .onnx instead."
        )
    return value
