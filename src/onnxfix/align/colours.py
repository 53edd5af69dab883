"""What tells nodes apart when names mean nothing: structural colours and the content of their constants.

Colours are Weisfeiler-Lehman hashes (Shervashidze et al., JMLR 2011) over op types and constant shapes, attributes and
weights left out, so that a fault in either does not recolour its surroundings.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from onnxfix.align.graph import COMMUTATIVE, GraphView

# Ops that converters and faults exchange for one another while the node stays the same node.
FAMILIES = {"Relu": "Clip", "LeakyRelu": "Clip", "PRelu": "Clip", "ThresholdedRelu": "Clip"}

LOCAL_ROUNDS = 3


def family(op: str) -> str:
    """The family within which two nodes may be matched."""
    return FAMILIES.get(op, op)


def _digest(*parts: object) -> str:
    return hashlib.blake2b(repr(parts).encode(), digest_size=8).hexdigest()


@dataclass(frozen=True)
class Sketch:
    """What a constant looks like under any permutation of its elements."""

    shape: tuple[int, ...]
    norm: float
    mean: float
    spread: float

    @classmethod
    def of(cls, content: np.ndarray) -> Sketch | None:
        """Sketch a float constant of at least four elements that is not all zero; others tell nothing apart."""
        if content.dtype.kind != "f" or content.size < 4:
            return None
        flat = np.asarray(content, dtype=np.float32).reshape(-1)
        # Masks hold the most negative float there is: their squares overflow, and they tell nothing apart.
        with np.errstate(over="ignore", invalid="ignore"):
            norm = float(np.sqrt(np.dot(flat, flat) / flat.size))
        if norm == 0 or not np.isfinite(norm):
            return None
        return cls(tuple(sorted(content.shape)), norm, float(flat.mean()), float(np.abs(flat).mean()))

    def resembles(self, other: Sketch, tolerance: float = 2e-3) -> bool:
        """Same shape up to axis order, same statistics to within ``tolerance`` of the norm."""
        scale = max(self.norm, other.norm)
        differences = (self.norm - other.norm, self.mean - other.mean, self.spread - other.spread)
        return self.shape == other.shape and all(abs(d) <= tolerance * scale for d in differences)


class Colours:
    """Colours and sketches of one graph's nodes."""

    def __init__(self, view: GraphView) -> None:
        self.view = view

    @cached_property
    def labels(self) -> dict[str, str]:
        """Op family, which operands are constant, and their shapes."""
        found = {}
        for name, node in self.view.nodes.items():
            constants = [
                (k, tuple(self.view.shapes.get(v, ()))) for k, v in enumerate(node.input) if self.view.is_constant(v)
            ]
            if node.op_type in FAMILIES or node.op_type == "Clip":
                constants = []
            found[name] = _digest(node.domain, family(node.op_type), constants, len(node.output))
        return found

    @cached_property
    def forward(self) -> dict[str, str]:
        """Colour of all that a node depends on."""
        colours: dict[str, str] = {}
        origin = {value: f"input{k}" for k, value in enumerate(self.view.inputs)}
        for name, node in self.view.nodes.items():
            below = []
            for value in self.view.operands(name):
                maker = self.view.producer.get(value)
                below.append(origin.get(value, "outer") if maker is None else f"{colours[maker[0]]}:{maker[1]}")
            colours[name] = _digest(self.labels[name], _ordered(node.op_type, below))
        return colours

    @cached_property
    def backward(self) -> dict[str, str]:
        """Colour of all that depends on a node."""
        colours: dict[str, str] = {}
        for name in reversed(self.view.nodes):
            above = []
            for k, value in enumerate(self.view.nodes[name].output):
                above += [f"{k}>out{i}" for i, out in enumerate(self.view.outputs) if out == value]
                for reader, slot in self.view.consumers.get(value, ()):
                    place = "*" if self.view.nodes[reader].op_type in COMMUTATIVE else slot
                    above.append(f"{k}>{place}:{colours[reader]}")
            colours[name] = _digest(self.labels[name], sorted(above))
        return colours

    @cached_property
    def local(self) -> tuple[dict[str, str], ...]:
        """Colours of the neighbourhoods of radius 1, 2, ... (both directions)."""
        rounds = []
        current = self.labels
        for _ in range(LOCAL_ROUNDS):
            following = {}
            for name, node in self.view.nodes.items():
                below = [
                    current[self.view.producer[v][0]] if v in self.view.producer else "input"
                    for v in self.view.operands(name)
                ]
                above = sorted(current[r] for v in node.output for r, _ in self.view.consumers.get(v, ()))
                following[name] = _digest(current[name], _ordered(node.op_type, below), above)
            rounds.append(following)
            current = following
        return tuple(rounds)

    @cached_property
    def sketches(self) -> dict[str, tuple[Sketch, ...]]:
        """Sketches of each node's telling constants; nodes without any are absent."""
        found = {}
        for name, node in self.view.nodes.items():
            made = [Sketch.of(self.view.constant(v)) for v in node.input if v and self.view.is_constant(v)]
            telling = tuple(s for s in made if s is not None)
            if telling:
                found[name] = telling
        return found


def _ordered(op: str, operands: Iterable[str]) -> list[str]:
    return sorted(operands) if op in COMMUTATIVE else list(operands)
