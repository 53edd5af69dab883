"""PyTorch sums integers in int64, ONNX in their own type."""

from __future__ import annotations

import onnx_ir as ir

from onnxfix.canonical.queries import nodes_of
from onnxfix.canonical.rewriting import LOWERED, lowered_of

_WIDENING = ("CumSum", "ReduceProd", "ReduceSum", "ReduceSumSquare")


def keep_integer_types(graph: ir.Graph) -> None:
    """Cast what PyTorch would widen back to the type that it has in ONNX, where that is not int64."""
    for node in nodes_of(graph, *_WIDENING):
        output = node.outputs[0]
        if output.dtype not in (ir.DataType.INT32, ir.DataType.INT16, ir.DataType.INT8, ir.DataType.UINT8):
            continue
        cast = ir.node("Cast", [output], {"to": int(output.dtype)})
        cast.meta[LOWERED] = lowered_of(node)
        cast.outputs[0].type, cast.outputs[0].shape = output.type, output.shape
        graph.insert_after(node, cast)
        name = output.name
        uses = [usage for usage in tuple(output.uses()) if usage.node is not cast]
        for usage in uses:
            usage.node.replace_input_with(usage.idx, cast.outputs[0])
        for index, value in enumerate(graph.outputs):
            if value is output:
                graph.outputs[index] = cast.outputs[0]
                output.name, cast.outputs[0].name = f"{name}_wide", name
