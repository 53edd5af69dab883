"""Own lowerings for mathematical functions that tf2onnx 1.17 does not know."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import TensorProto

from onnxfix.errors import LoweringError
from onnxfix.frameworks.tf2onnx_editing import const, make, replace

_NUMPY = {TensorProto.FLOAT: np.float32, TensorProto.DOUBLE: np.float64, TensorProto.FLOAT16: np.float16}
# Beyond this exp(x) - 1 loses less than one bit.
_FAR = 0.5


def _number(graph: Any, node: Any, value: float) -> str:
    return str(const(graph, np.asarray(value, _NUMPY.get(graph.get_dtype(node.input[0]), np.float32))))


def log1p(graph: Any, node: Any, name: str, args: list[Any]) -> None:
    """``log(u) x / (u - 1)`` with ``u = 1 + x``, which keeps the digits that ``log(u)`` alone loses (Kahan)."""
    (x,) = node.input
    one = _number(graph, node, 1)
    u = make(graph, node, "Add", [x, one])
    rest = make(graph, node, "Sub", [u, one])
    log = make(graph, node, "Log", [u])
    corrected = make(graph, node, "Div", [make(graph, node, "Mul", [log, x]), rest])
    exact = make(graph, node, "Where", [make(graph, node, "Equal", [rest, x]), log, corrected])
    replace(graph, node, "Where", [make(graph, node, "Equal", [u, one]), x, exact])


def expm1(graph: Any, node: Any, name: str, args: list[Any]) -> None:
    """``(u - 1) x / log(u)`` with ``u = exp(x)`` near zero, where ``u - 1`` alone loses digits (Kahan)."""
    (x,) = node.input
    one = _number(graph, node, 1)
    u = make(graph, node, "Exp", [x])
    rest = make(graph, node, "Sub", [u, one])
    near = make(graph, node, "Div", [make(graph, node, "Mul", [rest, x]), make(graph, node, "Log", [u])])
    kept = make(graph, node, "Where", [make(graph, node, "Equal", [u, one]), x, near])
    is_far = make(graph, node, "Greater", [make(graph, node, "Abs", [x]), _number(graph, node, _FAR)])
    replace(graph, node, "Where", [is_far, rest, kept])


def bucketize(graph: Any, node: Any, name: str, args: list[Any]) -> None:
    """How many boundaries are not above each element."""
    (x,) = node.input
    as_float = make(graph, node, "Cast", [x], to=TensorProto.FLOAT)
    last = const(graph, np.array([-1], np.int64))
    wide = make(graph, node, "Unsqueeze", [as_float, last])
    bounds = const(graph, np.array(node.get_attr_value("boundaries"), np.float32))
    reached = make(graph, node, "Cast", [make(graph, node, "GreaterOrEqual", [wide, bounds])], to=TensorProto.INT32)
    replace(graph, node, "ReduceSum", [reached, last], keepdims=0)


def bitcast(graph: Any, node: Any, name: str, args: list[Any]) -> None:
    """The sign bit of a float, for those who only ask whether the bits are a negative number (-0.0 has it, too).

    Raises:
        LoweringError: somebody asks for more.
    """
    (x,) = node.input
    readers = graph.find_output_consumers(node.output[0])
    if graph.get_dtype(x) not in _NUMPY or any(not _asks_for_sign(reader, node.output[0]) for reader in readers):
        raise LoweringError(f"{node.name} reads a tensor's bits as another type, which has no ONNX form.")
    zero = _number(graph, node, 0)
    below = make(graph, node, "Less", [x, zero])
    upside_down = make(graph, node, "Div", [_number(graph, node, 1), x])
    negative = make(graph, node, "Or", [below, make(graph, node, "Less", [upside_down, zero])])
    kind = graph.get_dtype(node.output[0])
    dtype = {TensorProto.INT32: np.int32, TensorProto.INT64: np.int64, TensorProto.INT16: np.int16}.get(kind, np.int32)
    replace(graph, node, "Where", [negative, const(graph, dtype(-1)), const(graph, dtype(0))])


def _asks_for_sign(reader: Any, value: str) -> bool:
    """Whether a node compares the bits with zero, or keeps the sign bit alone."""
    if reader.type not in ("Less", "BitwiseAnd") or reader.input[0] != value or not reader.inputs[1].is_const():
        return False
    constant = np.asarray(reader.inputs[1].get_tensor_value(as_list=False))
    return bool(np.all(constant == (0 if reader.type == "Less" else np.iinfo(constant.dtype).min)))


HANDLERS = {"Bitcast": bitcast, "Bucketize": bucketize, "Expm1": expm1, "Log1p": log1p}
