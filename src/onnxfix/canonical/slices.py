"""Split and constant pieces of sequences are Slices, and Slices are spelled out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onnxfix.canonical.queries import dims, nodes_of, producer, rank
from onnxfix.canonical.rewriting import Editor, array

# An end that is the end of the axis, whatever its size.
END = np.iinfo(np.int64).max


class SpellSlices(ir.passes.InPlacePass):
    """One spelling for taking pieces along axes.

    - ``Split(x, [a, b]) = Slice(x, 0, a), Slice(x, a, a + b)``
    - ``SequenceAt(SplitToSequence(x, [a, b]), 1) = Slice(x, a, a + b)``
    - ``Slice(x, starts, ends)`` gets its axes (in order, from the front) and steps; an end that is the size, or beyond,
      is the largest integer; a start or end counted from the back of a static size is counted from the front
    - ``Slice(Slice(x, axes=[0]), axes=[1]) = Slice(x, axes=[0, 1])``, ``x[2:][3:] = x[5:]``, whoever else reads x[2:]
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Respell."""
        editor = Editor(model.graph)
        for node in nodes_of(model.graph, "Split"):
            _split(editor, node)
        for node in nodes_of(model.graph, "SequenceAt"):
            _element(editor, node)
        for node in nodes_of(model.graph, "Slice"):
            _slice(editor, node)
        return ir.passes.PassResult(model, editor.modified)


def _write(
    editor: Editor, node: ir.Node, value: ir.Value | None, pieces: Sequence[tuple[int, int, int, int]],
    like: Sequence[ir.Node],
) -> ir.Value:
    """A Slice of (axis, start, end, step) pieces."""
    columns = (np.array(column, np.int64) for column in zip(*sorted(pieces), strict=True))
    axes, starts, ends, steps = (editor.literal(column) for column in columns)
    return editor.node("Slice", [value, starts, ends, axes, steps], like=like, before=node).outputs[0]


def _split(editor: Editor, node: ir.Node) -> None:
    shape = dims(node.inputs[0])
    if shape is None:
        return
    axis = node.attributes.get_int("axis", 0) % len(shape)
    given = node.inputs[1] if len(node.inputs) > 1 else None
    sizes = _sizes(given, shape[axis], len(node.outputs))
    if sizes is None or len(sizes) != len(node.outputs):
        return
    ends = np.cumsum(sizes)
    for output, end, size in zip(node.outputs, ends, sizes, strict=True):
        if output.uses() or output.is_graph_output():
            stop = END if output is node.outputs[-1] else int(end)
            piece = _write(editor, node, node.inputs[0], [(axis, int(end) - size, stop, 1)], [node])
            editor.replace(output, piece)
    editor.remove([node])


def _sizes(given: ir.Value | None, total: int | None, count: int) -> list[int] | None:
    """Sizes of the pieces of a Split: as given, or as equal as can be with the last one smaller."""
    if given is not None:
        content = array(given)
        return None if content is None else [int(s) for s in content.reshape(-1)]
    if total is None:
        return None
    size = -(-total // count)
    sizes = [size] * (count - 1) + [total - size * (count - 1)]
    return sizes if sizes[-1] > 0 else None


def _element(editor: Editor, node: ir.Node) -> None:
    made = producer(node.inputs[0], "SplitToSequence")
    index = array(node.inputs[1])
    shape = None if made is None else dims(made.inputs[0])
    if made is None or index is None or shape is None:
        return
    axis = made.attributes.get_int("axis", 0) % len(shape)
    content = array(made.inputs[1]) if len(made.inputs) > 1 else None
    total = shape[axis]
    if content is None or total is None:
        return
    size = int(content.reshape(-1)[0])
    starts = range(0, total, size) if content.ndim == 0 else [0, *np.cumsum(content)[:-1].tolist()]
    ends = [min(s + size, total) for s in starts] if content.ndim == 0 else np.cumsum(content).tolist()
    place = int(index)
    if not -len(starts) <= place < len(starts):
        return
    editor.replace(node.outputs[0], _write(editor, node, made.inputs[0], [(axis, starts[place], ends[place], 1)],
                                           [node, made]))
    editor.remove([node, made])


def pieces_of(node: ir.Node) -> list[tuple[int, int, int, int]] | None:
    """(axis, start, end, step) of a Slice with constant operands, as far from the front as static sizes allow."""
    size, shape = rank(node.inputs[0]), dims(node.inputs[0])
    columns = [array(v) for v in node.inputs[1:]]
    if size is None or shape is None or len(columns) < 2 or columns[0] is None or columns[1] is None:
        return None
    if any(c is None and node.inputs[k + 1] is not None for k, c in enumerate(columns)):
        return None
    count = columns[0].size
    axes = columns[2] if len(columns) > 2 and columns[2] is not None else np.arange(count)
    steps = columns[3] if len(columns) > 3 and columns[3] is not None else np.ones(count, np.int64)
    pieces = []
    for axis, start, end, step in zip(*(c.reshape(-1).tolist() for c in (axes, columns[0], columns[1], steps)),
                                      strict=True):
        total = shape[axis % size]
        pieces.append((axis % size, *_bounds(start, end, step, total), step))
    return pieces


def _bounds(start: int, end: int, step: int, total: int | None) -> tuple[int, int]:
    if step < 0:
        return start, end  # an end before the first element has no spelling from the front
    if total is None:
        return start, min(end, END) if end < np.iinfo(np.int32).max else END
    return _spelled(range(total)[start:end:step], total)


def _spelled(taken: range, total: int) -> tuple[int, int]:
    """Start and end of the elements taken, front to back."""
    if len(taken) == 0:
        return 0, 0
    return taken[0], END if taken[-1] + taken.step >= total else taken[-1] + 1


def _composed(
    first: Sequence[tuple[int, int, int, int]], second: Sequence[tuple[int, int, int, int]],
    shape: tuple[int | None, ...],
) -> list[tuple[int, int, int, int]] | None:
    """Pieces that two Slices in a row take together; None if that needs a size that is not static."""
    pieces = {piece[0]: piece for piece in first}
    for axis, start, end, step in second:
        if axis not in pieces:
            pieces[axis] = (axis, start, end, step)
            continue
        total = shape[axis]
        _, begin, stop, stride = pieces[axis]
        if total is None or stride < 0 or step < 0:
            return None
        taken = range(total)[begin:stop:stride][start:end:step]
        pieces[axis] = (axis, *_spelled(taken, total), taken.step)
    return list(pieces.values())


def _slice(editor: Editor, node: ir.Node) -> None:
    pieces = pieces_of(node)
    if pieces is None or len({p[0] for p in pieces}) != len(pieces):
        return
    inner = producer(node.inputs[0], "Slice")
    before = pieces_of(inner) if inner is not None else None
    if inner is not None and before is not None and len({p[0] for p in before}) == len(before):
        together = _composed(before, pieces, dims(inner.inputs[0]) or ())
        if together is not None:
            merged = _write(editor, node, inner.inputs[0], together, [node, inner])
            editor.replace(node.outputs[0], merged)
            editor.remove([node, inner])
            return
    whole = [piece for piece in pieces if piece[1:] == (0, END, 1)]
    pieces = [piece for piece in pieces if piece not in whole]
    if not pieces:  # it takes all; it is removed elsewhere once it says so
        starts = array(node.inputs[1])
        if starts is None or not starts.any():
            return
        pieces = whole
    written = [list(column) for column in zip(*sorted(pieces), strict=True)]
    given = [array(v) for v in node.inputs[1:]]
    order = [given[k] for k in (2, 0, 1, 3)] if len(given) == 4 else []
    if len(order) == 4 and all(c is not None and c.dtype == np.int64 and c.tolist() == w
                               for c, w in zip(order, written, strict=True)):
        return
    editor.replace(node.outputs[0], _write(editor, node, node.inputs[0], pieces, [node]))
    editor.remove([node])
