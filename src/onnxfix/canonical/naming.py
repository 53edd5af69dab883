"""Write the intermediate form as a model whose node order and names follow from structure alone."""

from __future__ import annotations

from collections import Counter

import onnx
import onnx_ir as ir

from onnxfix import mapped
from onnxfix.canonical.deferred import write
from onnxfix.canonical.inference import is_open
from onnxfix.canonical.ingest import DECLARED, detached
from onnxfix.canonical.origins import EXPRESSION_OPSET, Origin
from onnxfix.canonical.rewriting import LOWERED, SPILL, lowered_of, origin_of

# Constants larger than this many elements that several nodes share stay shared; smaller ones get one copy per use.
_SHARED = 2**18
# The IR version that goes with opset 21.
_IR_VERSION = 10


def order_nodes(graph: ir.Graph) -> None:
    """Put the nodes in the order in which a walk from the outputs, operand by operand, completes them."""
    done: dict[ir.Node, None] = {}
    for output in graph.outputs:
        root = output.producer()
        if root is None:
            continue
        stack: list[tuple[ir.Node, list[ir.Node]]] = [(root, _operands(root))]
        started = {root}
        while stack:
            node, waiting = stack[-1]
            if node in done:
                stack.pop()
            elif waiting:
                after = waiting.pop()
                if after not in done and after not in started:
                    started.add(after)
                    stack.append((after, _operands(after)))
            else:
                done[node] = None
                stack.pop()
    order = [*done, *(node for node in graph if node not in done)]
    if order != list(graph):
        graph.remove(order)
        graph.extend(order)


def _operands(node: ir.Node) -> list[ir.Node]:
    """Nodes of the same graph that a node reads, captured values included, last operand first."""
    found = [value.producer() for value in node.inputs if value is not None]
    for subgraph in _subgraphs(node):
        found += [v.producer() for inner in subgraph.all_nodes() for v in inner.inputs
                  if v is not None and v.graph is node.graph]
    return [operand for operand in reversed(found) if operand is not None and operand.graph is node.graph]


def _subgraphs(node: ir.Node) -> list[ir.Graph]:
    found: list[ir.Graph] = []
    for attr in node.attributes.values():
        if attr.type == ir.AttributeType.GRAPH:
            found.append(attr.as_graph())
        elif attr.type == ir.AttributeType.GRAPHS:
            found.extend(attr.as_graphs())
    return found


def name_structurally(graph: ir.Graph) -> None:
    """Name nodes ``conv_12`` by op and order, their outputs alike, constants by the operand they are.

    Graph inputs and outputs keep their names.
    """
    fixed = {value.name for value in (*graph.inputs, *graph.outputs)}
    _set_aside_names(graph, fixed)
    _split_small_constants(graph)
    counts: Counter[str] = Counter()
    for node in graph:
        stem = node.op_type.lower()
        node.name = f"{stem}_{counts[stem]}"
        while any(f"{node.name}{suffix}" in fixed for suffix in ("", ".1", ".2", ".3")):
            node.name += "_"
        counts[stem] += 1
        for index, output in enumerate(node.outputs):
            if not output.is_graph_output() and output.name != "":
                output.name = node.name if index == 0 else f"{node.name}.{index}"
        for index, value in enumerate(node.inputs):
            if value is not None and value.is_initializer() and (value.name or "").startswith("%"):
                value.name = f"{node.name}.{_operand_name(node, index)}"
        _name_inside(node)
    constants = sorted(graph.initializers.values(), key=lambda v: v.name or "")
    graph.initializers.clear()
    for value in constants:
        graph.register_initializer(value)


def _set_aside_names(graph: ir.Graph, fixed: set[str | None]) -> None:
    """Rename everything out of the way of the new names, keeping the origins that the old names stood for."""
    for index, value in enumerate(list(graph.initializers.values())):
        origin_of(value)
        value.name = f"%{index}"
    for index, node in enumerate(graph):
        for k, output in enumerate(node.outputs):
            if output.name not in fixed and output.name != "":
                output.name = f"%{index}.{k}"


def _split_small_constants(graph: ir.Graph) -> None:
    for value in list(graph.initializers.values()):
        if value.const_value is None or value.const_value.size > _SHARED:
            continue
        for use in tuple(value.uses())[1:]:
            copy = ir.val(f"%{len(graph.initializers)}.{use.node.name}.{use.idx}",
                          const_value=detached(value.const_value, None))
            copy.meta.update(value.meta)
            graph.register_initializer(copy)
            use.node.replace_input_with(use.idx, copy)


def _operand_name(node: ir.Node, index: int) -> str:
    try:
        formal = onnx.defs.get_schema(node.op_type, EXPRESSION_OPSET, node.domain).inputs
    except onnx.defs.SchemaError:
        return f"in{index}"  # a plain number is the name of an output
    if index < len(formal) and formal[index].option != onnx.defs.OpSchema.FormalParameterOption.Variadic:
        return str(formal[index].name).lower()
    return f"in{index}"


