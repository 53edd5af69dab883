"""The first layers that an input meets, in the normal form, where a wrong preparation shows before all else."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from onnxfix.align.graph import GraphView
from onnxfix.runtime.probe import piece
from onnxfix.runtime.session import Session

# Ops that may stand between an input and the first layer.
_BEFORE = frozenset(
    {"Add", "Mul", "Sub", "Div", "Transpose", "Gather", "Slice", "Cast", "Pad", "Reshape", "Resize", "Clip", "Identity",
     "BatchNormalization", "Neg", "Squeeze", "Unsqueeze", "DequantizeLinear", "QuantizeLinear"}
)  # fmt: skip
_LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU", "RNN"})


@dataclass(frozen=True, eq=False)
class FirstLayer:
    """A layer that an input reaches without passing through another.

    Attributes:
        op: Its op type.
        constants: Names of its weight and its bias.
        weight: Its weight.
        bias: Its bias, or None.
        padded: Whether it pads its input with zeros.
        value: What it makes.
        nodes: The nodes from the input to it, in order.
    """

    op: str
    constants: tuple[str, ...]
    weight: np.ndarray
    bias: np.ndarray | None
    padded: bool
    value: str
    nodes: tuple[str, ...]


def first_layers(view: GraphView, name: str) -> Iterator[FirstLayer]:
    """The first layers behind an input, in the order of the graph."""
    reached = {name}
    for node in view.nodes.values():
        data = [v for v in node.input if v in reached]
        if not data:
            continue
        others = [v for v in node.input if v and v not in reached and not view.is_constant(v)]
        if node.op_type in _LAYERS and node.input[0] in reached and view.is_constant(node.input[1]):
            biased = len(node.input) > 2 and node.input[2] and view.is_constant(node.input[2])
            yield FirstLayer(
                node.op_type, tuple(node.input[1 : 3 if biased else 2]), view.constant(node.input[1]),
                view.constant(node.input[2]) if biased else None,
                any(a.name == "pads" and any(a.ints) for a in node.attribute), node.output[0],
                view.upstream(node.output[0], set())[0],
            )  # fmt: skip
        elif node.op_type in _BEFORE and not others:
            reached.update(node.output)


def pairs(source: GraphView, ours: str, target: GraphView, theirs: str) -> list[tuple[FirstLayer, FirstLayer]]:
    """First layers of both graphs that have weights of the same op and shape, one to one, in order."""
    left = list(first_layers(target, theirs))
    found = []
    for layer in first_layers(source, ours):
        alike = [k for k, other in enumerate(left) if (other.op, other.weight.shape) == (layer.op, layer.weight.shape)]
        if alike:
            best = min(alike, key=lambda k: float(np.mean(np.abs(left[k].weight - layer.weight))))
            found.append((layer, left.pop(best)))
    return found


class LayerRun:
    """Runs the piece of a graph from one input to some of its first layers."""

    def __init__(self, view: GraphView, name: str, layers: list[FirstLayer]) -> None:
        nodes = sorted({n for layer in layers for n in layer.nodes}, key=view.order.__getitem__)
        self._name = name
        self._session = Session(piece(view, nodes, [name], [layer.value for layer in layers]))

    def __call__(self, array: np.ndarray) -> list[np.ndarray]:
        """What the layers answer."""
        return list(self._session.run({self._name: array}).values())
