"""What one step of a recurrent network computes, as a polynomial: how every spelling of a cell is seen through.

A step works on rows of columns: a value of shape [..., N, H] is N rows, and only the last axis is ever cut up. Each
column range of each value is a sum of terms, a term a number times a product of factors: constants along the columns,
``rows @ matrix``, activations of such sums, and values that the step does not compute. ``h + z * (n - h)`` and
``(1 - z) * n + z * h`` are the same sum, so are one matrix cut into gates and a matrix for each gate.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from onnxfix.canonical.queries import integers
from onnxfix.canonical.recurrent import is_zero
from onnxfix.canonical.rewriting import array, attribute, is_constant, is_op
from onnxfix.canonical.slices import pieces_of
from onnxfix.canonical.symbolic import Size, product, sizes_of

ACTIVATIONS = ("Sigmoid", "Tanh", "Relu")
# A cell has at most five terms in a gate; more, or deeper, is something else.
_TERMS, _DEPTH = 12, 24
_END = np.iinfo(np.int64).max


@dataclass(frozen=True)
class Rows:
    """The rows of a value, or of one place along one of its axes; a place in a loop is the value that counts."""

    value: ir.Value
    axis: int = 0
    place: int | ir.Value | None = None


class Vector(NamedTuple):
    """Columns of a constant that is the same for every row."""

    value: ir.Value
    start: int
    stop: int


class Product(NamedTuple):
    """Rows times some columns of a constant matrix, or of its transpose; ``above`` rows of it belong to others."""

    rows: Rows | Sum
    matrix: ir.Value
    transposed: bool
    above: int
    inner: int
    start: int
    stop: int


class Gate(NamedTuple):
    """An activation of a sum."""

    op: str
    inner: Sum


class State(NamedTuple):
    """Columns of a value that is not read any further."""

    rows: Rows
    start: int
    stop: int


Factor = Vector | Product | Gate | State
Term = tuple[Factor, ...]
Sum = frozenset[tuple[Term, float]]
_Terms = dict[Term, float]
_Columns = tuple[int, int]
# Where along a sequence: an axis, and the place on it.
_Selection = tuple[int, int | ir.Value] | None


class CellReader:
    """Reads values as sums.

    Args:
        stops: Values that are states, which are not read any further.
        loose: Inside a loop body the sizes of rows are not known, so they are not compared.
    """

    def __init__(self, stops: set[ir.Value] | None = None, *, loose: bool = False) -> None:
        self.stops = set() if stops is None else stops
        self.loose = loose
        self.visited: dict[ir.Node, None] = {}
        self._known: dict[tuple[ir.Value, _Columns, _Selection], _Terms | None] = {}

    def sum(self, value: ir.Value | None) -> Sum | None:
        """All columns of a value, or None if it is no such sum."""
        width = self.width(value)
        if value is None or width is None:
            return None
        terms = self._read(value, (0, width), None, 0)
        return None if terms is None else frozenset(terms.items())

    def stop(self, *values: ir.Value) -> None:
        """Do not read these values any further from now on."""
        self.stops.update(values)
        self._known.clear()

    def width(self, value: ir.Value | None) -> int | None:
        """The number of columns."""
        sizes = sizes_of(value)
        return sizes[-1].number if sizes else None

    def base(self, value: ir.Value) -> Rows:
        """What a value is the rows of, reshapes that keep rows and columns left aside."""
        return self._rows(value, None)

    def _read(self, value: ir.Value, columns: _Columns, chosen: _Selection, depth: int) -> _Terms | None:
        if value in self.stops:
            return {(State(Rows(value), *columns),): 1.0} if chosen is None else None
        content = array(value)
        if content is not None:
            return _constant(value, content, columns)
        if is_zero(value):
            return {}
        key = (value, columns, chosen)
        if key not in self._known:
            self._known[key] = None
            terms = self._node(value, columns, chosen, depth) if depth < _DEPTH else None
            self._known[key] = terms if terms is None or len(terms) <= _TERMS else None
        return self._known[key]

    def _node(self, value: ir.Value, columns: _Columns, chosen: _Selection, depth: int) -> _Terms | None:
        node = value.producer()
        if node is not None and node.domain == "":
            if node.op_type in ("Add", "Sub", "Mul"):
                terms = self._binary(node, columns, chosen, depth)
            elif node.op_type == "Neg" and node.inputs[0] is not None:
                terms = _scaled(self._read(node.inputs[0], columns, chosen, depth + 1), -1.0)
            elif node.op_type in ACTIVATIONS and node.inputs[0] is not None:
                inner = self._read(node.inputs[0], columns, chosen, depth + 1)
                terms = None if inner is None else {(Gate(node.op_type, frozenset(inner.items())),): 1.0}
            elif node.op_type in ("MatMul", "Gemm"):
                terms = self._product(node, columns, chosen, depth)
            else:
                terms = self._moved(node, value, columns, chosen, depth)
            if terms is not None:
                self.visited[node] = None
                return terms
        if node is not None and node.op_type in ("Add", "Sub", "Mul", "Neg", *ACTIVATIONS):
            return None  # too large a sum: reading it as a state would hide what it depends on
        rows = Rows(value) if chosen is None else Rows(value, *chosen)
        return {(State(rows, *columns),): 1.0}

    def _binary(self, node: ir.Node, columns: _Columns, chosen: _Selection, depth: int) -> _Terms | None:
        parts = []
        for operand in node.inputs:
            if operand is None:
                return None
            spread = is_constant(operand) or is_zero(operand)
            if not spread and not self._alike(operand, node.outputs[0], chosen is not None):
                return None
            parts.append(self._read(operand, columns, chosen, depth + 1))
        if parts[0] is None or parts[1] is None:
            return None
        if node.op_type == "Mul":
            return _multiplied(parts[0], parts[1])
        return _added(parts[0], parts[1], 1.0 if node.op_type == "Add" else -1.0)

    def _alike(self, operand: ir.Value, result: ir.Value, strict: bool) -> bool:
        """Whether an operand has the rows and columns of the result: nothing is broadcast."""
        if self.loose:
            return self.width(operand) in (None, self.width(result))
        first, second = sizes_of(operand), sizes_of(result)
        if first is None or second is None:
            return False
        return first == second or (not strict and _without_lead(first) == _without_lead(second))

    def _product(self, node: ir.Node, columns: _Columns, chosen: _Selection, depth: int) -> _Terms | None:
        left, right = node.inputs[0], node.inputs[1]
        matrix = array(right)
        if left is None or right is None or matrix is None or matrix.ndim != 2 or attribute(node, "transA", 0):
            return None
        transposed = bool(attribute(node, "transB", 0))
        scale = float(attribute(node, "alpha", 1.0))
        terms = self._products(left, right, transposed, 0, matrix.shape[1 if transposed else 0], columns, chosen, depth)
        terms = _scaled(terms, scale)
        offset = node.inputs[2] if len(node.inputs) > 2 else None
        if terms is None or offset is None:
            return terms
        if array(offset) is None and not self._alike(offset, node.outputs[0], chosen is not None):
            return None
        added = self._read(offset, columns, chosen, depth + 1)
        return None if added is None else _added(terms, added, float(attribute(node, "beta", 1.0)))

    def _products(
        self, left: ir.Value, right: ir.Value, transposed: bool, above: int, inner: int, columns: _Columns,
        chosen: _Selection, depth: int,
    ) -> _Terms | None:
        """``concat(a, b) @ M = a @ M[:n] + b @ M[n:]``; rows of zeros add nothing."""
        if is_zero(left):
            return {}
        if array(left) is not None:
            return None
        node = left.producer()
        if is_op(node, "Concat") and node is not None and left not in self.stops and _last(node, left):
            total: _Terms = {}
            for part in node.inputs:
                width = self.width(part)
                terms = None if part is None or width is None else self._products(
                    part, right, transposed, above, width, columns, chosen, depth)
                if terms is None or width is None:
                    return None
                total, above = _added(total, terms, 1.0), above + width
            self.visited[node] = None
            return total
        rows: Rows | Sum = self._rows(left, chosen)
        if isinstance(rows, Rows) and rows.place is None and rows.value not in self.stops \
                and is_op(rows.value.producer(), "Mul"):
            terms = self._read(rows.value, (0, inner), None, depth + 1)
            if terms == {}:
                return {}
            rows = rows if terms is None else _reset(rows, terms)
        return {(Product(rows, right, transposed, above, inner, *columns),): 1.0}

    def _rows(self, value: ir.Value, chosen: _Selection) -> Rows:
        """Follow what moves rows as they are back to where they come from."""
        while value not in self.stops and (node := value.producer()) is not None and node.domain == "":
            step = self._step(node, value, None, chosen)
            if step is None:
                break
            self.visited[node] = None
            value, _, chosen = step
        return Rows(value) if chosen is None else Rows(value, *chosen)

    def _moved(
        self, node: ir.Node, value: ir.Value, columns: _Columns, chosen: _Selection, depth: int
    ) -> _Terms | None:
        if node.op_type == "Concat":
            return self._part(node, value, columns, chosen, depth)
        step = self._step(node, value, columns, chosen)
        return None if step is None or step[1] is None else self._read(step[0], step[1], step[2], depth + 1)

    def _part(self, node: ir.Node, value: ir.Value, columns: _Columns, chosen: _Selection, depth: int) -> _Terms | None:
        """The one operand of a Concat of columns that holds all of them."""
        if not _last(node, value):
            return None
        begin = 0
        for part in node.inputs:
            width = self.width(part)
            if part is None or width is None:
                return None
            if begin <= columns[0] and columns[1] <= begin + width:
                return self._read(part, (columns[0] - begin, columns[1] - begin), chosen, depth + 1)
            begin += width
        return None

    def _step(
        self, node: ir.Node, value: ir.Value, columns: _Columns | None, chosen: _Selection
    ) -> tuple[ir.Value, _Columns | None, _Selection] | None:
        """One step back through an op that only moves rows or takes columns; no columns means all of them."""
        source = node.inputs[0] if node.inputs else None
        if source is None:
            return None
        if node.op_type == "Identity":
            return source, columns, chosen
        if node.op_type in ("Reshape", "Squeeze", "Unsqueeze", "Flatten"):
            moved = _reshaped(source, value, chosen)
            return None if moved is None else (source, columns, moved[0])
        if node.op_type == "Transpose":
            moved = _transposed(source, node, chosen)
            return None if moved is None else (source, columns, moved[0])
        if node.op_type == "Gather" and chosen is None:
            picked = _gathered(node, source)
            return None if picked is None else (source, columns, picked)
        if node.op_type == "Split" and columns is not None:
            return _split(node, source, value, columns, chosen)
        return _sliced(node, source, columns, chosen) if node.op_type == "Slice" else None


def _reset(rows: Rows, terms: _Terms) -> Rows | Sum:
    """The rows ``r * h`` of a gate and a state, or the rows as they are."""
    kinds = [sorted(type(factor).__name__ for factor in term) for term in terms]
    return frozenset(terms.items()) if kinds == [["Gate", "State"]] else rows


def _without_lead(sizes: list[Size]) -> list[Size]:
    """Sizes without the leading ones, which broadcasting supplies."""
    lead = next((k for k, size in enumerate(sizes) if size.number != 1), len(sizes))
    return sizes[lead:]


def _constant(value: ir.Value, content: np.ndarray, columns: _Columns) -> _Terms | None:
    if content.size and not content.any():
        return {}
    if content.size == 1 and (content.ndim == 0 or columns[1] - columns[0] > 1):
        return {(): float(content.reshape(-1)[0])}
    if content.ndim == 0 or content.shape[-1] < columns[1] or prod(content.shape[:-1]) != 1:
        return None
    return {(Vector(value, *columns),): 1.0}


def _scaled(terms: _Terms | None, number: float) -> _Terms | None:
    return None if terms is None else {term: number * c for term, c in terms.items()}


def _added(first: _Terms, second: _Terms, sign: float) -> _Terms:
    result = dict(first)
    for term, c in second.items():
        result[term] = result.get(term, 0.0) + sign * c
    return {term: c for term, c in result.items() if c != 0.0}


def _multiplied(first: _Terms, second: _Terms) -> _Terms | None:
    if len(first) * len(second) > _TERMS or not (first or _bounded(second)) or not (second or _bounded(first)):
        return None
    result: _Terms = {}
    for one, c in first.items():
        for two, d in second.items():
            result = _added(result, {tuple(sorted((*one, *two), key=hash)): c * d}, 1.0)
    return result


def _bounded(terms: _Terms) -> bool:
    """Whether a sum is finite whatever it is computed from, so that zero times it is zero."""
    return all(isinstance(f, Gate) and f.op in ("Sigmoid", "Tanh") for term in terms for f in term)


def _last(node: ir.Node, value: ir.Value) -> bool:
    sizes = sizes_of(value)
    axis = attribute(node, "axis")
    return axis == -1 or (sizes is not None and axis == len(sizes) - 1)


def _reshaped(source: ir.Value, value: ir.Value, chosen: _Selection) -> tuple[_Selection] | None:
    """The selection before a reshape that keeps the columns, and so the order of the rows."""
    before, after = sizes_of(source), sizes_of(value)
    if not before or not after or before[-1].number is None or before[-1] != after[-1]:
        return None
    if chosen is None:
        return (None,)
    axis = reshaped_selection(source, value, chosen[0])
    return None if axis is None or axis == len(before) - 1 else ((axis, chosen[1]),)


def reshaped_selection(source: ir.Value, value: ir.Value, place: int) -> int | None:
    """The axis before a reshape that is an axis of the result: of its size, with as much before it."""
    before, after = sizes_of(source), sizes_of(value)
    if before is None or after is None:
        return None
    lead = product(after[:place])
    return next((k for k in range(len(before)) if before[k] == after[place] and product(before[:k]) == lead), None)


def _transposed(source: ir.Value, node: ir.Node, chosen: _Selection) -> tuple[_Selection] | None:
    """The selection before a transpose that moves the chosen axis, and axes of size one, among the rows."""
    sizes = sizes_of(source)
    perm = integers(node, "perm", ())
    if sizes is None or len(perm) != len(sizes) or perm[-1] != len(perm) - 1:
        return None
    axis = None if chosen is None else perm[chosen[0]]
    moving = [k for k in perm[:-1] if k != axis and sizes[k].number != 1]
    if moving != sorted(moving):
        return None
    return (None if chosen is None or axis is None else (axis, chosen[1]),)


def _gathered(node: ir.Node, source: ir.Value) -> _Selection:
    sizes, index = sizes_of(source), node.inputs[1]
    axis = attribute(node, "axis", 0)
    content = array(index)
    if sizes is None or index is None or axis % len(sizes) == len(sizes) - 1:
        return None
    axis %= len(sizes)
    if content is None:
        shape = sizes_of(index)
        return (axis, index) if shape is not None and all(size.number == 1 for size in shape) else None
    total, place = sizes[axis].number, int(content.reshape(-1)[0]) if content.size == 1 else None
    if place is None or (place < 0 and total is None):
        return None
    return axis, place if place >= 0 else place + (total or 0)


def _split(
    node: ir.Node, source: ir.Value, value: ir.Value, columns: _Columns, chosen: _Selection
) -> tuple[ir.Value, _Columns, _Selection] | None:
    sizes = sizes_of(source)
    if sizes is None or sizes[-1].number is None or attribute(node, "axis", 0) not in (-1, len(sizes) - 1):
        return None
    given = node.inputs[1] if len(node.inputs) > 1 else None
    content = array(given)
    total, count = sizes[-1].number, len(node.outputs)
    if content is None and (given is not None or total % count):
        return None
    widths = [total // count] * count if content is None else [int(n) for n in content]
    begin = sum(widths[: node.outputs.index(value)])
    return source, (columns[0] + begin, columns[1] + begin), chosen


def _sliced(
    node: ir.Node, source: ir.Value, columns: _Columns | None, chosen: _Selection
) -> tuple[ir.Value, _Columns | None, _Selection] | None:
    """A Slice takes columns, one place along another axis, or both."""
    sizes, pieces = sizes_of(source), pieces_of(node)
    if sizes is None or pieces is None:
        return None
    for axis, start, end, step in pieces:
        whole = step == 1 and start == 0 and end == _END
        if whole:
            continue
        if step != 1:
            return None
        if axis == len(sizes) - 1:
            if columns is None or start < 0:
                return None
            columns = (columns[0] + start, columns[1] + start)
        elif chosen is None and start >= 0 and _one(start, end, sizes[axis]):
            chosen = (axis, start)
        else:
            return None
    return source, columns, chosen


def _one(start: int, end: int, size: Size) -> bool:
    return (end if end != _END or size.number is None else size.number) - start == 1
