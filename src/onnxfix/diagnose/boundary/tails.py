"""Read off a lowered graph what it does last: activations that make an output, and what only moves it about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from onnxfix.align import GraphView
from onnxfix.align.graph import attributes
from onnxfix.errors import RuntimeFailure
from onnxfix.runtime.assembly import assemble, constants_read
from onnxfix.runtime.session import Session

# What makes scores of the numbers that a model computes; other activations are part of its inside.
ACTIVATIONS = frozenset({"Softmax", "LogSoftmax", "Sigmoid"})
# What moves numbers about, with the data as its first operand.
_MOVERS = frozenset(
    {"Identity", "Cast", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Gather", "Slice", "Pad"}
)
_MOVING = frozenset({"Transpose", "Gather", "Slice", "Pad"})


@dataclass(frozen=True, eq=False)
class Tail:
    """The last nodes before an output.

    Attributes:
        view: The lowered graph.
        nodes: All activations and movers that lead to the output, in order.
        root: The value before them.
        output: The output.
    """

    view: GraphView
    nodes: tuple[onnx.NodeProto, ...]
    root: str
    output: str

    @property
    def activations(self) -> tuple[onnx.NodeProto, ...]:
        """The activations, the first one first."""
        return tuple(node for node in self.nodes if node.op_type in ACTIVATIONS)

    @property
    def ops(self) -> tuple[str, ...]:
        """The activations' op types."""
        return tuple(node.op_type for node in self.activations)

    @property
    def movers(self) -> tuple[str, ...]:
        """Ops that move classes or axes about."""
        return tuple(node.op_type for node in self.nodes if node.op_type in _MOVING)

    @property
    def last(self) -> tuple[onnx.NodeProto, ...]:
        """The nodes from the first activation on."""
        first = next((k for k, node in enumerate(self.nodes) if node.op_type in ACTIVATIONS), len(self.nodes))
        return self.nodes[first:]

    @property
    def free(self) -> bool:
        """Whether nothing else reads what comes after the first activation, so that it can be taken out."""
        made = [node.output[0] for node in self.last]
        return all(len(self.view.consumers.get(v, ())) + (v in self.view.outputs) == 1 for v in made)

    def stripped(self) -> tuple[list[onnx.NodeProto], tuple[onnx.NodeProto, ...]]:
        """The tail without its activations.

        Returns:
            The nodes that take the place of the last ones, and those.
        """
        return _without_activations(self.last, self.last[0].input[0]), self.last

    def order(self, classes: int) -> np.ndarray | None:
        """Which class of ``root`` each class of the output is (-1: none of them); None where it cannot be told."""
        nodes = _without_activations(self.nodes, self.root)
        numbers = np.arange(1, classes + 1, dtype=np.float32)[None]
        [result] = self._through(nodes, self.root, [numbers]) or [np.zeros(())]
        if result.ndim < 2 or result.shape[0] != 1:
            return None
        found = np.rint(result.reshape(-1)).astype(np.int64) - 1
        return found if found.max(initial=-1) < classes else None

    def perm(self) -> tuple[int, ...] | None:
        """The order of the root's axes in the output, where only transposes change it."""
        found: tuple[int, ...] | None = None
        for node in self.nodes:
            if node.op_type == "Transpose":
                own = attributes(node).get("perm")
                if not isinstance(own, list):
                    return None
                found = tuple(own) if found is None else tuple(found[axis] for axis in own)
            elif node.op_type not in ACTIVATIONS | {"Identity", "Cast"}:
                return None
        return found

    def unactivated(self, root_of_last: Sequence[np.ndarray]) -> list[np.ndarray] | None:
        """The output without its activations, from the values before the first of them."""
        nodes = _without_activations(self.last, self.last[0].input[0])
        return self._through(nodes, self.last[0].input[0], root_of_last)

    def _through(
        self, nodes: Sequence[onnx.NodeProto], value: str, arrays: Sequence[np.ndarray]
    ) -> list[np.ndarray] | None:
        if not nodes:
            return list(arrays)
        kind = onnx.helper.np_dtype_to_tensor_dtype(arrays[0].dtype)
        constants = dict(constants_read(self.view, nodes))
        makers = {v for node in nodes for v in node.input[1:] if v in self.view.producer}
        own = [n for v in sorted(makers) for n in self.view.upstream(v, set())[0]]
        before = [self.view.nodes[n] for n in dict.fromkeys(own)]
        constants.update(constants_read(self.view, before))
        try:
            model = assemble(self.view.proto, [*before, *nodes], constants, {value: kind}, [nodes[-1].output[0]])
            session = Session(model)
            return [next(iter(session.run({value: array}).values())) for array in arrays]
        except RuntimeFailure:
            return None


def _without_activations(nodes: Sequence[onnx.NodeProto], value: str) -> list[onnx.NodeProto]:
    kept = []
    for node in nodes:
        if node.op_type in ACTIVATIONS:
            continue
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.input[0] = value
        kept.append(copy)
        value = node.output[0]
    return kept


def tail(view: GraphView, output: str) -> Tail:
    """Follow an output back through activations and movers."""
    value = output
    nodes: list[onnx.NodeProto] = []
    while value in view.producer:
        node = view.nodes[view.producer[value][0]]
        if node.op_type not in ACTIVATIONS | _MOVERS or len(node.output) != 1 or view.is_constant(node.input[0]):
            break
        nodes.insert(0, node)
        value = node.input[0]
    return Tail(view, tuple(nodes), value, output)
