"""Every Conv, ConvTranspose and Gemm has a bias."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxfix.canonical.queries import dims, is_float, nodes_of
from onnxfix.canonical.rewriting import Editor


class ExplicitBias(ir.passes.InPlacePass):
    """``Conv(x, W) = Conv(x, W, 0)``, and the same for ConvTranspose and Gemm.

    A bias that a converter dropped is then a wrong value of a constant, like any other, and no missing operand.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Add the zeros."""
        editor = Editor(model.graph)
        for node in nodes_of(model.graph, "Conv", "ConvTranspose", "Gemm"):
            if len(node.inputs) > 2 and node.inputs[2] is not None:
                continue
            kernel = node.inputs[1]
            channels = output_channels(node)
            if kernel is None or channels is None or not is_float(kernel) or kernel.dtype is None:
                continue
            zeros = editor.literal(np.zeros(channels, kernel.dtype.numpy()), f"{kernel.name}.bias")
            if len(node.inputs) < 3:
                node.resize_inputs(3)
            node.replace_input_with(2, zeros)
        return ir.passes.PassResult(model, editor.modified)


def output_channels(node: ir.Node) -> int | None:
    """Number of output channels of a Conv, ConvTranspose or Gemm, from its kernel's shape."""
    shape = dims(node.inputs[1])
    if shape is None or len(shape) < 2:
        return None
    if node.op_type == "Conv":
        return shape[0]
    if node.op_type == "Gemm":
        return shape[0] if node.attributes.get_int("transB", 0) else shape[1]
    return None if shape[1] is None else shape[1] * node.attributes.get_int("group", 1)
