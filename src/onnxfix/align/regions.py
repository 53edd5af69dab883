"""Regions: the maximal pieces of the target that stand between aligned values.

A matched node whose operands are all aligned is a region of its own. Where an operand is not aligned (an op is
missing, extra, replaced or reads the wrong tensor), the unmatched nodes behind it, back to the nearest aligned values,
make a region too; its source side is what the source has in the same place.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import permutations

from onnxfix.align.alignment import Alignment
from onnxfix.align.graph import COMMUTATIVE, GraphView, captured

# Commutative ops of more operands than this keep their order.
PERMUTED_OPERANDS = 6


@dataclass(frozen=True, eq=False)
class Place:
    """Where a value is read: operand ``slot`` of ``node``, or graph output ``slot`` where ``node`` is empty."""

    node: str
    slot: int


@dataclass(frozen=True, eq=False)
class Region:
    """A piece of the target and what the source has in its place.

    Attributes:
        source_nodes: Source nodes, in topological order (empty: the source has nothing there).
        target_nodes: Target nodes, in topological order (empty: the target has nothing there).
        feeds: Target value that enters the target's piece -> source value that plays its role.
        outputs: (source value, target value) pairs that must be equal.
        readers: For each of ``outputs``, where the target reads it.
        operands: For a region of one matched node, target operand slot -> source operand slot; empty otherwise.
    """

    source_nodes: tuple[str, ...]
    target_nodes: tuple[str, ...]
    feeds: Mapping[str, str]
    outputs: tuple[tuple[str, str], ...]
    readers: tuple[tuple[Place, ...], ...]
    operands: Mapping[int, int]

    @property
    def matched(self) -> bool:
        """Whether this is one matched node rather than a gap."""
        return bool(self.operands) or (len(self.source_nodes) == len(self.target_nodes) == 1 and not self.readers)


def regions(alignment: Alignment) -> tuple[tuple[Region, ...], tuple[Region, ...]]:
    """Cut the target into regions.

    Returns:
        The matched nodes, one region each, and the gaps.
    """
    nodes, joints = [], []
    for theirs, ours in alignment.nodes.items():
        operands = _operands(alignment, ours, theirs)
        nodes.append(_node_region(alignment, ours, theirs, operands))
        for slot, own in operands.items():
            t = alignment.target.nodes[theirs].input[slot]
            s = alignment.source.nodes[ours].input[own] if own < len(alignment.source.nodes[ours].input) else ""
            if _is_gap(alignment, s, t):
                joints.append((s, t, Place(theirs, slot)))
    for k, (s, t) in enumerate(zip(alignment.source.outputs, alignment.target.outputs, strict=False)):
        if alignment.values.get(t) != s:
            joints.append((s, t, Place("", k)))
    return tuple(nodes), _gaps(alignment, joints)


def _is_gap(alignment: Alignment, s: str, t: str) -> bool:
    source, target = alignment.source, alignment.target
    if not s or not t:
        return False
    if source.is_constant(s) and target.is_constant(t):
        return False
    return alignment.values.get(t) != s


def _operands(alignment: Alignment, ours: str, theirs: str) -> dict[int, int]:
    """Which source operand each target operand corresponds to; commutative operands are paired as fits best."""
    a, b = alignment.source.nodes[ours], alignment.target.nodes[theirs]
    straight = {k: k for k in range(len(b.input))}
    if b.op_type not in COMMUTATIVE or len(a.input) != len(b.input) or len(b.input) > PERMUTED_OPERANDS:
        return straight

    def fit(order: Iterable[int]) -> int:
        return sum(not _is_gap(alignment, a.input[s], b.input[t]) for t, s in enumerate(order))

    best = max(permutations(range(len(b.input))), key=fit)
    return dict(enumerate(best)) if fit(best) > fit(range(len(b.input))) else straight


def _node_region(alignment: Alignment, ours: str, theirs: str, operands: Mapping[int, int]) -> Region:
    a, b = alignment.source.nodes[ours], alignment.target.nodes[theirs]
    feeds = {}
    for slot, own in operands.items():
        t = b.input[slot]
        s = a.input[own] if own < len(a.input) else ""
        if t and s and not alignment.target.is_constant(t):
            feeds[t] = s
    for s, t in zip(captured(a), captured(b), strict=False):
        if not alignment.target.is_constant(t):
            feeds[t] = alignment.values.get(t, s)
    outputs = tuple((s, t) for s, t in zip(a.output, b.output, strict=True) if s and t)
    return Region((ours,), (theirs,), feeds, outputs, (), operands)


def _gaps(alignment: Alignment, joints: Iterable[tuple[str, str, Place]]) -> tuple[Region, ...]:
    """Group the operands that are not aligned into gaps: those that share unmatched nodes belong together."""
    import networkx as nx

    readers: dict[tuple[str, str], list[Place]] = defaultdict(list)
    for s, t, place in joints:
        readers[s, t].append(place)
    known = set(alignment.values), set(alignment.values.values())
    pieces = {}
    shared = nx.Graph()
    for s, t in readers:
        theirs, ends = alignment.target.upstream(t, known[0])
        ours, _ = alignment.source.upstream(s, known[1])
        pieces[s, t] = (ours, theirs, ends)
        shared.add_node((s, t))
        shared.add_edges_from(((s, t), ("target", n)) for n in theirs)
        shared.add_edges_from(((s, t), ("source", n)) for n in ours)
        if not ours and not theirs:
            shared.add_edges_from(((s, t), ("reader", place.node)) for place in readers[s, t])
    found = []
    for component in nx.connected_components(shared):
        pairs = [pair for pair in readers if pair in component]
        found.append(_gap(alignment, pairs, pieces, readers))
    return tuple(found)


def _gap(
    alignment: Alignment,
    pairs: list[tuple[str, str]],
    pieces: Mapping[tuple[str, str], tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]],
    readers: Mapping[tuple[str, str], list[Place]],
) -> Region:
    ours = _in_order(alignment.source, (n for pair in pairs for n in pieces[pair][0]))
    theirs = _in_order(alignment.target, (n for pair in pairs for n in pieces[pair][1]))
    ends = {end: alignment.values[end] for pair in pairs for end in pieces[pair][2] if end in alignment.values}
    return Region(ours, theirs, ends, tuple(pairs), tuple(tuple(readers[pair]) for pair in pairs), {})


def _in_order(view: GraphView, names: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(set(names), key=view.order.__getitem__))
