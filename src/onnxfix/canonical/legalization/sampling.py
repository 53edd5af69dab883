"""GridSample of maps by gathering."""

from __future__ import annotations

from itertools import product

import numpy as np
import onnx_ir as ir

from onnxfix.canonical.legalization.elementwise import number
from onnxfix.canonical.legalization.respelling import Rule, Speller
from onnxfix.canonical.queries import dims
from onnxfix.canonical.rewriting import attribute


class _Axis:
    """One coordinate of the sampling points, [N, P], on an axis of known length."""

    def __init__(self, spell: Speller, grid: ir.Value, place: int, length: int) -> None:
        self.spell, self.length = spell, length
        index = spell.editor.literal(np.asarray(place, np.int64), "indices")
        unit = spell("Gather", grid, index, axis=2)
        corners = bool(attribute(spell.origin, "align_corners", 0))
        # [-1, 1] are the centres of the outer elements with align_corners, their outer edges without
        scale, shift = ((length - 1) / 2, (length - 1) / 2) if corners else (length / 2, (length - 1) / 2)
        self.point = spell("Add", spell("Mul", unit, self.number(scale)), self.number(shift))
        if attribute(spell.origin, "padding_mode", "zeros") == "border":
            self.point = self.bounded(self.point)
        self.low = spell("Floor", self.point)

    def number(self, value: float) -> ir.Value:
        return number(self.spell, value, self.spell.input(0))

    def bounded(self, value: ir.Value) -> ir.Value:
        return self.spell("Clip", value, self.number(0), self.number(self.length - 1))

    def corner(self, upper: int) -> tuple[ir.Value, ir.Value]:
        """The element on one side of each point and its weight, 0 where it lies outside."""
        spell = self.spell
        place = spell("Add", self.low, self.number(upper))
        part = spell("Sub", self.point, self.low)
        return self.inside(place, part if upper else spell("Sub", self.number(1), part))

    def nearest(self) -> tuple[ir.Value, ir.Value]:
        """The element nearest to each point, the even one of two, with weight 1 inside."""
        return self.inside(self.spell("Round", self.point), self.number(1))

    def inside(self, place: ir.Value, weight: ir.Value) -> tuple[ir.Value, ir.Value]:
        spell, kept = self.spell, self.bounded(place)
        hit = spell("Equal", kept, place)
        return kept, spell("Where", hit, weight, self.number(0))


def _grid_sample(spell: Speller) -> ir.Value | None:
    """``y = sum over corners of weight * x[corner]``, with x and the points flattened to [N, C, HW] and [N, P, 2]."""
    x, grid, node = spell.input(0), spell.input(1), spell.origin
    shape, points = dims(x), dims(grid)
    mode = attribute(node, "mode", "linear")
    known = shape is not None and points is not None and len(shape) == 4 and None not in shape[1:] + points[1:]
    if not known or mode not in ("linear", "nearest") or attribute(node, "padding_mode", "zeros") == "reflection":
        return None
    if shape is None or points is None:
        return None
    channels, height, width = (size or 0 for size in shape[1:])
    rows, columns = (size or 0 for size in points[1:3])
    flat = _reshape(spell, x, [0, channels, height * width])
    listed = _reshape(spell, grid, [0, rows * columns, 2])
    across, down = _Axis(spell, listed, 0, width), _Axis(spell, listed, 1, height)
    pairs = (
        [(across.nearest(), down.nearest())] if mode == "nearest"
        else [(across.corner(a), down.corner(b)) for a, b in product((0, 1), repeat=2)]
    )
    terms = [_term(spell, flat, pair, channels, width) for pair in pairs]
    total = terms[0] if len(terms) == 1 else spell("Sum", *terms)
    return _reshape(spell, total, [0, channels, rows, columns])


def _term(
    spell: Speller, flat: ir.Value, pair: tuple[tuple[ir.Value, ir.Value], tuple[ir.Value, ir.Value]], channels: int,
    width: int,
) -> ir.Value:
    (column, across), (row, down) = pair
    place = spell("Add", spell("Mul", row, number(spell, width, flat)), column)
    one = spell.editor.literal(np.array([1], np.int64), "axes")
    index = spell("Unsqueeze", spell("Cast", place, to=int(ir.DataType.INT64)), one)
    target = spell.editor.literal(np.array([1, channels, 1], np.int64), "shape")
    found = spell("GatherElements", flat, spell("Expand", index, target), axis=2)
    return spell("Mul", found, spell("Unsqueeze", spell("Mul", across, down), one))


def _reshape(spell: Speller, x: ir.Value | None, target: list[int]) -> ir.Value:
    return spell("Reshape", x, spell.editor.literal(np.array(target, np.int64), "shape"))


SAMPLING: dict[str, Rule] = {"GridSample": _grid_sample}
