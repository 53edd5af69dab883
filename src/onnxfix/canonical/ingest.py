"""Read a lowered model into the intermediate form: every node knows its name, every constant its origin."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from onnxfix import mapped
from onnxfix.canonical.deferred import LARGE, borrowed
from onnxfix.canonical.origins import Parameter
from onnxfix.canonical.rewriting import LOWERED, ORIGIN, SPILL, dense
from onnxfix.errors import CanonicalizationError

# Types and shapes of the outputs as the lowered model declares them.
DECLARED = "onnxfix.declared"


class LoweredParameters(Mapping[str, np.ndarray]):
    """Initializers and Constant outputs of a lowered model by name, converted to arrays when asked for."""

    def __init__(self, proto: onnx.ModelProto) -> None:
        self._proto = proto
        self._tensors: dict[str, onnx.TensorProto] = {t.name: t for t in proto.graph.initializer}
        self._constants: dict[str, onnx.NodeProto] = {
            n.output[0]: n for n in proto.graph.node if n.op_type == "Constant" and n.domain in ("", "ai.onnx")
        }
        for name, constant in inner_constants(proto.graph).items():
            if isinstance(constant, onnx.TensorProto):
                self._tensors[name] = constant
            else:
                self._constants[name] = constant

    def __getitem__(self, name: str) -> np.ndarray:
        if name in self._tensors:
            return mapped.to_array(self._tensors[name])
        value = constant_value(ir.serde.deserialize_node(self._constants[name]))
        if value is None:
            raise KeyError(name)
        return value

    def __iter__(self) -> Iterator[str]:
        yield from self._tensors
        yield from self._constants

    def __len__(self) -> int:
        return len(self._tensors) + len(self._constants)


def inner_constants(graph: onnx.GraphProto) -> dict[str, onnx.TensorProto | onnx.NodeProto]:
    """Initializers and Constant nodes of control-flow bodies, whose names no other constant of the model has."""
    found: dict[str, onnx.TensorProto | onnx.NodeProto] = {}
    taken = {t.name for t in graph.initializer} | {n.output[0] for n in graph.node if n.op_type == "Constant"}
    repeated: set[str] = set()
    waiting = _bodies(graph)
    while waiting:
        body = waiting.pop()
        waiting += _bodies(body)
        constants = [(t.name, t) for t in body.initializer]
        for name, constant in (*constants, *((n.output[0], n) for n in body.node if n.op_type == "Constant")):
            if name in found or name in taken:
                repeated.add(name)
            found[name] = constant
    return {name: constant for name, constant in found.items() if name not in repeated}


def _bodies(graph: onnx.GraphProto) -> list[onnx.GraphProto]:
    attributes = [attribute for node in graph.node for attribute in node.attribute if attribute.g or attribute.graphs]
    return [body for a in attributes for body in ([a.g] if a.type == onnx.AttributeProto.GRAPH else a.graphs)]


def ingest(proto: onnx.ModelProto, batch: int | None = None) -> ir.Model:
    """Build the intermediate form of a lowered model, which is left unchanged.

    Functions are inlined; initializers and Constant nodes of the main graph become constants whose origin is the
    parameter of their name; initializers listed among the inputs stop being inputs.

    Args:
        proto: The lowered model.
        batch: What a symbolic first dimension of the inputs is to be; None leaves it symbolic.

    Raises:
        CanonicalizationError: the model calls its functions in a cycle, or a function cannot be inlined.
    """
    model = ir.serde.deserialize_model(proto)
    for value, declared in zip(model.graph.inputs, proto.graph.input, strict=True):
        if value.is_graph_output():  # of an input that is an output, too, the types of both were read into one value
            value.type = ir.serde.deserialize_type_proto_for_type(declared.type)
            value.shape = ir.serde.deserialize_type_proto_for_shape(declared.type)
    _rename_symbols(model.graph)
    if batch is not None:
        _bind_batch(model.graph, batch)
    model.graph.meta[DECLARED] = [(output.type, output.shape) for output in model.graph.outputs]
    _open_outputs(model.graph)
    _stamp(model)
    _inline(model)
    graph = model.graph
    references = {
        t.name: ir.Tensor(mapped.to_array(t), dtype=ir.DataType(t.data_type)) for t in mapped.references(proto)
    }
    for value in list(graph.initializers.values()):
        if value.const_value is None:
            raise CanonicalizationError(f"initializer {value.name} has no data: load the model with its external data.")
        _own(value, references.get(value.name or "", value.const_value))
    if references:
        graph.meta[SPILL] = mapped.Spill(mapped.files(tensor.numpy() for tensor in references.values()))
    constants = set(graph.initializers.values())
    for body in graph.subgraphs():
        for value in body.initializers.values():
            if value.const_value is not None:
                value.const_value = detached(value.const_value, value.name)
    own = inner_constants(proto.graph)
    for body in graph.subgraphs():
        for value in (*body.initializers.values(), *(n.outputs[0] for n in body if n.op_type == "Constant")):
            if value.name in own:
                value.meta[ORIGIN] = Parameter(value.name or "")
    kept = [value for value in graph.inputs if value not in constants]
    graph.inputs.clear()
    graph.inputs.extend(kept)
    _lift(graph)
    return model


def _rename_symbols(graph: ir.Graph) -> None:
    """Rename input dimensions that are called as shape inference calls the unknown ones (tf2onnx: ``unk__5692``)."""
    given = {dim.value for value in graph.inputs for dim in value.shape or () if isinstance(dim, ir.SymbolicDim)}
    names = {name: name.replace("unk__", "dim_") for name in given if name is not None and name.startswith("unk__")}
    if not names:
        return
    values = [*graph.inputs, *graph.outputs, *(output for node in graph for output in node.outputs)]
    for value in dict.fromkeys(values):
        if value.shape is not None:
            value.shape = ir.Shape(
                [names.get(d.value, d.value) if isinstance(d, ir.SymbolicDim) and d.value else d for d in value.shape]
            )


def _open_outputs(graph: ir.Graph) -> None:
    """Dimensions of outputs that are called as no dimension of an input is say nothing: let inference find them."""
    given = {dim.value for value in graph.inputs for dim in value.shape or () if isinstance(dim, ir.SymbolicDim)}
    for output in graph.outputs:
        if output.shape is not None and not output.is_graph_input():
            output.shape = ir.Shape([d if isinstance(d, int) or d.value in given else None for d in output.shape])


def _bind_batch(graph: ir.Graph, batch: int) -> None:
    """Replace symbolic first dimensions of the inputs by a number, wherever their symbols occur."""
    symbols: set[str] = set()
    for value in graph.inputs:
        if value.shape is not None and len(value.shape) and isinstance(value.shape[0], ir.SymbolicDim):
            symbols |= {name for name in (value.shape[0].value,) if name}
            value.shape = ir.Shape([batch, *value.shape[1:]])
    for value in (*graph.inputs, *graph.outputs, *(output for node in graph for output in node.outputs)):
        if value.shape is not None and any(isinstance(d, ir.SymbolicDim) and d.value in symbols for d in value.shape):
            value.shape = ir.Shape(
                [batch if isinstance(d, ir.SymbolicDim) and d.value in symbols else d for d in value.shape]
            )


def _own(value: ir.Value, tensor: ir.TensorProtocol) -> None:
    """Detach a constant from the lowered model's tensor, whose name must not follow ours."""
    value.const_value = detached(tensor, value.name)
    value.shape, value.type = ir.Shape(tensor.shape.numpy()), ir.TensorType(tensor.dtype)
    value.meta[ORIGIN] = Parameter(value.name or "")


