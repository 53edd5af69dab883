"""TensorFlow functions to ONNX with every parameter kept: parameters go in as arguments and become initializers after.

tf2onnx folds constants while it converts, even without its optimisers, so parameters must not be constants then.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from onnxfix.errors import LoweringError
from onnxfix.frameworks.lowering_tf2onnx import first_line, rename_values, subgraphs, to_onnx
from onnxfix.frameworks.tf_inline import inlined

_BODIES = frozenset({"If", "StatelessIf", "While", "StatelessWhile"})
_CALLS = frozenset({"PartitionedCall", "StatefulPartitionedCall"}) | _BODIES


@dataclass(frozen=True)
class FlatGraph:
    """A TensorFlow graph without function calls, variables or captures.

    Attributes:
        graph_def: The ``GraphDef``.
        inputs: Input tensor name (``x:0``) -> the name it shall have in ONNX.
        outputs: (Output tensor name, name it shall have in ONNX), in output order.
        parameters: Placeholder or constant node name -> (name it shall have in ONNX, value).
    """

    graph_def: Any
    inputs: Mapping[str, str]
    outputs: tuple[tuple[str, str], ...]
    parameters: Mapping[str, tuple[str, np.ndarray]]


def flatten(function: Any, names: Mapping[int, str]) -> tuple[Any, dict[str, tuple[str, np.ndarray]]]:
    """Inline a concrete function's calls and replace its captures by constants; nothing is optimised.

    Args:
        function: The concrete function.
        names: ``id`` of a captured tensor or resource -> parameter name.

    Returns:
        The graph, and constant node name -> (parameter name, value) of the captures.
    """
    graph_def = function.graph.as_graph_def()
    if not function.graph.captures and not any(node.op in _CALLS for node in graph_def.node):
        return graph_def, {}
    import tensorflow as tf
    from tensorflow.python.framework import convert_to_constants

    # Of grappler this runs the function inliner alone. It leaves out functions that must be compiled.
    _, graph_def = convert_to_constants.convert_variables_to_constants_v2_as_graph(
        function, lower_control_flow=False, aggressive_inlining=True
    )
    graph_def = inlined(graph_def)
    known = {inner.op.name: names.get(id(outer)) for outer, inner in function.graph.captures}
    parameters = {}
    for node in graph_def.node:
        if node.op == "Const" and node.name in known:
            value = tf.make_ndarray(node.attr["value"].tensor)
            named = known[node.name]
            if named is not None or is_parameter(value):
                parameters[node.name] = (named or node.name, value)
    return graph_def, parameters


def is_parameter(value: np.ndarray) -> bool:
    """Whether an unnamed constant is worth keeping apart: integers and single numbers are the operators' settings."""
    return value.size > 1 and np.issubdtype(value.dtype, np.floating)


def lower_graph(graph: FlatGraph, what: str) -> onnx.ModelProto:
    """Lower a graph; parameters are initializers under their names, verbatim.

    Raises:
        LoweringError: an operator has no ONNX form.
    """
    # tf2onnx must see the values of a loop's weights to recognise an LSTM or GRU; then it folds them.
    constant = _loop_parameters(graph)
    try:
        proto = _converted(graph, what, constant)
    except LoweringError:
        if constant == set(graph.parameters):
            raise
        constant = set(graph.parameters)  # a few more operators insist on constants
        proto = _converted(graph, what, constant)
    return _bound(_renamed(proto, graph), graph)


def _loop_parameters(graph: FlatGraph) -> set[str]:
    """Parameters that a loop or branch takes as an argument, directly or through identities."""
    sources = {node.name: node.input[0].split(":")[0] for node in graph.graph_def.node if node.op == "Identity"}
    found = set()
    for node in graph.graph_def.node:
        if node.op not in _BODIES:
            continue
        for name in node.input:
            source = name.lstrip("^").split(":")[0]
            while source in sources and source not in graph.parameters:
                source = sources[source]
            found.add(source)
    return found & set(graph.parameters)


def _converted(graph: FlatGraph, what: str, constant: set[str]) -> onnx.ModelProto:
    import tensorflow as tf
    from tf2onnx import tfonnx

    graph_def = _with_parameters(graph, constant)
    arguments = [f"{name}:0" for name in graph.parameters if name not in constant]
    inputs = [*graph.inputs, *arguments]
    outputs = list(dict.fromkeys(name for name, _ in graph.outputs))
    try:
        with tf.device("/cpu:0"), tf.Graph().as_default() as tf_graph:
            tf.import_graph_def(graph_def, name="")
            main, bodies = tfonnx.graphs_from_tf(tf_graph, inputs, outputs)
            return to_onnx(main, bodies, tflite=False, what=what)
    except LoweringError:
        raise
    except Exception as error:  # tf2onnx's reader raises whatever it stumbles over
        raise LoweringError(f"{what} has no ONNX form: {first_line(error)}.") from error


