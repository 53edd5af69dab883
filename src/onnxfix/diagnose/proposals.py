"""Edits of a lowered graph that may set right what goes wrong among a few suspects: from least to most invasive."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice, permutations
from typing import Any

import numpy as np
import onnx
from onnx import helper

from onnxfix import mapped
from onnxfix.align.graph import attributes
from onnxfix.diagnose.edits import FAMILIES, LONGEST, ORDERED, exchanged
from onnxfix.diagnose.frontier import Frontier
from onnxfix.diagnose.naming import MOVERS
from onnxfix.model import Model

# Other contents tried for one constant, other values for one operand.
MOST_CONTENTS = 12
MOST_VALUES = 40
# Suspects whose constants, attributes and operands are changed one by one, the first ones.
MOST_CHANGED = 32
# Suspects whose wiring is searched, the first ones: this costs the square of trials.
MOST_WIRED = 24
_UNARY = frozenset({
    "Sigmoid", "Tanh", "Relu", "HardSigmoid", "Softplus", "Softsign", "Exp", "Neg", "Sqrt", "Reciprocal", "Erf", "Gelu",
    "Elu", "HardSwish", "Mish", "Selu", "LeakyRelu", "Softmax", "Abs", "Log",
})  # fmt: skip
# Numbers of which activations are made: halves, bounds of hard functions, GELU and its approximation.
_NUMBERS = (1.0, 0.5, 2.0, 3.0, 6.0, 1 / 6, -1.0, 2**0.5, 0.5**0.5, (2 / np.pi) ** 0.5, 0.044715, 0.0)
_BINARY = ("Add", "Mul")
_CASTS = frozenset({"Cast", "QuantizeLinear", "DequantizeLinear"})


@dataclass(frozen=True, eq=False)
class Proposal:
    """A small edit.

    Attributes:
        sort: ``"extra"``, ``"swapped"``, ``"exchanged"``, ``"constant"``, ``"attribute"``, ``"missing"``, ``"wiring"``.
        names: The guilty nodes.
        changed: Node name -> what stands in its place.
        added: Nodes put in.
        constants: Initializers that they read; for a constant, its content as the node sees it.
        parameter: The attribute, or the value that holds the constant.
        expected: What should be there.
        actual: What is.
    """

    sort: str
    names: tuple[str, ...]
    changed: Mapping[str, onnx.NodeProto]
    added: tuple[onnx.NodeProto, ...] = ()
    constants: Mapping[str, np.ndarray] = field(default_factory=dict)
    parameter: str = ""
    expected: Any = None
    actual: Any = None


class Proposals:
    """Proposes edits.

    Args:
        frontier: The suspects.
        source: The source, whose ops, attributes and constants are the first choice.
    """

    def __init__(self, frontier: Frontier, source: Model) -> None:
        self.frontier, self.source = frontier, source
        self.suspects = [frontier.nodes[name] for name in frontier.zone]
        self._known = [*source.proto.graph.node, *source.canonical.graph.node, *frontier.proto.graph.node]
        self._ops = {node.op_type for node in self._known}
        self._contents: dict[tuple[int, str], list[np.ndarray]] = {}
        for tensor in (*source.canonical.graph.initializer, *source.proto.graph.initializer):
            content = mapped.to_array(tensor)
            self._contents.setdefault((content.size, content.dtype.kind), []).append(content)

    def stages(self) -> Iterator[Iterator[Proposal]]:
        """The edits, in stages of rising invasiveness."""
        first = self.suspects[:MOST_CHANGED]
        wired = self.suspects[:MOST_WIRED]
        yield self._all((self._left_out, self._sets_left_out, self._exchanged), self.suspects)
        yield self._all((self._constants, self._attributes, self._missing), first)
        yield self._all((self._rewired, self._branch_missing), wired)

    def _all(
        self, ways: Iterable[Callable[[onnx.NodeProto], Iterator[Proposal]]], nodes: Sequence[onnx.NodeProto]
    ) -> Iterator[Proposal]:
        for propose in ways:
            for node in nodes:
                yield from propose(node)

    def _left_out(self, node: onnx.NodeProto) -> Iterator[Proposal]:
        """A value in front of a node takes the place of its result."""
        if len(node.output) != 1 or node.output[0] not in self.frontier.values:
            return
        goal = self.frontier.values[node.output[0]]
        pending: list[tuple[onnx.NodeProto, tuple[str, ...]]] = [(node, (node.name,))]
        while pending:
            current, passed = pending.pop(0)
            for value in dict.fromkeys(current.input):
                if value not in self.frontier.variable:
                    continue
                held = self.frontier.values.get(value)
                if held is not None and held.shape == goal.shape and held.dtype == goal.dtype:
                    yield Proposal("extra", passed, {node.name: _identity(node, value)})
                maker = self.frontier.maker.get(value)
                if maker is not None and len(self.frontier.readers.get(value, ())) == 1 and len(passed) < LONGEST:
                    pending.append((maker, (maker.name, *passed)))

    def _sets_left_out(self, node: onnx.NodeProto) -> Iterator[Proposal]:
        """The casts around a node, or a transpose before it and its inverse after it."""
        before = [self._chain(value, _CASTS) for value in node.input]
        after = self._following(node, _CASTS)
        sides = [*before, after]
        if sum(bool(side) for side in sides) > 1:
            casts = {other.name: other for side in sides for other in side}
            yield Proposal("extra", tuple(casts), {n: _identity(other) for n, other in casts.items()})
        for first in before_transposes(node, self.frontier):
            for second in self._following(node, frozenset({"Transpose"}))[:1]:
                one, two = attributes(first).get("perm"), attributes(second).get("perm")
                if not isinstance(one, list) or not isinstance(two, list) or len(one) != len(two):
                    continue  # a Reshape between them changes the rank
                if [one[k] for k in two] == sorted(one):
                    pair = {first.name: _identity(first), second.name: _identity(second)}
                    yield Proposal("extra", tuple(pair), pair)

    def _chain(self, value: str, ops: frozenset[str]) -> list[onnx.NodeProto]:
        """The nodes of some ops that a value comes through."""
        found = []
        maker = self.frontier.maker.get(value)
        while maker is not None and maker.op_type in ops and maker.input:
            found.append(maker)
            maker = self.frontier.maker.get(maker.input[0])
        return found

    def _following(self, node: onnx.NodeProto, ops: frozenset[str]) -> list[onnx.NodeProto]:
        found: list[onnx.NodeProto] = []
        while True:
            readers = [self.frontier.nodes[r] for o in node.output for r in self.frontier.readers.get(o, ())]
            if len(readers) != 1 or readers[0].op_type not in ops:
                return found
            node = readers[0]
            found.append(node)

    def _exchanged(self, node: onnx.NodeProto) -> Iterator[Proposal]:
        """Another op of the family, or operands the other way round."""
        family = next((f for f in FAMILIES if node.op_type in f), ())
        for other in family:
            if other != node.op_type and other in self._ops:
                made = exchanged(node, other, node.input)
                yield Proposal("exchanged", (node.name,), {node.name: made}, expected=other, actual=node.op_type)
        for k in range(len(node.input) - 1 if node.op_type in ORDERED else 0):
            made = _copied(node)
            made.input[k], made.input[k + 1] = node.input[k + 1], node.input[k]
            yield Proposal("swapped", (node.name,), {node.name: made})

    def _constants(self, node: onnx.NodeProto) -> Iterator[Proposal]:
        """Another content of a constant operand: the one that nodes like this have, or one of the source's."""
        for slot, value in enumerate(node.input):
            actual = self.frontier.constant(value) if value else None
            if actual is None or actual.dtype.kind not in "fi":
                continue
            for content in islice(self._others(node, slot, actual), MOST_CONTENTS):
                made, name = _copied(node), f"{node.name}/{slot}/expected"
                made.input[slot] = name
                yield Proposal(
                    "constant", (node.name,), {node.name: made}, (), {name: content}, value, content, actual
                )

    def _others(self, node: onnx.NodeProto, slot: int, actual: np.ndarray) -> Iterator[np.ndarray]:
        seen = {actual.tobytes()}
        for content in (*self._twins(node, slot, actual), *self._like(actual)):
            key = content.tobytes()
            if key not in seen and not np.allclose(content, actual, rtol=1e-6, atol=0):
                seen.add(key)
                yield content

    def _twins(self, node: onnx.NodeProto, slot: int, actual: np.ndarray) -> list[np.ndarray]:
        """What other nodes of the op have there, the most frequent first: the steps of a recurrence share it."""
        counts: Counter[bytes] = Counter()
        contents: dict[bytes, np.ndarray] = {}
        for other in self.frontier.nodes.values():
            if other.op_type == node.op_type and len(other.input) > slot and other.name != node.name:
                content = self.frontier.constant(other.input[slot])
                if content is not None and content.shape == actual.shape and content.dtype == actual.dtype:
                    contents[content.tobytes()] = content
                    counts[content.tobytes()] += 1
        return [contents[key] for key, count in counts.most_common() if count > 1]

    def _like(self, actual: np.ndarray) -> Iterator[np.ndarray]:
        if actual.size == 1 and actual.dtype.kind == "f":
            yield from (np.full_like(actual, number) for number in _NUMBERS)
        for content in self._contents.get((actual.size, actual.dtype.kind), ()) if actual.dtype.kind == "f" else ():
            if content.ndim > 4:
                continue
            for axes in permutations(range(content.ndim)):
                turned = content.transpose(axes)
                if [d for d in turned.shape if d != 1] == [d for d in actual.shape if d != 1]:
                    yield np.ascontiguousarray(turned.reshape(actual.shape), actual.dtype)

    def _attributes(self, node: onnx.NodeProto) -> Iterator[Proposal]:
        """The attributes that other nodes of the op have, and its axis elsewhere."""
        own = attributes(node)
        tried = [own]
        rank = self.frontier.values[node.input[0]].ndim if node.input and node.input[0] in self.frontier.values else 0
        others = [attributes(other) for other in self._known if other.op_type == node.op_type]
        others += [{**own, "axis": axis} for axis in range(rank) if "axis" in own]
        for other in others:
            if len(tried) > MOST_CONTENTS or any(repr(other) == repr(known) for known in tried):
                continue
            tried.append(other)
            made = _copied(node)
            del made.attribute[:]
            made.attribute.extend(helper.make_attribute(key, value) for key, value in other.items())
            name = next((key for key in {**own, **other} if repr(own.get(key)) != repr(other.get(key))), "")
            yield Proposal(
                "attribute", (node.name,), {node.name: made}, parameter=name, expected=other.get(name),
                actual=own.get(name),
            )  # fmt: skip

    def _missing(self, node: onnx.NodeProto) -> Iterator[Proposal]:
        """An op of one operand behind what a node reads."""
        samples = {n.op_type: n for n in self._known if n.op_type in _UNARY and len(n.input) == 1}
        for value in dict.fromkeys(node.input):
            if not self._carries_floats(value):
                continue
            for op, sample in samples.items():
                yield self._put_in(op, [value], value, sample)

    def _branch_missing(self, node: onnx.NodeProto) -> Iterator[Proposal]:
        """A sum or product with another value of the same shape."""
        for value in dict.fromkeys(node.input):
            if not self._carries_floats(value):
                continue
            for other in self._alike(value, node):
                for op in _BINARY:
                    if op in self._ops:
                        yield self._put_in(op, [value, other], value)

    def _carries_floats(self, value: str) -> bool:
        held = self.frontier.values.get(value)
        return value in self.frontier.variable and held is not None and held.dtype.kind == "f"

    def _put_in(self, op: str, inputs: Sequence[str], value: str, sample: onnx.NodeProto | None = None) -> Proposal:
        made = f"{value}/{op}"
        added = helper.make_node(op, inputs, [made], made)
        if sample is not None:
            added.attribute.extend(sample.attribute)
        first = max((self.frontier.order[m.name] for v in inputs if (m := self.frontier.maker.get(v))), default=-1)
        changed = {}
        for name in self.frontier.readers.get(value, ()):
            if self.frontier.order[name] > first:
                changed[name] = _copied(self.frontier.nodes[name])
                changed[name].input[:] = [made if v == value else v for v in changed[name].input]
        maker = self.frontier.maker.get(value)
        names = (maker.name,) if maker is not None else tuple(changed)
        return Proposal("missing", names, changed, (added,), expected=op)

    def _rewired(self, node: onnx.NodeProto) -> Iterator[Proposal]:
        """Another value of the same shape as an operand."""
        for slot, value in enumerate(node.input):
            held = self.frontier.values.get(value) if value in self.frontier.variable else self.frontier.constant(value)
            if held is None or held.dtype.kind != "f" or held.size < 2:
                continue
            for other in self._alike(value, node, held):
                made = _copied(node)
                made.input[slot] = other
                yield Proposal("wiring", (node.name,), {node.name: made}, expected=other, actual=value)

    def _alike(self, value: str, node: onnx.NodeProto, like: np.ndarray | None = None) -> list[str]:
        """Values of the same shape that a node could read as well: those that nothing reads, then the nearest."""
        goal = self.frontier.values[value] if like is None else like
        place = self.frontier.order[node.name]
        found = [
            v for v, maker in self.frontier.maker.items()
            if self._carries_floats(v) and self.frontier.order[maker.name] < place and v not in node.input
            and self.frontier.values[v].shape == goal.shape and self.frontier.values[v].dtype == goal.dtype
        ]  # fmt: skip
        order = {v: self.frontier.order[self.frontier.maker[v].name] for v in found}
        found.sort(key=lambda v: (bool(self.frontier.readers.get(v)), -order[v]))
        return found[:MOST_VALUES]


def before_transposes(node: onnx.NodeProto, frontier: Frontier) -> Iterable[onnx.NodeProto]:
    """The transposes whose results a node reads."""
    makers = (frontier.maker.get(value) for value in node.input)
    return [maker for maker in makers if maker is not None and maker.op_type == "Transpose"]


def stored(frontier: Frontier, value: str) -> tuple[str, list[onnx.NodeProto]] | None:
    """The initializer behind a constant, and the nodes that only move its elements on the way, the first one first."""
    passed: list[onnx.NodeProto] = []
    while value not in frontier.tensors:
        maker = frontier.maker.get(value)
        if maker is None or maker.op_type not in MOVERS or not maker.input:
            return None
        passed.insert(0, maker)
        value = maker.input[0]
    return value, passed


def _identity(node: onnx.NodeProto, value: str = "") -> onnx.NodeProto:
    return helper.make_node("Identity", [value or node.input[0]], [node.output[0]], node.name)


def _copied(node: onnx.NodeProto) -> onnx.NodeProto:
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    return copy
