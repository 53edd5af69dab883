"""Match the nodes of two canonical graphs: anchors first, then growth along edges.

Anchors are nodes that only one node of the other graph resembles (by all that precedes and follows them, by their
neighbourhood, by the content of their weights). From each matched pair the match grows to operands and readers, also
across one or two nodes that only one of the graphs has. A pair is refused when it would cross an earlier one.
"""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from onnxfix.align.colours import Colours, family
from onnxfix.align.graph import GraphView, attributes

# How far growth looks across nodes without a partner.
GAP = 3
# Groups of alike nodes larger than this are left to growth: pairing them all costs the square.
GROUP_LIMIT = 12


@dataclass(frozen=True, eq=False)
class Alignment:
    """Which source node plays the role of which target node.

    Attributes:
        source: The source's canonical graph.
        target: The target's canonical graph.
        nodes: Target node -> source node.
        values: Target value -> source value, for graph inputs and the outputs of matched nodes.
    """

    source: GraphView
    target: GraphView
    nodes: Mapping[str, str]
    values: Mapping[str, str]

    @property
    def fraction(self) -> float:
        """Fraction of the target's nodes that have a partner, 0..1."""
        return len(self.nodes) / len(self.target.nodes) if self.target.nodes else 1.0


def align(source: GraphView, target: GraphView, inputs: Mapping[str, str]) -> Alignment:
    """Align two canonical graphs.

    Args:
        source: The source's graph.
        target: The target's graph.
        inputs: Target input -> source input.
    """
    matcher = _Matcher(source, target)
    nodes = _identical(source, target, matcher.colours) or matcher.match()
    while True:
        alignment = Alignment(source, target, nodes, _values(source, target, nodes, inputs))
        misfits = _misfits(alignment)
        if not misfits:
            return alignment
        nodes = {t: s for t, s in nodes.items() if t not in misfits}


def _values(
    source: GraphView, target: GraphView, nodes: Mapping[str, str], inputs: Mapping[str, str]
) -> dict[str, str]:
    values = dict(inputs)
    for theirs, ours in nodes.items():
        pairs = zip(target.nodes[theirs].output, source.nodes[ours].output, strict=False)
        values.update((t, s) for t, s in pairs if t and s)
    return values


def _misfits(alignment: Alignment) -> set[str]:
    """Target nodes whose partner reads something of another shape through an operand that is not aligned.

    What stands before such a node cannot be judged without it (a Pad folded into a pool is no missing Pad), so the
    node joins the gap.
    """
    source, target = alignment.source, alignment.target
    found = set()
    for theirs, ours in alignment.nodes.items():
        for s, t in zip(source.nodes[ours].input, target.nodes[theirs].input, strict=False):
            constant = source.is_constant(s) or target.is_constant(t)
            if s and t and not constant and alignment.values.get(t) != s and not _same_shape(source, s, target, t):
                found.add(theirs)
    return found


def _same_shape(source: GraphView, s: str, target: GraphView, t: str) -> bool:
    a, b = source.shapes.get(s), target.shapes.get(t)
    if a is None or b is None:
        return True
    return len(a) == len(b) and all(x is None or y is None or x == y for x, y in zip(a, b, strict=True))


