"""Pools that converters lack, by slices: one for each place of the window."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
import onnx_ir as ir

from onnxfix.canonical.legalization.elementwise import number
from onnxfix.canonical.legalization.respelling import Rule, Speller
from onnxfix.canonical.legalization.windows import average_pool, max_pool, padded, plain, reach
from onnxfix.canonical.queries import dims, integers
from onnxfix.canonical.rewriting import attribute
from onnxfix.runtime.evaluation import evaluate_op

# Larger windows would make more slices than anybody wants.
_LARGEST_WINDOW = 64


def is_dilated(node: ir.Node) -> bool:
    """Whether there is a distance between the elements of the window."""
    return any(d != 1 for d in integers(node, "dilations", ()))


def dilated_average_pool(spell: Speller) -> ir.Value | None:
    """``AveragePool(x) = sum over places of x[place::stride] * c``, c being one over what is counted."""
    node, x = spell.origin, spell.input(0)
    if not is_dilated(node):
        return average_pool(spell)
    shape = dims(x)
    space = [] if shape is None else [size for size in shape[2:] if size is not None]
    if x is None or shape is None or len(space) != len(shape) - 2:
        return None
    ones = np.ones([1, 1, *space], np.float32)
    (wanted,) = evaluate_op("AveragePool", [ones], plain(node))
    parts = _places(spell, x, space, list(wanted.shape[2:]), 0.0)
    if parts is None:
        return None
    total = parts[0] if len(parts) == 1 else spell("Sum", *parts)
    share = wanted / _counted(node, space, list(wanted.shape[2:]))
    dtype = np.float32 if x.dtype is None else x.dtype.numpy()
    return spell("Mul", total, spell.editor.literal(share.astype(dtype), "count"))


def dilated_max_pool(spell: Speller) -> ir.Value | None:
    """``MaxPool(x) = max over places of x[place::stride]``, x padded by minus infinity."""
    node, x = spell.origin, spell.input(0)
    if not is_dilated(node):
        return max_pool(spell)
    shape = dims(x)
    used = any(output.uses() or output.is_graph_output() for output in node.outputs[1:])
    space = [] if shape is None else [size for size in shape[2:] if size is not None]
    floating = x is not None and x.dtype is not None and x.dtype.is_floating_point()
    if used or x is None or shape is None or not floating or len(space) != len(shape) - 2:
        return None
    (wanted,) = evaluate_op("MaxPool", [np.ones([1, 1, *space], np.float32)], plain(node))
    parts = _places(spell, x, space, list(wanted.shape[2:]), -np.inf)
    if parts is None:
        return None
    return parts[0] if len(parts) == 1 else spell("Max", *parts)


def _lp_pool(spell: Speller) -> ir.Value | None:
    """``LpPool(x) = (k AveragePool(|x|^p))^(1/p)`` where all of the k elements of a window count."""
    node, x = spell.origin, spell.input(0)
    window = integers(node, "kernel_shape", ())
    if not window or attribute(node, "ceil_mode", 0) or attribute(node, "auto_pad", "NOTSET") != "NOTSET":
        return None
    power = attribute(node, "p", 2)
    powers = spell("Pow", spell("Abs", x), number(spell, power, x))
    attributes = {name: value for name, value in plain(node).items() if name != "p"}
    mean = spell("AveragePool", powers, count_include_pad=1, **attributes)
    total = spell("Mul", mean, number(spell, float(np.prod(window)), x))
    return spell("Pow", total, number(spell, 1 / power, x))


def _counted(node: ir.Node, space: Sequence[int], result: Sequence[int]) -> np.ndarray:
    """How many elements of each window are not padding."""
    begins, ends = reach(node, space, result)
    ones = np.pad(np.ones(space, np.float32), list(zip(begins, ends, strict=True)))
    total = np.zeros(result, np.float32)
    for ranges in _ranges(node, result):
        total += ones[tuple(slice(*r) for r in ranges)]
    return total[None, None]


def _places(
    spell: Speller, x: ir.Value, space: Sequence[int], result: Sequence[int], value: float
) -> list[ir.Value] | None:
    """What stands at each place of all windows, or None where a window is too large."""
    node = spell.origin
    window = integers(node, "kernel_shape", ())
    if np.prod(window) > _LARGEST_WINDOW:
        return None
    pads = reach(node, space, result)
    whole = padded(spell, x, pads, value) if any(map(any, pads)) else x
    axes = spell.editor.literal(np.arange(2, 2 + len(window), dtype=np.int64), "axes")
    parts = []
    for ranges in _ranges(node, result):
        starts, ends, steps = (
            spell.editor.literal(np.array(numbers, np.int64), "bound") for numbers in zip(*ranges, strict=True)
        )
        parts.append(spell("Slice", whole, starts, ends, axes, steps))
    return parts


def _ranges(node: ir.Node, result: Sequence[int]) -> list[tuple[tuple[int, int, int], ...]]:
    """(start, end, step) along each axis, for each place of the window."""
    window = integers(node, "kernel_shape", ())
    strides = integers(node, "strides", [1] * len(window))
    dilations = integers(node, "dilations", [1] * len(window))
    each = [
        [(place * d, place * d + (size - 1) * s + 1, s) for place in range(k)]
        for k, s, d, size in zip(window, strides, dilations, result, strict=True)
    ]
    return list(product(*each))


POOLS: dict[str, Rule] = {"AveragePool": dilated_average_pool, "LpPool": _lp_pool}