def detached(tensor: ir.TensorProtocol, name: str | None) -> ir.TensorProtocol:
    """The same content under a name of its own."""
    if tensor.dtype == ir.DataType.STRING:
        return dense(np.asarray(tensor.numpy()), name)
    if tensor.size >= LARGE and not isinstance(tensor, ir.Tensor):
        return borrowed(tensor, name)
    return ir.Tensor(tensor.numpy(), name=name, dtype=tensor.dtype)


def _stamp(model: ir.Model) -> None:
    for node in model.graph.all_nodes():
        name = node.name or next((o.name for o in node.outputs if o.name), "")
        node.meta[LOWERED] = (name,)
        node.domain = "" if node.domain == "ai.onnx" else node.domain
        node.metadata_props.clear()
        if model.functions:
            node.metadata_props[LOWERED] = name


def _inline(model: ir.Model) -> None:
    """Inline functions; their nodes stand for the call, and keep the opset they were written for."""
    if not model.functions:
        return
    version = model.opset_imports.get("", 0)
    for function in model.functions.values():
        own = function.opset_imports.get("", version)
        for node in function.all_nodes():
            node.metadata_props.clear()
            if node.domain in ("", "ai.onnx") and own != version:
                node.version = own
        function.opset_imports[""] = version
    try:
        InlinePass()(model)
    except (ir.passes.InvariantError, ValueError) as error:
        raise CanonicalizationError(f"the model's functions cannot be inlined: {error}") from error
    for node in model.graph.all_nodes():
        name = node.metadata_props.pop(LOWERED, None)
        if LOWERED not in node.meta:
            node.meta[LOWERED] = () if name is None else (name,)


