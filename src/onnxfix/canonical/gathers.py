"""Taking one place, or neighbouring places, along an axis is a Slice."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxfix.canonical.permutation import reshape
from onnxfix.canonical.reshaping import constant_target
from onnxfix.canonical.rewriting import Editor, array, attribute, is_constant, is_op, live
from onnxfix.canonical.symbolic import sizes_of

_END = np.iinfo(np.int64).max


class SpellGathers(ir.passes.InPlacePass):
    """``Gather(x, 3) = Reshape(Slice(x, 3, 4))``, ``Gather(x, [2, 3]) = Slice(x, 2, 4)`` for constant indices.

    Vectors of integers are left alone: they are shapes, which have rules of their own. Rows that indices name one by
    one are gathered: ``GatherND(x, i[..., 1]) = Gather(x, i[...])``.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Respell."""
        editor = Editor(model.graph)
        for node in live(model.graph):
            if is_op(node, "Gather") and not is_constant(node.inputs[0]):
                _respell(editor, node)
            elif is_op(node, "GatherND"):
                _rows(editor, node)
        return ir.passes.PassResult(model, editor.modified)


def _rows(editor: Editor, node: ir.Node) -> None:
    indices, sizes = node.inputs[1], sizes_of(node.inputs[1])
    if indices is None or not sizes or sizes[-1].number != 1 or attribute(node, "batch_dims", 0):
        return
    target = constant_target(sizes, sizes[:-1])
    if target is None:
        return
    if is_constant(indices):
        places = editor.constant("Reshape", indices, editor.literal(np.array(target, np.int64)))
    else:
        places = reshape(editor, indices, target, sizes[:-1], [node], node)
    rows = editor.node("Gather", [node.inputs[0], places], like=[node], before=node, attributes={"axis": 0})
    editor.replace(node.outputs[0], rows.outputs[0])
    editor.remove([node])


def _respell(editor: Editor, node: ir.Node) -> None:
    value, indices = node.inputs[0], array(node.inputs[1])
    sizes = sizes_of(value)
    if value is None or sizes is None or indices is None or indices.ndim > 1 or indices.size == 0 or len(sizes) < 2:
        return
    axis = attribute(node, "axis", 0) % len(sizes)
    places = indices.reshape(-1).astype(np.int64)
    total = sizes[axis].number
    if total is not None:
        places = np.where(places < 0, places + total, places)
    start, end = int(places[0]), int(places[-1]) + 1
    if (places != start + np.arange(len(places))).any() or (start < 0 < end):
        return
    rest = [size for k, size in enumerate(sizes) if k != axis]
    kept = [size for k, size in enumerate(sizes)]
    kept[axis] = type(kept[axis])(len(places))
    target = constant_target(kept, rest) if indices.ndim == 0 else None
    if indices.ndim == 0 and target is None:
        return
    bounds = [editor.literal(np.array([n], np.int64)) for n in (start, end if end != 0 else _END, axis, 1)]
    piece = editor.node("Slice", [value, *bounds], like=[node], before=node).outputs[0]
    if target is not None:
        piece = reshape(editor, piece, target, rest, [node], node)
    editor.replace(node.outputs[0], piece)
    editor.remove([node])
