"""Changes of the normal form carried over to the lowered graph, the caller's own.

The normal form has other nodes than the lowered graph, but most of the numbers that it computes on the way the lowered
graph computes, too, in the same layout or another. Where those that a change begins and ends with are found there, the
change is put between them. Nothing is taken on trust: the caller compares what comes out.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper

from onnxfix.align.graph import GraphView, captured, renamed
from onnxfix.errors import OnnxFixError
from onnxfix.frameworks.agreement import disagreement
from onnxfix.model import Model
from onnxfix.runtime.session import Session
from onnxfix.surgeon.apply import apply
from onnxfix.surgeon.patch import Patch, ReplaceRegion, SetConstant

# Ops that change how numbers lie, and nothing else.
_MOVES = frozenset({"Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity"})
_MOST_MOVES = 4
_SAME = 1e-4  # relative to the largest number of a tensor; at the end of MobileNetV2 folding alone makes 3e-5


class _Unplaced(Exception):
    """The lowered graph has no place for a change."""


def grafted(
    target: Model, patches: Sequence[Patch], feeds: Mapping[str, np.ndarray]
) -> tuple[Patch, ...] | None:
    """The patches of the lowered graph that do what patches of the normal form do; None where there are none.

    Args:
        target: The target.
        patches: Patches of its normal form.
        feeds: Inputs of the target, on which values are told apart.
    """
    try:
        graft = _Graft(target, _regions(target, patches), feeds)
        return tuple(graft.lowered(region) for region in graft.regions)
    except (_Unplaced, OnnxFixError):
        return None


def agrees(
    target: Model, lowered: Sequence[Patch], canonical: onnx.ModelProto, feeds: Mapping[str, np.ndarray]
) -> bool:
    """Whether the lowered graph with patches computes what the patched normal form computes."""
    try:
        made = Session(apply(target.proto, lowered)).run(feeds)
        return disagreement(Session(canonical).run(feeds), made) is None
    except OnnxFixError:
        return False


def _regions(target: Model, patches: Sequence[Patch]) -> tuple[ReplaceRegion, ...]:
    """The patches as exchanged nodes: one that reads another constant is another node."""
    view = GraphView(target.canonical)
    constants = {patch.name: patch.value for patch in patches if isinstance(patch, SetConstant)}
    others = [patch for patch in patches if isinstance(patch, ReplaceRegion)]
    gone = {name for patch in others for name in patch.removed}
    found: list[ReplaceRegion] = []
    for node in view.nodes.values():
        own = {value: f"{value}/repaired" for value in node.input if value in constants}
        if own and node.name not in gone:
            brought = {name: constants[value] for value, name in own.items()}
            found.append(ReplaceRegion((node.name,), (renamed(node, own),), brought))
    return (*found, *others)


@dataclass(frozen=True)
class _Layout:
    """How a tensor lies in the lowered graph: axes of length one dropped, the rest permuted, others put in."""

    dropped: tuple[int, ...]
    order: tuple[int, ...]
    added: tuple[int, ...]

    @property
    def back(self) -> _Layout:
        """The way back."""
        return _Layout(self.added, tuple(int(k) for k in np.argsort(self.order)), self.dropped)

    def nodes(self, value: str, wanted: str) -> Iterator[tuple[onnx.NodeProto, dict[str, np.ndarray]]]:
        """Nodes from a value to one of the other layout, each with its constants."""
        steps: list[tuple[str, tuple[int, ...]]] = [("Squeeze", self.dropped)]
        if self.order != tuple(range(len(self.order))):
            steps.append(("Transpose", self.order))
        steps = [step for step in (*steps, ("Unsqueeze", self.added)) if step[1]] or [("Identity", ())]
        for index, (op, numbers) in enumerate(steps):
            made = wanted if index == len(steps) - 1 else f"{wanted}/{op}"
            name = f"{wanted}/{op}/node"
            if op == "Transpose":
                yield helper.make_node(op, [value], [made], name, perm=list(numbers)), {}
            elif op == "Identity":
                yield helper.make_node(op, [value], [made], name), {}
            else:
                axes = f"{wanted}/{op}/axes"
                yield helper.make_node(op, [value, axes], [made], name), {axes: np.array(numbers, np.int64)}
            value = made


class _Graft:
    """Places of the normal form's values in the lowered graph."""

    def __init__(self, target: Model, regions: tuple[ReplaceRegion, ...], feeds: Mapping[str, np.ndarray]) -> None:
        self.regions = regions
        self._target = target
        self._canonical, self._lowered = GraphView(target.canonical), GraphView(target.proto)
        self._stand_in: dict[str, str] = {}
        values = sorted({value for region in regions for value in self._ends(region)})
        candidates = {value: list(self._candidates(value)) for value in values}
        theirs = _observed(target.proto, {name for names in candidates.values() for name in names}, feeds)
        ours = _observed(target.canonical, values, feeds)
        self._places = {value: self._place(ours[value], candidates[value], theirs) for value in values}

    def lowered(self, region: ReplaceRegion) -> ReplaceRegion:
        """The same change in the lowered graph."""
        nodes: list[onnx.NodeProto] = []
        constants: dict[str, np.ndarray] = dict(region.constants)
        names: dict[str, str] = {}
        made = {o for node in region.added for o in node.output if o}
        replaced = [o for o in made if o in self._canonical.producer]
        names.update((o, f"{o}/grafted") for o in replaced)

        def emit(pairs: Iterable[tuple[onnx.NodeProto, dict[str, np.ndarray]]]) -> None:
            for node, own in pairs:
                nodes.append(node)
                constants.update(own)

        def reached(value: str, wanted: str) -> str:
            place, layout = self._places[value]
            place = self._stand_in.get(place, place)
            if layout is None:
                return place
            emit(layout.nodes(place, wanted))
            return wanted

        for value in dict.fromkeys(v for node in region.added for v in node.input if v and v not in made):
            if self._canonical.is_constant(value):
                constants[f"{value}/grafted"] = np.array(self._canonical.constant(value))
                names[value] = f"{value}/grafted"
            elif value not in constants:
                names[value] = reached(value, f"{region.added[0].name}/{value}")
        for node in region.added:
            copy = renamed(node, names)
            copy.name = f"{node.name}/grafted" if node.name in self._lowered.nodes else node.name
            nodes.append(copy)
        rewired: dict[tuple[str, int], str] = {}
        changes = [(o, names[o], None) for o in replaced] + list(self._redirected(region, made))
        for old, new, readers in changes:
            place, layout = self._places[old]
            if new not in made and new not in names.values():  # a value that the target has already
                new = reached(new, f"{old}/instead")
            if layout is not None:
                emit(layout.back.nodes(new, f"{new}/back"))
                new = f"{new}/back"
            rewired.update((reader, new) for reader in self._readers(place, readers))
            if readers is None:
                self._stand_in[place] = new
        return ReplaceRegion((), tuple(nodes), constants, rewired, lowered=True)

    def _redirected(
        self, region: ReplaceRegion, made: set[str]
    ) -> Iterator[tuple[str, str, frozenset[str] | None]]:
        """(value that was read, value that is read, its readers) of rewired operands; no readers named: all."""
        groups: dict[tuple[str, str], set[tuple[str, int]]] = {}
        for (reader, slot), value in region.rewired.items():
            old = self._canonical.nodes[reader].input[slot] if reader else self._canonical.outputs[slot]
            groups.setdefault((old, value), set()).add((reader, slot))
        for (old, new), readers in groups.items():
            every = set(self._canonical.consumers.get(old, ()))
            every |= {("", k) for k, o in enumerate(self._canonical.outputs) if o == old}
            yield old, new, None if readers >= every else frozenset(name for name, _ in readers)

    def _readers(self, place: str, wanted: frozenset[str] | None) -> list[tuple[str, int]]:
        """Operands of the lowered graph that read a value, for some of the normal form's nodes or for all."""
        readers = list(self._lowered.consumers.get(place, ()))
        if any(slot < 0 for _, slot in readers):
            raise _Unplaced("a body reads it")
        readers += [("", k) for k, o in enumerate(self._lowered.outputs) if o == place]
        if wanted is None:
            return readers
        provenance = self._target.normal_form.provenance
        behind = {n for name in wanted for n in provenance.get(name, ())}
        others = {n for name, nodes in provenance.items() if name not in wanted for n in nodes}
        if any((name in behind) == (name in others) for name, _ in readers if name) or "" in wanted:
            raise _Unplaced("its readers cannot be told apart")
        return [reader for reader in readers if reader[0] in behind]

    def _ends(self, region: ReplaceRegion) -> Iterator[str]:
        """Values of the normal form that a region begins and ends with."""
        made = {o for node in region.added for o in node.output if o}
        for node in region.added:
            if list(captured(node)):
                raise _Unplaced("a body reads values around it")
            given = (v for v in node.input if v and v not in made and v not in region.constants)
            yield from (v for v in given if not self._canonical.is_constant(v))
            yield from (o for o in node.output if o in self._canonical.producer)
        for (reader, slot), value in region.rewired.items():
            yield self._canonical.nodes[reader].input[slot] if reader else self._canonical.outputs[slot]
            if value not in made:
                yield value

    def _candidates(self, value: str) -> Iterator[str]:
        """Values of the lowered graph that may be the same, in graph order."""
        found = {value} if value in self._lowered.inputs else set()
        if value in self._canonical.producer:
            behind = self._target.normal_form.provenance.get(self._canonical.producer[value][0], ())
            found |= {o for n in behind if n in self._lowered.nodes for o in self._lowered.nodes[n].output if o}
            maker = self._canonical.nodes[self._canonical.producer[value][0]]
            if maker.op_type in _MOVES and not self._canonical.is_constant(maker.input[0]):
                found.update(self._candidates(maker.input[0]))  # where it lies otherwise, whatever moved it there
        for _ in range(_MOST_MOVES):
            readers = {name for v in found for name, _ in self._lowered.consumers.get(v, ())}
            moving = (self._lowered.nodes[n] for n in readers if self._lowered.nodes[n].op_type in _MOVES)
            found |= {node.output[0] for node in moving}
        order = [*self._lowered.inputs, *(o for node in self._lowered.nodes.values() for o in node.output)]
        yield from (name for name in order if name in found)

    def _place(
        self, value: np.ndarray, candidates: Sequence[str], values: Mapping[str, np.ndarray]
    ) -> tuple[str, _Layout | None]:
        """The last of the lowered values that are this one before anything else reads it, and how it lies there."""
        equal = {name: layout for name in candidates if (layout := _layout(values[name], value)) is not None}
        if not equal:
            raise _Unplaced("the lowered graph does not compute it")
        place = next(iter(equal))
        while True:
            readers = self._lowered.consumers.get(place, ())
            node = self._lowered.nodes[readers[0][0]] if len(readers) == 1 else None
            if node is None or place in self._lowered.outputs or node.output[0] not in equal:
                break
            place = node.output[0]
        layout = equal[place]
        plain = not layout.dropped and not layout.added and layout.order == tuple(range(len(layout.order)))
        return place, None if plain else layout