def _with_parameters(graph: FlatGraph, constant: set[str]) -> Any:
    """A copy of the graph in which every parameter is a placeholder, or a constant where ``constant`` says so."""
    import tensorflow as tf

    copy = type(graph.graph_def)()
    copy.CopyFrom(graph.graph_def)
    for node in copy.node:
        if node.name not in graph.parameters:
            continue
        value = graph.parameters[node.name][1]
        node.op = "Const" if node.name in constant else "Placeholder"
        node.attr.clear()
        node.attr["dtype"].type = tf.as_dtype(value.dtype).as_datatype_enum
        if node.name in constant:
            node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(value))
        else:
            node.attr["shape"].shape.CopyFrom(tf.TensorShape(value.shape).as_proto())
    return copy


def _renamed(proto: onnx.ModelProto, graph: FlatGraph) -> onnx.ModelProto:
    """Give inputs, outputs and parameters their final names."""
    wanted = {**graph.inputs, **{f"{node}:0": name for node, (name, _) in graph.parameters.items()}}
    produced = {name for node in proto.graph.node for name in node.output}
    repeated = []
    for tensor, name in graph.outputs:
        if tensor in produced and tensor not in wanted:
            wanted[tensor] = name
        else:
            repeated.append((tensor, name))
    present = _values(proto.graph)
    renames = {old: new for old, new in wanted.items() if old != new and old in present}
    for name in set(renames.values()) & (present - set(renames)):  # a bystander must give way
        renames[name] = _free(name, present | set(wanted.values()))
    rename_values(proto.graph, renames)
    _order_outputs(proto, graph, {tensor: wanted[tensor] for tensor, _ in repeated if tensor in wanted}, repeated)
    return proto


def _order_outputs(
    proto: onnx.ModelProto, graph: FlatGraph, known: Mapping[str, str], repeated: Iterable[tuple[str, str]]
) -> None:
    """Outputs in the asked order; one that repeats another or is an input gets an Identity of its own."""
    by_name = {info.name: info for info in (*proto.graph.input, *proto.graph.output)}
    for tensor, name in repeated:
        copied = onnx.ValueInfoProto()
        copied.CopyFrom(by_name[known[tensor]])
        copied.name = name
        by_name[name] = copied
        proto.graph.node.append(onnx.helper.make_node("Identity", [known[tensor]], [name], name=f"{name}/Identity"))
    ordered = [by_name[name] for _, name in graph.outputs]
    del proto.graph.output[:]
    proto.graph.output.extend(ordered)


def _bound(proto: onnx.ModelProto, graph: FlatGraph) -> onnx.ModelProto:
    """Turn the parameter inputs into initializers; those that nothing reads are dropped."""
    values = dict(graph.parameters.values())
    read = _read(proto.graph) | {info.name for info in proto.graph.output}
    folded = {tensor.name for tensor in proto.graph.initializer}
    kept = [info for info in proto.graph.input if info.name not in values]
    del proto.graph.input[:]
    proto.graph.input.extend(kept)
    proto.graph.initializer.extend(
        onnx.numpy_helper.from_array(np.ascontiguousarray(value).reshape(value.shape), name)
        for name, value in values.items() if name in read - folded
    )
    return proto


def unique(names: Iterable[str]) -> list[str]:
    """The names, made unique by ``_1``, ``_2`` ... where they repeat."""
    taken: set[str] = set()
    made = []
    for name in names:
        free = name if name not in taken else _free(name, taken)
        taken.add(free)
        made.append(free)
    return made


def _free(name: str, taken: set[str]) -> str:
    count = 1
    while f"{name}_{count}" in taken:
        count += 1
    return f"{name}_{count}"


def _read(graph: onnx.GraphProto) -> set[str]:
    return {name for part in subgraphs(graph) for node in part.node for name in node.input}


def _values(graph: onnx.GraphProto) -> set[str]:
    found: set[str] = set()
    for part in subgraphs(graph):
        for node in part.node:
            found.update(node.input, node.output)
        found.update(v.name for v in (*part.input, *part.output, *part.initializer))
    return found
