"""Shape inference by onnx over a whole graph: what it is shown of the model, and what is read back."""

from __future__ import annotations

import onnx
import onnx_ir as ir

# Constants of more bytes are shown by their type and shape alone.
_SHOWN = 1000


def infer_by_onnx(model: ir.Model) -> None:
    """Set shapes and types of the values to what onnx infers from the inputs on, and leave the rest as it is.

    Where onnx refuses the model, nothing is changed. Types of sequences, optionals and maps are left alone.
    """
    try:
        found = onnx.shape_inference.infer_shapes(_shown(model), check_type=False, strict_mode=False, data_prop=True)
    except (onnx.shape_inference.InferenceError, onnx.checker.ValidationError, RuntimeError, ir.serde.SerdeError):
        return
    _read(model.graph, found.graph)


def _shown(model: ir.Model) -> onnx.ModelProto:
    """The model without its weights, all constants listed among the inputs."""
    proto = onnx.ModelProto(ir_version=model.ir_version)
    for domain, version in model.opset_imports.items():
        proto.opset_import.add(domain=domain, version=version)
    proto.functions.extend(map(ir.serde.serialize_function, model.functions.values()))
    graph, shown = model.graph, proto.graph
    shown.name = graph.name or "graph"
    for value in dict.fromkeys((*graph.inputs, *graph.initializers.values())):
        _write(shown.input.add(), value)
    for value in graph.initializers.values():
        if value.const_value is not None and value.const_value.nbytes <= _SHOWN:
            value.const_value.name = value.name
            ir.serde.serialize_tensor_into(shown.initializer.add(), value.const_value)
    for node in graph:
        ir.serde.serialize_node_into(shown.node.add(), node)
        for output in node.outputs:
            if not output.is_graph_output() and output.name and (output.type is not None or output.shape is not None):
                _write(shown.value_info.add(), output)
    for value in graph.outputs:
        _write(shown.output.add(), value)
    return proto


def _write(info: onnx.ValueInfoProto, value: ir.Value) -> None:
    if isinstance(value.type, ir.TensorType):
        info.name = value.name or ""
        write_type(info.type, value)
    else:
        ir.serde.serialize_value_into(info, value)


def write_type(proto: onnx.TypeProto, value: ir.Value) -> None:
    """Write type and shape of a value, as far as they are known."""
    if not isinstance(value.type, ir.TensorType):
        if value.type is not None:
            ir.serde.serialize_type_into(proto, value.type)
        return
    tensor = proto.tensor_type
    tensor.elem_type = value.type.dtype.value
    if value.shape is None:
        return
    tensor.shape.SetInParent()
    for size in value.shape:
        if isinstance(size, int):
            tensor.shape.dim.add(dim_value=size)
        elif size.value is None:
            tensor.shape.dim.add()
        else:
            tensor.shape.dim.add(dim_param=size.value)


def _read(graph: ir.Graph, found: onnx.GraphProto) -> None:
    types = {info.name: info.type for info in (*found.value_info, *found.input, *found.output)}
    for value in graph.inputs:
        _assign(value, types)
    for node, proto in zip(graph, found.node, strict=True):
        for output in node.outputs:
            _assign(output, types)
        for attribute in proto.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                _read(node.attributes[attribute.name].as_graph(), attribute.g)
            elif attribute.type == onnx.AttributeProto.GRAPHS:
                for body, inner in zip(node.attributes[attribute.name].as_graphs(), attribute.graphs, strict=True):
                    _read(body, inner)


def _assign(value: ir.Value, types: dict[str, onnx.TypeProto]) -> None:
    found = types.get(value.name or "")
    if found is None or not found.HasField("tensor_type"):
        return
    tensor = found.tensor_type
    if tensor.HasField("shape"):
        shape = [dim.dim_value if dim.HasField("dim_value") else (dim.dim_param or None) for dim in tensor.shape.dim]
        if value.shape is None or value.shape != shape:
            value.shape = ir.Shape(shape)
    if tensor.elem_type and value.dtype != tensor.elem_type:
        value.type = ir.TensorType(ir.DataType(tensor.elem_type))
