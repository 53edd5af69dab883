"""Search for the one op, operand or constant that spoils a compound, held against the source's own values.

A fault inside a recurrent layer that is spelled out step by step, or in one of the ten ops of a normalisation, keeps
the whole from being recognised: seen from the normal form, all of it is wrong. Held against what the source computes on
the way, it leaves the right values at one place. There small edits are tried; one is believed if it makes the target
compute numbers of the source's that it did not compute before. The edited target is then examined like any other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
import onnx

from onnxfix.diagnose.anchors import NOISE, Anchors, source_anchors
from onnxfix.diagnose.fault import FaultKind
from onnxfix.diagnose.frontier import Frontier
from onnxfix.diagnose.naming import MOVERS, label
from onnxfix.diagnose.proposals import Proposal, Proposals, stored
from onnxfix.diagnose.weights import explain
from onnxfix.errors import OnnxFixError, RuntimeFailure
from onnxfix.model import Model
from onnxfix.runtime.session import Session
from onnxfix.surgeon.apply import apply
from onnxfix.surgeon.patch import Patch, ReplaceRegion, SetNode, SetParameter

# Places, and multiplications in all trials together, where setting up a trial counts as so many: some seconds in all.
MOST_ROUNDS = 4
MOST_WORK = 1.5e10
SETUP = 1e7
# An edit after which so many more of the source's numbers are computed is no accident.
PLAIN = 3
_CONVERSIONS = frozenset({"Cast", "CastLike", "QuantizeLinear", "DequantizeLinear"})


@dataclass(frozen=True, eq=False)
class Amendment:
    """An edit that takes the target back to the source's values.

    Attributes:
        proposal: The edit.
        ops: The op types of the guilty nodes.
        patches: What makes it in the lowered graph.
    """

    proposal: Proposal
    ops: tuple[str, ...]
    patches: tuple[Patch, ...]

    @property
    def kind(self) -> FaultKind:
        """What kind of fault it mends."""
        match self.proposal.sort:
            case "constant":
                return explain(self.proposal.expected, self.proposal.actual)[0]
            case "attribute":
                return FaultKind.HYPERPARAMETERS
            case "extra" if _CONVERSIONS.intersection(self.ops):
                return FaultKind.PRECISION
            case "extra" if "Dropout" in self.ops:
                return FaultKind.MODE
            case "extra" if set(self.ops) <= MOVERS:
                return FaultKind.TENSOR_LAYOUT
        return FaultKind.GRAPH

    def message(self, target: Model, names: tuple[str, ...]) -> str:
        """One sentence on what is wrong."""
        proposal, op, here = self.proposal, self.ops[0], label(target, names)
        match proposal.sort:
            case "extra":
                return f"{'-'.join(self.ops)} at {here} is not in the source."
            case "swapped":
                return f"{op} at {here} has its operands the other way round than in the source."
            case "exchanged":
                return f"{op} at {here} stands for the source's {proposal.expected}."
            case "constant":
                what = target.parameters.get(proposal.parameter, proposal.parameter)
                return f"{what} of {here} {explain(proposal.expected, proposal.actual)[1]}."
            case "attribute":
                return f"{proposal.parameter} of {here} is {proposal.actual} instead of {proposal.expected}."
            case "missing":
                return f"{proposal.expected} is missing after {here}."
        return f"{op} at {here} reads {proposal.actual} instead of {proposal.expected}."


def amendments(source: Model, target: Model, feeds: tuple[Mapping[str, np.ndarray], Mapping[str, np.ndarray]]) -> tuple[
    Amendment, ...
]:  # fmt: skip
    """The edits after which the target computes the source's values, as far as single ones do.

    Args:
        source: The source.
        target: The target.
        feeds: A few samples, for the source and for the target.
    """
    try:
        anchors = source_anchors(source, feeds[0])
    except RuntimeFailure:
        return ()
    found: list[Amendment] = []
    proto, left = target.proto, MOST_WORK
    for _ in range(MOST_ROUNDS):
        made, left = _amendment(source, proto, feeds[1], anchors, left) if anchors.count else (None, 0.0)
        if made is None:
            break
        found.append(made)
        proto = apply(proto, made.patches)
    return tuple(found)


def _amendment(
    source: Model, proto: onnx.ModelProto, feed: Mapping[str, np.ndarray], anchors: Anchors, work: float
) -> tuple[Amendment | None, float]:
    """The best edit at the first wrong place, and what is left of the work that may be done."""
    frontier = _frontier(proto, feed, anchors)
    if frontier is None:
        return None, work
    proposals, cost = Proposals(frontier, source), frontier.work + SETUP
    best: tuple[int, Proposal] | None = None
    for stage in proposals.stages():
        for proposal in islice(stage, max(0, int(work / cost))):
            work -= cost
            change = proposal.changed, proposal.added, proposal.constants
            if not any(frontier.gains(*change)):  # an op too many behind all others hides nothing but the result
                continue
            gained, right = frontier.gains(*change, whole=True)
            if right:
                return _made(frontier, proposal), work
            if best is None or len(gained) > best[0]:
                best = len(gained), proposal
        if best is not None and best[0] >= PLAIN:
            break
    return (None if best is None else _made(frontier, best[1])), work


def _frontier(proto: onnx.ModelProto, feed: Mapping[str, np.ndarray], anchors: Anchors) -> Frontier | None:
    """Where the target leaves the source's values, by as much as can be told from noise."""
    for noise in NOISE:
        try:
            frontier = Frontier(proto, feed, anchors.within(noise))
        except RuntimeFailure:
            return None
        if not all(output.name in frontier.right for output in proto.graph.output):
            return frontier
    return None


