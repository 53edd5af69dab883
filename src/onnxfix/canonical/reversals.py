"""Turning an axis around is a Slice with step -1, and turning it around twice is nothing."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxfix.canonical.cell_algebra import reshaped_selection
from onnxfix.canonical.queries import integers, nodes_of, producer
from onnxfix.canonical.rewriting import Editor, array, attribute
from onnxfix.canonical.slices import pieces_of
from onnxfix.canonical.symbolic import sizes_of

_BEGIN = np.iinfo(np.int64).min


class SpellReversals(ir.passes.InPlacePass):
    """One spelling for turning an axis around.

    - ``ReverseSequence(x, lengths) = x[::-1]`` along time, where every length is that of the axis
    - ``x[::-1][::-1] = x``
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Respell, then cancel."""
        editor = Editor(model.graph)
        for node in nodes_of(model.graph, "ReverseSequence"):
            _sequence(editor, node)
        for node in nodes_of(model.graph, "Slice"):
            inner = producer(node.inputs[0], "Slice")
            axis = reversed_axis(node)
            if inner is not None and axis is not None and reversed_axis(inner) == axis and inner.inputs[0] is not None:
                editor.replace(node.outputs[0], inner.inputs[0])
                editor.remove([node, inner])
        return ir.passes.PassResult(model, editor.modified)


def reversed_axis(node: ir.Node) -> int | None:
    """The axis that a Slice turns around, if that is all it does."""
    pieces, sizes = pieces_of(node), sizes_of(node.inputs[0])
    if pieces is None or sizes is None or len(pieces) != 1:
        return None
    axis, start, end, step = pieces[0]
    total = sizes[axis].number
    first = start == -1 or (total is not None and start >= total - 1) or start >= 2**31 - 1
    last = end < (-total if total is not None else -(2**31) + 2)
    return axis if step == -1 and first and last else None


def place_before(node: ir.Node, axis: int) -> int | None:
    """Which axis of its operand a Transpose or Reshape makes this axis of, the rows of it kept in order."""
    if node.op_type == "Transpose":
        perm = integers(node, "perm", ())
        return perm[axis] if perm else None
    source = node.inputs[0]
    found = None if source is None else reshaped_selection(source, node.outputs[0], axis)
    return None if found is None else found


def _sequence(editor: Editor, node: ir.Node) -> None:
    sizes, time = sizes_of(node.inputs[0]), attribute(node, "time_axis", 0)
    if sizes is None or sizes[time].number is None or _filled_with(node.inputs[1]) != sizes[time].number:
        return
    editor.replace(node.outputs[0], _turned(editor, node.inputs[0], time, [node], node))
    editor.remove([node])


def _turned(editor: Editor, value: ir.Value | None, axis: int, like: list[ir.Node], before: ir.Node) -> ir.Value:
    bounds = [editor.literal(np.array([n], np.int64)) for n in (-1, _BEGIN, axis, -1)]
    result: ir.Value = editor.node("Slice", [value, *bounds], like=like, before=before).outputs[0]
    return result


def _filled_with(value: ir.Value | None) -> int | None:
    """The number that a tensor is full of."""
    content = array(value)
    if content is not None:
        return int(content.reshape(-1)[0]) if content.size and (content == content.reshape(-1)[0]).all() else None
    node = producer(value, "Expand", "Tile")
    return None if node is None else _filled_with(node.inputs[0])
