"""Push reshapes of leading dimensions through ops that work on blocks: Softmax, norms, reductions, products."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onnxfix.canonical.dense import is_sequence
from onnxfix.canonical.permutation import rebuild, reshape
from onnxfix.canonical.reductions import OPS as REDUCTIONS
from onnxfix.canonical.regrouping import Group, groups
from onnxfix.canonical.reshaping import constant_target
from onnxfix.canonical.rewriting import Editor, array, attribute, is_constant, is_op, live, producer
from onnxfix.canonical.symbolic import Size, sizes_of


class SinkThroughBlocks(ir.passes.InPlacePass):
    """``f(Reshape(x)) -> Reshape(f(x))`` where f works along axes that the Reshape leaves alone.

    Softmax, LayerNormalization, reductions, Pad, Slice, Concat, MatMul with a constant matrix, and Gather of rows of a
    constant, where the indices are reshaped. A reduction may also be one over all that the Reshape splits: the mean
    over H and W of ``[N, H, W, C]`` is that over S of ``[N, S, C]``.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Push through the whole graph in one topological walk."""
        editor = Editor(model.graph)
        for node in live(model.graph):
            if is_op(node, "Concat", "Gather"):
                (_concat if node.op_type == "Concat" else _indices)(editor, node)
                continue
            mover = producer(node.inputs[0], "Reshape") if node.inputs else None
            if mover is None or not is_constant(mover.inputs[1]):
                continue
            if is_op(node, "Softmax", "LogSoftmax", *REDUCTIONS):
                _along_axes(editor, node, mover)
            elif is_op(node, "Pad", "Slice"):
                _resized_axes(editor, node, mover)
            elif is_op(node, "LayerNormalization") or (is_op(node, "MatMul") and is_constant(node.inputs[1])):
                _trailing(editor, node, mover)
        return ir.passes.PassResult(model, editor.modified)


def _sizes(mover: ir.Node) -> tuple[list[Size], list[Size]] | None:
    before, after = sizes_of(mover.inputs[0]), sizes_of(mover.outputs[0])
    return None if before is None or after is None else (before, after)


def _along_axes(editor: Editor, node: ir.Node, mover: ir.Node) -> None:
    """An axis may be moved among ones but neither split nor merged."""
    sizes = _sizes(mover)
    found = None if sizes is None else groups(*sizes)
    if sizes is None or found is None:
        return
    before, after = sizes
    places = _places(found, after)
    single = is_op(node, "Softmax", "LogSoftmax")
    given = [attribute(node, "axis", -1)] if single else array(node.inputs[1]) if len(node.inputs) > 1 else None
    if given is None or not (single or attribute(node, "keepdims", 1)):
        return
    axes = [int(a) % len(after) for a in given]
    moved = [places[a] for a in axes if a in places]
    if len(moved) < len(axes):
        split = None if single else _whole(found, after, axes)
        if split is None:
            return
        moved = split
    if single:
        _write(editor, node, mover, before, after, {"axis": moved[0]})
        return
    if not moved:
        return  # no axes would mean all of them
    result = [Size(1) if k in axes else size for k, size in enumerate(after)]
    source = [Size(1) if k in moved else size for k, size in enumerate(before)]
    _write(editor, node, mover, source, result, {}, sorted(moved))


def _places(found: Sequence[Group], after: Sequence[Size]) -> dict[int, int]:
    """Axes of a reshaped value that are axes of the value before, by their place there."""
    places = {}
    for group in found:
        long = [k for k in group.after if after[k].number != 1]
        if len(group.before) == 1 and len(long) == 1:
            places[long[0]] = group.before[0]
    return places


def _whole(found: Sequence[Group], after: Sequence[Size], axes: Sequence[int]) -> list[int] | None:
    """The axes before the Reshape, where those after it are all that became of them."""
    moved: list[int] = []
    for group in found:
        reduced = [k in axes for k in group.after if after[k].number != 1]
        if all(reduced):
            moved += group.before
        elif any(reduced):
            return None
    return moved


def _resized_axes(editor: Editor, node: ir.Node, mover: ir.Node) -> None:
    """Pad and Slice along axes that are neither split nor merged."""
    sizes, result = _sizes(mover), sizes_of(node.outputs[0])
    found = None if sizes is None else groups(*sizes)
    numbers = [array(value) for value in node.inputs[1:]]
    if sizes is None or found is None or result is None or numbers[0] is None:
        return
    before, after = sizes
    places = _places(found, after)
    if is_op(node, "Pad"):
        pads = numbers[0]
        if pads is None or pads.size != 2 * len(after) or (len(node.inputs) > 3 and node.inputs[3] is not None):
            return
        axes = [k for k in range(len(after)) if pads[k] or pads[len(after) + k]]
        moved = [0] * (2 * len(before))
        for k in axes:
            place = places.get(k, 0)
            moved[place], moved[len(before) + place] = int(pads[k]), int(pads[len(after) + k])
        slot = 1
    else:
        if len(numbers) < 3 or numbers[2] is None:
            return
        axes = [int(a) % len(after) for a in numbers[2]]
        moved, slot = [places.get(k, 0) for k in axes], 3
    if any(k not in places for k in axes):
        return
    source = list(before)
    for k in axes:
        source[places[k]] = result[k]
    target = constant_target(source, result)
    if target is None:
        return
    inputs = [mover.inputs[0], *node.inputs[1:]]
    inputs[slot] = editor.literal(np.array(moved, np.int64))
    new = rebuild(editor, node, inputs)
    editor.replace(node.outputs[0], reshape(editor, new.outputs[0], target, result, [mover], node))
    editor.remove([node, mover])


def _indices(editor: Editor, node: ir.Node) -> None:
    """``Gather(table, Reshape(i)) = Reshape(Gather(table, i))``."""
    mover, table = producer(node.inputs[1], "Reshape"), sizes_of(node.inputs[0])
    sizes = None if mover is None or not is_constant(mover.inputs[1]) else _sizes(mover)
    if mover is None or sizes is None or table is None or not is_constant(node.inputs[0]) or attribute(node, "axis", 0):
        return
    rows, result = [*sizes[0], *table[1:]], [*sizes[1], *table[1:]]
    target = constant_target(rows, result)
    if target is None:
        return
    new = rebuild(editor, node, [node.inputs[0], mover.inputs[0]])
    editor.replace(node.outputs[0], reshape(editor, new.outputs[0], target, result, [mover], node))
    editor.remove([node, mover])


def _concat(editor: Editor, node: ir.Node) -> None:
    """All operands are reshaped, and the axis they are joined along is the same one before that."""
    movers = [producer(value, "Reshape") for value in node.inputs]
    joined, axis = sizes_of(node.outputs[0]), attribute(node, "axis")
    if joined is None or len(movers) < 2 or any(m is None or not is_constant(m.inputs[1]) for m in movers):
        return
    sources: list[list[Size]] = []
    places: set[int | None] = set()
    for mover in movers:
        sizes = None if mover is None else _sizes(mover)
        found = None if sizes is None else groups(*sizes)
        if sizes is None or found is None:
            return
        sources.append(sizes[0])
        places.add(_places(found, sizes[1]).get(axis % len(sizes[1])))
    (place, *others) = places
    if place is None or others or len({len(source) for source in sources}) > 1:
        return
    rest = [[size for k, size in enumerate(source) if k != place] for source in sources]
    whole = [*rest[0][:place], joined[axis], *rest[0][place:]]
    target = constant_target(whole, joined)
    if any(r != rest[0] for r in rest) or target is None:
        return
    new = rebuild(editor, node, [mover.inputs[0] for mover in movers if mover is not None], {"axis": place})
    present = [mover for mover in movers if mover is not None]
    editor.replace(node.outputs[0], reshape(editor, new.outputs[0], target, joined, present, node))
    editor.remove([node, *present])


def _trailing(editor: Editor, node: ir.Node, mover: ir.Node) -> None:
    """LayerNormalization and MatMul work on the last axes; what is before them is their batch."""
    sizes = _sizes(mover)
    if sizes is None or len(node.outputs) > 1:
        return
    before, after = sizes
    if is_op(node, "MatMul"):
        kernel = sizes_of(node.inputs[1])
        if not is_constant(node.inputs[1]) or kernel is None or len(kernel) != 2:
            return
        here, there = (is_sequence([size.number for size in part[:-1]]) for part in (before, after))
        if not here and (len(after) == 2 or there):
            return  # a dense layer on vectors
        count, result, attributes = 1, kernel[1:], {}
    else:
        count = len(after) - attribute(node, "axis", -1) % len(after)
        result, attributes = after[len(after) - count :], {"axis": len(before) - count}
    if len(before) <= count or len(after) <= count or before[-count:] != after[-count:]:
        return
    _write(editor, node, mover, [*before[:-count], *result], [*after[:-count], *result], attributes)


def _write(
    editor: Editor, node: ir.Node, mover: ir.Node, source: Sequence[Size], result: Sequence[Size],
    attributes: dict[str, int], axes: Sequence[int] | None = None,
) -> None:
    target = constant_target(source, result)
    if target is None:
        return
    literal = None if axes is None else editor.literal(np.array(axes, np.int64), "axes")
    inputs = [mover.inputs[0], *(node.inputs[1:] if literal is None else [literal])]
    new = rebuild(editor, node, inputs, attributes)
    if new.outputs[0].type is None:
        new.outputs[0].type = node.outputs[0].type
    editor.replace(node.outputs[0], reshape(editor, new.outputs[0], target, result, [mover], node))
    editor.remove([node, mover])
