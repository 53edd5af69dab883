"""Fold shape arithmetic: what is computed from shapes is written as constants wherever that is provably the same."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxfix.canonical.reshaping import constant_target, reshaped_sizes
from onnxfix.canonical.rewriting import Editor, array, is_constant, is_op, live, rank
from onnxfix.canonical.symbolic import ShapeReader, sizes_of

_ALL = np.iinfo(np.int64).max


class FoldShapes(ir.passes.InPlacePass):
    """Replace computed shapes by constants.

    A tensor computed from sizes that are numbers becomes a literal. Operands that still hold symbols become constants
    where the op lets the size be left out: 0 and -1 in Reshape, 1 in Expand for a dimension that already has the
    size, the largest integer for a Slice that ends with its dimension, and ``axes`` for a Resize that keeps the others.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Look at each node once."""
        editor = Editor(model.graph)
        for node in live(model.graph):
            reader = ShapeReader()
            if is_op(node, "Reshape") and not is_constant(node.inputs[1]):
                _fold_target(editor, node, reader)
            elif is_op(node, "Expand"):
                _fold_expand(editor, node, reader)
            elif is_op(node, "Slice") and not is_constant(node.inputs[2]):
                _fold_slice(editor, node, reader)
            elif is_op(node, "Resize"):
                _fold_resize(editor, node, reader)
            elif node.domain in ("", "ai.onnx"):
                _fold_numbers(editor, node, reader)
        return ir.passes.PassResult(model, editor.modified)


def _fold_numbers(editor: Editor, node: ir.Node, reader: ShapeReader) -> None:
    output = node.outputs[0]
    if len(node.outputs) != 1 or output.dtype not in (ir.DataType.INT64, ir.DataType.INT32):
        return
    if output.is_graph_output() or (rank(output) or 0) > 1:
        return
    content = reader.read(output)
    numbers = None if content is None else content.numbers
    if content is None or numbers is None:
        return
    value = np.asarray(numbers[0] if content.scalar else numbers, dtype=output.dtype.numpy())
    editor.replace(output, editor.literal(value, "shape"))
    editor.remove([node])


def _fold_target(editor: Editor, node: ir.Node, reader: ShapeReader) -> None:
    shape, sizes = sizes_of(node.inputs[0]), reshaped_sizes(node, reader)
    target = None if shape is None or sizes is None else constant_target(shape, sizes)
    if target is not None:
        node.attributes.pop("allowzero", None)
        _set(editor, node, 1, target)


def _fold_expand(editor: Editor, node: ir.Node, reader: ShapeReader) -> None:
    shape, content = sizes_of(node.inputs[0]), reader.read(node.inputs[1])
    if shape is None or content is None or content.scalar:
        return
    target: list[int] = []
    lead = len(content.sizes) - len(shape)
    for k, size in enumerate(content.sizes):
        if size is not None and k >= lead and shape[k - lead] == size:
            target.append(1)
        elif size is not None and size.number is not None:
            target.append(size.number)
        else:
            return
    old = array(node.inputs[1])
    if old is None or list(old) != target:
        _set(editor, node, 1, target)


def _fold_slice(editor: Editor, node: ir.Node, reader: ShapeReader) -> None:
    shape, ends = sizes_of(node.inputs[0]), reader.read(node.inputs[2])
    axes = array(node.inputs[3]) if len(node.inputs) > 3 and node.inputs[3] is not None else None
    if shape is None or ends is None or (axes is None and len(node.inputs) > 3 and node.inputs[3] is not None):
        return
    if len(node.inputs) > 4 and node.inputs[4] is not None:
        steps = array(node.inputs[4])
        if steps is None or np.any(steps < 0):
            return
    places = range(len(ends.sizes)) if axes is None else [int(a) for a in axes]
    numbers: list[int] = []
    for size, axis in zip(ends.sizes, places, strict=True):
        if size is not None and size.number is not None:
            numbers.append(size.number)
        elif size is not None and size == shape[axis]:
            numbers.append(_ALL)
        else:
            return
    _set(editor, node, 2, numbers)


def _fold_resize(editor: Editor, node: ir.Node, reader: ShapeReader) -> None:
    """``Resize(x, sizes=[N, C, h, w]) -> Resize(x, sizes=[h, w], axes=[2, 3])`` where N and C are those of ``x``."""
    if len(node.inputs) < 4 or node.inputs[3] is None or "axes" in node.attributes or is_constant(node.inputs[3]):
        return
    shape, content = sizes_of(node.inputs[0]), reader.read(node.inputs[3])
    if shape is None or content is None or len(content.sizes) != len(shape):
        return
    moved = [k for k, (new, old) in enumerate(zip(content.sizes, shape, strict=True)) if new != old]
    numbers = [None if content.sizes[k] is None else content.sizes[k].number for k in moved]  # type: ignore[union-attr]
    if None in numbers or not moved:
        return
    node.attributes.add(ir.AttrInt64s("axes", moved))
    _set(editor, node, 3, [n for n in numbers if n is not None])


def _set(editor: Editor, node: ir.Node, slot: int, numbers: list[int]) -> None:
    node.replace_input_with(slot, editor.literal(np.asarray(numbers, dtype=np.int64), "shape"))
    editor.modified = True



