"""What a graph does to an input before it starts to compute: moved axes, picked channels, a scale and a shift.

``y = take(transpose(x, perm)) * scale + shift``, with ``scale`` and ``shift`` broadcast in the layout of ``y``. Such
maps can be composed and inverted, and written as at most four nodes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx
from onnx import helper

# Two maps whose numbers agree to this are the same: constants are float32, published ones have a few digits.
SAME = 1e-5


@dataclass(frozen=True, eq=False)
class InputMap:
    """An affine map that may move axes and pick elements along them.

    Attributes:
        perm: The input's axes in the output's order.
        scale: Factor, broadcast in the output's layout (full rank).
        shift: Summand, likewise.
        takes: Output axis -> indices picked along it.
    """

    perm: tuple[int, ...]
    scale: np.ndarray
    shift: np.ndarray
    takes: Mapping[int, np.ndarray] = field(default_factory=dict)

    @classmethod
    def identity(cls, rank: int) -> InputMap:
        """The map that changes nothing."""
        ones = np.ones((1,) * rank)
        return cls(tuple(range(rank)), ones, 0 * ones)

    @classmethod
    def moving(cls, perm: tuple[int, ...]) -> InputMap:
        """A transpose."""
        return replace(cls.identity(len(perm)), perm=perm)

    @property
    def rank(self) -> int:
        """Number of axes."""
        return len(self.perm)

    def is_identity(self) -> bool:
        """Whether it changes nothing."""
        return self.moves_nothing() and self.picks_nothing() and self.rescales_nothing()

    def moves_nothing(self) -> bool:
        """Whether all axes stay."""
        return self.perm == tuple(range(self.rank))

    def picks_nothing(self) -> bool:
        """Whether all elements stay where they are along their axes."""
        return all(np.array_equal(index, np.arange(len(index))) for index in self.takes.values())

    def rescales_nothing(self) -> bool:
        """Whether all values stay."""
        return bool(np.allclose(self.scale, 1, rtol=SAME, atol=0) and np.allclose(self.shift, 0, atol=SAME))

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether an array of that shape can be taken through it."""
        if len(shape) != self.rank:
            return False
        sizes = [len(self.takes[k]) if k in self.takes else shape[axis] for k, axis in enumerate(self.perm)]
        picked = all(int(np.max(index)) < shape[self.perm[k]] for k, index in self.takes.items() if len(index))
        return picked and all(
            n in (1, size) for part in (self.scale, self.shift) for n, size in zip(part.shape, sizes, strict=True)
        )

    def affine(self, scale: np.ndarray, shift: np.ndarray) -> InputMap:
        """This map, then ``* scale + shift`` (each broadcast to full rank)."""
        return replace(self, scale=self.scale * scale, shift=self.shift * scale + shift)

    def transposed(self, perm: tuple[int, ...]) -> InputMap:
        """This map, then a transpose."""
        return InputMap(
            tuple(self.perm[axis] for axis in perm), self.scale.transpose(perm), self.shift.transpose(perm),
            {k: self.takes[axis] for k, axis in enumerate(perm) if axis in self.takes},
        )  # fmt: skip

    def unmoved(self) -> InputMap:
        """The same picks, scales and shifts in the input's own layout."""
        return self.transposed(tuple(int(axis) for axis in np.argsort(self.perm)))

    def taken(self, axis: int, index: np.ndarray) -> InputMap:
        """This map, then only some elements along an axis."""
        before = self.takes.get(axis)
        picked = index if before is None else before[index]
        return replace(
            self, scale=_take(self.scale, axis, index), shift=_take(self.shift, axis, index),
            takes={**self.takes, axis: picked},
        )  # fmt: skip

    def after(self, first: InputMap) -> InputMap:
        """``first``, then this map."""
        result = first.transposed(self.perm)
        for axis, index in self.takes.items():
            result = result.taken(axis, index)
        return result.affine(self.scale, self.shift)

    def inverse(self) -> InputMap | None:
        """The map back, or None where there is none."""
        if np.any(self.scale == 0) or any(sorted(i.tolist()) != list(range(len(i))) for i in self.takes.values()):
            return None
        back = replace(InputMap.identity(self.rank), scale=1 / self.scale, shift=-self.shift / self.scale)
        for axis, index in self.takes.items():
            back = back.taken(axis, np.argsort(index))
        return back.transposed(tuple(int(axis) for axis in np.argsort(self.perm)))

    def __call__(self, array: np.ndarray) -> np.ndarray:
        """Apply it."""
        result = array.transpose(self.perm)
        for axis, index in self.takes.items():
            result = result.take(index, axis)
        if self.rescales_nothing() or array.dtype.kind != "f":
            return result
        return np.asarray(result * self.scale + self.shift, array.dtype)

    def nodes(
        self, given: str, made: str, dtype: np.dtype[np.generic]
    ) -> tuple[list[onnx.NodeProto], dict[str, np.ndarray]]:
        """The map as nodes.

        Args:
            given: Value it reads.
            made: Value it makes; nodes and constants are named after it.
            dtype: Dtype of both.

        Returns:
            The nodes in order, and the initializers they read.
        """
        steps: list[tuple[str, dict[str, Any], np.ndarray | None]] = []
        if not self.moves_nothing():
            steps.append(("Transpose", {"perm": list(self.perm)}, None))
        for axis, index in self.takes.items():
            if not np.array_equal(index, np.arange(len(index))):
                steps.append(("Gather", {"axis": axis}, np.asarray(index, np.int64)))
        if not np.allclose(self.scale, 1, rtol=SAME, atol=0):
            steps.append(("Mul", {}, np.asarray(self.scale, dtype)))
        if not np.allclose(self.shift, 0, atol=SAME):
            steps.append(("Add", {}, np.asarray(self.shift, dtype)))
        nodes, constants, value = [], {}, given
        for number, (op, attributes, operand) in enumerate(steps or [("Identity", {}, None)]):
            result = made if number >= len(steps) - 1 else f"{made}/{number}"
            name = f"{made}/{op.lower()}"
            operands = [value]
            if operand is not None:
                constants[f"{name}_by"] = operand
                operands.append(f"{name}_by")
            nodes.append(helper.make_node(op, operands, [result], name, **attributes))
            value = result
        return nodes, constants


def _take(array: np.ndarray, axis: int, index: np.ndarray) -> np.ndarray:
    return array if array.shape[axis] == 1 else array.take(index, axis)
