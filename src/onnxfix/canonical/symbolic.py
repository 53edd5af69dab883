"""Sizes as products of symbols, and the values of the small integer tensors that shape arithmetic computes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import onnx_ir as ir

from onnxfix.canonical.rewriting import array, attribute, dims, is_op

_LIMIT = 64
_INTEGERS = (np.dtype(np.int64), np.dtype(np.int32))


@dataclass(frozen=True)
class Size:
    """``factor * s1 * s2 * ...`` with symbols sorted; a plain number has no symbols."""

    factor: int
    symbols: tuple[str, ...] = ()

    @property
    def number(self) -> int | None:
        """The size as a number, or None if it has symbols."""
        return None if self.symbols and self.factor else self.factor

    def __mul__(self, other: Size) -> Size:
        return Size(self.factor * other.factor, tuple(sorted(self.symbols + other.symbols)))

    def over(self, other: Size) -> Size | None:
        """The exact quotient, or None."""
        left = Counter(self.symbols)
        left.subtract(other.symbols)
        if other.factor == 0 or self.factor % other.factor or any(count < 0 for count in left.values()):
            return None
        return Size(self.factor // other.factor, tuple(sorted(left.elements())))


Vector = tuple["Size | None", ...]


@dataclass(frozen=True)
class Content:
    """What an integer tensor of rank 0 or 1 holds; None where it is not known."""

    sizes: Vector
    scalar: bool = False

    @property
    def numbers(self) -> list[int] | None:
        """All elements as numbers, or None."""
        found = [None if size is None else size.number for size in self.sizes]
        return [n for n in found if n is not None] if None not in found else None


def sizes_of(value: ir.Value | None) -> list[Size] | None:
    """The shape of a value; a dimension nobody knows is a symbol of its own."""
    shape = dims(value)
    if value is None or shape is None:
        return None
    return [Size(d) if isinstance(d, int) else _named(d or f"{value.name}#{k}") for k, d in enumerate(shape)]


def _named(name: str) -> Size:
    """The size that a symbolic dimension names: exporters write products, as in ``4*batch``."""
    parts = [part.strip() for part in name.split("*")]
    if len(parts) == 1 or not all(part.isidentifier() or part.isdecimal() for part in parts):
        return Size(1, (name,))
    return Size(prod(int(part) for part in parts if part.isdecimal()),
                tuple(sorted(part for part in parts if not part.isdecimal())))


def dims_from(sizes: Sequence[Size | None]) -> ir.Shape:
    """The shape to record for these sizes, products of symbols as exporters write them."""
    dimensions: list[int | str | None] = []
    for size in sizes:
        if size is None:
            dimensions.append(None)
        elif size.number is not None:
            dimensions.append(size.number)
        else:
            dimensions.append(_name_of(size))
    return ir.Shape(dimensions)


def _name_of(size: Size) -> str | None:
    """A symbol or a product of plain ones; what was made up for a dimension nobody knows has no name."""
    if size.factor == 1 and len(size.symbols) == 1:
        return None if "#" in size.symbols[0] else size.symbols[0]
    plain = size.factor > 0 and all(s.isidentifier() and not s.startswith("unk__") for s in size.symbols)
    return "*".join([*([str(size.factor)] if size.factor != 1 else []), *size.symbols]) if plain else None


class ShapeReader:
    """Reads what shape arithmetic computes; answers stay valid while the graph does not change."""

    def __init__(self) -> None:
        self._known: dict[ir.Value, Content | None] = {}

    def read(self, value: ir.Value | None) -> Content | None:
        """The content of an integer tensor of rank 0 or 1, or None if nothing is known."""
        if value is None:
            return None
        if value not in self._known:
            self._known[value] = None
            self._known[value] = self._compute(value)
        return self._known[value]

    def _compute(self, value: ir.Value) -> Content | None:
        content = array(value)
        if content is not None:
            if content.dtype not in _INTEGERS or content.ndim > 1 or content.size > _LIMIT:
                return None
            return Content(tuple(Size(int(n)) for n in content.reshape(-1)), content.ndim == 0)
        node = value.producer()
        if node is None or node.domain not in ("", "ai.onnx") or node.op_type not in _READERS:
            return None
        if is_op(node, "Shape", "Size"):
            return _READERS[node.op_type](node, [])
        operands = [self.read(operand) for operand in node.inputs if operand is not None]
        known = [operand for operand in operands if operand is not None]
        if len(known) != len(operands) or len(operands) != len(node.inputs):
            return None
        result = _READERS[node.op_type](node, known)
        return result if result is None or len(result.sizes) <= _LIMIT else None


def _shape(node: ir.Node, operands: list[Content]) -> Content | None:
    sizes = sizes_of(node.inputs[0])
    if sizes is None:
        return None
    return Content(tuple(sizes[attribute(node, "start", 0) : attribute(node, "end")]))


def _size(node: ir.Node, operands: list[Content]) -> Content | None:
    sizes = sizes_of(node.inputs[0])
    return None if sizes is None else Content((product(sizes),), scalar=True)


def product(sizes: Sequence[Size]) -> Size:
    """The product of sizes."""
    total = Size(1)
    for size in sizes:
        total = total * size
    return total


def _same(node: ir.Node, operands: list[Content]) -> Content | None:
    return operands[0]


def _cast(node: ir.Node, operands: list[Content]) -> Content | None:
    return operands[0] if attribute(node, "to") in (int(ir.DataType.INT64), int(ir.DataType.INT32)) else None


def _gather(node: ir.Node, operands: list[Content]) -> Content | None:
    picks = operands[1].numbers
    if picks is None or operands[0].scalar or attribute(node, "axis", 0) not in (0, -1):
        return None
    if any(not -len(operands[0].sizes) <= k < len(operands[0].sizes) for k in picks):
        return None
    return Content(tuple(operands[0].sizes[k] for k in picks), operands[1].scalar)


def _slice(node: ir.Node, operands: list[Content]) -> Content | None:
    bounds = [operand.numbers for operand in operands[1:]]
    if any(b is None or len(b) != 1 for b in bounds) or operands[0].scalar:
        return None
    start, end, *rest = (b[0] for b in bounds if b is not None)
    step = rest[1] if len(rest) > 1 else 1
    count = len(operands[0].sizes)
    stop: int | None = None if (step < 0 and end < -count) else end
    return Content(operands[0].sizes[start:stop:step]) if step else None


def _concat(node: ir.Node, operands: list[Content]) -> Content | None:
    if any(operand.scalar for operand in operands):
        return None
    return Content(tuple(size for operand in operands for size in operand.sizes))


def _unsqueeze(node: ir.Node, operands: list[Content]) -> Content | None:
    axes = operands[1].numbers
    return Content(operands[0].sizes) if operands[0].scalar and axes is not None and len(axes) == 1 else None


def _squeeze(node: ir.Node, operands: list[Content]) -> Content | None:
    return Content(operands[0].sizes, scalar=True) if len(operands[0].sizes) == 1 else None


def _reshape(node: ir.Node, operands: list[Content]) -> Content | None:
    target = operands[1].numbers
    if target is None or len(target) > 1:
        return None
    return Content(operands[0].sizes, scalar=not target)


def _reduce_prod(node: ir.Node, operands: list[Content]) -> Content | None:
    known = [size for size in operands[0].sizes if size is not None]
    if len(known) != len(operands[0].sizes):
        return None
    return Content((product(known),), scalar=not attribute(node, "keepdims", 1))


def _constant_of_shape(node: ir.Node, operands: list[Content]) -> Content | None:
    shape, fill = operands[0].numbers, attribute(node, "value")
    if shape is None or len(shape) > 1 or fill is None or prod(shape) > _LIMIT:
        return None
    value = fill.numpy()
    if value.dtype not in _INTEGERS:
        return None
    return Content((Size(int(value.reshape(-1)[0])),) * prod(shape), scalar=not shape)


def _expand(node: ir.Node, operands: list[Content]) -> Content | None:
    shape = operands[1].numbers
    if shape is None or len(shape) != 1 or len(operands[0].sizes) != 1 or shape[0] > _LIMIT:
        return None
    return Content(operands[0].sizes * max(1, shape[0]))


def _elementwise(combine: Callable[..., Size | None]) -> Callable[[ir.Node, list[Content]], Content | None]:
    def read(node: ir.Node, operands: list[Content]) -> Content | None:
        length = max(len(operand.sizes) for operand in operands)
        if any(len(operand.sizes) not in (1, length) for operand in operands):
            return None
        columns = [operand.sizes if len(operand.sizes) == length else operand.sizes * length for operand in operands]
        sizes = tuple(None if None in row else combine(*row) for row in zip(*columns, strict=True))
        return Content(sizes, scalar=all(operand.scalar for operand in operands))

    return read


def _divide(a: Size, b: Size) -> Size | None:
    if a.number is not None and b.number:
        quotient = abs(a.number) // abs(b.number)  # integer Div truncates towards zero
        return Size(quotient if (a.number < 0) == (b.number < 0) else -quotient)
    return a.over(b)


def _add(a: Size, b: Size, sign: int = 1) -> Size | None:
    if a.symbols == b.symbols:
        return Size(a.factor + sign * b.factor, a.symbols if a.factor + sign * b.factor else ())
    if b.factor == 0:
        return a
    return b if a.factor == 0 and sign == 1 else None


def _subtract(a: Size, b: Size) -> Size | None:
    return _add(a, b, -1)


def _mod(a: Size, b: Size) -> Size | None:
    return Size(a.number % b.number) if a.number is not None and b.number and a.number >= 0 and b.number > 0 else None


def _extreme(choose: Callable[[int, int], int]) -> Callable[..., Size | None]:
    def combine(*row: Size) -> Size | None:
        result: Size = row[0]
        for size in row[1:]:
            if size == result:
                continue
            if size.number is None or result.number is None:
                return None
            result = Size(choose(size.number, result.number))
        return result

    return combine


def _equal(a: Size, b: Size) -> Size | None:
    """A size with symbols is positive or zero: it is never a negative number."""
    if a == b:
        return Size(1)
    numbers = (a.number, b.number)
    if None not in numbers or any(n is not None and n < 0 for n in numbers):
        return Size(0)
    return None


def _where(condition: Size, a: Size, b: Size) -> Size | None:
    return a if condition.number else b


_READERS: dict[str, Callable[[ir.Node, list[Content]], Content | None]] = {
    "Shape": _shape,
    "Size": _size,
    "Identity": _same,
    "Cast": _cast,
    "Gather": _gather,
    "Slice": _slice,
    "Concat": _concat,
    "Unsqueeze": _unsqueeze,
    "Squeeze": _squeeze,
    "Reshape": _reshape,
    "ReduceProd": _reduce_prod,
    "ConstantOfShape": _constant_of_shape,
    "Expand": _expand,
    "Mul": _elementwise(lambda a, b: a * b),
    "Div": _elementwise(_divide),
    "Add": _elementwise(_add),
    "Sub": _elementwise(_subtract),
    "Mod": _elementwise(_mod),
    "Max": _elementwise(_extreme(max)),
    "Min": _elementwise(_extreme(min)),
    "Equal": _elementwise(_equal),
    "Where": _elementwise(_where),
}
