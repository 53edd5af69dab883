"""Moves of elements: blocks of space and depth, squeezes, splits, all by what every converter reads correctly."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxfix.canonical.legalization.constants import ints_of
from onnxfix.canonical.legalization.respelling import Rule, Speller
from onnxfix.canonical.queries import dims, rank
from onnxfix.canonical.rewriting import attribute, is_op
from onnxfix.canonical.symbolic import sizes_of


def _depth_to_space(spell: Speller) -> ir.Value | None:
    """DCR: ``[N, C b b, H, W] -> [N, b, b, C, H, W] -> (0, 3, 4, 1, 5, 2) -> [N, C, H b, W b]``. CRD stays."""
    node, x = spell.origin, spell.input(0)
    shape, block = dims(x), attribute(node, "blocksize")
    if attribute(node, "mode", "DCR") != "DCR" or shape is None or None in shape[1:]:
        return None
    channels, height, width = (size or 0 for size in shape[1:])
    depth = channels // block**2
    split = _reshape(spell, x, [0, block, block, depth, height, width])
    moved = spell("Transpose", split, perm=[0, 3, 4, 1, 5, 2])
    return _reshape(spell, moved, [0, depth, height * block, width * block])


def _space_to_depth(spell: Speller) -> ir.Value | None:
    """``[N, C, H b, W b] -> [N, C, H, b, W, b] -> (0, 3, 5, 1, 2, 4) -> [N, b b C, H, W]``."""
    x = spell.input(0)
    shape, block = dims(x), attribute(spell.origin, "blocksize")
    if shape is None or None in shape[1:]:
        return None
    channels, height, width = (size or 0 for size in shape[1:])
    split = _reshape(spell, x, [0, channels, height // block, block, width // block, block])
    moved = spell("Transpose", split, perm=[0, 3, 5, 1, 2, 4])
    return _reshape(spell, moved, [0, channels * block**2, height // block, width // block])


def _reshape(spell: Speller, x: ir.Value | None, target: list[int]) -> ir.Value:
    return spell("Reshape", x, spell.editor.literal(np.array(target, np.int64), "shape"))


def _squeeze(spell: Speller) -> ir.Value | None:
    """Axes are named, counted from the front, in ascending order."""
    x = spell.input(0)
    shape, axes = dims(x), ints_of(spell.input(1))
    if shape is None or (axes is None and (spell.input(1) is not None or None in shape)):
        return None
    wanted = [k for k, size in enumerate(shape) if size == 1] if axes is None else [a % len(shape) for a in axes]
    return None if axes == sorted(wanted) else spell("Squeeze", x, _axes(spell, wanted))


def _unsqueeze(spell: Speller) -> ir.Value | None:
    """Likewise, counted in the result."""
    x = spell.input(0)
    size, axes = rank(x), ints_of(spell.input(1))
    if size is None or axes is None:
        return None
    wanted = [axis % (size + len(axes)) for axis in axes]
    return None if axes == sorted(wanted) else spell("Unsqueeze", x, _axes(spell, wanted))


def _axes(spell: Speller, axes: list[int]) -> ir.Value:
    return spell.editor.literal(np.array(sorted(axes), np.int64), "axes")


def _flattening(spell: Speller) -> ir.Value | None:
    """``Reshape | Squeeze: [N, a, b, ...] -> [N, a b ...]`` is Flatten, whose result depends on no other operand."""
    x, node = spell.input(0), spell.origin
    shape, result = sizes_of(x), sizes_of(node.outputs[0])
    if is_op(node, "Squeeze"):
        known, axes = dims(x), ints_of(spell.input(1))
        if known is not None and axes is not None:
            kept = [k for k in range(len(known)) if k not in [a % len(known) for a in axes]]
            if len(kept) == 2 and kept[0] == 0 and len(known) > 2:
                return spell("Flatten", x, axis=1)
        return _squeeze(spell)
    target = ints_of(spell.input(1))
    if target is not None and 0 not in target and attribute(node, "allowzero", 0):
        node.attributes["allowzero"] = ir.AttrInt64("allowzero", 0)
        spell.editor.modified = True
    if target is None or len(target) != 2 or shape is None or len(shape) < 2:
        return None
    whole = target[0] == 0 or (shape[0].number is not None and target[0] == shape[0].number)
    inferred = result is not None and target[0] == -1 and result[0] == shape[0]
    return spell("Flatten", x, axis=1) if whole or inferred else None


def _split(spell: Speller) -> None:
    """Parts have their sizes spelled out: without them, converters divide and lose the rest."""
    node = spell.origin
    shape, axis = dims(spell.input(0)), attribute(node, "axis", 0)
    if spell.input(1) is not None or shape is None or shape[axis] is None:
        return None
    count = len(node.outputs)
    length = -(-(shape[axis] or 0) // count)
    sizes = [length] * (count - 1) + [(shape[axis] or 0) - length * (count - 1)]
    if len(node.inputs) < 2:
        node.resize_inputs(2)
    node.replace_input_with(1, spell.editor.literal(np.array(sizes, np.int64), "split"))
    node.attributes.pop("num_outputs", None)
    spell.editor.modified = True
    return None


def _slice(spell: Speller) -> ir.Value | None:
    """Axes are spelled out and counted from the front."""
    x = spell.input(0)
    size, starts, axes = rank(x), ints_of(spell.input(1)), ints_of(spell.input(3))
    if size is None or (axes is None and (starts is None or spell.input(3) is not None)):
        return None
    wanted = list(range(len(starts or ()))) if axes is None else [axis % size for axis in axes]
    if wanted == axes:
        return None
    listed = spell.editor.literal(np.array(wanted, np.int64), "axes")
    return spell("Slice", x, spell.input(1), spell.input(2), listed, spell.input(4))


def _flatten(spell: Speller) -> ir.Value | None:
    """The axis is counted from the front; what begins at axis 0 is one row."""
    x, axis, size = spell.input(0), attribute(spell.origin, "axis", 1), rank(spell.input(0))
    if axis == 0:
        return _reshape(spell, x, [1, -1])
    return spell("Flatten", x, axis=axis % size) if size and axis < 0 else None


REARRANGING: dict[str, Rule] = {
    "Flatten": _flatten,
    "Reshape": _flattening,
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _flattening,
    "Unsqueeze": _unsqueeze,
}
BLOCKS: dict[str, Rule] = {"DepthToSpace": _depth_to_space, "SpaceToDepth": _space_to_depth}
