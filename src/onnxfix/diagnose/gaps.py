"""Gaps: nodes that are missing, extra, replaced, or read the wrong tensor."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import SequenceMatcher

from onnxfix.align import GraphView, Region
from onnxfix.diagnose.cause import Cause, reported
from onnxfix.diagnose.examination import Examination
from onnxfix.diagnose.fault import FaultKind
from onnxfix.diagnose.finding import Finding
from onnxfix.diagnose.naming import label, last_names, node_names

# Ops that only take numbers to another type.
NARROWING_OPS = frozenset({"Cast", "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"})
# Ops that only move elements about.
LAYOUT_OPS = frozenset({"Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze"})


def gap(examination: Examination, finding: Finding) -> Cause:
    """The cause behind a guilty gap."""
    region, alignment = finding.region, examination.alignment
    ours, theirs = _ops(alignment.source, region.source_nodes), _ops(alignment.target, region.target_nodes)
    source_names = node_names(examination.source, region.source_nodes)
    extra, missing = _unmatched(ours, theirs)
    if extra and len(extra) < len(theirs):
        names = node_names(examination.target, [region.target_nodes[k] for k in extra])
        ours, theirs = tuple(ours[k] for k in missing), tuple(theirs[k] for k in extra)
        source_names = node_names(examination.source, [region.source_nodes[k] for k in missing])
    elif theirs:
        # The node that makes the result comes first: converters give it the name of the op they spelled out.
        names = node_names(examination.target, reversed(region.target_nodes))
    else:
        beside = _beside(examination, region, after=bool(ours))
        names = last_names(examination.target, beside) if ours else node_names(examination.target, beside)
    moved = {*ours, *theirs} <= LAYOUT_OPS and bool(ours or theirs)
    narrowed = {*ours, *theirs} <= NARROWING_OPS and bool(ours or theirs)
    fault = reported(
        finding,
        FaultKind.TENSOR_LAYOUT if moved else FaultKind.PRECISION if narrowed else _kind(finding, ours, theirs),
        names,
        source_names or node_names(examination.source, _partners(examination, region)),
        _gap_message(ours, theirs, label(examination.target, names), label(examination.source, source_names)),
        expected=ours,
        actual=theirs,
    )
    return Cause(fault, finding)


def _unmatched(ours: tuple[str, ...], theirs: tuple[str, ...]) -> tuple[list[int], list[int]]:
    """Positions of the target's ops, and of the source's, that have no counterpart in the other sequence."""
    matcher = SequenceMatcher(None, ours, theirs, autojunk=False)
    both = [(block.a + k, block.b + k) for block in matcher.get_matching_blocks() for k in range(block.size)]
    mine, yours = {a for a, _ in both}, {b for _, b in both}
    return [k for k in range(len(theirs)) if k not in yours], [k for k in range(len(ours)) if k not in mine]


def _kind(finding: Finding, ours: tuple[str, ...], theirs: tuple[str, ...]) -> FaultKind:
    """A size that the source works out from its input and the target has baked in makes results of another size."""
    frozen = "Shape" in ours and "Shape" not in theirs and "shape" in finding.error.broken
    return FaultKind.INPUT_DIMENSIONS if frozen else FaultKind.GRAPH


def _gap_message(ours: tuple[str, ...], theirs: tuple[str, ...], here: str, there: str) -> str:
    if ours and theirs:
        return f"{_listed(theirs)} at {here} stands for the source's {_listed(ours)} ({there})."
    if ours:
        return f"{_listed(ours)} ({there} in the source) is missing after {here}."
    if theirs:
        return f"{_listed(theirs)} at {here} is not in the source."
    return f"{here} reads other tensors than the source's node, or in another order."


def _beside(examination: Examination, region: Region, *, after: bool) -> tuple[str, ...]:
    """The node after which something is missing, or the node that reads the wrong tensor."""
    target = examination.alignment.target
    makers = [target.producer[t][0] for _, t in region.outputs if t in target.producer]
    readers = [place.node for places in region.readers for place in places if place.node]
    chosen = (makers or readers) if after else (readers or makers)
    return tuple(dict.fromkeys(chosen))


def _partners(examination: Examination, region: Region) -> tuple[str, ...]:
    """Source nodes that make what the region should hand on."""
    source = examination.alignment.source
    return tuple(dict.fromkeys(source.producer[s][0] for s, _ in region.outputs if s in source.producer))


def _ops(view: GraphView, names: Iterable[str]) -> tuple[str, ...]:
    return tuple(view.nodes[n].op_type for n in names)


def _listed(ops: tuple[str, ...]) -> str:
    return "-".join(ops) if len(ops) <= 4 else f"{'-'.join(ops[:3])}-... ({len(ops)} ops)"
