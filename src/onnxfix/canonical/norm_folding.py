"""Scale and shift of a LayerNormalization move into the dense layer that alone reads it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxfix.canonical.channels import is_made_up_zero, plain_gemm
from onnxfix.canonical.queries import dims, finite, nodes_of, reader
from onnxfix.canonical.rewriting import Editor, array, is_constant


class FoldNormIntoDense(ir.passes.InPlacePass):
    """``LayerNorm(x, g, b) @ W + c = LayerNorm(x, 1, 0) @ (g * W) + (b @ W + c)``, for Gemm and MatMul.

    Where something else reads the normalized value too, scale and shift stay with it.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Fold."""
        editor = Editor(model.graph)
        for node in nodes_of(model.graph, "LayerNormalization"):
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
