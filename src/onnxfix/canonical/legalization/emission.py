"""Write a legalised model: outputs as converters expect them, names that every framework can have."""

from __future__ import annotations

import re

import onnx
import onnx_ir as ir

from onnxfix.canonical.inference import is_open
from onnxfix.canonical.ingest import DECLARED
from onnxfix.canonical.rewriting import lowered_of

# The IR version that goes with opset 17.
_IR_VERSION = 8


def emit(model: ir.Model, *, distinct: bool) -> onnx.ModelProto:
    """Serialise the model.

    Args:
        model: The model; it is changed.
        distinct: Make every output the only output of a node of its own.
    """
    graph = model.graph
    _read_constants(graph)
    if distinct:
        _separate_outputs(graph)
    graph.sort()
    _declare_outputs(graph)
    _name_constants(graph)
    _name_nodes(graph)
    for node in graph.all_nodes():
        while node.inputs and node.inputs[-1] is None:  # converters take an empty name for an operand
            node.resize_inputs(len(node.inputs) - 1)
        node.metadata_props.clear()
        node.doc_string = None
        for output in node.outputs:
            output.metadata_props.clear()
            if output.shape is not None and not output.is_graph_output():
                output.shape = ir.Shape([None if is_open(dim) else dim for dim in output.shape])
    used = {node.domain for node in graph.all_nodes()}
    imports = {domain: version for domain, version in model.opset_imports.items() if domain in used or domain == ""}
    clean = ir.Model(graph, ir_version=_IR_VERSION)
    clean.opset_imports.update(imports)
    proto: onnx.ModelProto = ir.serde.serialize_model(clean)
    return proto


def _read_constants(graph: ir.Graph) -> None:
    """Let nodes read a constant itself, not the copy of it that is an output of the model."""
    for node in graph:
        source = node.inputs[0] if node.op_type == "Identity" else None
        if source is not None and source.is_initializer():
            for usage in tuple(node.outputs[0].uses()):
                usage.node.replace_input_with(usage.idx, source)


def _separate_outputs(graph: ir.Graph) -> None:
    """Put an Identity before an output that is an input, a constant, another output, or one of several of a node."""
    seen: set[ir.Value] = set()
    for index, output in enumerate(list(graph.outputs)):
        producer = output.producer()
        if producer is not None and len(producer.outputs) == 1 and output not in seen:
            seen.add(output)
            continue
        copy = ir.node("Identity", [output])
        copy.meta.update({} if producer is None else producer.meta)
        graph.append(copy)
        copy.outputs[0].type, copy.outputs[0].shape = output.type, output.shape
        graph.outputs[index] = copy.outputs[0]
        if producer is not None and output not in seen:
            name, output.name = output.name, f"{output.name}_value"
            copy.outputs[0].name = name
        seen.add(copy.outputs[0])


def _declare_outputs(graph: ir.Graph) -> None:
    """Outputs keep the types that the lowered model declares."""
    for output, (kind, shape) in zip(graph.outputs, graph.meta[DECLARED], strict=True):
        output.type = kind or output.type
        output.shape = output.shape if shape is None else shape


def _name_nodes(graph: ir.Graph) -> None:
    """Name each node as the lowered one that it came from; of names listed between semicolons, the last one.

    No node has the name of a constant: onnx2torch keeps both in one table.
    """
    seen = {value.name for value in (*graph.inputs, *graph.initializers.values())}
    for node in graph:
        lowered = next(iter(lowered_of(node)), "") or node.op_type
        name = re.sub(r"[^\w/:-]", "_", lowered.split(";")[-1]).strip("/:_") or node.op_type
        if name.isidentifier() and not any(c.isdigit() for c in name):
            name = f"{name}_{node.op_type.lower()}"  # modules have attributes with plain names, such as "type"
        unique, count = name, 0
        while unique in seen:
            count += 1
            unique = f"{name}__{count}"
        seen.add(unique)
        node.name = unique


def _name_constants(graph: ir.Graph) -> None:
    """Parameters keep their names; constants that rules made are numbered from zero, not by a running count."""
    taken = {value.name for value in (*graph.inputs, *graph.outputs)}
    taken |= {output.name for node in graph for output in node.outputs}
    constants = list(graph.initializers.values())
    graph.initializers.clear()
    for value in constants:
        stem = name = (value.name or "constant").partition("@")[0]
        count = 0
        while name in taken:
            count += 1
            name = f"{stem}_{count}"
        taken.add(name)
        value.name = name
        graph.register_initializer(value)
