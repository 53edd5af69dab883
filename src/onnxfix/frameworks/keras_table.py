"""The calls of a functional Keras model, and where the piece that each computes is in a patched graph."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxfix.frameworks.graph_matching import GraphIndex, Match, found_at
from onnxfix.frameworks.keras_graph import Frame, calls_of
from onnxfix.frameworks.keras_recoding import recoded

if TYPE_CHECKING:
    from collections.abc import MutableMapping


@dataclass
class Edit:
    """What all parts of one edit share.

    Attributes:
        old: The lowered graph.
        new: The patched one.
        renamed: Value of the lowered graph -> its name in the patched one, where that differs.
        variables: Initializer of the lowered graph -> the Keras variable that it is.
        taken: Names of layers.
        assigned: Initializer -> the value that its variable gets.
        replaces: Whether nodes that are put in may take the place of the layer that was read there before.
    """

    old: GraphIndex
    new: GraphIndex
    renamed: Mapping[str, str]
    variables: Mapping[str, Any]
    taken: set[str]
    assigned: MutableMapping[str, np.ndarray]
    replaces: bool = True

    def name(self, value: str) -> str:
        """The name of a lowered value in the patched graph."""
        return self.renamed.get(value, value)


class Calls:
    """The calls of one functional model.

    Args:
        edit: What is to be done.
        frame: The model's run.
        names: id of a symbolic tensor -> the lowered value that it is; those that tf2onnx has left out are missing.
        given: Values of the patched graph that the model is given.

    Attributes:
        makers: id of a symbolic tensor -> the call that makes it.
        by_name: Value of the patched graph -> the symbolic tensor that it is, if nothing changes it.
        inner: id of a call of a model -> that model's run.
    """

    def __init__(self, edit: Edit, frame: Frame, names: Mapping[int, str], given: Collection[str]) -> None:
        self._edit = edit
        self._names = names
        self._given = given
        self._all: list[Any] = []
        self._lowered: dict[int, str | None] = {}
        self._plans: dict[int, Match | None] = {}
        self._insides: dict[str, Any] | None = None
        self.makers: dict[int, Any] = {}
        self.by_name: dict[str, Any] = {}
        self.inner: dict[int, Frame] = {}
        self.adopt(frame)

    def adopt(self, frame: Frame) -> None:
        """Take up the calls of a graph."""
        self.inner.update(frame.inner)
        for symbol in frame.graph.inputs:
            self._lowered[id(symbol)] = self._names.get(id(symbol))
        for node in calls_of(frame.graph):
            self._all.append(node)
            for symbol in node.outputs:
                name = self._names.get(id(symbol))
                self._lowered[id(symbol)] = name
                self.makers[id(symbol)] = node
                if name is not None and self._edit.name(name) not in self._given:
                    self.by_name.setdefault(self._edit.name(name), symbol)

    def lowered(self, symbol: Any) -> str | None:
        """The lowered value that a symbolic tensor of the model is."""
        return self._lowered.get(id(symbol))

    def expected(self, symbol: Any) -> str | None:
        """The value of the patched graph that a symbolic tensor of the model is, if nothing changes it."""
        name = self.lowered(symbol)
        if name is None or id(symbol) not in self.makers:
            return name
        return self._edit.name(name)

    def around(self, value: str) -> Any:
        """What the call makes inside which the model has a value."""
        if self._insides is None:
            self._insides = {}
            for node in self._all:
                (symbol, *more), begins = node.outputs, self.begins(node)
                end = self.lowered(symbol)
                if end is None or more or begins is None or end in begins:
                    continue
                for inside in self._edit.old.behind(end, begins)[0]:
                    for output in inside.output:
                        self._insides.setdefault(self._edit.name(output), symbol)
        return self._insides.get(value)

    def plan(self, node: Any) -> Match | None:
        """Where a call's piece of the lowered graph is in the patched one; None where it is not there."""
        if id(node) not in self._plans:
            named = [(self.lowered(s), self.expected(s)) for s in node.outputs]
            ends = [(old, new) for old, new in named if old is not None and new is not None]
            whole = bool(ends) and all(self._edit.new.has(new) for _, new in ends)
            self._plans[id(node)] = (self.found(node, ends) or self._reweighted(node, ends)) if whole else None
        return self._plans[id(node)]

    def found(self, node: Any, ends: Iterable[tuple[str, str]]) -> Match | None:
        """Where a call's piece is, if it ends with these: (lowered value, value of the patched graph)."""
        stops = self.begins(node)
        if stops is None:
            return None
        return found_at(self._edit.old, self._edit.new, ends, stops, self._edit.variables)

    def _reweighted(self, node: Any, ends: Sequence[tuple[str, str]]) -> Match | None:
        """A call of a layer whose weights the lowered graph holds in another order, which get the ones that it has."""
        edit, stops = self._edit, self.begins(node)
        known = {id(variable) for variable in edit.variables.values()}
        weights = getattr(node.operation, "weights", [])
        if stops is None or self.is_shared(node.operation) or all(id(variable) in known for variable in weights):
            return None
        match = found_at(edit.old, edit.new, ends, stops, edit.old.weights)
        if match is None:
            return None
        moved = {name: value for name, value in match.parameters.items() if name not in edit.variables}
        found = recoded(node, edit.old, [old for old, _ in ends], stops, moved)
        if found is None:
            return None
        own = {id(edit.variables[name]) for name in match.parameters.keys() & edit.variables.keys()}
        for variable, value in zip(weights, found, strict=True):
            if id(variable) not in own:
                variable.assign(value)
        return Match(match.inputs, {name: value for name, value in match.parameters.items() if name in edit.variables})

    def begins(self, node: Any) -> set[str] | None:
        """The lowered values that a call's piece begins with: its operands, or theirs where these have no value."""
        found: set[str] = set()
        for symbol in node.input_tensors:
            name = self.lowered(symbol)
            if name is not None:
                found.add(name)
                continue
            maker = self.makers.get(id(symbol))
            further = None if maker is None else self.begins(maker)
            if further is None:
                return None
            found |= further
        return found

    def is_shared(self, operation: Any) -> bool:
        """Whether an operation is called more than once."""
        return sum(node.operation is operation for node in self._all) > 1
