"""Constant folding that keeps the expression: an op over constants becomes a constant with that op as its origin."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxfix.canonical.queries import NUMBERS
from onnxfix.canonical.rewriting import Editor, attribute, is_constant, is_op, live
from onnxfix.errors import CanonicalizationError

# Folding may not grow the model: results larger than this many elements and than their operands together stay ops.
_GROWTH = 2**16

_FOLDED = frozenset(
    {"Abs", "Add", "And", "BitShift", "Cast", "Ceil", "Clip", "Concat", "ConstantOfShape", "Cos", "CumSum", "Div",
     "Equal", "Exp", "Expand", "Flatten", "Floor", "Gather", "GatherElements", "GatherND", "Greater",
     "GreaterOrEqual", "Identity", "Less", "LessOrEqual", "Log", "Max", "Min", "Mod", "Mul", "Neg", "Not",
     "OneHot", "Or", "Pad", "Pow", "Range", "Reciprocal", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd",
     "ReduceSum", "Reshape", "Round", "ScatterND", "Shape", "Sigmoid", "Sign", "Sin", "Size", "Slice", "Split",
     "Sqrt", "Squeeze", "Sub", "Tanh", "Tile", "Transpose", "Trilu", "Unsqueeze", "Where", "Xor", "MatMul"}
)


class FoldConstants(ir.passes.InPlacePass):
    """``op(c1, c2, ...) -> c`` for every deterministic op whose operands are all constants.

    Quantize and dequantize nodes are left alone: they say how the model is quantized.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Fold in topological order, so that whole constant subgraphs go in one walk."""
        editor = Editor(model.graph)
        for node in live(model.graph):
            if is_op(node, *_FOLDED) and _foldable(node):
                _fold(editor, node)
        return ir.passes.PassResult(model, editor.modified)


def _foldable(node: ir.Node) -> bool:
    operands = [value for value in node.inputs if value is not None]
    if not operands and node.op_type != "ConstantOfShape":
        return False
    if not all(is_constant(value) for value in operands):
        return False
    if node.op_type == "Identity" and node.outputs[0].is_graph_output():
        return False  # the one way in which a constant can be an output
    known = [value.const_value for value in operands]
    if any(tensor is None or tensor.dtype not in NUMBERS for tensor in known):
        return False
    given = sum(tensor.size for tensor in known if tensor is not None)
    made = [int(np.prod(o.shape.numpy())) for o in node.outputs if o.shape is not None and o.shape.is_static()]
    return sum(made) <= max(_GROWTH, 2 * given)


def _fold(editor: Editor, node: ir.Node) -> None:
    attributes = {name: _plain(node, name) for name in node.attributes}
    if node.op_type == "Split" and len(node.inputs) < 2:
        attributes["num_outputs"] = len(node.outputs)
    try:
        values = editor.constants(node.op_type, *node.inputs, **attributes)
    except CanonicalizationError:
        return  # the op stays and is computed when the model runs
    if any(o.dtype is not None and o.dtype != v.dtype for o, v in zip(node.outputs, values, strict=False)):
        return
    for old, new in zip(node.outputs, values, strict=True):
        editor.replace(old, new)
    editor.remove([node])


def _plain(node: ir.Node, name: str) -> object:
    value = attribute(node, name)
    return ir.serde.serialize_tensor(value) if node.attributes[name].type == ir.AttributeType.TENSOR else value
