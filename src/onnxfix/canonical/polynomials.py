"""Scalar polynomials in a value, read off Add, Mul, Sub and Pow nodes: how converters' spellings are seen through."""

from __future__ import annotations

from dataclasses import dataclass, field

import onnx_ir as ir

from onnxfix.canonical.queries import scalar
from onnxfix.canonical.rewriting import is_constant

Coefficients = dict[int, float]
_READABLE = frozenset({"Add", "Sub", "Mul", "Div", "Pow", "Neg"})
_DEGREE = 3
_DEPTH = 10


@dataclass(frozen=True)
class Polynomial:
    """A polynomial and the nodes that compute it.

    Attributes:
        coefficients: Power -> coefficient, zeros left out.
        nodes: The nodes read.
    """

    coefficients: Coefficients
    nodes: frozenset[ir.Node] = field(default_factory=frozenset)

    def near(self, wanted: Coefficients, tolerance: float = 1e-5) -> bool:
        """Whether the coefficients are these, each to a relative tolerance."""
        return self.coefficients.keys() == wanted.keys() and all(
            abs(self.coefficients[k] - c) <= tolerance * abs(c) for k, c in wanted.items()
        )


def polynomial(value: ir.Value | None, variable: ir.Value, depth: int = _DEPTH) -> Polynomial | None:
    """Read a value as a polynomial in ``variable`` with numbers as coefficients; None if it is anything else.

    Example: ``Mul(Add(x, 3), 0.5)`` is ``{0: 1.5, 1: 0.5}``.
    """
    if value is variable:
        return Polynomial({1: 1.0})
    if is_constant(value):
        number = scalar(value)
        return None if number is None or _expands(value, variable) else Polynomial(_clean({0: number}))
    node = None if value is None else value.producer()
    if node is None or node.domain != "" or depth == 0 or node.op_type not in _READABLE:
        return None
    parts = [polynomial(v, variable, depth - 1) for v in node.inputs]
    if any(p is None for p in parts):
        return None
    known = [p for p in parts if p is not None]
    combined = _combine(node.op_type, [p.coefficients for p in known])
    if combined is None:
        return None
    return Polynomial(_clean(combined), frozenset({node}).union(*(p.nodes for p in known)))


def _expands(constant: ir.Value | None, variable: ir.Value) -> bool:
    """Whether a one-element constant has more dimensions than the variable, and so gives the result more."""
    if constant is None or constant.shape is None or len(constant.shape) == 0:
        return False
    return variable.shape is None or len(constant.shape) > len(variable.shape)


def _clean(coefficients: Coefficients) -> Coefficients:
    return {k: c for k, c in sorted(coefficients.items()) if c != 0}


def _combine(op: str, parts: list[Coefficients]) -> Coefficients | None:
    first, second = parts[0], parts[-1]
    if op in ("Add", "Sub"):
        sign = 1.0 if op == "Add" else -1.0
        return {k: first.get(k, 0.0) + sign * second.get(k, 0.0) for k in {*first, *second}}
    if op == "Neg":
        return {k: -c for k, c in first.items()}
    if op == "Mul":
        return _product(first, second)
    if second.keys() - {0} or not second:
        return None  # divided by, or raised to, something that is no number but zero
    number = second[0]
    if op == "Div":
        return {k: c / number for k, c in first.items()}
    if number not in (2.0, 3.0):
        return None
    square = _product(first, first)
    return square if number == 2.0 or square is None else _product(square, first)


def _product(first: Coefficients, second: Coefficients) -> Coefficients | None:
    result: Coefficients = {}
    for i, a in first.items():
        for j, b in second.items():
            if i + j > _DEGREE:
                return None
            result[i + j] = result.get(i + j, 0.0) + a * b
    return result
