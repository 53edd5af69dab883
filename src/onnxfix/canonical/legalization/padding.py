"""Padding with a model's own elements, where PyTorch has none: each axis is gathered."""

from __future__ import annotations

from typing import Literal

import numpy as np
import onnx_ir as ir

from onnxfix.canonical.legalization.constants import ints_of
from onnxfix.canonical.legalization.respelling import Rule, Speller
from onnxfix.canonical.queries import dims
from onnxfix.canonical.rewriting import attribute

_NUMPY: dict[str, Literal["reflect", "edge", "wrap"]] = {"reflect": "reflect", "edge": "edge", "wrap": "wrap"}


def _pad(spell: Speller) -> ir.Value | None:
    """``pad(x, mode) = gather(x, i)`` with ``i = pad(arange(n), mode)`` for each padded axis of n elements."""
    node, x = spell.origin, spell.input(0)
    mode, shape, amounts = attribute(node, "mode", "constant"), dims(x), ints_of(spell.input(1))
    if mode not in _NUMPY or x is None or shape is None or amounts is None:
        return None
    axes = ints_of(spell.input(3)) or list(range(len(shape)))
    begins = {axis % len(shape): amounts[k] for k, axis in enumerate(axes)}
    ends = {axis % len(shape): amounts[k + len(axes)] for k, axis in enumerate(axes)}
    moved = [axis for axis in sorted(begins) if begins[axis] or ends[axis]]
    known = mode != "wrap" and 3 <= len(shape) <= 5 and min(moved, default=2) >= 2 and min(amounts) >= 0
    if known or any(shape[axis] is None for axis in moved):
        return None
    value = x
    for axis in moved:
        places = np.pad(
            np.arange(shape[axis] or 0), (max(begins[axis], 0), max(ends[axis], 0)), mode=_NUMPY[mode]
        )
        places = places[max(-begins[axis], 0) : len(places) - max(-ends[axis], 0)]
        value = spell("Gather", value, spell.editor.literal(places.astype(np.int64), "indices"), axis=axis)
    return value


PADDING: dict[str, Rule] = {"Pad": _pad}
