"""What patches of a lowered graph change in terms of the values that the native model has, too.

Between values that both graphs have under one name lie small pieces. A patch changes a few of them: a piece computes
its value in another way, or reads another value, which is made by nodes that are put in.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import onnx

from onnxfix import mapped
from onnxfix.align.graph import captured, renamed
from onnxfix.runtime.session import Session
from onnxfix.surgeon.patch import ChangeBoundary, Patch

Key = TypeVar("Key", bound=Hashable)
# Relative to the largest number of a tensor: one value or two, and one computed by two runtimes in other orders.
_SAME, _SAME_RUN = 1e-5, 1e-4


@dataclass(frozen=True)
class Piece:
    """A value computed in a way that the native model does not have.

    Attributes:
        value: The value's name in the patched graph.
        inputs: The native values that it is made of.
        proto: The graph from them to it; its one output is the value.
    """

    value: str
    inputs: tuple[str, ...]
    proto: onnx.ModelProto


@dataclass(frozen=True)
class Edits:
    """How a native model becomes the patched one.

    Attributes:
        pieces: Values to compute anew; a piece may read the value of one before it.
        replaced: Native value -> the piece's value that takes its place, for all who read it.
        rewired: (native value, value that its computation reads, value that it shall read instead).
    """

    pieces: tuple[Piece, ...]
    replaced: Mapping[str, str]
    rewired: tuple[tuple[str, str, str], ...]


def edits(
    old: onnx.ModelProto, new: onnx.ModelProto, native: Collection[str], parameters: Collection[str],
    samples: Mapping[str, np.ndarray], forced: Collection[str] = (),
) -> Edits:
    """Compare two lowered graphs piece by piece.

    Args:
        old: The lowered graph.
        new: The patched one.
        native: Values of the old graph that the native model has, outputs and inputs among them.
        parameters: Initializers that the native model has; their values do not matter here.
        samples: Values of the patched graph, from which the pieces' inputs take type and rank.
        forced: Values that are computed anew even if nothing tells their pieces apart: a native operator may have a
            size fixed that the lowered graph derives from another.
    """
    before, after = _Graph(old, parameters), _Graph(new, parameters)
    # What depends on no input goes with whoever reads it: converters want weights to be constants.
    stops = {value for value in native if value in after.dependent}
    pieces: dict[str, Piece] = {}
    replaced: dict[str, str] = {}
    rewired: list[tuple[str, str, str]] = []
    for value in (o for node in new.graph.node for o in node.output if o in stops):
        ours, theirs = before.behind(value, stops), after.behind(value, stops)
        if before.told(ours) == after.told(theirs) and value not in forced:
            continue
        exchanged = None if value in forced else _exchanged(ours, theirs, before, after)
        for was, now in exchanged or ():
            if now not in stops and now not in pieces:
                pieces[now] = _piece(after, now, stops, samples)
            rewired.append((value, was, now))
        if exchanged is None:
            pieces[value] = _piece(after, value, stops, samples)
            replaced[value] = value
    for value in (info.name for info in new.graph.output if info.name not in stops):
        pieces.setdefault(value, _piece(after, value, stops, samples))
    return Edits(tuple(pieces.values()), replaced, tuple(rewired))


def observed(proto: onnx.ModelProto, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The inputs, and every tensor that a graph computes, in graph order."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    names = [o for node in proto.graph.node for o in node.output if o and node.op_type != "Constant"]
    known = {output.name for output in proto.graph.output}
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in known)
    values = Session(copy).run(feeds, names)
    arrays = {name: values[name] for name in names if isinstance(values[name], np.ndarray)}
    return {**{name: np.asarray(value) for name, value in feeds.items()}, **arrays}


def matched(lowered: Mapping[str, np.ndarray], native: Mapping[Key, np.ndarray]) -> dict[str, Key]:
    """Lowered value -> the native one that is the same, told by name where names agree, and by content.

    Args:
        lowered: Values of the lowered graph, in its order.
        native: The native model's values on the same inputs, in its order.
    """
    by_name = {str(key): key for key in native}
    found: dict[str, Key] = {}
    taken: set[Key] = set()
    for name, array in lowered.items():
        same = by_name.get(name)
        if same is None or not _equal(array, native[same]):
            same = next((key for key, value in native.items() if key not in taken and _equal(array, value)), None)
        if same is not None:
            found[name] = same
            taken.add(same)
    return found


def first_apart(expected: Mapping[str, np.ndarray], actual: Mapping[str, np.ndarray]) -> str | None:
    """The first value that two runs disagree on; both in the order of ``expected``."""
    return next((n for n, v in expected.items() if n in actual and not _equal(v, actual[n], _SAME_RUN)), None)


def _equal(ours: np.ndarray, theirs: np.ndarray, tolerance: float = _SAME) -> bool:
    if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
        return False
    if ours.dtype.kind != "f":
        return bool(np.array_equal(ours, theirs))
    return bool(np.allclose(ours, theirs, rtol=0, atol=tolerance * float(np.max(np.abs(ours), initial=0.0))))


def renamed_as(old: onnx.ModelProto, patches: Iterable[Patch]) -> tuple[onnx.ModelProto, dict[str, str]]:
    """The lowered graph with its values named as the patched graph names them, and which value has which name."""
    names: dict[str, str] = {}
    for patch in patches:
        if isinstance(patch, ChangeBoundary) and patch.renamed:
            moved = {name: patch.renamed.get(now, now) for name, now in names.items()}
            names = {**patch.renamed, **moved}
    if not names:
        return old, {}
    copy = onnx.ModelProto()
    copy.CopyFrom(old)
    for node in copy.graph.node:
        node.CopyFrom(renamed(node, names))
    return copy, names


class _Graph:
    def __init__(self, proto: onnx.ModelProto, parameters: Collection[str]) -> None:
        self.proto = proto
        self.makers = {o: node for node in proto.graph.node for o in node.output if o}
        self.inputs = {info.name for info in proto.graph.input}
        self.tensors = {tensor.name: tensor for tensor in proto.graph.initializer}
        self._parameters = parameters
        self.dependent = set(self.inputs)
        for node in proto.graph.node:
            if self.dependent.intersection((*node.input, *captured(node))):
                self.dependent.update(o for o in node.output if o)

    def behind(self, value: str, stops: Collection[str]) -> list[onnx.NodeProto]:
        """The nodes that make a value out of native ones, in graph order."""
        found: set[str] = set()
        queue = [value]
        while queue:
            name = queue.pop()
            maker = self.makers.get(name)
            if maker is None or (name in stops and name != value) or maker.output[0] in found:
                continue
            found.add(maker.output[0])
            queue += [v for v in (*maker.input, *captured(maker)) if v]
        return [node for node in self.proto.graph.node if node.output and node.output[0] in found]

    def told(self, nodes: Iterable[onnx.NodeProto]) -> list[tuple[object, ...]]:
        """All that makes a piece what it is."""
        return [(_settings(node), tuple(_trimmed(node)), *self.constants(node)) for node in sorted(nodes, key=_first)]

    def constants(self, node: onnx.NodeProto) -> list[bytes]:
        """The constants that a node reads and that are not parameters of the native model."""
        own = (v for v in node.input if v in self.tensors and v not in self._parameters)
        return [mapped.to_array(self.tensors[v]).tobytes() for v in own]


def _exchanged(
    ours: list[onnx.NodeProto], theirs: list[onnx.NodeProto], before: _Graph, after: _Graph
) -> list[tuple[str, str]] | None:
    """(value read, value read now), where a piece is what it was but reads others; None where it is another."""
    was = {node.name: node for node in ours}
    now = {node.name: node for node in theirs}
    pairs: dict[tuple[str, str], None] = {}
    if not was or not was.keys() <= now.keys():
        return None
    new = {o for name, node in now.items() if name not in was for o in node.output}
    for name, node in was.items():
        other = now[name]
        if len(_trimmed(node)) != len(_trimmed(other)) or _settings(node) != _settings(other):
            return None
        if before.constants(node) != after.constants(other):
            return None
        changed = [(a, b) for a, b in zip(_trimmed(node), _trimmed(other), strict=True) if a != b]
        if any(not a or not b or a in before.tensors for a, b in changed):
            return None
        pairs.update(dict.fromkeys(changed))
    made = {o for node in ours for o in node.output}
    inner = any(a in made and b not in new for a, b in pairs)
    return None if inner or any(a in made for a, _ in pairs) else list(pairs)


def _first(node: onnx.NodeProto) -> str:
    return str(node.output[0])


def _trimmed(node: onnx.NodeProto) -> list[str]:
    """A node's operands without the empty ones at the end."""
    operands = list(node.input)
    while operands and not operands[-1]:
        operands.pop()
    return operands