def _layout(theirs: np.ndarray, ours: np.ndarray) -> _Layout | None:
    """How to lay the lowered tensor so that it is the normal form's; None where it is another one."""
    if theirs.size != ours.size or theirs.dtype != ours.dtype:
        return None
    if theirs.ndim == ours.ndim:
        dropped: tuple[int, ...] = ()
        added: tuple[int, ...] = ()
        thin, wanted = theirs, ours
    else:
        dropped = tuple(k for k, size in enumerate(theirs.shape) if size == 1 and k)
        added = tuple(k for k, size in enumerate(ours.shape) if size == 1 and k)
        thin, wanted = theirs.squeeze(dropped), ours.squeeze(added)
    if thin.ndim != wanted.ndim or thin.ndim > 5:
        return None
    allowed = _SAME * float(np.max(np.abs(wanted), initial=0.0)) if wanted.dtype.kind == "f" else 0.0
    for order in itertools.permutations(range(thin.ndim)):
        moved = thin.transpose(order)
        if moved.shape == wanted.shape and np.allclose(moved, wanted, rtol=0, atol=allowed):
            return _Layout(dropped, order, added)
    return None


def _observed(
    proto: onnx.ModelProto, names: Iterable[str], feeds: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """What a graph computes on the way."""
    wanted = sorted(names)
    computed = [name for name in wanted if name not in feeds]
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    known = {output.name for output in proto.graph.output}
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in computed if name not in known)
    values = Session(copy).run(feeds, computed) if computed else {}
    return {**{name: np.asarray(feeds[name]) for name in wanted if name in feeds}, **values}
