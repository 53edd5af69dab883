"""Findings that cancel: an op that one converter moved past another is no fault.

Where normal forms do not converge (a scale before a convolution in one model, after it in the other), two regions look
guilty, each alone. Together with what lies between them they compute the same, and both are innocent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from onnxfix.align import Alignment, GraphView, Region
from onnxfix.diagnose.finding import Finding

# Findings further apart than this many edges are not taken together.
REACH = 3
# A cluster that needs more target nodes than this is a model of its own, not a moved op.
LIMIT = 200
# Clusters of more findings are taken whole or not at all: searching their parts costs the square of runs.
SEARCHED = 6

Judge = Callable[[Region, int], bool]


def without_compensations(
    alignment: Alignment, findings: Sequence[Finding], is_innocent: Judge
) -> tuple[Finding, ...]:
    """Drop findings that are innocent together.

    Args:
        alignment: The alignment.
        findings: Guilty regions.
        is_innocent: Judges a region on a chunk of data.
    """
    dropped: set[Finding] = set()
    for cluster in clusters(alignment, findings):
        for run in _runs(alignment, cluster):
            if not dropped.isdisjoint(run):
                continue
            joint = joined(alignment, [finding.region for finding in run])
            if joint is not None and is_innocent(joint, run[0].chunk):
                dropped.update(run)
    return tuple(f for f in findings if f not in dropped)


def _runs(alignment: Alignment, cluster: list[Finding]) -> list[list[Finding]]:
    """The whole cluster, then what stands next to each other in it: a fault beside a moved op stays one."""
    if len(cluster) > SEARCHED:
        return [cluster]
    order = alignment.target.order
    place = {f: min((order[n] for n in touched(alignment, f.region)[0]), default=0) for f in cluster}
    line = sorted(cluster, key=place.__getitem__)
    parts = [line[k : k + size] for size in range(2, len(line)) for k in range(len(line) - size + 1)]
    return [line, *parts]


def clusters(alignment: Alignment, findings: Sequence[Finding]) -> list[list[Finding]]:
    """Findings near each other, along the edges of either graph; none of one alone."""
    import networkx as nx

    near = nx.Graph()
    near.add_nodes_from(findings)
    sides = (
        (alignment.target.digraph.to_undirected(as_view=True), [touched(alignment, f.region)[0] for f in findings]),
        (alignment.source.digraph.to_undirected(as_view=True), [touched(alignment, f.region)[1] for f in findings]),
    )
    for graph, places in sides:
        at: dict[str, list[Finding]] = {}
        for finding, nodes in zip(findings, places, strict=True):
            for node in nodes:
                at.setdefault(node, []).append(finding)
        for finding, nodes in zip(findings, places, strict=True):
            for node in nodes:
                reached = nx.single_source_shortest_path_length(graph, node, cutoff=REACH)
                near.add_edges_from((finding, other) for n in reached for other in at.get(n, ()) if other != finding)
    order = {finding: k for k, finding in enumerate(findings)}
    return [sorted(c, key=order.__getitem__) for c in nx.connected_components(near) if len(c) > 1]


def touched(alignment: Alignment, region: Region) -> tuple[set[str], set[str]]:
    """Target and source nodes of a region and of what reads it."""
    theirs, ours = set(region.target_nodes), set(region.source_nodes)
    readers = {place.node for places in region.readers for place in places if place.node}
    theirs |= readers
    ours |= {alignment.nodes[n] for n in readers if n in alignment.nodes}
    return theirs, ours


def joined(alignment: Alignment, parts: Iterable[Region]) -> Region | None:
    """One region that covers several and all that lies between them; None where its boundary is not aligned."""
    theirs: set[str] = set()
    ours: set[str] = set()
    for part in parts:
        near = touched(alignment, part)
        theirs |= near[0]
        ours |= near[1]
    partners = {s: t for t, s in alignment.nodes.items()}
    while True:
        size = len(theirs), len(ours)
        theirs, ours = between(alignment.target, theirs), between(alignment.source, ours)
        theirs |= {partners[s] for s in ours if s in partners}
        ours |= {alignment.nodes[t] for t in theirs if t in alignment.nodes}
        if (len(theirs), len(ours)) == size:
            break
        if len(theirs) > LIMIT:
            return None
    return _bounded(alignment, theirs, ours)


def between(view: GraphView, nodes: set[str]) -> set[str]:
    """The nodes and all on a path from one of them to another."""
    import networkx as nx

    after = set(nodes).union(*(nx.descendants(view.digraph, n) for n in nodes))
    before = set(nodes).union(*(nx.ancestors(view.digraph, n) for n in nodes))
    return after & before


def _bounded(alignment: Alignment, theirs: set[str], ours: set[str]) -> Region | None:
    source, target = alignment.source, alignment.target
    entering = _entering(target, theirs)
    leaving = _leaving(target, theirs)
    if any(v not in alignment.values for v in (*entering, *leaving)):
        return None
    if {alignment.values[v] for v in leaving} != set(_leaving(source, ours)):
        return None
    outputs = tuple((alignment.values[v], v) for v in leaving)
    feeds = {v: alignment.values[v] for v in entering}
    return Region(_sorted(source, ours), _sorted(target, theirs), feeds, outputs, ((),) * len(outputs), {})


def _entering(view: GraphView, nodes: set[str]) -> list[str]:
    made = {v for n in nodes for v in view.nodes[n].output}
    return list(dict.fromkeys(v for n in nodes for v in view.operands(n) if v not in made))


def _leaving(view: GraphView, nodes: set[str]) -> list[str]:
    found = []
    for name in _sorted(view, nodes):
        for value in view.nodes[name].output:
            outside = any(reader not in nodes for reader, _ in view.consumers.get(value, ()))
            if value and (outside or value in view.outputs):
                found.append(value)
    return found


def _sorted(view: GraphView, nodes: set[str]) -> tuple[str, ...]:
    return tuple(sorted(nodes, key=view.order.__getitem__))
