"""SavedModels written again: what was edited is exchanged, everything else in the directory stays as it is."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxfix.errors import ExportError
from onnxfix.frameworks.lowering_tf2onnx import first_line

if TYPE_CHECKING:
    from onnxfix.frameworks.tensorflow import TensorFlowModel
    from onnxfix.model import Model

_VARIABLES = "variables/variables"
_OBJECTS = "_CHECKPOINTABLE_OBJECT_GRAPH"


def save_like(model: Model, native: TensorFlowModel, path: Path) -> None:
    """Write a SavedModel that was edited.

    Values of variables, constants and attributes are exchanged in a copy of the directory that the model came from.
    Where the function has other operators, its signature gets the new function; the others, the variables and the
    assets stay.

    Args:
        model: The model as it was loaded, from a directory.
        native: What was made of it.
        path: The new directory.

    Raises:
        ExportError: an edit has no place in the SavedModel.
    """
    if model.path is None:
        raise ExportError("the SavedModel was not read from a directory")
    if native.rebuilt:
        _with_new_signature(model, native, path)
        return
    shutil.copytree(model.path, path)
    variables = dict(native.values)
    constants = {name: variables.pop(name) for name in list(variables) if _is_constant(model, name)}
    if variables:
        _exchange_variables(path, {name: (_old(model, name), value) for name, value in variables.items()})
    nodes = dict(native.nodes) | _constant_nodes(native, constants)
    if nodes:
        _exchange_nodes(path, model, nodes)


def save_function(model: Model, native: TensorFlowModel, path: Path) -> None:
    """Write a function as a SavedModel with one signature, under the names that the model has.

    Raises:
        ExportError: TensorFlow refuses to.
    """
    import tensorflow as tf

    _save(tf.Module(), {"serving_default": _signature(model, native)}, path)


def _save(root: Any, signatures: Mapping[str, Any], path: Path) -> None:
    import tensorflow as tf

    # Gradients that layers define of their own are traced a second time, which loaded functions do not survive.
    options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
    try:
        tf.saved_model.save(root, str(path), signatures=dict(signatures), options=options)
    except Exception as error:  # TensorFlow's errors share no base with the ValueErrors of its argument checks
        raise ExportError(f"TensorFlow cannot save the model: {first_line(error)}.") from error


def _signature(model: Model, native: TensorFlowModel) -> Any:
    """The function with the inputs and outputs that the model has, by name."""
    import tensorflow as tf

    names = [name for _, name in native.graph.outputs]
    inputs = dict(zip(native.graph.inputs.values(), native.function.inputs, strict=False))
    specs = [tf.TensorSpec(tensor.shape, tensor.dtype, name) for name, tensor in inputs.items()]

    def call(*tensors: Any) -> dict[str, Any]:
        return dict(zip(names, tf.nest.flatten(native.function(*tensors)), strict=True))

    return tf.function(call, autograph=False).get_concrete_function(*specs)


def _with_new_signature(model: Model, native: TensorFlowModel, path: Path) -> None:
    import tensorflow as tf

    root = tf.saved_model.load(str(model.path))
    signatures = {name: function for name, function in root.signatures.items() if not name.startswith("__saved")}
    own = "serving_default" if "serving_default" in signatures or not signatures else next(iter(signatures))
    for variable in getattr(root, "variables", ()):
        value = native.values.get(variable.name.split(":")[0])
        if value is not None:
            variable.assign(value)
    _save(root, {**signatures, own: _signature(model, native)}, path)


def _is_constant(model: Model, name: str) -> bool:
    """Whether a parameter is a constant of a function, and not a variable."""
    native: TensorFlowModel = model.native
    captured = {v.name.split(":")[0] for v in native.function.graph.variables}
    return name not in captured


def _old(model: Model, name: str) -> np.ndarray:
    return next(value for known, value in model.native.graph.parameters.values() if known == name)


def _constant_nodes(native: TensorFlowModel, constants: Mapping[str, np.ndarray]) -> dict[str, Any]:
    places = {name: node for node, (name, _) in native.graph.parameters.items()}
    nodes = {node.name: node for node in native.graph.graph_def.node}
    return {places[name]: nodes[places[name]] for name in constants}


def _exchange_variables(folder: Path, values: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> None:
    """Write the checkpoint again, all of its tensors as they were but those that change."""
    import tensorflow as tf

    prefix = folder / _VARIABLES
    reader = tf.train.load_checkpoint(str(prefix))
    names = sorted(reader.get_variable_to_shape_map())
    tensors = {name: reader.get_tensor(name) for name in names}
    keys = _keys(tensors)
    for name, (old, new) in values.items():
        same = [key for key in keys.get(name, ()) if key in tensors] or [
            key for key, held in tensors.items()
            if isinstance(held, np.ndarray) and held.dtype == old.dtype and np.array_equal(held, old)
        ]
        if len(same) != 1:
            raise ExportError(f"the SavedModel's checkpoint has no place of its own for the variable {name}")
        tensors[same[0]] = new
    for file in prefix.parent.glob("variables.*"):
        file.unlink()
    given = [tf.constant(tensors[name]) for name in names]
    tf.raw_ops.SaveV2(
        prefix=str(prefix), tensor_names=names, shape_and_slices=[""] * len(names), tensors=given
    )


def _keys(tensors: Mapping[str, Any]) -> dict[str, list[str]]:
    """Variable name -> its keys in the checkpoint."""
    from tensorflow.core.protobuf.trackable_object_graph_pb2 import TrackableObjectGraph

    if _OBJECTS not in tensors:
        return {name: [name] for name in tensors}
    found: dict[str, list[str]] = {}
    for node in TrackableObjectGraph.FromString(tensors[_OBJECTS]).nodes:
        for attribute in node.attributes:
            found.setdefault(attribute.full_name, []).append(attribute.checkpoint_key)
    return found


def _exchange_nodes(folder: Path, model: Model, nodes: Mapping[str, Any]) -> None:
    """Exchange operators in the functions that the signature calls."""
    from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

    file = folder / "saved_model.pb"
    saved = SavedModel.FromString(file.read_bytes())
    for name, node in nodes.items():
        places = [place for meta in saved.meta_graphs for place in _places(meta.graph_def, model, name, node.op)]
        if not places:
            raise ExportError(f"the SavedModel's functions have no operator {name}")
        for place in places:
            place.attr.clear()
            for key, value in node.attr.items():
                place.attr[key].CopyFrom(value)
    file.write_bytes(saved.SerializeToString())


def _places(graph_def: Any, model: Model, name: str, op: str) -> Iterator[Any]:
    """The operators that an inlined one stands for: its name begins with the names of the calls that lead to it."""
    functions = {function.signature.name: function for function in graph_def.library.function}
    seen: set[int] = set()

    def search(nodes: Any, rest: str) -> Iterator[Any]:
        for node in nodes:
            if node.name == rest and node.op == op and id(node) not in seen:
                seen.add(id(node))
                yield node
            called = functions.get(node.attr["f"].func.name) if "f" in node.attr else None
            if called is not None and rest.startswith(f"{node.name}/"):
                yield from search(called.node_def, rest[len(node.name) + 1 :])

    for node in graph_def.node:
        called = functions.get(node.attr["f"].func.name) if "f" in node.attr else None
        if called is not None:
            yield from search(called.node_def, name)
    yield from search(graph_def.node, name)
