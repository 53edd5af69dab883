"""LSTM, GRU and RNN over sequences of known length, step by step."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from onnxfix.canonical.legalization.constants import ints_of
from onnxfix.canonical.legalization.elementwise import number
from onnxfix.canonical.legalization.respelling import Rule, Speller
from onnxfix.canonical.queries import dims
from onnxfix.canonical.rewriting import array, attribute

# Longer sequences make more nodes than a converter handles in reasonable time.
_LONGEST = 512
_USUAL = {"LSTM": ["Sigmoid", "Tanh", "Tanh"], "GRU": ["Sigmoid", "Tanh"], "RNN": ["Tanh"]}
_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
_STATES = {"LSTM": 2, "GRU": 1, "RNN": 1}

# The states before a step; None stands for zero.
State = tuple["ir.Value | None", ...]
Step = Callable[["_Cell", ir.Value, State], tuple[ir.Value, ...]]


class _Cell:
    """One direction of a recurrent node: its weights, and the nodes that it adds."""

    def __init__(self, spell: Speller, kernel: np.ndarray, recurrent: np.ndarray, bias: np.ndarray) -> None:
        self.spell = spell
        self.kernel = kernel
        self.recurrent = recurrent
        self.gates = _GATES[spell.origin.op_type]
        self.size = recurrent.shape[1]
        self.input_bias, self.state_bias = np.split(bias, 2)

    def literal(self, value: np.ndarray) -> ir.Value:
        return self.spell.editor.literal(np.ascontiguousarray(value), "weights")

    def split(self, gates: ir.Value, count: int) -> tuple[ir.Value, ...]:
        if count == 1:
            return (gates,)
        sizes = self.spell.editor.literal(np.array([self.size] * count, np.int64), "split")
        return self.spell.many("Split", gates, sizes, axis=-1, count=count)


def _recurrent(spell: Speller) -> Sequence[ir.Value] | None:
    """Unroll: the product of all inputs with the kernel at once, then one small product for each step."""
    node, x = spell.origin, spell.input(0)
    shape, weights = dims(x), [array(spell.input(slot)) for slot in (1, 2)]
    length = None if shape is None else shape[0]
    if x is None or length is None or not 0 < length <= _LONGEST or not _usual(spell, length):
        return None
    kernel, recurrent = weights
    if kernel is None or recurrent is None:
        return None
    bias = array(spell.input(3))
    if bias is None:
        if spell.input(3) is not None:
            return None
        bias = np.zeros((kernel.shape[0], 2 * kernel.shape[1]), kernel.dtype)
    directions = {"forward": [False], "reverse": [True], "bidirectional": [False, True]}
    found = []
    for index, backwards in enumerate(directions[attribute(node, "direction", "forward")]):
        cell = _Cell(spell, kernel[index], recurrent[index], bias[index])
        initial = tuple(_initial(spell, slot, index) for slot in (5, 6)[: _STATES[node.op_type]])
        found.append(_unrolled(cell, x, length, initial, backwards))
    return [part[0] if len(found) == 1 else spell("Concat", *part, axis=0 if k else 1)
            for k, part in enumerate(zip(*found, strict=True))]


def _usual(spell: Speller, length: int) -> bool:
    """Whether the node uses nothing but what nearly all models do."""
    node = spell.origin
    usual = _USUAL[node.op_type]
    activations = attribute(node, "activations") or usual
    lengths = ints_of(spell.input(4))
    whole = spell.input(4) is None or (lengths is not None and set(lengths) == {length})
    return (
        whole and not attribute(node, "layout", 0) and not attribute(node, "input_forget", 0)
        and attribute(node, "clip") is None and spell.input(7) is None
        and list(activations) == usual * (len(activations) // len(usual))
    )


def _initial(spell: Speller, slot: int, direction: int) -> ir.Value | None:
    value = spell.input(slot)
    if value is None:
        return None
    return spell("Gather", value, spell.editor.literal(np.asarray(direction, np.int64), "direction"), axis=0)


def _unrolled(
    cell: _Cell, x: ir.Value, length: int, state: State, backwards: bool
) -> tuple[ir.Value, ...]:
    """All answers [T, 1, N, H] and the last states [1, N, H]."""
    spell = cell.spell
    given = spell("Add", spell("MatMul", x, cell.literal(cell.kernel.T)), cell.literal(cell.input_bias))
    axis, both = (spell.editor.literal(np.array(axes, np.int64), "axes") for axes in ([0], [0, 1]))
    steps = spell.many(
        "Split", given, spell.editor.literal(np.ones(length, np.int64), "split"), axis=0, count=length
    ) if length > 1 else (given,)
    answers: list[ir.Value] = []
    for step in reversed(steps) if backwards else steps:
        state = _STEPS[spell.origin.op_type](cell, spell("Squeeze", step, axis), state)
        if state[0] is not None:
            answers.append(spell("Unsqueeze", state[0], both))
    ordered = answers[::-1] if backwards else answers
    sequence = ordered[0] if length == 1 else spell("Concat", *ordered, axis=0)
    return (sequence, *(spell("Unsqueeze", value, axis) for value in state))


def _lstm(cell: _Cell, given: ir.Value, state: State) -> tuple[ir.Value, ...]:
    """``c' = f c + i g``, ``h' = o tanh(c')`` with the gates in the order i, o, f, g."""
    spell, (hidden, memory) = cell.spell, state
    gates = spell("Add", given, cell.literal(cell.state_bias))
    if hidden is not None:
        gates = spell("Add", gates, spell("MatMul", hidden, cell.literal(cell.recurrent.T)))
    i, o, f, g = cell.split(gates, 4)
    new = spell("Mul", spell("Sigmoid", i), spell("Tanh", g))
    if memory is not None:
        new = spell("Add", spell("Mul", spell("Sigmoid", f), memory), new)
    return spell("Mul", spell("Sigmoid", o), spell("Tanh", new)), new


def _gru(cell: _Cell, given: ir.Value, state: State) -> tuple[ir.Value, ...]:
    """``h' = (1 - z) n + z h`` with the gates in the order z, r, n; r is applied before or after the product."""
    spell, hidden, size = cell.spell, state[0], cell.size
    after = bool(attribute(spell.origin, "linear_before_reset", 0))
    z_given, r_given, n_given = cell.split(given, 3)
    biases = [cell.literal(part) for part in np.split(cell.state_bias, 3)]
    matrices = [cell.literal(cell.recurrent[k * size : (k + 1) * size].T) for k in range(3)]

    def gate(part: ir.Value, k: int) -> ir.Value:
        total = spell("Add", part, biases[k])
        return spell("Sigmoid", total if hidden is None else spell("Add", total, spell("MatMul", hidden, matrices[k])))

    z, r = gate(z_given, 0), gate(r_given, 1)
    if after:
        own = biases[2] if hidden is None else spell("Add", spell("MatMul", hidden, matrices[2]), biases[2])
        inner = spell("Add", n_given, spell("Mul", r, own))
    else:
        inner = spell("Add", n_given, biases[2])
        if hidden is not None:
            inner = spell("Add", inner, spell("MatMul", spell("Mul", r, hidden), matrices[2]))
    n = spell("Tanh", inner)
    new = spell("Mul", spell("Sub", number(spell, 1, n), z), n)
    return (new if hidden is None else spell("Add", new, spell("Mul", z, hidden)),)


def _rnn(cell: _Cell, given: ir.Value, state: State) -> tuple[ir.Value, ...]:
    """``h' = tanh(x W + h R + b)``."""
    spell, hidden = cell.spell, state[0]
    total = spell("Add", given, cell.literal(cell.state_bias))
    if hidden is not None:
        total = spell("Add", total, spell("MatMul", hidden, cell.literal(cell.recurrent.T)))
    return (spell("Tanh", total),)


_STEPS: dict[str, Step] = {"LSTM": _lstm, "GRU": _gru, "RNN": _rnn}
RECURRENT: dict[str, Rule] = dict.fromkeys(_STEPS, _recurrent)
