"""How often a Loop runs, where that follows from numbers: its counters and its condition, step by step."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxfix.canonical.rewriting import array

# Longer loops are not counted.
_LONGEST = 2**16
Number = int | float | bool

_OPS: dict[str, Callable[..., Number]] = {
    "Add": operator.add, "Sub": operator.sub, "Mul": operator.mul, "Less": operator.lt, "LessOrEqual": operator.le,
    "Greater": operator.gt, "GreaterOrEqual": operator.ge, "Equal": operator.eq, "Max": max, "Min": min,
    "And": lambda a, b: bool(a and b), "Or": lambda a, b: bool(a or b), "Not": operator.not_,
    "Identity": lambda a: a, "Squeeze": lambda a, *_: a, "Unsqueeze": lambda a, *_: a, "Reshape": lambda a, *_: a,
}


@dataclass(frozen=True)
class Count:
    """A counted Loop.

    Attributes:
        counters: What the counters of the body (the iteration number and carried numbers) are at each step.
        last: For each carried counter, by its place among the carried values, what it ends as.
    """

    counters: list[dict[ir.Value, Number]]
    last: dict[int, Number]

    @property
    def steps(self) -> int:
        """How often it runs."""
        return len(self.counters)

    def values(self, value: ir.Value) -> list[Number | None]:
        """What a value computed from counters is at each step; None where it depends on anything else."""
        return [_evaluate(value, dict(known)) for known in self.counters]


def count(loop: ir.Node, body: ir.Graph) -> Count | None:
    """Run the counters of a Loop; None if its condition depends on anything else."""
    bound = _number(array(loop.inputs[0])) if loop.inputs[0] is not None else float("inf")
    going = _number(array(loop.inputs[1])) if loop.inputs[1] is not None else True
    if bound is None or going is None:
        return None
    carried = _counters(loop, body)
    state = {k: number for k, number in carried.items()}
    counters: list[dict[ir.Value, Number]] = []
    while going and len(counters) < bound:
        if len(counters) == _LONGEST:
            return None
        counters.append({body.inputs[0]: len(counters), **{body.inputs[k + 2]: n for k, n in state.items()}})
        known = dict(counters[-1])
        results = [_evaluate(body.outputs[k + 1], known) for k in state]
        again = _evaluate(body.outputs[0], known)
        if again is None or None in results:
            return None
        going = bool(again)
        state = {k: n for k, n in zip(state, results, strict=True) if n is not None}
    return Count(counters, state)


def _number(content: np.ndarray | None) -> Number | None:
    return None if content is None or content.size != 1 else content.reshape(-1)[0].item()


def _counters(loop: ir.Node, body: ir.Graph) -> dict[int, Number]:
    """The carried values that start as a number and go on as what can be counted."""
    found = {}
    for k, value in enumerate(loop.inputs[2:]):
        content = array(value)
        if content is not None and content.size == 1 and content.dtype.kind in "iub":
            number = _number(content)
            if number is not None:
                found[k] = number
    while True:
        known: dict[ir.Value, Number] = {body.inputs[0]: 0, **{body.inputs[k + 2]: n for k, n in found.items()}}
        kept = {k: n for k, n in found.items() if _evaluate(body.outputs[k + 1], known) is not None}
        if kept == found:
            return found
        found = kept


def _evaluate(value: ir.Value | None, known: dict[ir.Value, Number], depth: int = 0) -> Number | None:
    if value is None or depth > 16:
        return None
    if value in known:
        return known[value]
    content = array(value)
    if content is not None:
        return _number(content)
    node = value.producer()
    if node is None or node.domain != "":
        return None
    operands = [_evaluate(v, known, depth + 1) for v in node.inputs[: 1 if node.op_type in _MOVING else None]]
    if None in operands or not (node.op_type in _OPS or node.op_type == "Cast"):
        return None
    if node.op_type == "Cast":
        return _cast(node, operands[0])
    result = _OPS[node.op_type](*operands)
    known[value] = result
    return result


_MOVING = ("Squeeze", "Unsqueeze", "Reshape")


def _cast(node: ir.Node, number: Number | None) -> Number | None:
    to = ir.DataType(node.attributes.get_int("to"))
    return None if number is None else np.asarray(number).astype(to.numpy()).item()
