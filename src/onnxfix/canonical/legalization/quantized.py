"""Quantization as arithmetic on floats."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxfix.canonical.legalization.elementwise import number
from onnxfix.canonical.legalization.respelling import Rule, Speller
from onnxfix.canonical.queries import rank
from onnxfix.canonical.rewriting import attribute


def _quantize(spell: Speller) -> ir.Value | None:
    """``q = cast(clip(round(x / s) + z))`` to the range of the integer type; round half to even, as ONNX does."""
    x, scale, zero = (spell.input(slot) for slot in range(3))
    kind = zero.dtype if zero is not None else ir.DataType(attribute(spell.origin, "output_dtype", 0) or 2)
    columns = _columns(spell, scale, zero)
    if columns is None or x is None or kind is None or np.dtype(kind.numpy()).kind not in "iu":
        return None
    steps = spell("Round", spell("Div", x, columns[0]))
    shifted = steps if columns[1] is None else spell("Add", steps, spell("Cast", columns[1], to=_float(x)))
    limits = np.iinfo(kind.numpy())
    kept = spell("Clip", shifted, number(spell, limits.min, x), number(spell, limits.max, x))
    return spell("Cast", kept, to=int(kind))


def _dequantize(spell: Speller) -> ir.Value | None:
    """``x = (q - z) * s``."""
    q, scale, zero = (spell.input(slot) for slot in range(3))
    columns = _columns(spell, scale, zero)
    if columns is None or scale is None:
        return None
    value = spell("Cast", q, to=_float(scale))
    if columns[1] is not None:
        value = spell("Sub", value, spell("Cast", columns[1], to=_float(scale)))
    return spell("Mul", value, columns[0])


def _float(value: ir.Value) -> int:
    return int(value.dtype or ir.DataType.FLOAT)


def _columns(
    spell: Speller, scale: ir.Value | None, zero: ir.Value | None
) -> tuple[ir.Value | None, ir.Value | None] | None:
    """Scale and zero point in the shape in which they broadcast; None where they are by block or of unknown rank."""
    size, count = rank(spell.input(0)), rank(scale)
    if attribute(spell.origin, "block_size", 0) or count is None or size is None or count > 1:
        return None
    axis = attribute(spell.origin, "axis", 1)
    if count == 0 or (scale is not None and scale.shape is not None and scale.shape[0] == 1 and size == 0):
        return scale, zero
    after = size - 1 - axis % size
    if not after:
        return scale, zero
    axes = spell.editor.literal(np.arange(1, 1 + after), "axes")
    return spell("Unsqueeze", scale, axes), None if zero is None else spell("Unsqueeze", zero, axes)


QUANTIZED: dict[str, Rule] = {"DequantizeLinear": _dequantize, "QuantizeLinear": _quantize}
