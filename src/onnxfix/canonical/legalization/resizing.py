"""Resize as PyTorch has it, or as what it is: a linear map along each axis."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from onnxfix.canonical.legalization.constants import ints_of
from onnxfix.canonical.legalization.respelling import Rule, Speller
from onnxfix.canonical.queries import dims
from onnxfix.canonical.rewriting import array, attribute
from onnxfix.runtime.evaluation import evaluate_op

# Relative; weights of the same samples, computed in another way, differ by rounding only.
_SAME = 1e-5
# Attributes that say which axes are resized and how far, not how one axis is.
_WHOLE = ("axes", "keep_aspect_ratio_policy")
_FAMILIAR = {
    "nearest": {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"},
    "linear": {"coordinate_transformation_mode": "pytorch_half_pixel"},
    "cubic": {"coordinate_transformation_mode": "pytorch_half_pixel"},
}


def _resize(spell: Speller) -> ir.Value | None:
    """Keep a Resize that PyTorch's interpolate reproduces, given by sizes; spell others axis by axis.

    Along one axis, ``Resize(x) = W x`` with the weights W that Resize itself makes of the unit matrix; where each row
    takes one element (nearest), ``Gather(x, i)``.
    """
    node, x = spell.origin, spell.input(0)
    shape = dims(x)
    if attribute(node, "coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize":
        return _cropped(spell, shape)
    found = None if shape is None else _resized(spell, shape)
    if x is None or shape is None or found is None:
        return None
    sizes, factors = found
    moved = [k for k, factor in enumerate(factors) if factor not in (None, 1) or sizes[k] != shape[k]]
    familiar = _familiar(node, shape, sizes, factors, moved)
    if familiar is not None:
        return _interpolated(spell, shape, sizes, familiar)
    if any(shape[k] is None or sizes[k] is None for k in moved) or x.dtype is None:
        return None
    value = x
    for k in moved:
        weights = _weights(node, shape[k] or 0, sizes[k] or 0, factors[k], {})
        if weights is None:
            return None
        value = _mapped(spell, value, k, len(shape), weights)
    return value


def _resized(spell: Speller, shape: tuple[int | None, ...]) -> tuple[list[int | None], list[float | None]] | None:
    """The size of each axis of the result, and the factor it is given by (None if by size); None if computed."""
    node = spell.origin
    axes = attribute(node, "axes") or list(range(len(shape)))
    axes = [axis % len(shape) for axis in axes]
    scales, target = array(spell.input(2)), ints_of(spell.input(3))
    if target and attribute(node, "keep_aspect_ratio_policy", "stretch") != "stretch":
        target = _keeping_aspect(node, shape, axes, target)
        if target is None:
            return None
    sizes, factors = list(shape), [1.0 if size is None else None for size in shape]
    if scales is not None and scales.size:
        factors = [1.0] * len(shape)
        for axis, scale in zip(axes, scales, strict=True):
            factors[axis] = float(scale)
            size = shape[axis]
            # as onnxruntime rounds it
            sizes[axis] = None if size is None else int(np.float32(size) * np.float32(scale))
    elif target:
        for axis, size in zip(axes, target, strict=True):
            sizes[axis], factors[axis] = size, None
    else:
        return None
    return sizes, list(factors)


def _keeping_aspect(
    node: ir.Node, shape: tuple[int | None, ...], axes: list[int], target: list[int]
) -> list[int] | None:
    """Sizes by one factor for all axes: the smallest of those wanted, or the largest."""
    choose = min if attribute(node, "keep_aspect_ratio_policy") == "not_larger" else max
    old = [shape[axis] for axis in axes]
    if None in old:
        return None
    factor = choose(new / (size or 1) for new, size in zip(target, old, strict=True))
    return [math.floor(factor * (size or 1) + 0.5) for size in old]


def _cropped(spell: Speller, shape: tuple[int | None, ...] | None) -> ir.Value | None:
    """A Resize of a part of the map is linear along each axis, too, where zeros are filled in beyond it."""
    node, x, region, sizes = spell.origin, spell.input(0), array(spell.input(1)), ints_of(spell.input(3))
    fills = attribute(node, "extrapolation_value", 0.0)
    if x is None or shape is None or region is None or not sizes or fills:
        return None
    axes = [axis % len(shape) for axis in attribute(node, "axes") or range(len(shape))]
    attributes = {name: attribute(node, name) for name in node.attributes if name not in _WHOLE}
    value = x
    for k, axis in enumerate(axes):
        start, end, old = float(region[k]), float(region[len(axes) + k]), shape[axis]
        if (start, end, sizes[k]) == (0.0, 1.0, old):
            continue
        if old is None:
            return None
        unit = np.eye(old, dtype=np.float32).reshape(1, 1, old, old)
        part = np.array([0, 0, start, 0, 1, 1, end, 1], np.float32)
        (result,) = evaluate_op("Resize", [unit, part, None, np.array([1, 1, sizes[k], old], np.int64)], attributes)
        value = _mapped(spell, value, axis, len(shape), result[0, 0])
    return value


def _familiar(
    node: ir.Node, shape: tuple[int | None, ...], sizes: list[int | None], factors: list[float | None],
    moved: list[int],
) -> dict[str, str] | None:
    """The attributes of a Resize that PyTorch has and that does the same, or None."""
    mode = attribute(node, "mode", "nearest")
    spatial = len(shape) - 2
    known = spatial in (1, 2, 3) and (mode != "cubic" or spatial == 2)
    if not known or any(axis < 2 for axis in moved) or attribute(node, "antialias", 0):
        return None
    candidates = [_FAMILIAR[mode]]
    if mode != "nearest":
        candidates.append({"coordinate_transformation_mode": "align_corners"})
    for candidate in candidates:
        if all(_same_weights(node, shape[k], sizes[k], factors[k], candidate) for k in moved):
            return candidate
    return None


def _same_weights(
    node: ir.Node, old: int | None, new: int | None, factor: float | None, candidate: Mapping[str, str]
) -> bool:
    if old is None or new is None:  # whole factors, seen on a size of five
        if factor is None or factor != int(factor):
            return False
        old, new = 5, 5 * int(factor)
    ours, theirs = _weights(node, old, new, factor, {}), _weights(node, old, new, None, candidate)
    return ours is not None and theirs is not None and bool(np.allclose(ours, theirs, rtol=0, atol=_SAME))


def _weights(
    node: ir.Node, old: int, new: int, factor: float | None, changed: Mapping[str, str]
) -> np.ndarray | None:
    """The matrix [new, old] that resizes one axis; None where resizing is not linear (a constant is filled in)."""
    attributes = {name: attribute(node, name) for name in node.attributes if name not in _WHOLE}
    if changed:
        attributes = {"mode": attributes.get("mode", "nearest"), **changed}
    if attributes.get("extrapolation_value", 0.0):
        return None
    unit = np.eye(old, dtype=np.float32).reshape(1, 1, old, old)
    scales = None if factor is None else np.array([1, 1, factor, 1], np.float32)
    sizes = np.array([1, 1, new, old], np.int64) if factor is None else None
    operands = [unit, None, scales] if sizes is None else [unit, None, None, sizes]
    (result,) = evaluate_op("Resize", operands, attributes)
    return result[0, 0] if result.shape[2] == new else None


def _interpolated(
    spell: Speller, shape: tuple[int | None, ...], sizes: list[int | None], familiar: Mapping[str, str]
) -> ir.Value | None:
    """The same Resize by sizes, or by factors that every rounding takes to the same sizes."""
    node, x = spell.origin, spell.input(0)
    mode = attribute(node, "mode", "nearest")
    given = {name: attribute(node, name) for name in ("mode", *familiar)}
    known = [size for size in sizes if size is not None]
    if len(known) == len(sizes):
        target = spell.input(3)
        if given == {"mode": mode, **familiar} and ints_of(target) == known:
            return None
        literal = spell.editor.literal(np.array(known, np.int64), "sizes")
        return spell("Resize", x, None, None, literal, mode=mode, **familiar)
    factors = [_factor(old, new) for old, new in zip(shape, sizes, strict=True)]
    if None in factors:
        factors = [1.0 if factor is None else factor for factor in factors]
        scales = array(spell.input(2))
        if scales is None or len(scales) != len(shape):
            return None
        factors = [float(s) if new is None else f for s, f, new in zip(scales, factors, sizes, strict=True)]
    wanted = np.array(factors, np.float32)
    current = array(spell.input(2))
    if given == {"mode": mode, **familiar} and current is not None and np.array_equal(current, wanted):
        return None
    return spell("Resize", x, None, spell.editor.literal(wanted, "scales"), mode=mode, **familiar)


def _factor(old: int | None, new: int | None) -> float | None:
    """The least float32 factor, not below new / old, by which floor(old * factor) is new."""
    if old is None or new is None:
        return None
    factor = np.float32(new / old)
    while math.floor(old * float(factor)) < new or int(np.float32(old) * factor) < new:
        factor = np.nextafter(factor, np.float32(np.inf))
    return float(factor)


def _mapped(spell: Speller, x: ir.Value, axis: int, rank: int, weights: np.ndarray) -> ir.Value:
    """Apply a matrix [new, old] along one axis."""
    picks = np.argmax(weights, axis=1)
    if np.array_equal(weights, np.eye(weights.shape[1], dtype=weights.dtype)[picks]):
        return spell("Gather", x, spell.editor.literal(picks.astype(np.int64), "indices"), axis=axis)
    dtype = np.float32 if x.dtype is None else x.dtype.numpy()
    if axis == rank - 1:
        return spell("MatMul", x, spell.editor.literal(weights.T.astype(dtype), "weights"))
    if axis == rank - 2:
        return spell("MatMul", spell.editor.literal(weights.astype(dtype), "weights"), x)
    perm = [k for k in range(rank) if k != axis] + [axis]
    back = [perm.index(k) for k in range(rank)]
    last = spell("Transpose", x, perm=perm)
    product = spell("MatMul", last, spell.editor.literal(weights.T.astype(dtype), "weights"))
    return spell("Transpose", product, perm=back)


RESIZING: dict[str, Rule] = {"Resize": _resize}
