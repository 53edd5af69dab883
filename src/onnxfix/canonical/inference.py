"""Shapes and types of values: the whole graph once, then node by node as passes create nodes."""

from __future__ import annotations

from functools import cache

import numpy as np
import onnx
import onnx_ir as ir

from onnxfix.canonical.graph_inference import infer_by_onnx, write_type
from onnxfix.canonical.origins import EXPRESSION_OPSET

_POOLS = ("AveragePool", "MaxPool", "LpPool")
# Constants up to this many elements are shown to shape inference: targets, axes, pads, sizes.
_SMALL = 64
_IMPORTS = [onnx.helper.make_opsetid("", EXPRESSION_OPSET)]


def infer_graph(model: ir.Model, *, trust: bool = True) -> bool:
    """Infer shapes and types of all values.

    Args:
        model: The model, whose values get the shapes.
        trust: Build on the shapes that intermediate values have; else they only fill what inference leaves open.

    Returns:
        Whether any value got a shape it did not have.
    """
    values = [output for node in model.graph.all_nodes() for output in node.outputs if not output.is_graph_output()]
    declared = [(value, value.shape) for value in values]
    for value in values:
        value.shape = value.shape if trust else None
    infer_by_onnx(model)
    for value, shape in declared:
        if value.shape is None or (shape is not None and len(shape) == len(value.shape)):
            value.shape = shape if value.shape is None else _refined(value.shape, shape)
    _correct_sizes(model.graph)
    return any(value.shape != shape for value, shape in declared)


def _correct_sizes(graph: ir.Graph) -> None:
    """Where rounding decides a size, take onnxruntime's.

    Of a Resize it is ``floor(float32(size) * float32(scale))``; onnx multiplies otherwise: 9 * 1.4444444 is 12 there
    and 13 when the model runs. Of a pool with ceil_mode, windows that start behind the map do not count; onnx counts
    them. A transposed convolution with SAME padding multiplies the size by the stride; onnx adds output_padding.
    """
    corrected: set[ir.Value] = set()
    for node in graph:
        output = node.outputs[0] if node.outputs else None
        if output is None or output.shape is None:
            continue
        before = output.shape
        if (known := _runtime_size(node)) is not None:
            output.shape = known
        elif any(value in corrected for value in node.inputs):
            output.shape = None
            infer_node(node)
            output.shape = output.shape or before
        if output.shape != before:
            corrected.add(output)
            if node.op_type in _POOLS:
                for index in node.outputs[1:]:
                    index.shape = output.shape


def _runtime_size(node: ir.Node) -> ir.Shape | None:
    """The shape that onnxruntime gives to a node's output, where onnx may say otherwise or less."""
    if node.op_type == "Resize":
        return _resized(node)
    if node.op_type in _POOLS and node.attributes.get_int("ceil_mode", 0):  # type: ignore[arg-type]
        return _pooled(node)
    if node.op_type == "ConvTranspose":
        return _unpooled(node)
    return _tiled(node) if node.op_type == "Tile" else None


def _unpooled(node: ir.Node) -> ir.Shape | None:
    """``size * stride`` of a transposed convolution that SAME padding crops, to which onnx adds output_padding."""
    source, kernel, known = node.inputs[0], node.inputs[1], node.outputs[0].shape
    if not node.attributes.get_string("auto_pad", "NOTSET").startswith("SAME") or "output_shape" in node.attributes:
        return None
    if source is None or source.shape is None or kernel is None or kernel.shape is None or known is None:
        return None
    count = len(source.shape) - 2
    strides, dilations = (node.attributes.get_ints(name) or [1] * count for name in ("strides", "dilations"))
    extra = node.attributes.get_ints("output_padding") or [0] * count
    sizes = list(known)
    for k, (size, width) in enumerate(zip(source.shape[2:], kernel.shape[2:], strict=True)):
        if not isinstance(size, int) or not isinstance(width, int):
            continue
        if (width - 1) * dilations[k] + 1 + extra[k] >= strides[k]:
            sizes[k + 2] = size * strides[k]
    return ir.Shape(sizes)


def _tiled(node: ir.Node) -> ir.Shape | None:
    """What is repeated once keeps its symbol; onnx makes up a new one."""
    source, repeats = node.inputs[0], node.inputs[1].const_value if node.inputs[1] is not None else None
    shape = node.outputs[0].shape
    if source is None or source.shape is None or shape is None or repeats is None:
        return None
    counts = repeats.numpy().reshape(-1)
    if not len(counts) == len(source.shape) == len(shape):
        return None
    return ir.Shape([old if count == 1 else new for old, new, count in zip(source.shape, shape, counts, strict=True)])


def _resized(node: ir.Node) -> ir.Shape | None:
    source, scales = node.inputs[0], node.inputs[2] if len(node.inputs) > 2 else None
    if source is None or source.shape is None or scales is None or scales.const_value is None:
        return None
    factors = scales.const_value.numpy()
    if "axes" in node.attributes or len(factors) != len(source.shape):
        return None
    shape = node.outputs[0].shape
    dims = [int(np.float32(old) * np.float32(factor)) if isinstance(old, int) else new
            for old, new, factor in zip(source.shape, shape or source.shape, factors, strict=True)]
    return ir.Shape(dims)


