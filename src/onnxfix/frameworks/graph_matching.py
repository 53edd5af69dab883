"""Where in a patched graph a piece of the original one is found again, node by node."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import onnx

from onnxfix import mapped


class GraphIndex:
    """A graph by its values: who makes them, and which are constants."""

    def __init__(self, proto: onnx.ModelProto) -> None:
        self.proto = proto
        self.makers = {output: node for node in proto.graph.node for output in node.output if output}
        self.inputs = {info.name for info in proto.graph.input}
        self._tensors = {tensor.name: tensor for tensor in proto.graph.initializer}
        self._arrays: dict[str, np.ndarray] = {}

    @cached_property
    def weights(self) -> frozenset[str]:
        """Initializers of several floats."""
        return frozenset(
            name for name, t in self._tensors.items() if t.data_type == onnx.TensorProto.FLOAT and np.prod(t.dims) > 1
        )

    def has(self, value: str) -> bool:
        """Whether there is such a value."""
        return value in self.makers or value in self.inputs or value in self._tensors

    def constant(self, value: str) -> np.ndarray | None:
        """The number that a value always has, where it is an initializer or a Constant."""
        if value not in self._arrays:
            tensor = self._tensors.get(value)
            maker = self.makers.get(value)
            if tensor is None and maker is not None and maker.op_type == "Constant":
                tensor = next((a.t for a in maker.attribute if a.name == "value"), None)
            if tensor is None:
                return None
            self._arrays[value] = mapped.to_array(tensor)
        return self._arrays[value]

    def behind(self, value: str, stops: Collection[str]) -> tuple[list[onnx.NodeProto], list[str]]:
        """The nodes that make a value out of others, in graph order, and those others.

        Args:
            value: Where to begin.
            stops: Values that are taken as given, ``value`` itself excepted. Graph inputs always are.
        """
        from onnxfix.align.graph import captured

        found: set[str] = set()
        given: dict[str, None] = {}
        queue, seen = [value], {value}
        while queue:
            name = queue.pop()
            maker = self.makers.get(name)
            if (name in stops and name != value) or maker is None:
                if name in stops or name in self.inputs:
                    given[name] = None
                continue
            found.update(maker.output)
            wanted = [n for n in (*maker.input, *captured(maker)) if n and n not in seen]
            seen.update(wanted)
            queue.extend(wanted)
        return [n for n in self.proto.graph.node if found.intersection(n.output)], list(given)


@dataclass
class Match:
    """How a piece of one graph is found in another.

    Attributes:
        inputs: Value that the piece begins with -> value that it begins with there.
        parameters: Parameter -> the value that it has there.
    """

    inputs: dict[str, str] = field(default_factory=dict)
    parameters: dict[str, np.ndarray] = field(default_factory=dict)


def found_at(
    old: GraphIndex, new: GraphIndex, outputs: Iterable[tuple[str, str]], stops: Collection[str],
    parameters: Collection[str],
) -> Match | None:
    """Find the piece of ``old`` between ``stops`` and some values in ``new``; None where it is not there.

    Args:
        old: The graph that the piece is of.
        new: The graph to look into.
        outputs: Value that the piece ends with -> where it should end in the new graph.
        stops: Values that the piece begins with.
        parameters: Initializers whose numbers may differ.
    """
    match = Match()
    pairs = list(outputs)
    seen = set(pairs)
    while pairs:
        before, after = pairs.pop()
        further = _paired(old, new, before, after, stops, parameters, match)
        if further is None:
            return None
        pairs.extend(pair for pair in further if pair not in seen)
        seen.update(further)
    return match


def _paired(
    old: GraphIndex, new: GraphIndex, before: str, after: str, stops: Collection[str], parameters: Collection[str],
    match: Match,
) -> list[tuple[str, str]] | None:
    """What must be alike besides for two values to be; None where they are not."""
    if not before or not after:
        return [] if before == after else None
    if before in stops:
        return [] if match.inputs.setdefault(before, after) == after else None
    if before in parameters:
        value = new.constant(after)
        known = old.constant(before)
        if value is None or known is None or value.shape != known.shape or value.dtype != known.dtype:
            return None
        kept = match.parameters.setdefault(before, value)
        return [] if kept is value or np.array_equal(kept, value, equal_nan=value.dtype.kind == "f") else None
    constant, other = old.constant(before), new.constant(after)
    if constant is not None or other is not None:
        return [] if _same(constant, other) else None
    first, second = old.makers.get(before), new.makers.get(after)
    if first is None or second is None:
        return None
    if (first.op_type, first.domain, _place(first, before)) != (second.op_type, second.domain, _place(second, after)):
        return None
    if _attributes(first) != _attributes(second):
        return None
    mine, theirs = _operands(first), _operands(second)
    if first.op_type == "Shape" and mine[0] in stops:
        return []  # what a piece takes may be another value than that whose sizes it copies
    return list(zip(mine, theirs, strict=True)) if len(mine) == len(theirs) else None


def _same(one: np.ndarray | None, other: np.ndarray | None) -> bool:
    if one is None or other is None or one.shape != other.shape or one.dtype != other.dtype:
        return False
    return one.tobytes() == other.tobytes()


def _place(node: onnx.NodeProto, value: str) -> int:
    return list(node.output).index(value)


def _attributes(node: onnx.NodeProto) -> Mapping[str, bytes]:
    return {a.name: a.SerializeToString(deterministic=True) for a in node.attribute}


def _operands(node: onnx.NodeProto) -> list[str]:
    names = list(node.input)
    while names and not names[-1]:
        names.pop()
    return names
