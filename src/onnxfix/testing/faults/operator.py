"""What a fault operator is, and the ground truth it leaves."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from onnxfix.diagnose.fault import FaultKind
from onnxfix.testing.faults.editor import Graph

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
    """

    node: str
    parameter: str | None
    kind: FaultKind
    description: str
    also: tuple[str, ...] = ()


class FaultOperator(ABC):
    """One way in which a converter can get a model wrong.

    An operator is stateless. It edits a graph that the injector hands it (a private copy), and the injector decides
    afterwards whether the result is valid and the fault visible.
    """

    name: ClassVar[str]
    kind: ClassVar[FaultKind]

    @abstractmethod
    def candidates(self, graph: Graph) -> list[Candidate]:
        """Where the fault could be planted: tuples of names whose first item is a node."""

    @abstractmethod
    def apply(self, graph: Graph, candidate: Candidate, rng: np.random.Generator) -> tuple[Site, ...]:
        """Plant the fault in ``graph``, in place.

        Raises:
            Unfit: it cannot be planted there, or would change nothing.
        """

    def site(self, node: str, parameter: str | None, description: str, also: tuple[str, ...] = ()) -> Site:
        """Ground truth of this operator's kind."""
        return Site(node, parameter, self.kind, description, also)