def _settings(node: onnx.NodeProto) -> tuple[object, ...]:
    attributes = sorted(attribute.SerializeToString(deterministic=True) for attribute in node.attribute)
    return node.domain, node.op_type, tuple(node.output), tuple(attributes)


def _piece(graph: _Graph, value: str, stops: Collection[str], samples: Mapping[str, np.ndarray]) -> Piece:
    nodes = graph.behind(value, stops)
    made = {o for node in nodes for o in node.output}
    read = dict.fromkeys(v for node in nodes for v in (*node.input, *captured(node)) if v)
    # The piece may read its own native value, as it was before: an op put behind it.
    inputs = [v for v in read if v not in graph.tensors and v not in made]
    proto = onnx.helper.make_model(
        onnx.helper.make_graph(
            nodes, "piece", [_info(v, samples) for v in inputs], [_info(value, samples)],
            [graph.tensors[v] for v in read if v in graph.tensors],
        ),
        opset_imports=list(graph.proto.opset_import), ir_version=graph.proto.ir_version,
    )  # fmt: skip
    return Piece(value, tuple(inputs), proto)


def _info(value: str, samples: Mapping[str, np.ndarray]) -> onnx.ValueInfoProto:
    """A value of a sample's type and shape, its first dimension open."""
    sample = samples[value]
    shape: list[int | str] = list(sample.shape)
    if shape:
        shape[0] = "batch"
    return onnx.helper.make_tensor_value_info(value, onnx.helper.np_dtype_to_tensor_dtype(sample.dtype), shape)
