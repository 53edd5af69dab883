"""Read off a lowered graph what it does to an input before it starts to compute."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper

from onnxfix.align.graph import GraphView
from onnxfix.diagnose.boundary.maps import InputMap
from onnxfix.errors import RuntimeFailure
from onnxfix.runtime.assembly import assemble, constants_read
from onnxfix.runtime.session import Session


@dataclass(frozen=True, eq=False)
class Front:
    """How an input is prepared inside a graph.

    Attributes:
        map: What is done to it.
        nodes: The nodes that do it, in order.
        value: The prepared input.
    """

    map: InputMap
    nodes: tuple[onnx.NodeProto, ...]
    value: str


class Unmappable(Exception):
    """A node is no such map: the front ends before it."""


def front(view: GraphView, name: str, shape: tuple[int, ...], *, past_sizes: bool = False) -> Front:
    """Follow an input as long as one node alone reads it and only moves, picks, scales or shifts.

    A batch norm is a layer, whose parameters can be wrong, and ends the front.

    Args:
        view: The lowered graph, every node under a name of its own.
        name: The input.
        shape: A shape that it takes.
        past_sizes: Go on where other nodes read the value's sizes. The front's nodes cannot be taken out then.
    """
    found, nodes, value = InputMap.identity(len(shape)), [], name
    while True:
        readers = [
            (reader, slot) for reader, slot in view.consumers.get(value, ())
            if not past_sizes or reader not in view.nodes or view.nodes[reader].op_type not in ("Shape", "Size")
        ]  # fmt: skip
        if len(readers) != 1 or value in view.outputs or readers[0][1] < 0:
            break
        node = view.nodes[readers[0][0]]
        try:
            found = _READERS[node.op_type](_Step(view, node, readers[0][1], shape), found)
        except (KeyError, Unmappable, ValueError, IndexError):
            break
        shape = tuple(len(found.takes[k]) if k in found.takes else shape[k] for k in range(len(shape)))
        if node.op_type == "Transpose":
            shape = tuple(shape[axis] for axis in _Step(view, node, 0, shape).perm())
        nodes.append(node)
        value = node.output[0]
    return Front(found, tuple(nodes), value)


@dataclass(frozen=True, eq=False)
class _Step:
    view: GraphView
    node: onnx.NodeProto
    slot: int
    shape: tuple[int, ...]

    def constant(self, slot: int) -> np.ndarray:
        """The content of an operand that no input has a part in."""
        value = self.node.input[slot] if slot < len(self.node.input) else ""
        if not value:
            raise Unmappable
        found = constant(self.view, value)
        if found is None:
            raise Unmappable
        return found

    def wide(self, slot: int) -> np.ndarray:
        """A float operand, of full rank."""
        array = self.constant(slot).astype(np.float64)
        rank = len(self.shape)
        if array.ndim > rank:
            raise Unmappable
        return array.reshape((1,) * (rank - array.ndim) + array.shape)

    def attribute(self, name: str, default: object) -> object:
        """An attribute's value."""
        found = next((a for a in self.node.attribute if a.name == name), None)
        return default if found is None else helper.get_attribute_value(found)

    def perm(self) -> tuple[int, ...]:
        """The axes of a Transpose."""
        given = self.attribute("perm", list(reversed(range(len(self.shape)))))
        return tuple(given)  # type: ignore[arg-type]

    def along(self, axis: int, values: np.ndarray) -> np.ndarray:
        """A vector along an axis, of full rank."""
        if values.ndim == 0:
            return values.reshape((1,) * len(self.shape))
        return values.reshape([-1 if k == axis else 1 for k in range(len(self.shape))])


def constant(view: GraphView, value: str) -> np.ndarray | None:
    """The content of a value that no graph input has a part in; None where one has."""
    if view.is_constant(value):
        return view.constant(value)
    nodes, ends = view.upstream(value, set())
    if not nodes or any(not view.is_constant(end) for end in ends):
        return None
    own = [view.nodes[n] for n in nodes]
    try:
        [content] = Session(assemble(view.proto, own, constants_read(view, own), {}, [value])).run({}).values()
    except RuntimeFailure:
        return None
    return content


def _add(step: _Step, found: InputMap) -> InputMap:
    return found.affine(np.ones(()), step.wide(1 - step.slot))


def _sub(step: _Step, found: InputMap) -> InputMap:
    if step.slot:
        return found.affine(np.asarray(-1.0), step.wide(0))
    return found.affine(np.ones(()), -step.wide(1))


def _mul(step: _Step, found: InputMap) -> InputMap:
    return found.affine(step.wide(1 - step.slot), np.zeros(()))


def _div(step: _Step, found: InputMap) -> InputMap:
    by = step.wide(1)
    if step.slot or np.any(by == 0):
        raise Unmappable
    return found.affine(1 / by, np.zeros(()))


def _neg(step: _Step, found: InputMap) -> InputMap:
    return found.affine(np.asarray(-1.0), np.zeros(()))


def _same(step: _Step, found: InputMap) -> InputMap:
    return found


def _cast(step: _Step, found: InputMap) -> InputMap:
    if step.attribute("to", 0) not in (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE):
        raise Unmappable
    return found


def _transpose(step: _Step, found: InputMap) -> InputMap:
    return found.transposed(step.perm())


def _gather(step: _Step, found: InputMap) -> InputMap:
    axis = int(step.attribute("axis", 0)) % len(step.shape)  # type: ignore[call-overload]
    index = step.constant(1)
    if step.slot or index.ndim != 1:
        raise Unmappable
    return found.taken(axis, np.asarray(index, np.int64) % step.shape[axis])


def _slice(step: _Step, found: InputMap) -> InputMap:
    starts, ends = step.constant(1), step.constant(2)
    axes = step.constant(3) if len(step.node.input) > 3 and step.node.input[3] else np.arange(len(starts))
    steps = step.constant(4) if len(step.node.input) > 4 and step.node.input[4] else np.ones(len(starts), np.int64)
    for start, end, axis, stride in zip(starts, ends, axes, steps, strict=True):
        size = step.shape[int(axis)]
        # ONNX clamps like Python does, but for an end beyond the front of a slice that runs backwards.
        stop = None if stride < 0 and end < -size else int(end)
        found = found.taken(int(axis) % len(step.shape), np.arange(size)[int(start) : stop : int(stride)])
    return found


def _dequantize(step: _Step, found: InputMap) -> InputMap:
    if step.slot:
        raise Unmappable
    axis = int(step.attribute("axis", 1))  # type: ignore[call-overload]
    scale = step.along(axis, step.constant(1).astype(np.float64))
    zero = step.along(axis, step.constant(2).astype(np.float64)) if len(step.node.input) > 2 else np.zeros(())
    return found.affine(scale, -zero * scale)


_READERS: dict[str, Callable[[_Step, InputMap], InputMap]] = {
    "Add": _add, "Sub": _sub, "Mul": _mul, "Div": _div, "Neg": _neg, "Identity": _same, "Cast": _cast,
    "Transpose": _transpose, "Gather": _gather, "Slice": _slice, "DequantizeLinear": _dequantize,
}  # fmt: skip
