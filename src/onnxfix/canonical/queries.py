"""What rules ask about values and nodes before they rewrite anything."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import onnx_ir as ir

from onnxfix.canonical.rewriting import array, is_constant

FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BFLOAT16})
# Types that numpy itself knows.
NUMBERS = frozenset(kind for kind in ir.DataType if kind != ir.DataType.UNDEFINED and kind.numpy().kind in "fiub")
# Ops that turn a last-bit difference into a whole step.
_STEPS = frozenset(
    {"Floor", "Ceil", "Round", "Cast", "Mod", "Sign", "Equal", "Greater", "Less", "GreaterOrEqual", "LessOrEqual",
     "QuantizeLinear", "ArgMax", "ArgMin", "TopK"}
)
# Ops between the two that pass such a difference on as it is.
_PASSING = frozenset(
    {"Add", "Sub", "Mul", "Div", "Clip", "Relu", "Min", "Max", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Expand",
     "Slice", "Concat", "Split", "Abs"}
)


def feeds_steps(value: ir.Value, depth: int = 4) -> bool:
    """Whether something that rounds or compares reads a value, directly or through simple arithmetic."""
    for usage in value.uses():
        node = usage.node
        if node.op_type in _STEPS and not (node.op_type == "Cast" and _to_float(node)):
            return True
        if depth and node.op_type in _PASSING and any(feeds_steps(output, depth - 1) for output in node.outputs):
            return True
    return False


def _to_float(cast: ir.Node) -> bool:
    return cast.attributes.get_int("to") in {int(dtype) for dtype in FLOATS}


def nodes_of(graph: ir.Graph, *ops: str) -> Iterator[ir.Node]:
    """The nodes of some op types that are in the graph when they are reached; rules may edit the graph meanwhile."""
    for node in tuple(graph):
        if node.graph is graph and node.domain == "" and node.op_type in ops:
            yield node


def producer(value: ir.Value | None, *ops: str) -> ir.Node | None:
    """The node that makes a value, if it is of one of these op types and this is its first output."""
    node = None if value is None else value.producer()
    if node is None or node.domain != "" or node.op_type not in ops or value is not node.outputs[0]:
        return None
    return node


def used_once(value: ir.Value) -> bool:
    """Whether exactly one operand reads a value, and it is no graph output."""
    return len(value.uses()) == 1 and not value.is_graph_output()


def reader(value: ir.Value, *ops: str) -> ir.Node | None:
    """The only node that reads a value, if it is of one of these op types and the value is no graph output."""
    if not used_once(value):
        return None
    (node,) = (usage.node for usage in value.uses())
    return node if node.domain == "" and node.op_type in ops and node.graph is value.graph else None


def operands(node: ir.Node) -> tuple[ir.Value, ir.Value] | None:
    """The two operands of a binary node as (variable, constant), or None if not exactly one of them is constant."""
    left, right = node.inputs
    if left is None or right is None or is_constant(left) == is_constant(right):
        return None
    return (right, left) if is_constant(left) else (left, right)


def rank(value: ir.Value | None) -> int | None:
    """Number of dimensions, if known."""
    return None if value is None or value.shape is None else len(value.shape)


def dims(value: ir.Value | None) -> tuple[int | None, ...] | None:
    """Dimensions, None where one is symbolic or unknown; None if not even their number is known."""
    if value is None or value.shape is None:
        return None
    return tuple(d if isinstance(d, int) else None for d in value.shape)


def scalar(value: ir.Value | None) -> float | None:
    """The number in a constant of one element."""
    content = array(value)
    return float(content.reshape(-1)[0]) if content is not None and content.size == 1 else None


def near(value: ir.Value | None, wanted: float) -> bool:
    """Whether a constant of one element is a number, as far as its precision can tell."""
    found = scalar(value)
    if found is None or value is None:
        return False
    tolerance = 2e-3 if value.dtype in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16) else 2e-6
    return abs(found - wanted) <= tolerance * abs(wanted)


def is_float(value: ir.Value | None) -> bool:
    """Whether the elements are floating point numbers."""
    return value is not None and value.dtype in FLOATS


def finite(value: ir.Value | None) -> bool:
    """Whether a constant has no NaN and no infinity in it."""
    content = array(value)
    return content is not None and bool(np.isfinite(content).all())


def integers(node: ir.Node, name: str, default: Sequence[int]) -> tuple[int, ...]:
    """An attribute that is a list of integers."""
    found = node.attributes.get_ints(name)
    return tuple(default) if found is None else tuple(found)


def set_attribute(node: ir.Node, name: str, value: int | float | str | Sequence[int]) -> bool:
    """Set an attribute; returns whether that changed it."""
    old = node.attributes.get(name)
    plain = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else value
    if old is not None and (list(old.value) if isinstance(plain, list) else old.value) == plain:
        return False
    node.attributes[name] = (
        ir.AttrInt64s(name, plain) if isinstance(plain, list)
        else ir.AttrString(name, plain) if isinstance(plain, str)
        else ir.AttrFloat32(name, plain) if isinstance(plain, float)
        else ir.AttrInt64(name, plain)
    )
    return True
