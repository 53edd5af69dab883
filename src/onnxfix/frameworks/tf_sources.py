"""Where TensorFlow functions come from: SavedModel directories, frozen graphs, and objects in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from onnxfix.errors import LoadError
from onnxfix.frameworks.lowering_tf2onnx import first_line
from onnxfix.frameworks.sniff import Content, expect
from onnxfix.frameworks.tensorflow import TensorFlowModel
from onnxfix.frameworks.tf_function import FlatGraph, flatten, is_parameter, unique

_PREFERRED = "serving_default"
_VARIABLES = frozenset({"Variable", "VariableV2", "VarHandleOp"})
_NO_VALUE = frozenset({"Const", "NoOp", "Assert", "Placeholder", "PlaceholderWithDefault", "SaveV2", "RestoreV2"})


def from_path(path: Path) -> TensorFlowModel:
    """Read a SavedModel directory (or its ``saved_model.pb``) or a frozen graph.

    Raises:
        LoadError: it cannot be read, or has no function to compare.
    """
    kind = expect(path, (Content.SAVED_MODEL, Content.GRAPH_DEF, Content.SAVED_MODEL_PB), "a TensorFlow model")
    if kind is Content.GRAPH_DEF:
        return _from_frozen(path)
    folder = path if path.is_dir() else path.parent
    if path.is_file() and path.name != "saved_model.pb":
        raise LoadError(f"{path} is the saved_model.pb of a SavedModel: give its directory.")
    return _from_saved_model(folder)


def from_object(obj: Any, inputs: Any = None) -> TensorFlowModel:
    """Take a concrete function, a ``tf.function`` or an object with signatures.

    Raises:
        LoadError: it cannot be told which function is meant, or for which input shapes.
    """
    if hasattr(obj, "structured_input_signature"):
        return _of_function(obj, None)
    if hasattr(obj, "get_concrete_function"):
        specs = [] if inputs is None else _specs(inputs)
        try:
            return _of_function(obj.get_concrete_function(*specs), None)
        except (TypeError, ValueError) as error:
            raise LoadError(
                f"The tf.function does not say its input shapes ({first_line(error)}): give inputs=, or load "
                "its concrete function."
            ) from error
    return _of_function(_signature(obj.signatures, "The TensorFlow object"), obj)


def from_graph_def(graph_def: Any) -> TensorFlowModel:
    """Take a frozen graph: its placeholders are the inputs, operators that nothing reads the outputs."""
    inputs = [node.name for node in graph_def.node if node.op == "Placeholder"]
    read = {name.lstrip("^").split(":")[0] for node in graph_def.node for name in node.input}
    outputs = [node.name for node in graph_def.node if node.name not in read and node.op not in _NO_VALUE]
    if not inputs or not outputs:
        raise LoadError("The frozen graph has no input (Placeholder) or no output.")
    function = wrapped(graph_def, [f"{name}:0" for name in inputs], [f"{name}:0" for name in outputs])
    flat, captured = flatten(function, {})
    graph = FlatGraph(
        flat,
        {f"{name}:0": name for name in inputs},
        tuple((tensor.name, name) for tensor, name in zip(function.outputs, outputs, strict=True)),
        {**_constants(flat), **captured},
    )
    return TensorFlowModel(function, graph, graph_def=graph_def)


def wrapped(graph_def: Any, inputs: list[str], outputs: list[str]) -> Any:
    """A concrete function over a graph, from input tensor names to output tensor names, taken and given flat."""
    import tensorflow as tf

    whole = tf.compat.v1.wrap_function(lambda: tf.graph_util.import_graph_def(graph_def, name=""), [])
    pick = whole.graph.get_tensor_by_name
    return whole.prune([pick(name) for name in inputs], [pick(name) for name in outputs])


def _from_frozen(path: Path) -> TensorFlowModel:
    import tensorflow as tf

    graph_def = tf.compat.v1.GraphDef()
    try:
        graph_def.ParseFromString(path.read_bytes())
    except Exception as error:  # protobuf's DecodeError, which has moved between its versions
        raise LoadError(f"{path} is a damaged GraphDef: export or download it again.") from error
    if any(node.op in _VARIABLES for node in graph_def.node):
        raise LoadError(f"{path} is a graph with variables but without their values: freeze it, or give a SavedModel.")
    try:
        return from_graph_def(graph_def)
    except LoadError:
        raise
    except Exception as error:  # TensorFlow checks a graph's nodes only on import, with errors of many kinds
        raise LoadError(f"TensorFlow cannot import the graph {path}: {first_line(error)}.") from error


def _from_saved_model(folder: Path) -> TensorFlowModel:
    import tensorflow as tf

    try:
        root = tf.saved_model.load(str(folder))
    except Exception as error:  # an object graph may fail to load in any way
        return _from_meta_graph(folder, error)
    if not getattr(root, "signatures", None) and callable(root):
        functions = getattr(root.__call__, "concrete_functions", [])
        if len(functions) == 1:
            return _of_function(functions[0], root)
    return _of_function(_signature(getattr(root, "signatures", {}), str(folder)), root)


def _from_meta_graph(folder: Path, refusal: Exception) -> TensorFlowModel:
    """Load through the signature alone, for SavedModels whose objects today's TensorFlow cannot restore."""
    import tensorflow as tf

    try:
        with tf.Graph().as_default(), tf.compat.v1.Session() as session:
            meta = tf.compat.v1.saved_model.load(session, [tf.saved_model.SERVING], str(folder))
            signature = _signature(dict(meta.signature_def), str(folder))
            outputs = [info.name for info in signature.outputs.values()]
            frozen = tf.compat.v1.graph_util.convert_variables_to_constants(
                session, session.graph.as_graph_def(), [name.split(":")[0] for name in outputs]
            )
    except LoadError:
        raise
    except Exception:  # the first refusal says more
        raise LoadError(f"TensorFlow cannot load {folder}: {first_line(refusal)}.") from refusal
    inputs = {info.name: name for name, info in signature.inputs.items()}
    function = wrapped(frozen, list(inputs), outputs)
    flat, captured = flatten(function, {})
    graph = FlatGraph(
        flat, inputs,
        tuple((t.name, name) for t, name in zip(function.outputs, signature.outputs, strict=True)),
        {**_constants(flat), **captured},
    )
    return TensorFlowModel(function, graph)


