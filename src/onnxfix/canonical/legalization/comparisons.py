"""Comparisons, bounds and casts."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxfix.canonical.legalization.elementwise import number
from onnxfix.canonical.legalization.respelling import Rule, Speller
from onnxfix.canonical.queries import dims, is_float
from onnxfix.canonical.rewriting import array, attribute


def _or_equal(op: str) -> Rule:
    """``a >= b = (a > b) or (a == b)``, which is false for NaN as well."""

    def rule(spell: Speller) -> ir.Value:
        a, b = spell.input(0), spell.input(1)
        return spell("Or", spell(op, a, b), spell("Equal", a, b))

    return rule


def _clip(spell: Speller) -> ir.Value | None:
    """``clip(x, a, b) = min(max(x, a), b)`` for integers, for computed bounds and where the lower one is missing."""
    x, low, high = (spell.input(slot) for slot in range(3))
    fixed = low is not None and array(low) is not None and (high is None or array(high) is not None)
    if fixed and is_float(x):
        return None
    value = x if low is None else spell("Max", x, low)
    return value if high is None else spell("Min", value, high)


def _cast_like(spell: Speller) -> ir.Value | None:
    """``cast_like(x, y) = cast(x)`` to the type of y."""
    like = spell.input(1)
    return None if like is None or like.dtype is None else spell("Cast", spell.input(0), to=int(like.dtype))


def _is_infinite(spell: Speller) -> ir.Value | None:
    """Infinities of one sign are compared with."""
    x = spell.input(0)
    up, down = attribute(spell.origin, "detect_positive", 1), attribute(spell.origin, "detect_negative", 1)
    if up == down:
        return None
    return spell("Equal", x, number(spell, np.inf if up else -np.inf, x))


def _gather_elements(spell: Speller) -> ir.Value | None:
    """Constant indices are counted from the front."""
    x, indices = spell.input(0), array(spell.input(1))
    shape, axis = dims(x), attribute(spell.origin, "axis", 0)
    if indices is None or shape is None or shape[axis] is None or not (indices < 0).any():
        return None
    positive = np.where(indices < 0, indices + (shape[axis] or 0), indices)
    return spell("GatherElements", x, spell.editor.literal(positive.astype(np.int64), "indices"), axis=axis)


COMPARISONS: dict[str, Rule] = {
    "CastLike": _cast_like,
    "Clip": _clip,
    "GatherElements": _gather_elements,
    "GreaterOrEqual": _or_equal("Greater"),
    "IsInf": _is_infinite,
    "LessOrEqual": _or_equal("Less"),
}
