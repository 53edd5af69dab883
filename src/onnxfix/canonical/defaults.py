"""Attributes are spelled out: schema defaults, what ops imply, axes counted from the front, indices as int64."""

from __future__ import annotations

from functools import cache

import onnx
import onnx_ir as ir

from onnxfix.canonical.origins import EXPRESSION_OPSET
from onnxfix.canonical.queries import dims, nodes_of, rank, set_attribute
from onnxfix.canonical.rewriting import Editor, is_constant

_WINDOWED = frozenset({"Conv", "ConvTranspose", "MaxPool", "AveragePool", "LpPool"})
# Ops whose axis attribute counts the dimensions of the first operand.
_AXIS = frozenset(
    {"Softmax", "LogSoftmax", "Hardmax", "Concat", "Split", "Gather", "GatherElements", "ScatterElements", "Scatter",
     "ArgMax", "ArgMin", "LayerNormalization", "TopK", "Compress", "QuantizeLinear", "DequantizeLinear",
     "LpNormalization"}
)


# Constant index operands, which may be int32 or int64: int64 here.
_INDICES = {"Gather": 1, "GatherElements": 1, "CumSum": 1, "ScatterElements": 1}


class WideIndices(ir.passes.InPlacePass):
    """``Gather(x, int32 i) = Gather(x, int64 i)`` for constant indices and axes."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Widen."""
        editor = Editor(model.graph)
        for node in nodes_of(model.graph, *_INDICES):
            slot = _INDICES[node.op_type]
            indices = node.inputs[slot]
            if indices is not None and is_constant(indices) and indices.dtype == ir.DataType.INT32:
                node.replace_input_with(slot, editor.constant("Cast", indices, to=int(ir.DataType.INT64)))
        return ir.passes.PassResult(model, editor.modified)


class ExplicitAttributes(ir.passes.InPlacePass):
    """``Conv(x, W) = Conv(x, W, strides=[1, 1], group=1, ...)``, ``Softmax(axis=-1) = Softmax(axis=r-1)``."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Fill in what is left out."""
        modified = False
        for node in model.graph:
            if node.domain != "":
                continue
            for attribute in _defaults(node.op_type):
                if attribute.name not in node.attributes:
                    node.attributes[attribute.name] = attribute
                    modified = True
            if node.op_type in _WINDOWED:
                modified |= _windowed(node)
            if node.op_type in _AXIS:
                modified |= _positive_axis(node)
            if node.op_type == "Transpose" and "perm" not in node.attributes and rank(node.inputs[0]) is not None:
                modified |= set_attribute(node, "perm", list(reversed(range(rank(node.inputs[0]) or 0))))
        return ir.passes.PassResult(model, modified)


@cache
def _defaults(op_type: str) -> tuple[ir.Attr, ...]:
    try:
        schema = onnx.defs.get_schema(op_type, EXPRESSION_OPSET)
    except onnx.defs.SchemaError:
        return ()
    return tuple(
        ir.serde.deserialize_attribute(attribute.default_value)
        for attribute in schema.attributes.values()
        if attribute.default_value.type != onnx.AttributeProto.UNDEFINED
        # RNN's default is that of two directions; recurrent layers leave out what is the default.
        and (op_type, attribute.name) != ("RNN", "activations")
    )


def _windowed(node: ir.Node) -> bool:
    kernel = dims(node.inputs[1]) if node.op_type.startswith("Conv") else None
    window = node.attributes.get_ints("kernel_shape")
    if window is None and kernel is not None and all(d is not None for d in kernel):
        window = [d for d in kernel[2:] if d is not None]
    if window is None:
        return False
    modified = set_attribute(node, "kernel_shape", window)
    spatial = len(window)
    implied = {"strides": [1] * spatial, "dilations": [1] * spatial}
    if node.attributes.get_string("auto_pad", "NOTSET") == "NOTSET" and "output_shape" not in node.attributes:
        implied["pads"] = [0] * (2 * spatial)
    if node.op_type == "ConvTranspose":
        implied["output_padding"] = [0] * spatial
    for name, value in implied.items():
        if name not in node.attributes:
            modified |= set_attribute(node, name, value)
    return modified


def _positive_axis(node: ir.Node) -> bool:
    axis = node.attributes.get_int("axis")
    size = rank(node.inputs[0])
    return axis is not None and axis < 0 and size is not None and set_attribute(node, "axis", axis + size)
