"""Values under construction: constants, and tensors with their channels first, last, or both ways."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np


class Unsupported(Exception):
    """An op, or a use of it, that has no Keras form here."""


class Value:
    """A value of the ONNX graph.

    ONNX has channels at axis 1, Keras's windows want them last. A tensor is moved when a consumer asks for the other
    layout, and then kept in both, so that chains of such ops need no transposes between them.

    Args:
        content: A constant, or a symbolic tensor.
        last: Whether the tensor has its channels last.
    """

    def __init__(self, content: Any, *, last: bool = False) -> None:
        self.constant: np.ndarray | None = content if isinstance(content, np.ndarray) else None
        self.prefers_last = last
        self._first = None if last else content
        self._last = content if last else None

    @property
    def rank(self) -> int:
        """Number of axes."""
        return len(self._any.shape)

    @property
    def shape(self) -> tuple[int | None, ...]:
        """The shape as ONNX has it; an open batch is None."""
        if self._first is not None:
            return tuple(self._first.shape)
        batch, *space, channels = self._any.shape
        return (batch, channels, *space)

    @property
    def dtype(self) -> str:
        """Name of the element type."""
        return str(self._any.dtype)

    @property
    def _any(self) -> Any:
        return self._first if self._first is not None else self._last

    def first(self) -> Any:
        """The tensor with its channels at axis 1, as ONNX has it."""
        if self._first is None:
            self._first = _moved(self._last, (0, self.rank - 1, *range(1, self.rank - 1)))
        return self._first

    def last(self) -> Any:
        """The tensor with its channels last."""
        if self._last is None:
            order = (0, *range(2, self.rank), 1)
            constant = self.constant
            self._last = _moved(self._first, order) if constant is None else constant.transpose(order)
        return self._last

    def ints(self) -> list[int]:
        """The integers in a constant.

        Raises:
            Unsupported: it is computed.
        """
        if self.constant is None:
            raise Unsupported("takes a computed operand that must be fixed")
        return [int(n) for n in self.constant.reshape(-1)]

    def aligned(self, rank: int) -> Value:
        """A constant with leading axes of size one up to a rank, by which broadcasting counts from the end."""
        if self.constant is None or self.rank >= rank:
            return self
        return Value(self.constant.reshape((1,) * (rank - self.rank) + self.constant.shape))


def elementwise(function: Callable[..., Any], operands: Sequence[Value]) -> Value:
    """Apply a function of single elements, in the layout that the operands have."""
    tensors = [v for v in operands if v.constant is None]
    rank = max(v.rank for v in operands)
    if rank > 2 and any(v.prefers_last for v in tensors) and all(v.rank == rank for v in tensors):
        return Value(function(*(v.aligned(rank).last() for v in operands)), last=True)
    return Value(function(*(v.first() for v in operands)))


def moved_axis(axis: int, rank: int) -> int:
    """Where an axis of ONNX's layout is when channels are last."""
    axis %= rank
    return axis if axis == 0 else rank - 1 if axis == 1 else axis - 1


def along(value: Value, axis: int, function: Callable[[Any, int], Any]) -> Value:
    """Apply a function that keeps the rank and works along one axis, in the layout that the value has."""
    if value.prefers_last and value.rank > 2:
        return Value(function(value.last(), moved_axis(axis, value.rank)), last=True)
    return Value(function(value.first(), axis % value.rank))


def _moved(tensor: Any, order: tuple[int, ...]) -> Any:
    """A tensor with its axes in another order, the batch in front: by a layer, which every format can hold."""
    from keras import layers, ops

    # Layers cast floats to their own type.
    return layers.Permute(order[1:])(tensor) if tensor.dtype == "float32" else ops.transpose(tensor, order)
