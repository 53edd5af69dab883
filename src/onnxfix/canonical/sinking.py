"""Push reshapes towards the outputs through elementwise ops, so that they meet, merge or cancel."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onnxfix.canonical.permutation import rebuild, reshape, stripped, transposed
from onnxfix.canonical.quantization import per_tensor
from onnxfix.canonical.regrouping import groups
from onnxfix.canonical.reshaping import constant_target
from onnxfix.canonical.rewriting import Editor, array, is_constant, is_op, live, producer, rank
from onnxfix.canonical.symbolic import Size, sizes_of
from onnxfix.canonical.transposes import ELEMENTWISE


class SinkReshapes(ir.passes.InPlacePass):
    """``f(Reshape(x), c) -> Reshape(f(x, Reshape'(c)))``, and the same for operands that are all reshaped alike.

    A constant comes along where it varies over whole groups of axes that the Reshape splits or merges: a bias [2, 4]
    behind a Reshape of [N, 8] to [N, 2, 4] is a bias [8] before it. An operand that is not reshaped, or in another way,
    comes along where axes are merged: ``Reshape(x[N, H, W, C]) + y[N, S, C] = Reshape(x + Reshape(y, [N, H, W, C]))``,
    or where a batch of one is dropped.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Push through the whole graph in one topological walk."""
        editor = Editor(model.graph)
        for node in live(model.graph):
            if (is_op(node, *ELEMENTWISE) or per_tensor(node)) and len(node.outputs) == 1:
                _sink(editor, node)
        return ir.passes.PassResult(model, editor.modified)


def _sink(editor: Editor, node: ir.Node) -> None:
    movers = [producer(value, "Reshape") for value in node.inputs]
    present = sorted((m for m in movers if m is not None), key=_foremost)
    if not present or present[0].inputs[0] is None or not is_constant(present[0].inputs[1]):
        return
    shape, sizes = sizes_of(present[0].inputs[0]), sizes_of(present[0].outputs[0])
    if shape is None or sizes is None or rank(node.outputs[0]) != len(sizes):
        return
    inputs: list[ir.Value | None] = []
    moved: dict[int, list[int]] = {}
    along: list[int] = []
    merges = (_long(shape) > _long(sizes) or _drops_batch(shape, sizes)) and transposed(present[0].inputs[0]) is None
    for slot, (value, mover) in enumerate(zip(node.inputs, movers, strict=True)):
        if mover is not None and _alike(mover, shape, sizes):
            inputs.append(mover.inputs[0])
        elif value is None or (is_constant(value) and value.shape is not None and _single(value, shape)):
            inputs.append(value)
        elif value is not None and is_constant(value) and (before := shape_before(value, shape, sizes)) is not None:
            moved[slot] = before
            inputs.append(value)
        elif merges and not is_constant(value) and sizes_of(value) == sizes:
            along.append(slot)
            inputs.append(value)
        else:
            return
    target, back = constant_target(shape, sizes), constant_target(sizes, shape)
    if target is None or (along and back is None):
        return
    for slot in along:
        beside = node.inputs[slot]
        if beside is not None and back is not None:
            inputs[slot] = reshape(editor, beside, back, shape, present[:1], node)
    for slot, before in moved.items():
        literal = editor.literal(np.asarray(before, dtype=np.int64))
        inputs[slot] = stripped(editor, editor.constant("Reshape", inputs[slot], literal))
    new = rebuild(editor, node, inputs)
    if new.outputs[0].type is None:
        new.outputs[0].type = node.outputs[0].type
    editor.replace(node.outputs[0], reshape(editor, new.outputs[0], target, sizes, present, node))
    editor.remove([node, *present])


def _long(sizes: Sequence[Size]) -> int:
    return sum(size.number != 1 for size in sizes)


def _drops_batch(shape: Sequence[Size], sizes: Sequence[Size]) -> bool:
    """Whether all that goes is leading ones: a sequence in a batch of one."""
    lead = len(shape) - len(sizes)
    if lead <= 0 or len(sizes) < 2 or sizes[0].number in (None, 1):
        return False  # a size without a number is a batch itself
    return list(shape[lead:]) == list(sizes) and all(size.number == 1 for size in shape[:lead])


def _foremost(mover: ir.Node) -> tuple[int, bool, int]:
    """By elements of a reshaped value, symbols not counted, most first: that operand has the shape of the result.

    Of several, by axes before the Reshape, most first; behind a Transpose, which nothing else follows, last.
    """
    elements = int(np.prod([size.factor for size in sizes_of(mover.outputs[0]) or ()]))
    return -elements, transposed(mover.inputs[0]) is not None, -_long(sizes_of(mover.inputs[0]) or ())


def _alike(mover: ir.Node, shape: Sequence[Size], sizes: Sequence[Size]) -> bool:
    """Whether a Reshape is one from ``shape`` to ``sizes``, up to axes along which its operand broadcasts."""
    before, after = sizes_of(mover.inputs[0]), sizes_of(mover.outputs[0])
    if before == shape and after == sizes:
        return True
    found = groups(shape, sizes)
    if before is None or after is None or found is None or len(before) != len(shape) or len(after) != len(sizes):
        return False
    one, grouped = Size(1), {k for group in found for k in group.before}
    if any(before[k] != one for k in range(len(shape)) if k not in grouped):
        return False
    for group in found:
        whole = all(before[k] == shape[k] for k in group.before) and all(after[k] == sizes[k] for k in group.after)
        if (not whole and any(before[k] != one for k in group.before)) or (
            not whole and any(after[k] != one for k in group.after)
        ):
            return False
    return True


def shape_before(value: ir.Value, shape: Sequence[Size], sizes: Sequence[Size]) -> list[int] | None:
    """The shape that a broadcast constant has next to the source of a Reshape, or None if it cuts through a group.

    Args:
        value: A constant that broadcasts with the result of the Reshape.
        shape: Sizes of the source.
        sizes: Sizes of the result.
    """
    found = groups(shape, sizes)
    content = array(value)
    if found is None or content is None or content.ndim > len(sizes):
        return None
    full = (1,) * (len(sizes) - content.ndim) + content.shape
    result = [1] * len(shape)
    for group in found:
        extents = [full[k] for k in group.after]
        if all(d == 1 for d in extents):
            continue
        if extents != [sizes[k].number for k in group.after] or any(shape[k].number is None for k in group.before):
            return None
        for k in group.before:
            result[k] = shape[k].factor
    return result if int(np.prod(result)) == content.size else None


def _single(value: ir.Value, shape: Sequence[Size]) -> bool:
    """Whether a constant holds one element and does not add dimensions."""
    dimensions = value.shape
    return dimensions is not None and all(d == 1 for d in dimensions) and len(dimensions) <= len(shape)
