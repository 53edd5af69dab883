"""Write an LSTM, GRU or RNN node for a cell: its weights in ONNX's order, its sequence in front, its states."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onnxfix.canonical.cell_algebra import Product, Rows, Vector
from onnxfix.canonical.cells import ORDER, Cell, Linear
from onnxfix.canonical.permutation import reshape
from onnxfix.canonical.reshaping import constant_target
from onnxfix.canonical.rewriting import Editor, array
from onnxfix.canonical.symbolic import Size, product, sizes_of

_DEFAULT = {"LSTM": ("Sigmoid", "Tanh", "Tanh"), "GRU": ("Sigmoid", "Tanh"), "RNN": ("Tanh",)}
# What folding biases in another order may cost, relative to the greatest.
_NOISE = 1e-6


def emit(
    editor: Editor, cell: Cell, sequence: ir.Value, states: Sequence[ir.Value | None], *, reverse: bool,
    like: Sequence[ir.Node], before: ir.Node,
) -> ir.Node:
    """Insert the node.

    Args:
        editor: Edits the graph.
        cell: A step that shows all its gates.
        sequence: What it runs over, [T, N, I].
        states: The states that it starts from, [1, N, H] each.
        reverse: Whether it runs from the end to the start.
        like: The nodes that it stands for.
        before: Where to insert it.
    """
    order = ORDER[cell.op]
    gates = [cell.gates[name] for name in order]
    kernel = _matrices(editor, [_only(gate.kernel) for gate in gates])
    recurrent = _matrices(editor, [_only(gate.recurrent) for gate in gates])
    dtype = np.asarray(array(kernel)).dtype
    biases = [_vectors(editor, [gate.bias for gate in gates], cell.size, dtype),
              _vectors(editor, [gate.inner for gate in gates], cell.size, dtype)]
    lead = editor.literal(np.array([0], np.int64))
    weights = [editor.constant("Unsqueeze", value, lead)
               for value in (kernel, recurrent, editor.constant("Concat", *biases, axis=0))]
    activations = list(cell.activations) if cell.activations != _DEFAULT[cell.op] else None
    direction = "reverse" if reverse else "forward"
    attributes = {"hidden_size": cell.size, "direction": direction, "activations": activations}
    if cell.op == "GRU":
        attributes["linear_before_reset"] = int(bool(cell.after))
    return editor.node(
        cell.op, [sequence, *weights, None, *states], like=like, before=before, outputs=3 if cell.op == "LSTM" else 2,
        attributes=attributes,
    )


def agree(first: Cell, second: Cell) -> bool:
    """Whether two steps have the same weights, as far as the first one shows them."""
    shared = first.gates.keys() & second.gates.keys()
    return (first.op, first.size, first.activations) == (second.op, second.size, second.activations) and (
        None in (first.after, second.after) or first.after == second.after
    ) and all(_agree(first.gates[name], second.gates[name], first.size) for name in shared)


def complete(cell: Cell) -> bool:
    """Whether a step shows all its gates, and their matrices."""
    return set(cell.gates) == set(ORDER[cell.op]) and all(
        len(gate.kernel) == len(gate.recurrent) == 1 for gate in cell.gates.values()
    )


def _agree(first: Linear, second: Linear, size: int) -> bool:
    pairs = [(first.kernel, second.kernel)] + ([(first.recurrent, second.recurrent)] if first.recurrent else [])
    for one, two in pairs:
        if len(one) != len(two):
            return False
        if any(_block(*a) is not None and not np.array_equal(_block(*a), _block(*b))
               for a, b in zip(one, two, strict=True) if _place(a) != _place(b)):
            return False
    for ours, theirs in ((first.bias, second.bias), (first.inner, second.inner)):
        if ours != theirs:
            left, right = _total(ours, size), _total(theirs, size)
            if np.abs(left - right).max() > _NOISE * max(np.abs(left).max(), 1.0):
                return False
    return True


def _place(part: tuple[float, Product]) -> tuple[object, ...]:
    c, found = part
    return (c, *found[1:])


def _block(c: float, found: Product) -> np.ndarray:
    """The part of a matrix that belongs to one gate, [inner, H]."""
    matrix = np.asarray(array(found.matrix))
    matrix = matrix.T if found.transposed else matrix
    return np.asarray(c * matrix[found.above : found.above + found.inner, found.start : found.stop])


def _total(parts: Sequence[tuple[float, Vector]], size: int) -> np.ndarray:
    total = np.zeros(size)
    for c, vector in parts:
        total += c * np.asarray(array(vector.value)).reshape(-1)[vector.start : vector.stop].astype(np.float64)
    return total


def _only(parts: tuple[tuple[float, Product], ...]) -> tuple[float, Product]:
    (part,) = parts
    return part


def _matrices(editor: Editor, parts: Sequence[tuple[float, Product]]) -> ir.Value:
    """Blocks of all gates below each other, [gates * H, inner]: in one piece where they are cut from one matrix."""
    if len({(id(p.matrix), p.transposed, p.above, p.inner) for _, p in parts}) == 1 and all(c == 1.0 for c, _ in parts):
        places = [k for _, p in parts for k in range(p.start, p.stop)]
        return _chosen(editor, _upright(editor, parts[0][1]), places)
    blocks = []
    for c, p in parts:
        block = _chosen(editor, _upright(editor, p), list(range(p.start, p.stop)))
        blocks.append(_times(editor, block, c))
    return editor.constant("Concat", *blocks, axis=0)


def _upright(editor: Editor, p: Product) -> ir.Value:
    """The rows of a matrix that belong to the operand, one column of the product in each row."""
    upright = p.matrix if p.transposed else editor.constant("Transpose", p.matrix, perm=[1, 0])
    if np.asarray(array(upright)).shape[1] == p.inner:
        return upright
    bounds = [editor.literal(np.array([n], np.int64)) for n in (p.above, p.above + p.inner, 1)]
    return editor.constant("Slice", upright, *bounds)


def _chosen(editor: Editor, value: ir.Value, places: list[int]) -> ir.Value:
    if places == list(range(len(np.asarray(array(value))))):
        return value
    return editor.constant("Gather", value, editor.literal(np.array(places, np.int64)), axis=0)


def _times(editor: Editor, value: ir.Value, c: float) -> ir.Value:
    if c == 1.0:
        return value
    dtype = np.asarray(array(value)).dtype
    return editor.constant("Mul", value, editor.literal(np.asarray(c, dtype)))


def _vectors(
    editor: Editor, parts: Sequence[tuple[tuple[float, Vector], ...]], size: int, dtype: np.dtype
) -> ir.Value:
    """Biases of all gates one after the other, [gates * H]: in one piece where they are cut from the same constants."""
    values = [tuple(id(v.value) for _, v in gate) for gate in parts]
    if values[0] and len(set(values)) == 1 and len(set(values[0])) == len(values[0]) and all(
            c == 1.0 for gate in parts for c, _ in gate):
        flat = []
        for j, (_, vector) in enumerate(parts[0]):
            columns = [k for gate in parts for k in range(gate[j][1].start, gate[j][1].stop)]
            flat.append(_chosen(editor, _flat(editor, vector.value), columns))
        return _sum(editor, flat)
    blocks = []
    for gate in parts:
        pieces = [_times(editor, _chosen(editor, _flat(editor, v.value), list(range(v.start, v.stop))), c)
                  for c, v in gate]
        blocks.append(_sum(editor, pieces) if pieces else editor.literal(np.zeros(size, dtype)))
    return editor.constant("Concat", *blocks, axis=0)


def _flat(editor: Editor, value: ir.Value) -> ir.Value:
    content = np.asarray(array(value))
    if content.ndim == 1:
        return value
    return editor.constant("Reshape", value, editor.literal(np.array([content.size], np.int64)))


def _sum(editor: Editor, values: Sequence[ir.Value]) -> ir.Value:
    total = values[0]
    for value in values[1:]:
        total = editor.constant("Add", total, value)
    return total


def sequence_of(
    editor: Editor, value: ir.Value, axis: int, like: Sequence[ir.Node], before: ir.Node
) -> ir.Value | None:
    """A value as a sequence [T, N, I] along one of its axes."""
    sizes = sizes_of(value)
    if sizes is None or not 0 <= axis < len(sizes) - 1:
        return None
    perm = [axis, *(k for k in range(len(sizes)) if k != axis)]
    if perm != sorted(perm):
        value = editor.node("Transpose", [value], like=like, before=before, attributes={"perm": perm}).outputs[0]
        sizes = [sizes[k] for k in perm]
    wanted = [sizes[0], product(sizes[1:-1]), sizes[-1]]
    return _shaped(editor, value, sizes, wanted, like, before)


def state_of(editor: Editor, rows: Rows, like: Sequence[ir.Node], before: ir.Node) -> ir.Value | None:
    """Rows as a state [1, N, H]."""
    value, sizes = rows.value, sizes_of(rows.value)
    if sizes is None:
        return None
    if isinstance(rows.place, int):
        value = place_of(editor, value, rows.axis, rows.place, like, before)
        sizes = [Size(1) if k == rows.axis else size for k, size in enumerate(sizes)]
    elif rows.place is not None:
        return None
    return _shaped(editor, value, sizes, [Size(1), product(sizes[:-1]), sizes[-1]], like, before)


def place_of(
    editor: Editor, value: ir.Value, axis: int, place: int, like: Sequence[ir.Node], before: ir.Node
) -> ir.Value:
    """One place along an axis, which stays."""
    end = np.iinfo(np.int64).max if place == -1 else place + 1
    bounds = [editor.literal(np.array([n], np.int64)) for n in (place, end, axis, 1)]
    result: ir.Value = editor.node("Slice", [value, *bounds], like=like, before=before).outputs[0]
    return result


def _shaped(
    editor: Editor, value: ir.Value, sizes: list[Size], wanted: list[Size], like: Sequence[ir.Node], before: ir.Node
) -> ir.Value | None:
    if sizes == wanted:
        return value
    target = constant_target(sizes, wanted)
    return None if target is None else reshape(editor, value, target, wanted, like, before)