def _name_inside(node: ir.Node) -> None:
    """Keep names inside a control-flow node apart from all names outside it."""
    for number, subgraph in enumerate(_subgraphs(node)):
        count = 0
        for value in (*subgraph.inputs, *list(subgraph.initializers.values())):
            value.name = f"{node.name}/{number}/{count}"
            count += 1
        for inner in subgraph:
            inner.name = f"{node.name}/{number}/node_{count}"
            for index, operand in enumerate(inner.inputs):
                if operand is not None and operand.is_initializer() and (operand.name or "").startswith("%"):
                    operand.name = f"{inner.name}.{_operand_name(inner, index)}"
            for output in inner.outputs:
                if output.name != "":
                    output.name = f"{node.name}/{number}/{count}"
                    count += 1
            _name_inside(inner)


def _declare_outputs(graph: ir.Graph) -> None:
    """Outputs keep the dimensions that the lowered model declares; those it leaves open are filled in."""
    for output, (kind, shape) in zip(graph.outputs, graph.meta[DECLARED], strict=True):
        output.type = kind or output.type
        if output.shape is not None:
            output.shape = ir.Shape([None if is_open(dim) else dim for dim in output.shape])
        if shape is None or output.shape is None or len(shape) != len(output.shape):
            output.shape = shape or output.shape
            continue
        output.shape = ir.Shape(
            [new if isinstance(new, int) or (isinstance(old, ir.SymbolicDim) and old.value is None) else old
             for old, new in zip(shape, output.shape, strict=True)]
        )


def _forget_placeholders(value: ir.Value) -> None:
    """Leave dimensions open that shape inference only numbered (``unk__3``): the numbers say nothing."""
    if value.shape is not None and not value.is_graph_output():
        value.shape = ir.Shape([None if is_open(dim) else dim for dim in value.shape])


def _in_files(graph: ir.Graph) -> dict[str, tuple[mapped.MappedFile, int, int]]:
    """Let constants that lie in mapped files be written as references; where each lies: file, offset and length."""
    places: dict[str, tuple[mapped.MappedFile, int, int]] = {}
    spill = graph.meta.get(SPILL)
    if not isinstance(spill, mapped.Spill):
        return places
    for name, constant in graph.initializers.items():
        tensor = constant.const_value
        if tensor is None or tensor.dtype == ir.DataType.STRING:
            continue
        content = spill.keep(tensor.numpy())
        spill.release()
        found = mapped.mapping_of(content)
        if found is not None:
            shape = ir.Shape(content.shape)
            constant.const_value = ir.ExternalTensor(
                found[0].path, found[1], content.nbytes, tensor.dtype, shape=shape, name=name
            )
            places[name] = (*found, content.nbytes)
    return places


def _written(graph: ir.Graph) -> onnx.ModelProto:
    """The graph as a model."""
    proto = onnx.ModelProto(ir_version=_IR_VERSION)
    for domain, version in graph.opset_imports.items():
        proto.opset_import.add(domain=domain, version=version)
    proto.graph.name = graph.name or ""
    for value in graph.inputs:
        ir.serde.serialize_value_into(proto.graph.input.add(), value)
    for name, constant in graph.initializers.items():
        ir.serde.serialize_value_into(proto.graph.value_info.add(), constant)
        if constant.const_value is not None:
            write(proto.graph.initializer.add(), constant.const_value, name)
    for node in graph:
        ir.serde.serialize_node_into(proto.graph.node.add(), node)
        for output in node.outputs:
            known = output.shape is not None or output.type is not None
            if known and output.name and not output.is_graph_output():
                ir.serde.serialize_value_into(proto.graph.value_info.add(), output)
    for value in graph.outputs:
        ir.serde.serialize_value_into(proto.graph.output.add(), value)
    return proto


def emit(model: ir.Model) -> tuple[onnx.ModelProto, dict[str, Origin], dict[str, tuple[str, ...]]]:
    """Serialise the named graph.

    Returns:
        The model, the origins of its constants by name, and the provenance of its nodes by name.
    """
    graph = model.graph
    for node in graph.all_nodes():
        if (attributes := sorted(node.attributes.items())) != list(node.attributes.items()):
            node.attributes.clear()
            node.attributes.update(attributes)
    order_nodes(graph)
    name_structurally(graph)
    _declare_outputs(graph)
    used = {node.domain for node in graph.all_nodes()} - {"", "ai.onnx"}
    versions = dict(model.opset_imports)
    for node in graph.all_nodes():
        node.metadata_props.clear()
        node.doc_string = None
        if node.domain == "ai.onnx":
            node.domain = ""
        for output in node.outputs:
            output.metadata_props.clear()
            output.doc_string = None
            _forget_placeholders(output)
    model.opset_imports.clear()
    model.opset_imports.update({"": versions.get("", EXPRESSION_OPSET), **{d: versions[d] for d in sorted(used)}})
    graph.name, graph.doc_string = "canonical", None
    graph.metadata_props.clear()
    places = _in_files(graph)
    proto = _written(graph)
    for tensor in mapped.references(proto):
        mapped.refer(tensor, *places[tensor.name])
    origins = {name: origin_of(value) for name, value in graph.initializers.items()}
    return proto, origins, {node.name or "": lowered_of(node) for node in graph}


__all__ = ["LOWERED", "emit", "name_structurally", "order_nodes"]
