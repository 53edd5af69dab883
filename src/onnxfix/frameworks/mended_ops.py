"""Own lowerings for operators that tf2onnx 1.17 lowers wrongly.

Each handler has tf2onnx's custom handler signature and leaves the node's output name as it was.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Handler = Callable[[Any, Any, str, list[Any]], None]


def handlers() -> dict[str, tuple[Handler, list[Any]]]:
    """The handlers, as ``custom_op_handlers`` of tf2onnx wants them."""
    return {"FloorMod": (_floor_mod, []), "FloorDiv": (_floor_div, [])}


def _floor_mod(graph: Any, node: Any, name: str, args: list[Any]) -> None:
    """FloorMod takes the sign of the divisor; ONNX ``Mod`` with fmod=0 does too, but exists for integers only.

    tf2onnx writes ``x - (x / y) * y``, and the ONNX division of integers truncates.
    """
    from tf2onnx.onnx_opset.math import FloorMod

    if _is_float(graph, node):
        FloorMod.version_7(graph, node)
        return
    _replace(graph, node, "Mod", node.input, fmod=0)


def _floor_div(graph: Any, node: Any, name: str, args: list[Any]) -> None:
    """``floor(x / y) = (x - floormod(x, y)) / y``, whose division is exact, so truncation does not matter."""
    from tf2onnx.onnx_opset.math import FloorDiv

    if _is_float(graph, node):
        FloorDiv.version_6(graph, node)
        return
    dividend, divisor = node.input
    rest = graph.make_node("Mod", [dividend, divisor], attr={"fmod": 0}, op_name_scope=node.name)
    multiple = graph.make_node("Sub", [dividend, rest.output[0]], op_name_scope=node.name)
    _replace(graph, node, "Div", [multiple.output[0], divisor])


def _is_float(graph: Any, node: Any) -> bool:
    from onnx import TensorProto

    floats = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16)
    return graph.get_dtype(node.input[0]) in floats


def _replace(graph: Any, node: Any, op_type: str, inputs: list[str], **attributes: Any) -> None:
    shapes, dtypes, outputs = node.output_shapes, node.output_dtypes, node.output
    graph.remove_node(node.name)
    graph.make_node(op_type, inputs, attr=attributes, name=node.name, outputs=outputs, shapes=shapes, dtypes=dtypes)
