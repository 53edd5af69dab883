"""Pools and transposed convolutions whose padding PyTorch does not have: pad, pool without padding, correct borders."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxfix.canonical.legalization.elementwise import number
from onnxfix.canonical.legalization.respelling import Rule, Speller
from onnxfix.canonical.queries import dims, integers
from onnxfix.canonical.rewriting import attribute
from onnxfix.runtime.evaluation import evaluate_op


def average_pool(spell: Speller) -> ir.Value | None:
    """``AveragePool(x, p) = AveragePool(Pad(x, p)) * c`` where c corrects what border windows are divided by.

    c is found by pooling ones both ways, so it follows every rule about which elements count.
    """
    node, x = spell.origin, spell.input(0)
    shape, window = dims(x), integers(node, "kernel_shape", ())
    if shape is None or not _foreign(node, window) or None in shape[2:]:
        return None
    space = [size or 0 for size in shape[2:]]
    ones = np.ones([1, 1, *space], np.float32)
    (wanted,) = evaluate_op("AveragePool", [ones], plain(node))
    pads = reach(node, space, list(wanted.shape[2:]))
    wide = np.pad(ones, [(0, 0), (0, 0), *zip(*pads, strict=True)])
    unpadded = {"kernel_shape": list(window), "strides": list(integers(node, "strides", [1] * len(window)))}
    (found,) = evaluate_op("AveragePool", [wide], unpadded)
    if found.shape != wanted.shape or not np.all(found):
        return None
    pooled = spell("AveragePool", padded(spell, x, pads, 0.0), **unpadded)
    correction = wanted / found
    if np.all(correction == 1):
        return pooled
    dtype = np.float32 if x is None or x.dtype is None else x.dtype.numpy()
    return spell("Mul", pooled, spell.editor.literal(correction.astype(dtype), "count"))


def max_pool(spell: Speller) -> ir.Value | None:
    """``MaxPool(x, p) = MaxPool(Pad(x, p, -inf))``."""
    node, x = spell.origin, spell.input(0)
    shape, window = dims(x), integers(node, "kernel_shape", ())
    used = any(output.uses() or output.is_graph_output() for output in node.outputs[1:])
    floating = x is not None and x.dtype is not None and np.dtype(x.dtype.numpy()).kind == "f"
    if used or shape is None or not floating or not _foreign(node, window):
        return None
    if attribute(node, "ceil_mode", 0):
        if None in shape[2:]:
            return None
        space = [size or 0 for size in shape[2:]]
        (wanted,) = evaluate_op("MaxPool", [np.ones([1, 1, *space], np.float32)], plain(node))
        pads = reach(node, space, list(wanted.shape[2:]))
    else:
        both = integers(node, "pads", [0] * (2 * len(window)))
        pads = (list(both[: len(window)]), list(both[len(window) :]))
    return spell(
        "MaxPool", padded(spell, x, pads, -np.inf), kernel_shape=list(window),
        strides=list(integers(node, "strides", [1] * len(window))),
        dilations=list(integers(node, "dilations", [1] * len(window))),
    )


def _foreign(node: ir.Node, window: Sequence[int]) -> bool:
    """Whether PyTorch lacks such padding: more at one end, more than half a window, or a part of a last window."""
    pads = integers(node, "pads", [0] * (2 * len(window)))
    dilations = integers(node, "dilations", [1] * len(window))
    if attribute(node, "auto_pad", "NOTSET") != "NOTSET" or not window:
        return False
    begins, ends = pads[: len(window)], pads[len(window) :]
    deep = any(2 * p > (k - 1) * d + 1 for p, k, d in zip(begins, window, dilations, strict=True))
    return begins != ends or deep or bool(attribute(node, "ceil_mode", 0))


def plain(node: ir.Node) -> dict[str, Any]:
    """The node's attributes as plain Python values, auto_pad left out."""
    return {name: attribute(node, name) for name in node.attributes if name != "auto_pad"}


