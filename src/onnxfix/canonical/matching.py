"""Exact isomorphism of two normal forms, up to a tolerance on floats."""

from __future__ import annotations

from collections import Counter
from itertools import permutations
from typing import Any

import numpy as np

from onnxfix.canonical.coloring import SHAPES, Color, Coloring, content, digest, is_weight, kind, without_floats
from onnxfix.canonical.topology import Operand, Topology, Vertex

# Undone pairings of commutative operands before giving up: refinement leaves almost none to guess, so this is a guard.
_BUDGET = 10_000
# Two numbers this near are the same whatever they are for: an epsilon of 1e-12 that an optimiser took for none.
_NOTHING = 1e-11
# Elements looked at first, and elements compared at a time (bounds the memory that doubles take).
_SAMPLE, _BLOCK = 64, 1 << 20


def close(first: np.ndarray, second: np.ndarray, rtol: float, atol: float) -> bool:
    """Whether two constants agree: ``|a - b| <= atol * max|b| + rtol * |b|`` everywhere, for either as ``b``.

    Shapes and dtypes must be equal; other dtypes than floats must be equal element by element; NaN equals NaN.
    """
    if first.shape != second.shape or first.dtype != second.dtype:
        return False
    if first.dtype.kind not in "fcV":
        return bool(np.array_equal(first, second))
    scale = min(_greatest(first), _greatest(second))
    one, two = first.reshape(-1), second.reshape(-1)
    step = max(1, one.size // _SAMPLE)
    if not _within(one[::step], two[::step], rtol, atol * scale):
        return False
    return all(
        _within(one[k : k + _BLOCK], two[k : k + _BLOCK], rtol, atol * scale) for k in range(0, one.size, _BLOCK)
    )


def _greatest(value: np.ndarray) -> float:
    """The greatest finite magnitude."""
    if value.size == 0:
        return 0.0
    with np.errstate(invalid="ignore"):
        ends = np.array([value.min(), value.max()], dtype=np.float64)
    if not np.isfinite(ends).all():
        finite = value[np.isfinite(value)].astype(np.float64)
        return float(np.abs(finite).max(initial=0.0))
    return float(np.abs(ends).max())


def _within(first: np.ndarray, second: np.ndarray, rtol: float, absolute: float) -> bool:
    """The tolerance test in both directions; elements that are not finite must be the same."""
    a, b = (v if v.dtype.kind == "f" and v.dtype.itemsize >= 4 else v.astype(np.float64) for v in (first, second))
    with np.errstate(invalid="ignore"):
        good = np.abs(a - b) <= rtol * np.minimum(np.abs(a), np.abs(b)) + absolute
    good &= np.isfinite(a) & np.isfinite(b)
    return bool(good.all() or (good | (a == b) | (np.isnan(a) & np.isnan(b))).all())


class Matcher:
    """Decides whether two graphs are isomorphic.

    Colour refinement over both graphs first, with constants labelled by dtype and shape and then, if weights count, by
    which of them agree; then the graphs are walked from their outputs, operand by operand, and every pair is verified.
    Only operands of commutative ops with equal colours leave a choice.

    Args:
        first: One graph.
        second: The other.
        weights: Whether weights must agree.
        rtol: See :func:`close`.
        atol: See :func:`close`.
    """

    def __init__(self, first: Topology, second: Topology, *, weights: bool, rtol: float, atol: float) -> None:
        self.first, self.second = first, second
        self.weights, self.rtol, self.atol = weights, rtol, atol
        self.forward: dict[int, int] = {}
        self.back: dict[int, int] = {}
        self.trail: list[int] = []
        self.budget = _BUDGET
        self.agreeing: dict[tuple[int, int], bool] = {}

    def match(self) -> bool:
        """Whether there is an isomorphism that keeps the order of inputs and outputs."""
        if len(self.first.vertices) != len(self.second.vertices):
            return False
        if len(self.first.outputs) != len(self.second.outputs):
            return False
        self.colors = (self._colored(self.first, None), self._colored(self.second, None))
        if not self._same_partition():
            return False
        if self.weights:
            self._color_by_weights()
        for one, two in zip(self.first.outputs, self.second.outputs, strict=True):
            if one.kind == "constant" and two.kind == "constant":
                if not self._constants(one, two, None, 0):
                    return False
            elif not self._pair(one, two):
                return False
        return len(self.forward) == len(self.first.vertices)

    def _same_partition(self) -> bool:
        return Counter(self.colors[0].colors) == Counter(self.colors[1].colors)

    def _colored(self, graph: Topology, classes: dict[int, Color] | None) -> Coloring:
        labels: dict[tuple[int, int], Color] = {}

        def constant(_: Topology, operand: Operand, vertex: Vertex, slot: int) -> Color:
            value = graph.constants[operand.index]
            if (vertex.op, slot) in SHAPES and vertex.domain == "":
                return str(value.size).encode()
            if value.dtype.kind in "fcV" or is_weight(value, vertex, slot):
                return kind(value) if classes is None else classes[operand.index]
            key = (operand.index, 0)
            if key not in labels:
                labels[key] = content(value)
            return labels[key]

        coloring = Coloring(
            graph,
            constant=constant,
            attribute=without_floats,
            body=self._body,
            entry=[digest(b"input", str(k).encode(), str(s.kind).encode()) for k, s in enumerate(graph.inputs)],
        )
        coloring.refine()
        return coloring

    def _body(self, body: Topology) -> Color:
        return digest(b"body", *sorted(self._colored(body, None).colors))

    def _color_by_weights(self) -> None:
        """Refine again with constants labelled by the class of agreeing ones; kept only if both graphs still fit."""
        classes: tuple[dict[int, Color], dict[int, Color]] = ({}, {})
        standing: dict[bytes, list[tuple[int, np.ndarray, Color]]] = {}
        for side, graph in enumerate((self.first, self.second)):
            for index, value in enumerate(graph.constants):
                group = standing.setdefault(kind(value), [])
                for place, representative, color in group:
                    if close(representative, value, self.rtol, self.atol):
                        classes[side][index] = color
                        if side == 1 and place >= 0:
                            self.agreeing[place, index] = True
                        break
                else:
                    classes[side][index] = digest(kind(value), str(len(group)).encode())
                    group.append((index if side == 0 else -1, value, classes[side][index]))
        structural = self.colors
        self.colors = (self._colored(self.first, classes[0]), self._colored(self.second, classes[1]))
        if not self._same_partition():
            self.colors = structural

    def _pair(self, one: Operand, two: Operand) -> bool:
        """Pair two operands and all that is behind them; undoes what it paired if that fails."""
        mark = len(self.trail)
        waiting = [(one, two)]
        if self._walk(waiting):
            return True
        self._undo(mark)
        return False

    def _walk(self, waiting: list[tuple[Operand, Operand]]) -> bool:
        while waiting:
            one, two = waiting.pop()
            if (one.kind, one.output) != (two.kind, two.output):
                return False
            if one.kind == "absent":
                continue
            if one.kind == "input":
                if one.index != two.index:
                    return False
                continue
            if one.index in self.forward or two.index in self.back:
                if self.forward.get(one.index) != two.index:
                    return False
                continue
            if not self._vertices(one.index, two.index, waiting):
                return False
        return True

    def _vertices(self, one: int, two: int, waiting: list[tuple[Operand, Operand]]) -> bool:
        """Pair two vertices and queue their operands."""
        p, q = self.first.vertices[one], self.second.vertices[two]
        if self.colors[0].colors[one] != self.colors[1].colors[two] or len(p.operands) != len(q.operands):
            return False
        if not self._attributes(p, q):
            return False
        self.forward[one], self.back[two] = two, one
        self.trail.append(one)
        orders = self._orders(one, two)
        for order in orders[:-1]:
            self.budget -= 1
            if self.budget < 0:
                return False
            if self._operands(p, [q.operands[k] for k in order], None):
                return True
        return bool(orders) and self._operands(p, [q.operands[k] for k in orders[-1]], waiting)

    def _operands(self, p: Vertex, others: list[Operand], waiting: list[tuple[Operand, Operand]] | None) -> bool:
        """Pair operands: constants now, the rest queued, or walked at once where another order is still open."""
        mark = len(self.trail)
        pairs = []
        for slot, (one, two) in enumerate(zip(p.operands, others, strict=True)):
            if one.kind == "constant" or two.kind == "constant":
                if one.kind != two.kind or not self._constants(one, two, p, slot):
                    return False
            else:
                pairs.append((one, two))
        if waiting is not None:
            waiting += pairs
            return True
        if self._walk(pairs):
            return True
        self._undo(mark)
        return False

    def _orders(self, one: int, two: int) -> list[tuple[int, ...]]:
        """Orders of the second vertex's operands whose colours agree with the first's."""
        p, q = self.first.vertices[one], self.second.vertices[two]
        identity = tuple(range(len(q.operands)))
        if not p.commutative:
            return [identity]
        left = [self.colors[0].operand(o, one, k) for k, o in enumerate(p.operands)]
        right = [self.colors[1].operand(o, two, k) for k, o in enumerate(q.operands)]
        if len(identity) > 4:
            return [identity]
        return [order for order in permutations(identity) if all(left[k] == right[m] for k, m in enumerate(order))]

    def _undo(self, mark: int) -> None:
        while len(self.trail) > mark:
            one = self.trail.pop()
            del self.back[self.forward.pop(one)]

    def _attributes(self, p: Vertex, q: Vertex) -> bool:
        if p.attributes.keys() != q.attributes.keys():
            return False
        return all(self._values(value, q.attributes[name]) for name, value in p.attributes.items())

    def _values(self, one: Any, two: Any) -> bool:
        if isinstance(one, Topology) and isinstance(two, Topology):
            return Matcher(one, two, weights=self.weights, rtol=self.rtol, atol=self.atol).match()
        if isinstance(one, np.ndarray) and isinstance(two, np.ndarray):
            return close(one, two, self.rtol, self.atol)
        if isinstance(one, tuple) and isinstance(two, tuple):
            return len(one) == len(two) and all(map(self._values, one, two))
        if isinstance(one, float) and isinstance(two, float):
            allowed = self.rtol * min(abs(one), abs(two)) + _NOTHING
            return one == two or abs(one - two) <= allowed or (one != one and two != two)
        return type(one) is type(two) and bool(one == two)

    def _constants(self, one: Operand, two: Operand, vertex: Vertex | None, slot: int) -> bool:
        key = (one.index, two.index)
        a, b = self.first.constants[one.index], self.second.constants[two.index]
        if vertex is not None and vertex.domain == "" and (vertex.op, slot) in SHAPES:
            return same_target(a, b)
        weight = vertex is None or is_weight(a, vertex, slot)
        if weight and not self.weights:
            return a.shape == b.shape and a.dtype == b.dtype
        if key not in self.agreeing:
            self.agreeing[key] = close(a, b, self.rtol, self.atol)
        return self.agreeing[key]


def same_target(first: np.ndarray, second: np.ndarray) -> bool:
    """Whether two shape operands mean the same for equal data: 0 (copied) and -1 (what is left) stand for any size.

    The data of both is already known to correspond, so where every size that both name agrees, the rest does too.
    """
    if first.shape != second.shape:
        return False
    return bool(((first == second) | (first <= 0) | (second <= 0)).all())
