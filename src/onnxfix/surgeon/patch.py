"""Patches: what a repair changes, as data (JSON-serialisable, replayable, revertible)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True, eq=False)
class SetParameter:
    """Give an initializer of the target's lowered graph another value.

    Attributes:
        name: Initializer name in the target's lowered graph.
        value: The new value, same shape and dtype.
        previous: The value it replaces.
    """

    name: str
    value: np.ndarray
    previous: np.ndarray

    def describe(self) -> str:
        """One line for people."""
        changed = int(np.count_nonzero(self.value != self.previous))
        return f"set {self.name} ({changed} of {self.value.size} values)"


@dataclass(frozen=True, eq=False)
class SetAttribute:
    """Give an attribute of a node another value (None: remove it).

    Attributes:
        node: Node name.
        attribute: Attribute name.
        value: The new value.
        previous: The value it replaces.
        canonical: The node is one of the target's normal form, not of its lowered graph.
    """

    node: str
    attribute: str
    value: Any
    previous: Any
    canonical: bool = False

    def describe(self) -> str:
        """One line for people."""
        return f"set {self.attribute} of {self.node} to {self.value}"


@dataclass(frozen=True, eq=False)
class ReplaceRegion:
    """Replace nodes of the target's normal form by a region taken from the source's.

    Attributes:
        removed: Canonical target nodes taken out.
        added: Serialised ``NodeProto`` of the nodes put in, in topological order.
        constants: Initializers that the added nodes bring with them.
        rewired: (consumer node or "" for the graph outputs, operand index) -> value name it now reads.
    """

    removed: tuple[str, ...]
    added: tuple[bytes, ...]
    constants: dict[str, np.ndarray]
    rewired: dict[tuple[str, int], str]

    def describe(self) -> str:
        """One line for people."""
        return f"replace {len(self.removed)} nodes by {len(self.added)} taken from the source"


Patch = SetParameter | SetAttribute | ReplaceRegion
