"""Read off a lowered graph what it does last: the activation that makes an output, and what only moves it about."""

from __future__ import annotations

from dataclasses import dataclass

import onnx

from onnxfix.align import GraphView

# What makes scores of the numbers that a model computes; other activations are part of its inside.
ACTIVATIONS = frozenset({"Softmax", "LogSoftmax", "Sigmoid"})
_MOVERS = frozenset({"Identity", "Cast", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose"})


@dataclass(frozen=True, eq=False)
class Tail:
    """The last nodes before an output.

    Attributes:
        activations: Activation nodes, the first one first.
        nodes: All nodes from ``core`` to the output, in order.
        core: The value before them.
        free: Whether nothing else reads what they make, so that they can be taken out.
    """

    activations: tuple[onnx.NodeProto, ...]
    nodes: tuple[onnx.NodeProto, ...]
    core: str
    free: bool

    @property
    def ops(self) -> tuple[str, ...]:
        """The activations' op types."""
        return tuple(node.op_type for node in self.activations)

    def without(self, count: int) -> tuple[list[onnx.NodeProto], tuple[onnx.NodeProto, ...]]:
        """The tail with all but its first ``count`` activations taken out.

        Returns:
            The nodes that take the place of the others, and those others.
        """
        gone = [node.output[0] for node in self.activations[count:]]
        start = next(k for k, node in enumerate(self.nodes) if node.output[0] in gone)
        kept, value = [], self.nodes[start].input[0]
        for node in self.nodes[start:]:
            if node.output[0] in gone:
                continue
            copy = onnx.NodeProto()
            copy.CopyFrom(node)
            copy.input[0] = value
            kept.append(copy)
            value = node.output[0]
        return kept, self.nodes[start:]


def tail(view: GraphView, output: str) -> Tail:
    """Follow an output back through activations and movers."""
    value, free = output, True
    nodes: list[onnx.NodeProto] = []
    while value in view.producer:
        node = view.nodes[view.producer[value][0]]
        if node.op_type not in ACTIVATIONS | _MOVERS or len(node.output) != 1:
            break
        readers = len(view.consumers.get(value, ())) + (value in view.outputs)
        free = free and readers == 1
        nodes.insert(0, node)
        value = node.input[0]
    while nodes and nodes[0].op_type not in ACTIVATIONS:
        value = nodes.pop(0).output[0]
    return Tail(tuple(n for n in nodes if n.op_type in ACTIVATIONS), tuple(nodes), value, free)