def _signature(signatures: Any, what: str) -> Any:
    """The serving signature, or the only one."""
    names = [name for name in signatures if not name.startswith("__saved_model")]
    if _PREFERRED in names:
        return signatures[_PREFERRED]
    if len(names) == 1:
        return signatures[names[0]]
    have = f"it has {', '.join(sorted(names))}" if names else "it has none"
    raise LoadError(
        f"{what} has no signature {_PREFERRED}, and {have}: load it with tf.saved_model.load and pass the function."
    )


def _of_function(function: Any, root: Any) -> TensorFlowModel:
    captures = {id(inner) for _, inner in function.graph.captures}
    arguments = [tensor for tensor in function.inputs if id(tensor) not in captures]
    named = {id(v.handle): v.name.split(":")[0] for v in function.graph.variables}
    flat, captured = flatten(function, named)
    graph = FlatGraph(
        flat,
        dict(zip((t.name for t in arguments), _input_names(function, arguments), strict=True)),
        tuple(zip((t.name for t in function.outputs), _output_names(function), strict=True)),
        _unique_parameters({**_constants(flat), **captured}),
    )
    return TensorFlowModel(function, graph, root)


def _input_names(function: Any, arguments: list[Any]) -> list[str]:
    import tensorflow as tf

    _, keywords = function.structured_input_signature or ((), {})
    specs = [s for s in tf.nest.flatten(function.structured_input_signature) if isinstance(s, tf.TensorSpec)]
    if keywords and len(keywords) == len(arguments):
        return sorted(keywords)
    if len(specs) != len(arguments):
        return unique(t.op.name for t in arguments)
    return unique(s.name or t.op.name for s, t in zip(specs, arguments, strict=True))


def _output_names(function: Any) -> list[str]:
    structure = function.structured_outputs
    if isinstance(structure, dict) and len(structure) == len(function.outputs):
        return sorted(structure)
    return [f"output_{index}" for index in range(len(function.outputs))]


def _constants(graph_def: Any) -> dict[str, tuple[str, np.ndarray]]:
    """Constants that look like weights, by node name."""
    import tensorflow as tf

    found = {}
    for node in graph_def.node:
        if node.op == "Const" and tf.as_dtype(node.attr["dtype"].type).is_floating:
            value = tf.make_ndarray(node.attr["value"].tensor)
            if is_parameter(value):
                found[node.name] = (node.name, value)
    return found


def _unique_parameters(parameters: dict[str, tuple[str, np.ndarray]]) -> dict[str, tuple[str, np.ndarray]]:
    names = unique(name for name, _ in parameters.values())
    return {node: (name, value) for (node, (_, value)), name in zip(parameters.items(), names, strict=True)}


def _specs(inputs: Any) -> list[Any]:
    """Specs of example inputs, with a free batch."""
    import tensorflow as tf

    flat = list(inputs.values()) if isinstance(inputs, dict) else inputs
    flat = list(flat) if isinstance(flat, tuple | list) else [flat]
    arrays = [np.asarray(value) for value in flat]
    return [tf.TensorSpec([None, *a.shape[1:]] if a.ndim else [], a.dtype) for a in arrays]
