"""Scale and shift of a LayerNormalization move into the dense layer that alone reads it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxfix.canonical.channels import is_made_up_zero, plain_gemm
from onnxfix.canonical.queries import dims, finite, nodes_of, operands, reader
from onnxfix.canonical.rewriting import Editor, array, is_constant


class FoldNormIntoDense(ir.passes.InPlacePass):
    """``LayerNorm(x, g, b) @ W + c = LayerNorm(x, 1, 0) @ (g * W) + (b @ W + c)``, for Gemm and MatMul.

    Where something else reads the normalized value too, scale and shift stay with it. Converters that move them into
    the dense layers all the same write them a second time for the other readers; there they come back:
    ``n = LayerNorm(x, 1, 0)``, ``y = n * g + b``, ``n @ V + c = y @ (V / g) + (c - b @ (V / g))``.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Fold."""
        editor = Editor(model.graph)
        for node in nodes_of(model.graph, "LayerNormalization"):
            _share(editor, node)
            dense = reader(node.outputs[0], "MatMul", "Gemm")
            scale, shift = (node.inputs[k] if len(node.inputs) > k else None for k in (1, 2))
            if dense is None or scale is None or shift is None or len(node.outputs) > 1:
                continue
            if not all(map(is_constant, (scale, shift))) or not finite(scale) or not finite(shift):
                continue
            if np.all(array(scale) == 1) and not np.any(array(shift)):
                continue
            kernel = dense.inputs[1]
            shape = dims(kernel) if is_constant(kernel) and dense.inputs[0] is node.outputs[0] else None
            if shape is None or len(shape) != 2 or dims(scale) != shape[:1] or dims(shift) != shape[:1]:
                continue
            if dense.op_type == "MatMul" or _has_bias(dense):
                _fold(editor, node, dense, scale, shift)
        return ir.passes.PassResult(model, editor.modified)


def _share(editor: Editor, norm: ir.Node) -> None:
    """Let dense layers that read a plain normalization read the scaled and shifted one that others read."""
    scale = norm.inputs[1]
    if len(norm.outputs) > 1 or not is_constant(scale) or not np.all(array(scale) == 1):
        return
    if norm.outputs[0].is_graph_output():
        return
    readers = [usage.node for usage in norm.outputs[0].uses()]
    scaled = [node for node in readers if node.op_type == "Mul" and operands(node) is not None]
    layers = [node for node in readers if node.op_type in ("MatMul", "Gemm") and _is_dense(node, norm)]
    shifted = reader(scaled[0].outputs[0], "Add") if len(scaled) == 1 else None
    if shifted is None or not layers or len(layers) + 1 != len(readers):
        return
    gamma, beta = operands(scaled[0]), operands(shifted)
    if gamma is None or beta is None or dims(gamma[1]) != dims(scale) or dims(beta[1]) != dims(gamma[1]):
        return
    if not finite(gamma[1]) or not finite(beta[1]) or not np.all(array(gamma[1])):
        return
    for dense in layers:
        _unfold(editor, dense, norm, gamma[1], beta[1], shifted)
    editor.graph.sort()  # what the layers read now may stand behind them


def _is_dense(node: ir.Node, norm: ir.Node) -> bool:
    if node.inputs[0] is not norm.outputs[0] or not is_constant(node.inputs[1]) or len(dims(node.inputs[1]) or ()) != 2:
        return False
    after = reader(node.outputs[0], "Add") if node.op_type == "MatMul" else None
    return _has_bias(node) if node.op_type == "Gemm" else after is not None and operands(after) is not None


def _unfold(
    editor: Editor, dense: ir.Node, norm: ir.Node, gamma: ir.Value, beta: ir.Value, shifted: ir.Node
) -> None:
    after = dense if dense.op_type == "Gemm" else reader(dense.outputs[0], "Add")
    bias = dense.inputs[2] if after is dense else None if after is None else (operands(after) or (None, None))[1]
    if after is None or bias is None:
        return
    column = editor.constant("Reshape", gamma, editor.literal(np.array([-1, 1], np.int64)))
    kernel = editor.constant("Div", dense.inputs[1], column)
    rest = editor.constant("Sub", bias, editor.constant("MatMul", beta, kernel))
    inputs = [shifted.outputs[0], kernel, *([rest] if after is dense else [])]
    made = editor.node(dense.op_type, inputs, like=[dense, norm], before=dense, attributes=dict(dense.attributes))
    result = made.outputs[0]
    if after is not dense:
        result = editor.node("Add", [result, rest], like=[after], before=after).outputs[0]
    editor.replace(after.outputs[0], result)
    editor.remove([after, dense])


def _has_bias(dense: ir.Node) -> bool:
    return plain_gemm(dense) and len(dense.inputs) > 2 and is_constant(dense.inputs[2])


def _fold(editor: Editor, norm: ir.Node, dense: ir.Node, scale: ir.Value, shift: ir.Value) -> None:
    kernel, dtype = dense.inputs[1], np.asarray(array(scale)).dtype
    column = editor.constant("Reshape", scale, editor.literal(np.array([-1, 1], np.int64)))
    scaled = editor.constant("Mul", kernel, column)
    width = dims(scale) or ()
    ones = editor.literal(np.ones(width, dtype), "scale")  # type: ignore[arg-type]
    zeros = editor.literal(np.zeros(width, dtype), "bias")  # type: ignore[arg-type]
    plain = editor.node("LayerNormalization", [norm.inputs[0], ones, zeros], like=[norm], before=dense,
                        attributes=dict(norm.attributes)).outputs[0]
    extra = None if is_made_up_zero(shift) else editor.constant("MatMul", shift, kernel)
    inputs: list[ir.Value | None] = [plain, scaled]
    if dense.op_type == "Gemm":
        bias = dense.inputs[2]
        inputs.append(bias if extra is None else editor.constant("Add", bias, extra))
    result = editor.node(dense.op_type, inputs, like=[dense, norm], before=dense,
                         attributes=dict(dense.attributes)).outputs[0]
    if dense.op_type == "MatMul" and extra is not None:
        result = editor.node("Add", [result, extra], like=[dense, norm], before=dense).outputs[0]
    editor.replace(dense.outputs[0], result)
    editor.remove([dense, norm])
