"""Steps of one LSTM, GRU or RNN cell written out one after the other are that layer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxfix.canonical.cell_algebra import CellReader, Rows
from onnxfix.canonical.cell_emission import agree, complete, emit, place_of, sequence_of, state_of
from onnxfix.canonical.cells import SCALED, Cell, gru, lstm, rnn, rows_of
from onnxfix.canonical.permutation import reshape
from onnxfix.canonical.queries import nodes_of
from onnxfix.canonical.reshaping import constant_target
from onnxfix.canonical.rewriting import Editor, attribute, is_op
from onnxfix.canonical.symbolic import Size, product, sizes_of

# How far behind the activation of the new part a GRU step ends: n, 1 - z, its product, and the sum.
_REACH = 4
_ROWS = ("Reshape", "Unsqueeze", "Squeeze")
_COMBINING = ("Add", "Sub", "Mul", "Neg")


class RollSteps(ir.passes.InPlacePass):
    """``h1 = cell(x[0], h0); h2 = cell(x[1], h1); ... -> layer(x, h0)``, for two steps or more.

    The steps must read neighbouring places of one sequence, in order from either end, and their weights must be equal.
    Each step is read as a sum (see :mod:`onnxfix.canonical.cell_algebra`) that ends at the state before it, so the time
    taken grows with the number of steps. A memory of LSTM that anything but the next step reads, other than the last,
    leaves the steps as they are.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Find steps in order, join them to chains, and replace the chains."""
        editor = Editor(model.graph)
        for found in (_lstm_steps, _gru_steps, _rnn_steps):
            reader = CellReader()
            for chain in reversed(_chains(found(model.graph, reader))):  # a later one may read an earlier one
                _replace(editor, reader, chain)
        return ir.passes.PassResult(model, editor.modified)


@dataclass(frozen=True)
class _Step:
    cell: Cell
    hidden: ir.Value
    memory: ir.Value | None = None


def _lstm_steps(graph: ir.Graph, reader: CellReader) -> Iterator[_Step]:
    """Steps of LSTM, each found behind the activation of its memory."""
    paired: dict[Rows, Rows] = {}
    for node in nodes_of(graph, *SCALED):
        step = _lstm_step(node, reader, paired)
        if step is not None and step.memory is not None:
            reader.stop(step.hidden, step.memory)
            paired[Rows(step.memory)] = Rows(step.hidden)
            yield step


def _gru_steps(graph: ir.Graph, reader: CellReader) -> Iterator[_Step]:
    """Steps of GRU, each found behind the activation of its new part."""
    for node in nodes_of(graph, *SCALED):
        step = _gru_step(node, reader)
        if step is not None:
            reader.stop(step.hidden)
            yield step


def _lstm_step(tanh: ir.Node, reader: CellReader, paired: dict[Rows, Rows]) -> _Step | None:
    source = tanh.inputs[0]
    size = reader.width(tanh.outputs[0])
    if source is None or size is None:
        return None
    for result in _behind(tanh, ("Mul",), 2):
        value = reader.sum(result)
        cell = None if value is None else lstm(value, size, paired)
        memory = reader.base(source)
        if cell is not None and memory.place is None:
            return _Step(cell, result, memory.value)
    return None


def _gru_step(tanh: ir.Node, reader: CellReader) -> _Step | None:
    size = reader.width(tanh.outputs[0])
    if size is None:
        return None
    values = {result: reader.sum(result) for result in _behind(tanh, _COMBINING, _REACH)}
    for value in values.values():
        cell = None if value is None else gru(value, size)
        if cell is not None:  # a first step may add zeros to what it already is
            return _Step(cell, next(result for result, other in reversed(values.items()) if other == value))
    return None


def _behind(node: ir.Node, ops: Sequence[str], reach: int) -> list[ir.Value]:
    """What these ops make of a node's result, nearest first."""
    found: dict[ir.Value, None] = {}
    layer = [node.outputs[0]]
    for _ in range(reach):
        following = [use.node for value in layer for use in value.uses()]
        passing = (n for n in following if is_op(n, *ops, "Reshape") and n.graph is node.graph)
        layer = list(dict.fromkeys(n.outputs[0] for n in passing))
        found.update(dict.fromkeys(v for v in layer if is_op(v.producer(), *ops)))
        if len(found) > 2 * reach:
            break
    return list(found)


