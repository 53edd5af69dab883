"""What turns an output of the target into one of the source: axes moved, classes picked, activations exchanged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import helper

Arrays = Sequence[np.ndarray]


@dataclass(frozen=True, eq=False)
class Way:
    """Steps from an output of the target to one of the source, in the order of the attributes.

    Attributes:
        kept: How many of the target's last activations stay; None: all of them.
        scale: Scale and zero point by which whole numbers stand for real ones; None: they do not.
        perm: Order of the axes; None: as they are.
        unit: Axes of length one that are taken away (negative numbers: ``-1 - axis`` is put in).
        axis: Axis of the classes.
        index: Classes picked along it; None: all of them.
        activations: Nodes like which activations are put on.
        dtype: Dtype to cast to; None: none.
    """

    kept: int | None = None
    scale: tuple[np.ndarray, np.ndarray] | None = None
    perm: tuple[int, ...] | None = None
    unit: tuple[int, ...] = ()
    axis: int = 1
    index: np.ndarray | None = None
    activations: tuple[onnx.NodeProto, ...] = ()
    dtype: np.dtype[np.generic] | None = field(default=None)

    def is_identity(self) -> bool:
        """Whether nothing is done."""
        return self.kept is None and not self._steps("")

    def shaped(self, array: np.ndarray) -> np.ndarray:
        """The axes moved, taken away or put in, and classes picked; nothing else."""
        if self.scale is not None:
            array = (array.astype(np.float32) - self.scale[1].astype(np.float32)) * self.scale[0]
        if self.perm is not None:
            array = array.transpose(self.perm)
        for axis in self.unit:
            array = np.squeeze(array, axis) if axis >= 0 else np.expand_dims(array, -1 - axis)
        return array if self.index is None else array.take(self.index, self.axis)

    def _steps(self, prefix: str) -> list[tuple[str, dict[str, Any], tuple[np.ndarray, ...]]]:
        steps: list[tuple[str, dict[str, Any], tuple[np.ndarray, ...]]] = []
        if self.scale is not None:
            steps.append(("DequantizeLinear", {}, self.scale))
        if self.perm is not None:
            steps.append(("Transpose", {"perm": list(self.perm)}, ()))
        for axis in self.unit:
            op = "Squeeze" if axis >= 0 else "Unsqueeze"
            steps.append((op, {}, (np.asarray([axis if axis >= 0 else -1 - axis], np.int64),)))
        if self.index is not None:
            steps.append(("Gather", {"axis": self.axis}, (np.asarray(self.index, np.int64),)))
        for node in self.activations:
            steps.append((node.op_type, {a.name: helper.get_attribute_value(a) for a in node.attribute}, ()))
        if self.dtype is not None:
            steps.append(("Cast", {"to": helper.np_dtype_to_tensor_dtype(self.dtype)}, ()))
        return steps

    def nodes(self, given: str, made: str, opset: int) -> tuple[list[onnx.NodeProto], dict[str, np.ndarray]]:
        """The steps as nodes, named after ``made``.

        Args:
            given: Value they read.
            made: Value they make.
            opset: Opset of the graph; before 13, squeezed axes are an attribute.
        """
        nodes: list[onnx.NodeProto] = []
        constants: dict[str, np.ndarray] = {}
        value = given
        steps = self._steps(made) or [("Identity", {}, ())]
        for number, (op, attributes, operands) in enumerate(steps):
            result = made if number == len(steps) - 1 else f"{made}/{number}"
            if op in ("Squeeze", "Unsqueeze") and opset < 13:
                attributes, operands = {"axes": operands[0].tolist()}, ()
            names = [f"{made}/{op.lower()}{number}_{k}" for k in range(len(operands))]
            constants.update(zip(names, operands, strict=True))
            nodes.append(helper.make_node(op, [value, *names], [result], f"{made}/{op.lower()}{number}", **attributes))
            value = result
        return nodes, constants


def fits(ours: np.ndarray, theirs: np.ndarray) -> list[Way]:
    """Ways to bring an array to the rank and, but for one axis, the shape of another, the plainest first."""
    found = [Way()] if _alike(ours.shape, theirs.shape) else []
    found += [Way(perm=p) for p in _perms(theirs.ndim) if _alike(ours.shape, tuple(theirs.shape[a] for a in p))]
    short = theirs.ndim - ours.ndim
    if short > 0:
        ones = [axis for axis in reversed(range(1, theirs.ndim)) if theirs.shape[axis] == 1][:short]
        way = Way(unit=tuple(ones))
        if len(ones) == short and _alike(ours.shape, way.shaped(theirs).shape):
            found.append(way)
    if short < 0:
        ones = [axis for axis in range(1, ours.ndim) if ours.shape[axis] == 1]
        way = Way(unit=tuple(-1 - axis for axis in ones[short:]))
        if len(ones) >= -short and _alike(ours.shape, way.shaped(theirs).shape):
            found.append(way)
    return found


def _perms(rank: int) -> list[tuple[int, ...]]:
    """Exchanges of two axes, and the moves of the channel axis; the batch axis stays where there are more than two."""
    if rank < 2 or rank > 5:
        return []
    axes = list(range(rank))
    first = 1 if rank > 2 else 0
    found = []
    for i in range(first, rank):
        for j in range(i + 1, rank):
            perm = axes.copy()
            perm[i], perm[j] = j, i
            found.append(tuple(perm))
    if rank > 3:
        found += [(0, *axes[2:], 1), (0, rank - 1, *axes[1 : rank - 1])]
    return found


def _alike(wanted: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    """Whether shapes agree, or differ in the axis of the classes alone, of which the second has more."""
    if len(wanted) != len(shape):
        return False
    other = [k for k, (a, b) in enumerate(zip(wanted, shape, strict=True)) if a != b]
    return not other or (other == [1] and shape[other[0]] > wanted[other[0]] > 1)
