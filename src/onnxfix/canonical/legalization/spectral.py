"""Discrete Fourier transforms as products with matrices."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxfix.canonical.legalization.constants import ints_of
from onnxfix.canonical.legalization.respelling import Rule, Speller
from onnxfix.canonical.queries import dims
from onnxfix.canonical.rewriting import array, attribute

# A transform longer than this would need a matrix of more than 64 MB.
_LONGEST = 2048


def _dft(spell: Speller) -> ir.Value | None:
    """``[..., n, c] -> [..., n c] M -> [..., k, 2]`` along an axis of known length."""
    node, x = spell.origin, spell.input(0)
    shape, axis = dims(x), [-2] if spell.input(2) is None else ints_of(spell.input(2))
    if "axis" in node.attributes:
        axis = [attribute(node, "axis")]
    if x is None or shape is None or axis is None or len(shape) < 3:
        return None
    place = axis[0] % len(shape)
    old, parts = shape[place], shape[-1]
    length = [old] if spell.input(1) is None else ints_of(spell.input(1))
    inverse, onesided = bool(attribute(node, "inverse", 0)), bool(attribute(node, "onesided", 0))
    if old is None or parts not in (1, 2) or not length or length[0] is None or (inverse and onesided):
        return None
    if max(length[0], old) > _LONGEST:
        return None
    matrix = _matrix(old, parts, length[0], inverse=inverse, onesided=onesided)
    others = [k for k in range(len(shape) - 1) if k != place]
    order = [*others, place, len(shape) - 1]
    moved = spell("Transpose", x, perm=order)
    flat = _reshape(spell, moved, [*[0] * len(others), old * parts])
    product = spell("MatMul", flat, _literal(spell, matrix, x))
    wide = _reshape(spell, product, [*[0] * len(others), matrix.shape[1] // 2, 2])
    return spell("Transpose", wide, perm=[order.index(k) for k in range(len(shape))])


def _stft(spell: Speller) -> ir.Value | None:
    """Frames are gathered, multiplied by the window, and transformed by a product with a matrix."""
    signal, step, window, length = (spell.input(slot) for slot in range(4))
    shape, steps, weights = dims(signal), ints_of(step), array(window)
    size = [len(weights)] if weights is not None else ints_of(length)
    if signal is None or shape is None or len(shape) != 3 or shape[1] is None or shape[2] not in (1, 2):
        return None
    if not steps or not size or size[0] > _LONGEST or (window is not None and weights is None):
        return None
    count = (shape[1] - size[0]) // steps[0] + 1
    places = np.arange(count)[:, None] * steps[0] + np.arange(size[0])
    frames = spell("Gather", signal, spell.editor.literal(places.astype(np.int64), "places"), axis=1)
    onesided = bool(attribute(spell.origin, "onesided", 1)) and shape[2] == 1
    matrix = _matrix(size[0], shape[2], size[0], inverse=False, onesided=onesided)
    if weights is not None:
        matrix = matrix * np.repeat(weights.astype(np.float64), shape[2])[:, None]
    flat = _reshape(spell, frames, [0, count, size[0] * shape[2]])
    return _reshape(spell, spell("MatMul", flat, _literal(spell, matrix, signal)), [0, count, matrix.shape[1] // 2, 2])


def _matrix(old: int, parts: int, length: int, *, inverse: bool, onesided: bool) -> np.ndarray:
    """The matrix [old * parts, results * 2]: what each real or imaginary part of an element gives to each result."""
    results = length // 2 + 1 if onesided else length
    turn = (2 if inverse else -2) * np.pi * (np.outer(np.arange(old), np.arange(results)) % length) / length
    turn[length:] = np.nan  # elements beyond the transform's length are left out
    cosine, sine = np.nan_to_num(np.cos(turn)), np.nan_to_num(np.sin(turn))
    real = np.stack([cosine, sine], axis=-1)
    imaginary = np.stack([-sine, cosine], axis=-1)
    matrix = np.stack([real, imaginary][:parts], axis=1).reshape(old * parts, results * 2)
    return matrix / length if inverse else matrix


def _literal(spell: Speller, matrix: np.ndarray, like: ir.Value) -> ir.Value:
    dtype = np.float32 if like.dtype is None else like.dtype.numpy()
    return spell.editor.literal(matrix.astype(dtype), "transform")


def _reshape(spell: Speller, x: ir.Value | None, target: list[int]) -> ir.Value:
    return spell("Reshape", x, spell.editor.literal(np.array(target, np.int64), "shape"))


def _lrn(spell: Speller) -> ir.Value | None:
    """``y = x / (bias + alpha / size * s)^beta``, s being the squares of the neighbouring channels."""
    node, x = spell.origin, spell.input(0)
    shape = dims(x)
    if x is None or shape is None or len(shape) < 2 or shape[1] is None:
        return None
    size = attribute(node, "size")
    before, after = (size - 1) // 2, size - 1 - (size - 1) // 2
    amounts = [0, before, *[0] * (len(shape) - 2), 0, after, *[0] * (len(shape) - 2)]

    def constant(value: float) -> ir.Value:
        dtype = np.float32 if x.dtype is None else x.dtype.numpy()
        return spell.editor.literal(np.asarray(value, dtype), "number")

    def bounds(*numbers: int) -> list[ir.Value]:
        return [spell.editor.literal(np.array([n], np.int64), "bound") for n in numbers]

    squares = spell("Mul", x, x)
    wide = spell("Pad", squares, spell.editor.literal(np.array(amounts, np.int64), "pads"), constant(0))
    parts = [spell("Slice", wide, *bounds(k, k + shape[1], 1)) for k in range(size)]
    total = parts[0] if size == 1 else spell("Sum", *parts)
    scale = constant(attribute(node, "alpha", 1e-4) / size)
    base = spell("Add", spell("Mul", total, scale), constant(attribute(node, "bias", 1.0)))
    return spell("Div", x, spell("Pow", base, constant(attribute(node, "beta", 0.75))))


SPECTRAL: dict[str, Rule] = {"DFT": _dft, "LRN": _lrn, "STFT": _stft}