def _rnn_steps(graph: ir.Graph, reader: CellReader) -> Iterator[_Step]:
    """Steps of RNN: each ends with its activation, and starts from the end of one before it."""
    ends: set[Rows] = set()
    for node in nodes_of(graph, *SCALED):
        result = node.outputs[0]
        size, value = reader.width(result), reader.sum(result)
        if size is None or value is None:
            continue
        read = rows_of(value)
        known = [rows for rows in read if rows in ends or (len(read) == 2 and rows.place is None)]
        cell = rnn(value, size, known[0] if len(known) == 1 else None) if len(known) < 2 else None
        if cell is not None and cell.source.place is not None:
            reader.stop(result)
            ends.add(Rows(result))
            yield _Step(cell, result)


def _chains(steps: Iterable[_Step]) -> list[list[_Step]]:
    """Steps that follow each other, two or more."""
    ending: dict[Rows, list[_Step]] = {}
    chains: list[list[_Step]] = []
    for step in steps:
        chain = None if step.cell.hidden is None else ending.pop(step.cell.hidden, None)
        if chain is None or not _follows(chain, step):
            chain = []
            chains.append(chain)
        chain.append(step)
        ending[Rows(step.hidden)] = chain
    return [chain for chain in chains if len(chain) > 1 and complete(chain[1].cell)]


def _follows(chain: list[_Step], step: _Step) -> bool:
    last, reference = chain[-1], chain[min(1, len(chain) - 1)]
    one, two = last.cell.source, step.cell.source
    if one.value is not two.value or one.axis != two.axis or not isinstance(two.place, int):
        return False
    if step.cell.memory != (None if last.memory is None else Rows(last.memory)):
        return False
    ways = {_way(*chain[:2])} if len(chain) > 1 else set()
    return {_way(last, step)} | ways in ({1}, {-1}) and agree(reference.cell, step.cell)


def _way(first: _Step, second: _Step) -> int | None:
    one, two = first.cell.source.place, second.cell.source.place
    return two - one if isinstance(one, int) and isinstance(two, int) else None


def _replace(editor: Editor, reader: CellReader, chain: list[_Step]) -> None:
    cell = chain[1].cell
    reverse = _way(*chain[:2]) == -1
    ordered = chain[::-1] if reverse else chain
    like, before = _nodes(reader, chain), chain[0].hidden.producer()
    rows = _batch(cell.source)
    shapes = [sizes_of(step.hidden) for step in chain]
    if before is None or rows is None or any(s is None or product(s[:-1]) != rows for s in shapes):
        return
    if not _enclosed(chain, like) or any(_target(rows, cell.size, s) is None for s in shapes if s is not None):
        return
    stacks = _stacks(reader, ordered)
    sequence = _sequence(editor, ordered, like, before)
    states = [None if state is None else state_of(editor, state, like, before)
              for state in ((chain[0].cell.hidden, chain[0].cell.memory) if cell.op == "LSTM" else
                            (chain[0].cell.hidden,))]
    if sequence is None or any(s is None and r is not None for s, r in
                               zip(states, (chain[0].cell.hidden, chain[0].cell.memory), strict=False)):
        return
    node = emit(editor, cell, sequence, states, reverse=reverse, like=like, before=before)
    answers = node.outputs[0]
    for concat, axis in stacks:
        _stack(editor, answers, concat, axis, rows, like, before)
    inside = set(like)
    for place, step in enumerate(ordered):
        if _read_outside(step.hidden, inside):
            last = [n for n in (step.hidden.producer(),) if n is not None]
            piece = place_of(editor, answers, 0, place, last, before)
            _put(editor, step.hidden, piece, rows, cell.size, last, before)
    memory = chain[-1].memory
    if memory is not None and _read_outside(memory, inside):
        _put(editor, memory, node.outputs[2], rows, cell.size, like, before)
    editor.remove(reversed(like))


def _nodes(reader: CellReader, chain: Sequence[_Step]) -> list[ir.Node]:
    """The nodes of all steps, in order."""
    found: dict[ir.Node, None] = {}
    for step in chain:
        reader.stops.difference_update((step.hidden,) if step.memory is None else (step.hidden, step.memory))
    limits = {rows.value for step in chain[:1] for rows in (step.cell.hidden, step.cell.memory) if rows is not None}
    limits.add(chain[0].cell.source.value)
    waiting = [step.hidden for step in chain]
    while waiting:
        value = waiting.pop()
        node = value.producer()
        if node is not None and node in reader.visited and node not in found and value not in limits:
            found[node] = None
            waiting += [v for v in node.inputs if v is not None]
    for step in chain:
        reader.stop(*(v for v in (step.hidden, step.memory) if v is not None))
    return [node for node in chain[0].hidden.graph or () if node in found]