def _identical(source: GraphView, target: GraphView, colours: tuple[Colours, Colours]) -> dict[str, str] | None:
    """Pair nodes by position where both graphs are the same but for attributes and constants.

    Nodes that several others resemble in all but their weights are only trusted when their weights agree too.
    """
    if len(source.nodes) != len(target.nodes):
        return None
    ours, theirs = colours
    if any(
        a.op_type != b.op_type or ours.forward[a.name] != theirs.forward[b.name]
        or ours.backward[a.name] != theirs.backward[b.name]
        for a, b in zip(source.nodes.values(), target.nodes.values(), strict=True)
    ):
        return None
    pairs = dict(zip(target.nodes, source.nodes, strict=True))
    twins: dict[tuple[str, str], int] = defaultdict(int)
    for name in target.nodes:
        twins[theirs.forward[name], theirs.backward[name]] += 1
    for theirs_name, ours_name in pairs.items():
        ambiguous = twins[theirs.forward[theirs_name], theirs.backward[theirs_name]] > 1
        if ambiguous and _weights(ours, theirs, ours_name, theirs_name) < 1:
            return None
    values = {t: s for t, s in zip(target.inputs, source.inputs, strict=False)}
    for theirs_name, ours_name in pairs.items():
        a, b = source.nodes[ours_name], target.nodes[theirs_name]
        for s, t in zip(a.input, b.input, strict=False):
            if t and not target.is_constant(t) and values.get(t) != s:
                return None
        values.update(zip(b.output, a.output, strict=False))
    return pairs


def _weights(ours: Colours, theirs: Colours, s: str, t: str) -> float:
    """How far the telling constants of two nodes agree, 0..1; 1 where neither has any."""
    mine, yours = ours.sketches.get(s, ()), theirs.sketches.get(t, ())
    if not mine and not yours:
        return 1.0
    if not mine or not yours:
        return 0.0
    hits = sum(any(a.resembles(b) for b in yours) for a in mine)
    return hits / max(len(mine), len(yours))


