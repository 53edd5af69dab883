"""What a fault operator is, and the ground truth it leaves."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import onnx

from onnxfix.diagnose.fault import FaultKind, plain
from onnxfix.testing.faults.editor import Graph, Unfit

Candidate = tuple[str, ...]


@dataclass(frozen=True)
class Site:
    """Where a fault was planted: the ground truth that a diagnosis is held against.

    Attributes:
        node: The guilty node of the faulty model; for a removed node, the node after which it is missing.
        parameter: The guilty initializer or attribute, or None where the fault is the node itself.
        kind: Which kind of fault it is.
        description: What was done, one sentence.
        also: Other nodes that a diagnosis may rightly name (the op that an inserted pair of transposes encloses, or
            the layer that an inserted scale folds into).
        expected: What was there before, as plain data (arrays are summarised); None where the description says all.
        actual: What is there now, the same way.
    """

    node: str
    parameter: str | None
    kind: FaultKind
    description: str
    also: tuple[str, ...] = ()
    expected: Any = field(default=None, compare=False)
    actual: Any = field(default=None, compare=False)


class FaultOperator(ABC):
    """One way in which a converter can get a model wrong.

    An operator is stateless. It edits a graph that the injector hands it (a private copy), and the injector decides
    afterwards whether the result is valid and the fault visible.
    """

    name: ClassVar[str]
    kind: ClassVar[FaultKind]
    finite: ClassVar[bool] = True
    """Whether the faulty model must still give finite numbers."""
    reforms: ClassVar[bool] = False
    """Whether the faulty model may give other outputs (in number, order or size), or none for some sizes of data."""

    @abstractmethod
    def candidates(self, graph: Graph) -> list[Candidate]:
        """Where the fault could be planted: tuples of names whose first item is a node."""

    @abstractmethod
    def apply(self, graph: Graph, candidate: Candidate, rng: np.random.Generator) -> tuple[Site, ...]:
        """Plant the fault in ``graph``, in place.

        Raises:
            Unfit: it cannot be planted there, or would change nothing.
        """

    def site(
        self,
        node: str,
        parameter: str | None,
        description: str,
        also: tuple[str, ...] = (),
        *,
        expected: Any = None,
        actual: Any = None,
    ) -> Site:
        """Ground truth of this operator's kind."""
        return Site(node, parameter, self.kind, description, also, plain(expected), plain(actual))


class OperandOperator(FaultOperator):
    """An operator that gives a constant operand of a node another value.

    Attributes:
        slots: Op type -> the operands that it spoils.
        done: What it does to the operand, for the description.
    """

    slots: ClassVar[dict[str, tuple[int, ...]]]
    done: ClassVar[str]

    def candidates(self, graph: Graph) -> list[Candidate]:
        """Every constant float operand of the ops."""
        return [
            (node.name, str(slot))
            for node in graph.data_nodes(*self.slots)
            for slot in self.slots[node.op_type]
            if graph.parameter(node, slot) is not None
        ]

    def apply(self, graph: Graph, candidate: Candidate, rng: np.random.Generator) -> tuple[Site, ...]:
        """Spoil it."""
        node, slot = graph.nodes[candidate[0]], int(candidate[1])
        parameter = graph.parameter(node, slot)
        if parameter is None:
            raise Unfit(f"operand {slot} of {node.name} is not constant")
        changed = self.change(graph, node, parameter.value, rng).astype(parameter.value.dtype)
        if np.array_equal(changed, parameter.value):
            raise Unfit(f"operand {slot} of {node.name} would stay as it is")
        name = graph.set_parameter(node, slot, changed)
        done = f"{self.done} of {node.op_type} {node.name}"
        return (self.site(node.name, name, done, expected=parameter.value, actual=changed),)

    def change(
        self, graph: Graph, node: onnx.NodeProto, value: np.ndarray, rng: np.random.Generator
    ) -> np.ndarray:
        """The faulty value of an operand."""
        raise NotImplementedError


class AttributeOperator(FaultOperator):
    """An operator that gives an attribute another value.

    Attributes:
        attribute: Name of the attribute.
        defaults: Op type -> the value that a node without the attribute has.
    """

    attribute: ClassVar[str]
    defaults: ClassVar[dict[str, Any]]

    def candidates(self, graph: Graph) -> list[Candidate]:
        """Every node of the ops."""
        return [(node.name,) for node in graph.data_nodes(*self.defaults)]

    def apply(self, graph: Graph, candidate: Candidate, rng: np.random.Generator) -> tuple[Site, ...]:
        """Change it."""
        node = graph.nodes[candidate[0]]
        old = graph.attribute(node, self.attribute, self.defaults[node.op_type])
        new = self.change(graph, node, old, rng)
        if new == old:
            raise Unfit(f"{self.attribute} of {node.name} would stay as it is")
        graph.set_attribute(node, self.attribute, new)
        done = f"set {self.attribute} of {node.op_type} {node.name} from {plain(old)} to {plain(new)}"
        return (self.site(node.name, self.attribute, done, expected=old, actual=new),)

    def change(self, graph: Graph, node: onnx.NodeProto, old: Any, rng: np.random.Generator) -> Any:
        """The faulty value of the attribute."""
        raise NotImplementedError
