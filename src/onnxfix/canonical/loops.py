"""A Loop that runs an LSTM, GRU or RNN cell over a sequence is that layer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxfix.canonical.cell_algebra import CellReader, Rows
from onnxfix.canonical.cell_emission import complete, emit, sequence_of
from onnxfix.canonical.cells import Cell, gru, lstm, rnn
from onnxfix.canonical.loop_counting import Count, count
from onnxfix.canonical.queries import nodes_of
from onnxfix.canonical.rewriting import Editor, array, producer
from onnxfix.canonical.symbolic import ShapeReader, Size, product, sizes_of


class RecognizeLoops(ir.passes.InPlacePass):
    """``Loop(n, h, c) { h, c = cell(x[i], h, c) } -> LSTM(x, h, c)``, and so for GRU and RNN.

    The loop must visit every place of x once, in order from either end; what else it carries must be counters. Its
    cell is read as a sum (see :mod:`onnxfix.canonical.cell_algebra`), so any spelling of the cell will do.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Look at every Loop of the main graph."""
        editor = Editor(model.graph)
        for node in nodes_of(model.graph, "Loop"):
            found = _read(node)
            if found is not None:
                _replace(editor, node, found)
        return ir.passes.PassResult(model, editor.modified)


@dataclass(frozen=True)
class _Layer:
    cell: Cell
    counted: Count
    reverse: bool
    # Places among the carried values: of the hidden state and of LSTM's memory, and of copies that no step reads.
    states: tuple[int, ...]
    copies: tuple[int, ...]


def _read(loop: ir.Node) -> _Layer | None:
    body = loop.attributes["body"].as_graph()
    counted = count(loop, body)
    if counted is None or not counted.steps:
        return None
    carried = len(loop.inputs) - 2
    others = [k for k in range(carried) if k not in counted.last]
    states = [k for k in others if body.inputs[k + 2].uses()]
    copies = tuple(k for k in others if k not in states)
    if len(states) not in (1, 2):
        return None
    reader = CellReader({body.inputs[k + 2] for k in states}, loose=True)
    found = _cell(reader, body, states)
    if found is None:
        return None
    cell, order = found
    scans = [*body.outputs[carried + 1 :], *(body.outputs[k + 1] for k in copies)]
    hidden = reader.base(body.outputs[order[0] + 1])
    if any(reader.base(scan) != hidden for scan in scans):
        return None
    if not complete(cell) or not all(_fits(loop.inputs[k + 2], cell) for k in order):
        return None
    if any(_copied(body.outputs[k + 1], cell.size) is None for k in copies):
        return None
    reverse = _direction(cell, counted)
    return None if reverse is None else _Layer(cell, counted, reverse, order, copies)


def _copied(value: ir.Value | None, size: int) -> list[int] | None:
    """The Reshape target that makes a copy of the last state [1, N, H] what a body makes of it."""
    sizes = sizes_of(value)
    if not sizes or sizes[-1].number != size:
        return None
    target = [-1 if s.number is None else s.number for s in sizes]
    return target if target.count(-1) < 2 else None


def _cell(reader: CellReader, body: ir.Graph, states: list[int]) -> tuple[Cell, tuple[int, ...]] | None:
    """The cell, and which carried values are its states."""
    for k in states:
        inner, outer = body.inputs[k + 2], body.outputs[k + 1]
        size = reader.width(inner) or reader.width(outer)
        value = reader.sum(outer)
        if size is None or value is None:
            continue
        if len(states) == 1:
            cell = gru(value, size) or rnn(value, size, Rows(inner))
            if cell is not None and cell.hidden == Rows(inner):
                return cell, (k,)
            continue
        other = states[1 - states.index(k)]
        memory = Rows(body.inputs[other + 2])
        cell = lstm(value, size, {memory: Rows(inner)})
        if cell is not None and cell.hidden == Rows(inner) and cell.memory == memory and (
                reader.sum(body.outputs[other + 1]) == cell.update):
            return cell, (k, other)
    return None


def _direction(cell: Cell, counted: Count) -> bool | None:
    """Whether the places are visited from the end; None if they are visited in any other way."""
    sizes = sizes_of(cell.source.value)
    if sizes is None or not isinstance(cell.source.place, ir.Value) or len(sizes) < 3:
        return None
    total = sizes[cell.source.axis].number
    if total != counted.steps:
        return None
    places = counted.values(cell.source.place)
    forward = list(range(counted.steps))
    if places == forward:
        return False
    return True if places in (forward[::-1], [k - total for k in forward[::-1]]) else None


def _fits(initial: ir.Value | None, cell: Cell) -> bool:
    """Whether a state has a row for each row of the sequence, or is zero in one row: then it has as many as needed."""
    source, reader = sizes_of(cell.source.value), ShapeReader()
    sizes = sizes_of(initial)
    expand = producer(initial, "Expand")
    if expand is not None:
        content = reader.read(expand.inputs[1])
        sizes = list(content.sizes) if content is not None and None not in content.sizes else sizes  # type: ignore[arg-type]
    if source is None or sizes is None or len(sizes) != 2:
        return False
    rows = product([size for k, size in enumerate(source[:-1]) if k != cell.source.axis])
    content_of = array(initial)
    zero = content_of is not None and not content_of.any()
    return sizes[1] == Size(cell.size) and (sizes[0] == rows or (zero and sizes[0].number == 1))


def _replace(editor: Editor, loop: ir.Node, layer: _Layer) -> None:
    cell, like = layer.cell, [loop]
    sequence = sequence_of(editor, cell.source.value, cell.source.axis, like, loop)
    if sequence is None:
        return
    first, second = (editor.literal(np.array([axis], np.int64)) for axis in (0, 1))
    states: list[ir.Value | None] = []
    for k in layer.states:
        initial = loop.inputs[k + 2]
        content = array(initial)
        zero = content is not None and not content.any()
        states.append(None if zero else editor.node("Unsqueeze", [initial, first], like=like, before=loop).outputs[0])
    node = emit(editor, cell, sequence, states, reverse=layer.reverse, like=like, before=loop)
    for k, number in layer.counted.last.items():
        dtype = loop.inputs[k + 2].dtype.numpy()  # type: ignore[union-attr]
        shape = np.asarray(array(loop.inputs[k + 2])).shape
        _let(editor, loop.outputs[k], editor.literal(np.full(shape, number, dtype)))
    for slot, k in enumerate(layer.states):
        if _read_at_all(loop.outputs[k]):
            last = editor.node("Squeeze", [node.outputs[slot + 1], first], like=like, before=loop)
            _let(editor, loop.outputs[k], last.outputs[0])
    body = loop.attributes["body"].as_graph()
    for k in layer.copies:
        target = _copied(body.outputs[k + 1], cell.size)
        if target is not None and _read_at_all(loop.outputs[k]):
            wanted = editor.literal(np.array(target, np.int64))
            copy = editor.node("Reshape", [node.outputs[1], wanted], like=like, before=loop)
            _let(editor, loop.outputs[k], copy.outputs[0])
    for output in loop.outputs[len(loop.inputs) - 2 :]:
        if _read_at_all(output):
            _let(editor, output, _steps(editor, node, layer, first, second, loop))
    editor.remove([loop])


def _steps(
    editor: Editor, node: ir.Node, layer: _Layer, first: ir.Value, second: ir.Value, loop: ir.Node
) -> ir.Value:
    """The states after each step, in the order in which the loop made them."""
    result: ir.Value = editor.node("Squeeze", [node.outputs[0], second], like=[loop], before=loop).outputs[0]
    if layer.reverse:
        bounds = [editor.literal(np.array([n], np.int64)) for n in (-1, np.iinfo(np.int64).min)]
        back = editor.literal(np.array([-1], np.int64))
        result = editor.node("Slice", [result, *bounds, first, back], like=[loop], before=loop).outputs[0]
    return result


def _read_at_all(value: ir.Value) -> bool:
    return bool(value.uses()) or value.is_graph_output()


def _let(editor: Editor, old: ir.Value, new: ir.Value) -> None:
    if _read_at_all(old):
        editor.replace(old, new)
