"""TFLite's fused recurrent operators, which tf2onnx does not know, as the ONNX layers that they are.

The operators have up to 24 operands, most of them optional, and tf2onnx forgets which ones are left out: the numbers
of those that are there are noted on the node first. They keep their states from run to run in variables; the lowered
layer starts from zeros, as a fresh interpreter does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

_LSTM, _RNN = "TFL_UNIDIRECTIONAL_SEQUENCE_LSTM", "TFL_UNIDIRECTIONAL_SEQUENCE_RNN"
_SLOTS = "onnxfix_slots"
# Operands that are states, which no node makes.
_STATES = {_LSTM: (18, 19), _RNN: (4,)}
_ACTIVATIONS = {"TANH": "Tanh", "RELU": "Relu"}
# Operands of the LSTM for the gates i, o, f, c in the order of ONNX.
_KERNELS, _RECURRENT, _BIASES, _PEEPHOLES = (1, 4, 2, 3), (5, 8, 6, 7), (12, 15, 13, 14), (9, 11, 10)
# Operands that ONNX's LSTM has nothing for: a projection of the state, normalised gates.
_FOREIGN = {16: "a projection", 17: "a projection", **dict.fromkeys(range(20, 24), "layer normalization")}


def handlers() -> dict[str, Callable[[Any, Any, str, list[Any]], None]]:
    """The operators' handlers by their name in tf2onnx."""
    return {_LSTM: _lstm, _RNN: _rnn}


def note_operands(nodes: Iterable[Any], subgraph: Any, codes: Mapping[int, str]) -> None:
    """Write on each recurrent node which operands it has, and take its states away.

    Args:
        nodes: The nodes of a subgraph as tf2onnx reads them, in the order of its operators.
        subgraph: The subgraph as the flatbuffer has it.
        codes: The names of operators by the index of their code.
    """
    from onnx import helper

    operators = map(subgraph.Operators, range(subgraph.OperatorsLength()))
    recurrent = [op for op in operators if f"TFL_{codes[op.OpcodeIndex()]}" in _STATES]
    for node, op in zip((n for n in nodes if n.op_type in _STATES), recurrent, strict=True):
        given = [k for k in range(op.InputsLength()) if op.Inputs(k) != -1]
        kept = [(k, name) for k, name in zip(given, node.input, strict=True) if k not in _STATES[node.op_type]]
        node.attribute.append(helper.make_attribute(_SLOTS, [k for k, _ in kept]))
        del node.input[:]
        node.input.extend(name for _, name in kept)


class _Layer:
    """One recurrent operator and the ONNX nodes that take its place."""

    def __init__(self, graph: Any, node: Any) -> None:
        self.graph, self.node = graph, node
        slots = node.attr[_SLOTS].ints
        self.operands: dict[int, str] = dict(zip(slots, node.input, strict=True))
        self.time_major = bool(node.get_attr_value("time_major", 0))
        self.output, self.shape = node.output[0], graph.get_shape(node.output[0])
        self.kind = graph.get_dtype(node.output[0])

    def make(self, op: str, inputs: list[str], **attributes: Any) -> str:
        """Add a node; its output."""
        made = self.graph.make_node(op, inputs, attr=attributes, op_name_scope=self.output)
        name: str = made.output[0]
        return name

    def constant(self, value: np.ndarray) -> str:
        """Add a constant."""
        from tf2onnx import utils

        name: str = self.graph.make_const(utils.make_name("recurrent"), value).output[0]
        return name

    def stacked(self, parts: list[str]) -> str:
        """Parts of one direction, the gates' rows on top of each other."""
        rows = self.make("Concat", parts, axis=0) if len(parts) > 1 else parts[0]
        return self.make("Unsqueeze", [rows, self.constant(np.array([0], np.int64))])

    def zeros(self, count: int) -> str:
        """A vector of zeros."""
        return self.constant(np.zeros(count, np.float32))

    def replace(self, op: str, inputs: list[str], **attributes: Any) -> None:
        """Let the operator be an ONNX layer, with the sequence's axes in TFLite's order around it."""
        source, output = self.operands[0], self.output
        self.graph.remove_node(self.node.name)
        if not self.time_major:
            source = self.make("Transpose", [source], perm=[1, 0, 2])
        states = self.make(op, [source, *inputs], **attributes)
        axis = self.constant(np.array([1], np.int64))
        if not self.time_major:
            states, last = self.make("Squeeze", [states, axis]), "Transpose"
            rest: dict[str, Any] = {"inputs": [states], "attr": {"perm": [1, 0, 2]}}
        else:
            last, rest = "Squeeze", {"inputs": [states, axis]}
        self.graph.make_node(last, outputs=[output], shapes=[self.shape], dtypes=[self.kind], **rest)


def _activation(node: Any) -> str:
    given = node.get_attr_value("fused_activation_function", b"NONE")
    name = given.decode() if isinstance(given, bytes) else str(given)
    if name not in _ACTIVATIONS:
        raise ValueError(f"{node.name}: {node.type[4:]} with activation {name} has no ONNX form")
    return _ACTIVATIONS[name]


def _lstm(graph: Any, node: Any, name: str, args: list[Any]) -> None:
    """``LSTM(x, [W_i; W_o; W_f; W_c], [R...], [b...; 0], P)``; without an input gate, ``i = 1 - f = s(-a(f))``.

    Raises:
        ValueError: it has a projection, layer normalization, clipped states or an activation that ONNX's has not.
    """
    activation, layer = _activation(node), _Layer(graph, node)
    foreign = [_FOREIGN[k] for k in layer.operands if k in _FOREIGN]
    foreign += [what for what in ("cell_clip", "proj_clip") if node.get_attr_value(what, 0)]
    if foreign:
        raise ValueError(f"{node.name}: UNIDIRECTIONAL_SEQUENCE_LSTM with {foreign[0]} has no ONNX form")
    size = graph.get_shape(layer.operands[6])[1]

    def gates(slots: tuple[int, ...]) -> list[str]:
        first, forget = layer.operands.get(slots[0]), layer.operands[slots[2]]
        return [first or layer.make("Neg", [forget]), *(layer.operands[k] for k in slots[1:])]

    biases = [*gates(_BIASES), layer.zeros(4 * size)]
    inputs = [layer.stacked(gates(_KERNELS)), layer.stacked(gates(_RECURRENT)), layer.stacked(biases)]
    if _PEEPHOLES[1] in layer.operands:
        inputs += ["", "", "", layer.stacked(gates(_PEEPHOLES))]
    layer.replace("LSTM", inputs, hidden_size=size, activations=["Sigmoid", activation, activation])


def _rnn(graph: Any, node: Any, name: str, args: list[Any]) -> None:
    """``RNN(x, W, R, [b; 0])``.

    Raises:
        ValueError: its activation is none that ONNX's has.
    """
    activation, layer = _activation(node), _Layer(graph, node)
    size = graph.get_shape(layer.operands[2])[1]
    inputs = [layer.stacked([layer.operands[k]]) for k in (1, 2)]
    inputs.append(layer.stacked([layer.operands[3], layer.zeros(size)]))
    layer.replace("RNN", inputs, hidden_size=size, activations=[activation])