def _made(frontier: Frontier, proposal: Proposal) -> Amendment | None:
    ops = tuple(frontier.nodes[name].op_type for name in proposal.names)
    try:
        patches = _patches(frontier, proposal)
    except OnnxFixError:
        return None
    first = patches[0]
    if isinstance(first, SetParameter):
        proposal = replace(proposal, parameter=first.name)
    return Amendment(proposal, ops, patches)


def _patches(frontier: Frontier, proposal: Proposal) -> tuple[Patch, ...]:
    if proposal.sort == "constant":
        return (_parameter(frontier, proposal),)
    if proposal.added:
        rewired = {
            (name, slot): value
            for name, node in proposal.changed.items()
            for slot, value in enumerate(node.input)
            if value != frontier.nodes[name].input[slot]
        }
        return (ReplaceRegion((), proposal.added, {}, rewired, lowered=True),)
    return tuple(SetNode(frontier.nodes[name], node) for name, node in proposal.changed.items())


def _parameter(frontier: Frontier, proposal: Proposal) -> Patch:
    """The stored constant with its new content; other readers of it keep the old."""
    [reader] = proposal.names
    expected = np.asarray(proposal.expected)
    found = stored(frontier, proposal.parameter)
    if found is None:
        [name] = proposal.constants
        rewired = {(reader, list(proposal.changed[reader].input).index(name)): name}
        return ReplaceRegion((), (), {name: expected}, rewired, lowered=True)
    name, passed = found
    previous = onnx.numpy_helper.to_array(frontier.tensors[name])
    value = previous.copy()
    value.reshape(-1)[_places(frontier, name, passed, previous)] = expected
    first = passed[0].name if passed else reader
    return SetParameter(name, value, previous, () if frontier.readers[name] == [first] else (first,))


def _places(
    frontier: Frontier, name: str, passed: list[onnx.NodeProto], content: np.ndarray
) -> np.ndarray:
    """Where each element that the reader sees is stored."""
    places = np.arange(content.size).reshape(content.shape)
    moving = [node for node in passed if node.op_type not in ("Cast", "CastLike", "Identity")]
    if not moving:
        return places
    nodes, value = [], name
    for node in moving:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.input[0], value = value, node.output[0]
        nodes.append(copy)
    model = onnx.ModelProto()
    model.ir_version = frontier.proto.ir_version
    model.opset_import.extend(frontier.proto.opset_import)
    model.graph.name = "places"
    model.graph.node.extend(nodes)
    others = {v: frontier.constant(v) for node in nodes for v in node.input[1:] if v}
    model.graph.initializer.extend(
        onnx.numpy_helper.from_array(array, v) for v, array in others.items() if array is not None
    )
    model.graph.input.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.INT64, places.shape))
    model.graph.output.append(onnx.ValueInfoProto(name=value))
    return Session(model).run({name: places})[value]