def _lift(graph: ir.Graph) -> None:
    """Turn Constant nodes of the main graph into initializers."""
    for node in list(graph):
        if node.op_type != "Constant" or node.domain not in ("", "ai.onnx"):
            continue
        content, old = constant_value(node), node.outputs[0]
        if content is None or old.name is None:
            continue
        name = f"{old.name}@output" if old.is_graph_output() else old.name
        new = ir.val(name, const_value=dense(content, name))
        new.meta[ORIGIN] = Parameter(old.name)
        if old.is_graph_output():
            graph.register_initializer(new)
            _copy_to_output(graph, node, new)
            continue
        old.replace_all_uses_with(new)
        old.name = None
        graph.remove(node, safe=True)
        graph.register_initializer(new)


def _copy_to_output(graph: ir.Graph, node: ir.Node, constant: ir.Value) -> None:
    """Let a graph output that is a Constant node's be a copy of the constant, which all others read themselves."""
    old, name = node.outputs[0], node.outputs[0].name
    copy = ir.node("Identity", [constant])
    copy.meta.update(node.meta)
    graph.insert_before(node, copy)
    old.name = None
    copy.outputs[0].name, copy.outputs[0].type, copy.outputs[0].shape = name, constant.type, constant.shape
    for index, output in enumerate(graph.outputs):
        if output is old:
            graph.outputs[index] = copy.outputs[0]
    old.replace_all_uses_with(constant)
    graph.remove(node, safe=True)


def constant_value(node: ir.Node) -> np.ndarray | None:
    """The value of a Constant node, or None if it is no dense tensor of numbers or strings."""
    for name, attr in node.attributes.items():
        if name == "value":
            return np.asarray(attr.as_tensor().numpy())
        if name == "value_float":
            return np.asarray(attr.as_float(), dtype=np.float32)
        if name == "value_floats":
            return np.asarray(attr.as_floats(), dtype=np.float32)
        if name == "value_int":
            return np.asarray(attr.as_int(), dtype=np.int64)
        if name == "value_ints":
            return np.asarray(attr.as_ints(), dtype=np.int64)
        if name == "value_string":
            return np.asarray(attr.as_string().encode(), dtype=object)
        if name == "value_strings":
            return np.asarray([text.encode() for text in attr.as_strings()], dtype=object)
    return None