class _Matcher:
    def __init__(self, source: GraphView, target: GraphView) -> None:
        self.source, self.target = source, target
        self.colours = Colours(source), Colours(target)
        self.to_source: dict[str, str] = {}
        self.to_target: dict[str, str] = {}
        self.heap: list[tuple[float, int, str, str]] = []
        self.exchanged: set[tuple[str, str]] = set()

    def match(self) -> dict[str, str]:
        self.order = _Order(self.source), _Order(self.target)
        self.exchanged = self._exchanged()
        for s, t in self._anchors():
            self._offer(s, t)
        while self.heap:
            claimed, _, s, t = heapq.heappop(self.heap)
            if s in self.to_target or t in self.to_source:
                continue
            score = self._score(s, t)
            if score < -claimed:
                if score > 0:
                    heapq.heappush(self.heap, (-score, self.source.order[s], s, t))
                continue
            if self._crosses(s, t):
                continue
            self.to_target[s], self.to_source[t] = t, s
            for candidate in self._neighbours(s, t):
                self._offer(*candidate)
        stray = [t for t, s in self.to_source.items() if not self._rooted(s, t)]
        for t in stray:
            del self.to_target[self.to_source.pop(t)]
        self._uncross()
        return {t: self.to_source[t] for t in self.target.nodes if t in self.to_source}

    def _uncross(self) -> None:
        """Exchange the partners of two nodes side by side whose weights were swapped."""
        sketches = self.colours[1].sketches
        lost = [t for t, s in self.to_source.items() if t in sketches and not self._is_home(s, t)]
        for one, other in combinations(lost, 2):
            s, r = self.to_source[one], self.to_source[other]
            alike = family(self.source.nodes[s].op_type) == family(self.source.nodes[r].op_type)
            if alike and self._is_home(r, one) and self._is_home(s, other):
                self.to_source[one], self.to_source[other] = r, s
                self.to_target[r], self.to_target[s] = one, other

    def _is_home(self, s: str, t: str) -> bool:
        """Whether all that a pair reads, and all that reads it, is aligned with each other, as far as it is aligned."""
        return all(
            self.to_target[n] in step(self.target, t)
            for step in (_makers, _readers) for n in step(self.source, s) if n in self.to_target
        )  # fmt: skip

    def _exchanged(self) -> set[tuple[str, str]]:
        """Pairs by weights that cross most others: weights that were swapped, which do not move their layers."""
        pairs = self._by_weights()
        if len(pairs) < 3:
            return set()
        mine = np.fromiter((self.source.order[s] for s, _ in pairs), np.int64)
        yours = np.fromiter((self.target.order[t] for _, t in pairs), np.int64)
        ours, theirs = self.order[0].before[np.ix_(mine, mine)], self.order[1].before[np.ix_(yours, yours)]
        crossing = (ours & theirs.T) | (ours.T & theirs)
        found: set[tuple[str, str]] = set()
        while crossing.any():
            worst = int(crossing.sum(axis=1).argmax())
            found.add(pairs[worst])
            crossing[worst] = crossing[:, worst] = False
        return found

    def _by_weights(self) -> list[tuple[str, str]]:
        """Nodes of which each resembles only the other by its largest constant."""
        largest = [
            {name: max(sketches, key=lambda s: np.prod(s.shape)) for name, sketches in colours.sketches.items()}
            for colours in self.colours
        ]
        shapes: dict[object, list[str]] = defaultdict(list)
        for t, sketch in largest[1].items():
            shapes[sketch.shape].append(t)
        alike = {s: [t for t in shapes[a.shape] if a.resembles(largest[1][t])] for s, a in largest[0].items()}
        taken = Counter(t for found in alike.values() for t in found)
        return [(s, found[0]) for s, found in alike.items() if len(found) == 1 and taken[found[0]] == 1]

    def _rooted(self, s: str, t: str) -> bool:
        """Whether anything but their op speaks for a pair: weights, or a matched pair within reach on both sides."""
        ours, theirs = self.colours
        if (s, t) not in self.exchanged and s in ours.sketches and t in theirs.sketches and _weights(
            ours, theirs, s, t
        ) > 0:
            return True
        if ours.forward[s] == theirs.forward[t] or ours.backward[s] == theirs.backward[t]:
            return True
        for step in (_makers, _readers):
            near_s, near_t = step(self.source, s), step(self.target, t)
            mine = {*near_s, *_reach(self.source, near_s, step, self.to_target)}
            yours = {*near_t, *_reach(self.target, near_t, step, self.to_source)}
            if any(self.to_target.get(n) in yours for n in mine):
                return True
        return False

    def _anchors(self) -> Iterator[tuple[str, str]]:
        ours, theirs = self.colours
        keys: list[Callable[[Colours, str], object]] = [
            lambda c, n: (c.forward[n], c.backward[n]),
            lambda c, n: c.forward[n],
            lambda c, n: c.backward[n],
            *(lambda c, n, k=k: c.local[k][n] for k in reversed(range(len(ours.local)))),
        ]
        for key in keys:
            yield from self._groups(key)
        by_weights = defaultdict(list)
        for t, sketches in theirs.sketches.items():
            by_weights[max(sketches, key=lambda s: np.prod(s.shape)).shape].append(t)
        for s, sketches in ours.sketches.items():
            largest = max(sketches, key=lambda x: np.prod(x.shape))
            alike = [t for t in by_weights[largest.shape] if any(largest.resembles(x) for x in theirs.sketches[t])]
            if len(alike) <= 2:
                yield from ((s, t) for t in alike)

    def _groups(self, key: Callable[[Colours, str], object]) -> Iterator[tuple[str, str]]:
        groups: dict[object, tuple[list[str], list[str]]] = defaultdict(lambda: ([], []))
        for side, colours in enumerate(self.colours):
            for name in colours.view.nodes:
                groups[key(colours, name)][side].append(name)
        for mine, yours in groups.values():
            if len(mine) * len(yours) <= GROUP_LIMIT:
                yield from ((s, t) for s in mine for t in yours)

    def _offer(self, s: str, t: str) -> None:
        if s in self.to_target or t in self.to_source or not self._compatible(s, t):
            return
        score = self._score(s, t)
        if score > 0:
            heapq.heappush(self.heap, (-score, self.source.order[s], s, t))

    def _compatible(self, s: str, t: str) -> bool:
        a, b = self.source.nodes[s], self.target.nodes[t]
        return a.domain == b.domain and family(a.op_type) == family(b.op_type) and len(a.output) == len(b.output)

    def _score(self, s: str, t: str) -> float:
        ours, theirs = self.colours
        a, b = self.source.nodes[s], self.target.nodes[t]
        score = 2.0 * (ours.forward[s] == theirs.forward[t]) + 2.0 * (ours.backward[s] == theirs.backward[t])
        score += sum(mine[s] == yours[t] for mine, yours in zip(ours.local, theirs.local, strict=True))
        if s in ours.sketches or t in theirs.sketches:
            score += (0.0 if (s, t) in self.exchanged else 8.0 * _weights(ours, theirs, s, t)) - 1.0
        score += 0.5 * (attributes(a) == attributes(b)) + 0.5 * (a.op_type == b.op_type)
        shapes = self.source.shapes.get(a.output[0]), self.target.shapes.get(b.output[0])
        if None not in shapes:
            score += 1.0 if shapes[0] == shapes[1] else -1.0
        return score + self._support(s, t)

    def _support(self, s: str, t: str) -> float:
        support = 0.0
        mine, yours = _makers(self.source, s), _makers(self.target, t)
        for maker in mine:
            partner = self.to_target.get(maker)
            if partner is not None:
                support += 3.0 if partner in yours else -1.0
        mine, yours = _readers(self.source, s), _readers(self.target, t)
        for reader in mine:
            partner = self.to_target.get(reader)
            if partner is not None:
                support += 3.0 if partner in yours else -1.0
        return support

    def _crosses(self, s: str, t: str) -> bool:
        if not self.to_target:
            return False
        ours, theirs = self.order
        mine = np.fromiter((self.source.order[n] for n in self.to_target), dtype=np.int64)
        yours = np.fromiter((self.target.order[n] for n in self.to_target.values()), dtype=np.int64)
        before, after = ours.before[self.source.order[s], mine], ours.before[mine, self.source.order[s]]
        theirs_before = theirs.before[self.target.order[t], yours]
        theirs_after = theirs.before[yours, self.target.order[t]]
        return bool(np.any(before & theirs_after) or np.any(after & theirs_before))

    def _neighbours(self, s: str, t: str) -> Iterator[tuple[str, str]]:
        for step in (_makers, _readers):
            near_s, near_t = list(step(self.source, s)), list(step(self.target, t))
            yield from ((a, b) for a in near_s for b in near_t)
            far_s = set(_reach(self.source, near_s, step, self.to_target))
            far_t = set(_reach(self.target, near_t, step, self.to_source))
            yield from ((a, b) for a in sorted(far_s, key=self.source.order.__getitem__) for b in near_t)
            yield from ((a, b) for a in near_s for b in sorted(far_t, key=self.target.order.__getitem__))


class _Order:
    """Which nodes a node depends on, as a boolean matrix (row depends on column)."""

    def __init__(self, view: GraphView) -> None:
        count = len(view.nodes)
        self.before = np.zeros((count, count), dtype=bool)
        for name, k in view.order.items():
            for maker in _makers(view, name):
                j = view.order[maker]
                self.before[k] |= self.before[j]
                self.before[k, j] = True


def _makers(view: GraphView, name: str) -> dict[str, None]:
    return dict.fromkeys(view.producer[v][0] for v in view.operands(name) if v in view.producer)


def _readers(view: GraphView, name: str) -> dict[str, None]:
    return dict.fromkeys(r for v in view.nodes[name].output for r, _ in view.consumers.get(v, ()))


def _reach(
    view: GraphView,
    start: Iterable[str],
    step: Callable[[GraphView, str], dict[str, None]],
    matched: Mapping[str, str],
) -> Iterator[str]:
    """Nodes behind unmatched ones, up to ``GAP`` steps on."""
    frontier = [n for n in start if n not in matched]
    seen: set[str] = set(frontier)
    for _ in range(GAP):
        following = [m for n in frontier for m in step(view, n) if m not in seen]
        seen.update(following)
        yield from following
        frontier = [n for n in following if n not in matched]