def _pooled(node: ir.Node) -> ir.Shape | None:
    source, window = node.inputs[0], node.attributes.get_ints("kernel_shape")
    if source is None or source.shape is None or window is None or len(source.shape) != len(window) + 2:
        return None
    count, same = len(window), node.attributes.get_string("auto_pad", "NOTSET").startswith("SAME")
    strides, dilations = (node.attributes.get_ints(name) or [1] * count for name in ("strides", "dilations"))
    pads = node.attributes.get_ints("pads") or [0] * (2 * count)
    dims: list[int | ir.SymbolicDim] = list(source.shape[:2])
    inferred = node.outputs[0].shape
    for k, size in enumerate(source.shape[2:]):
        if not isinstance(size, int):
            dims.append(ir.SymbolicDim(None) if inferred is None else inferred[k + 2])
            continue
        if same:
            dims.append(-(-size // strides[k]))
            continue
        spare = size + pads[k] + pads[count + k] - (window[k] - 1) * dilations[k] - 1
        windows = -(-spare // strides[k]) + 1
        dims.append(windows - 1 if (windows - 1) * strides[k] >= size + pads[k] else windows)
    return ir.Shape(dims)


def _refined(inferred: ir.Shape, declared: ir.Shape | None) -> ir.Shape:
    """Fill the dimensions that inference left open with what an earlier, partial inference knew."""
    if declared is None:
        return inferred
    dims: list[int | ir.SymbolicDim] = []
    for new, old in zip(inferred, declared, strict=True):
        known = isinstance(old, int) or old.value is not None
        dims.append(old if is_open(new) and known else new)
    return ir.Shape(dims)


def refresh(graph: ir.Graph) -> bool:
    """Infer again, in order, what is still open of shapes after values before them became known.

    Returns:
        Whether anything became known.
    """
    changed = False
    for node in graph:
        if any(_is_open(output) for output in node.outputs):
            before = [(output.shape, output.type) for output in node.outputs]
            infer_node(node)
            node.outputs[0].shape = _runtime_size(node) or node.outputs[0].shape
            changed = changed or before != [(output.shape, output.type) for output in node.outputs]
    return changed


def is_settled(graph: ir.Graph) -> bool:
    """Whether all sizes are known as numbers, so that inference has nothing to add."""
    values = (output for node in graph.all_nodes() for output in node.outputs)
    return all(value.shape is not None and value.shape.is_static() for value in values if value.name)


def _is_open(value: ir.Value) -> bool:
    return value.shape is None or any(is_open(d) for d in value.shape)


def is_open(dim: int | ir.SymbolicDim) -> bool:
    """Whether a dimension is unknown, or a symbol that shape inference made up for one."""
    return isinstance(dim, ir.SymbolicDim) and (dim.value is None or dim.value.startswith("unk__"))


def infer_node(node: ir.Node) -> None:
    """Set shape and type of a node's outputs from its inputs, where they can be known; what is known stays."""
    schema = _schema(node.op_type) if node.domain in ("", "ai.onnx") else None
    if schema is None or any(attr.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
                             for attr in node.attributes.values()):
        return
    types: dict[str, onnx.TypeProto] = {}
    data: dict[str, onnx.TensorProto] = {}
    for value in node.inputs:
        if value is None or value.name is None:
            continue
        if value.type is None:
            return
        types[value.name] = _type_proto(value)
        tensor = value.const_value
        if tensor is not None and tensor.size <= _SMALL and tensor.dtype != ir.DataType.STRING:
            data[value.name] = onnx.numpy_helper.from_array(tensor.numpy(), value.name)
    try:
        found = onnx.shape_inference.infer_node_outputs(
            schema, ir.serde.serialize_node(node), types, data, opset_imports=_IMPORTS
        )
    except (onnx.shape_inference.InferenceError, onnx.checker.ValidationError, RuntimeError):
        return  # an op whose inference refuses these inputs: the values simply stay unknown
    for output in node.outputs:
        if output.name in found and found[output.name].HasField("tensor_type"):
            _assign(output, found[output.name])


def infer_behind(value: ir.Value) -> None:
    """Infer anew what depends on a value whose shape turned out to be another one than inference found."""
    waiting = [usage.node for usage in value.uses()]
    while waiting:
        node = waiting.pop(0)
        before = [output.shape for output in node.outputs]
        for output in node.outputs:
            if not output.is_graph_output():
                output.shape = None
        infer_node(node)
        for output, shape in zip(node.outputs, before, strict=True):
            output.shape = output.shape or shape
            if output.shape != shape:
                waiting += [usage.node for usage in output.uses()]


def _assign(value: ir.Value, found: onnx.TypeProto) -> None:
    tensor = found.tensor_type
    value.type = ir.TensorType(ir.DataType(tensor.elem_type))
    if tensor.HasField("shape"):
        shape = ir.Shape(
            [d.dim_value if d.HasField("dim_value") else (d.dim_param or None) for d in tensor.shape.dim]
        )
        known = value.shape
        value.shape = _refined(shape, known if known is not None and len(known) == len(shape) else None)


def _type_proto(value: ir.Value) -> onnx.TypeProto:
    proto = onnx.TypeProto()
    write_type(proto, value)
    return proto


@cache
def _schema(op_type: str) -> onnx.defs.OpSchema | None:
    try:
        return onnx.defs.get_schema(op_type, EXPRESSION_OPSET)
    except onnx.defs.SchemaError:
        return None