def _enclosed(chain: Sequence[_Step], like: Sequence[ir.Node]) -> bool:
    """Whether no memory but the last is read outside the steps."""
    inside = set(like)
    return not any(_read_outside(step.memory, inside) for step in chain[:-1] if step.memory is not None)


def _read_outside(value: ir.Value, inside: set[ir.Node]) -> bool:
    return value.is_graph_output() or any(use.node not in inside for use in value.uses())


def _batch(source: Rows) -> Size | None:
    sizes = sizes_of(source.value)
    return None if sizes is None else product([s for k, s in enumerate(sizes[:-1]) if k != source.axis])


def _sequence(editor: Editor, ordered: Sequence[_Step], like: list[ir.Node], before: ir.Node) -> ir.Value | None:
    """The part of the sequence that the steps visit, [T, N, I]."""
    source, last = ordered[0].cell.source, ordered[-1].cell.source.place
    sizes = sizes_of(source.value)
    value, first = source.value, source.place
    if sizes is None or not isinstance(first, int) or not isinstance(last, int):
        return None
    if first != 0 or sizes[source.axis].number != last + 1:
        bounds = [editor.literal(np.array([n], np.int64)) for n in (first, last + 1, source.axis, 1)]
        value = editor.node("Slice", [value, *bounds], like=like, before=before).outputs[0]
    return sequence_of(editor, value, source.axis, like, before)


def _stacks(reader: CellReader, ordered: Sequence[_Step]) -> list[tuple[ir.Node, int]]:
    """Concats of all answers in the order of their places, and their axes."""
    found: dict[ir.Node, int] = {}
    waiting, seen = [ordered[0].hidden], set()
    while waiting:
        value = waiting.pop()
        for use in value.uses():
            if is_op(use.node, *_ROWS) and use.node not in seen:
                seen.add(use.node)
                waiting.append(use.node.outputs[0])
            elif is_op(use.node, "Concat") and len(use.node.inputs) == len(ordered) and use.node not in found:
                bases = [None if v is None else reader.base(v) for v in use.node.inputs]
                if bases == [Rows(step.hidden) for step in ordered]:
                    found[use.node] = attribute(use.node, "axis")
    return list(found.items())


def _stack(
    editor: Editor, answers: ir.Value, concat: ir.Node, axis: int, rows: Size, like: list[ir.Node], before: ir.Node
) -> None:
    """Let the layer's answers [T, 1, N, H] take the place of a Concat of them."""
    sizes, given = sizes_of(concat.outputs[0]), sizes_of(answers)
    if sizes is None or given is None or axis % len(sizes) == len(sizes) - 1:
        return
    lead = product(sizes[: axis % len(sizes)])
    moved = answers
    if lead.number != 1:
        if lead != rows:
            return
        given = [given[1], given[2], given[0], given[3]]
        perm = {"perm": [1, 2, 0, 3]}
        moved = editor.node("Transpose", [answers], like=like, before=before, attributes=perm).outputs[0]
    target = constant_target(given, sizes)
    if target is not None:
        parts = [part.producer() for part in concat.inputs if part is not None]
        editor.replace(concat.outputs[0], reshape(editor, moved, target, sizes, [*like, concat], before))
        editor.remove([concat, *(n for n in parts if is_op(n, *_ROWS) and n is not None)])


def _target(rows: Size, size: int, sizes: list[Size]) -> list[int] | None:
    return constant_target([Size(1), Size(1), rows, Size(size)], sizes)


def _put(
    editor: Editor, old: ir.Value, piece: ir.Value, rows: Size, size: int, like: list[ir.Node], before: ir.Node
) -> None:
    """Let one place of the answers take the place of a step's state."""
    sizes, given = sizes_of(old), [Size(1), rows, Size(size)]
    given = given if len(piece.shape or ()) == len(given) else [Size(1), *given]
    target = None if sizes is None else constant_target(given, sizes)
    if target is None or sizes is None:
        return
    editor.replace(old, reshape(editor, piece, target, sizes, like, before))