def reach(node: ir.Node, space: Sequence[int], result: Sequence[int]) -> tuple[list[int], list[int]]:
    """Pads at the begin, and at the end as far as the last window reaches."""
    count = len(space)
    pads = integers(node, "pads", [0] * (2 * count))
    strides, dilations = integers(node, "strides", [1] * count), integers(node, "dilations", [1] * count)
    window = integers(node, "kernel_shape", ())
    begins, ends = list(pads[:count]), []
    for k in range(count):
        reached = (result[k] - 1) * strides[k] + (window[k] - 1) * dilations[k] + 1
        ends.append(max(reached - begins[k] - space[k], 0))
    return begins, ends


def padded(spell: Speller, x: ir.Value | None, pads: tuple[Sequence[int], Sequence[int]], value: float) -> ir.Value:
    """The map with (begins, ends) of a value around it."""
    amounts = np.array([0, 0, *pads[0], 0, 0, *pads[1]], np.int64)
    return spell("Pad", x, spell.editor.literal(amounts, "pads"), number(spell, value, x), mode="constant")


def _conv_transpose(spell: Speller) -> ir.Value | None:
    """Padding that differs at both ends is cropped."""
    pads = integers(spell.origin, "pads", ())
    half = len(pads) // 2
    if "output_shape" in spell.origin.attributes:
        return _enlarged(spell)
    return None if pads[:half] == pads[half:] else cropped_conv_transpose(spell)


def cropped_conv_transpose(spell: Speller) -> ir.Value | None:
    """``ConvTranspose(x, W, b, p) = Slice(ConvTranspose(x, W, b), p)``: its padding is what it crops."""
    node = spell.origin
    window = integers(node, "kernel_shape", ())
    count = len(window)
    pads = integers(node, "pads", [0] * (2 * count))
    if "output_shape" in node.attributes:
        return _enlarged(spell)
    if not any(pads) or not window or attribute(node, "auto_pad", "NOTSET") != "NOTSET":
        return None
    extra = integers(node, "output_padding", [0] * count)
    ends = [max(p - o, 0) for p, o in zip(pads[count:], extra, strict=True)]
    attributes = {name: attribute(node, name) for name in node.attributes}
    attributes["pads"] = [0] * (2 * count)
    attributes["output_padding"] = [max(o - p, 0) for p, o in zip(pads[count:], extra, strict=True)]
    whole = spell("ConvTranspose", *node.inputs, **attributes)
    bounds = (list(pads[:count]), [-end if end else np.iinfo(np.int64).max for end in ends], list(range(2, 2 + count)))
    return spell("Slice", whole, *(spell.editor.literal(np.array(b, np.int64), "bound") for b in bounds))


def _enlarged(spell: Speller) -> ir.Value | None:
    """An ``output_shape`` beyond what the windows reach is output padding."""
    node, shape = spell.origin, dims(spell.input(0))
    wanted, window = integers(node, "output_shape", ()), integers(node, "kernel_shape", ())
    count = len(window)
    if shape is None or None in shape[2:] or not count:
        return None
    strides, dilations = integers(node, "strides", [1] * count), integers(node, "dilations", [1] * count)
    excess = [
        size - ((old or 0) - 1) * stride - (k - 1) * dilation - 1
        for size, old, stride, k, dilation in zip(wanted[-count:], shape[2:], strides, window, dilations, strict=True)
    ]
    if min(excess) < 0:
        return None
    attributes = {name: attribute(node, name) for name in node.attributes if name != "output_shape"}
    attributes |= {"output_padding": excess, "pads": [0] * (2 * count), "auto_pad": "NOTSET"}
    return spell("ConvTranspose", *node.inputs, **attributes)


WINDOWS: dict[str, Rule] = {"AveragePool": average_pool, "ConvTranspose": _conv_transpose, "MaxPool": max_pool}
