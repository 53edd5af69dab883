"""The whole inquiry into a target: an examination, the edits that explain it better, and one more examination.

Where ops too many or the wrong ones stand in the caller's graph, their traces in the normal form hide other faults and
look like several. So the edits are made first, and what is still wrong with the edited target is the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

from onnxfix.align import Alignment
from onnxfix.align.graph import GraphView
from onnxfix.compare import Comparison
from onnxfix.diagnose.amending import Amendment, amendments
from onnxfix.diagnose.cause import Cause, reported
from onnxfix.diagnose.edits import Edit, edits
from onnxfix.diagnose.examination import Examination, Progress, chunk_of, examine, in_chunks
from onnxfix.diagnose.fault import Fault, FaultKind
from onnxfix.diagnose.faults import causes
from onnxfix.diagnose.finding import Finding
from onnxfix.diagnose.naming import MOVERS, label, node_names
from onnxfix.frameworks import Framework
from onnxfix.inputs import Inputs
from onnxfix.model import Model
from onnxfix.surgeon.apply import apply
from onnxfix.surgeon.patch import Patch, SetNode

# Samples on which the target's values are held against the source's, and target ops that make a gap a compound.
SAMPLES = 4
COMPOUND = 2
_CONVERSIONS = frozenset({"Cast", "CastLike", "QuantizeLinear", "DequantizeLinear"})


@dataclass(frozen=True, eq=False)
class Inquiry:
    """What an inquiry found.

    Attributes:
        examination: Of the target, with the edits made.
        causes: What is still wrong after the edits.
        edits: The patches of the lowered graph that come first.
        faults: The faults that these set right, one for each.
        before: The untouched models' comparison.
        aligned: Fraction of the untouched target's nodes that have a counterpart.
    """

    examination: Examination
    causes: tuple[Cause, ...]
    edits: tuple[Patch, ...]
    faults: tuple[Fault, ...]
    before: Comparison
    aligned: float


def inquire(
    source: Model,
    target: Model,
    data: Inputs,
    *,
    rtol: float = 1e-3,
    atol: float = 0.0,
    progress: Progress | None = None,
) -> Inquiry:
    """Examine a pair of models, after the edits that explain most; arguments and errors as of ``examine``."""
    first = examine(source, target, data, rtol=rtol, atol=atol, progress=progress)
    found = causes(first)
    plain = Inquiry(first, found, (), (), first.comparison, first.alignment.fraction)
    doubtful = _doubtful(first, found)
    for amended in (_amended, _edited):
        if amended is _amended and not (any(map(_is_compound, doubtful)) or _belong_together(found)):
            continue
        patches, faults = amended(source, first, data, doubtful) if doubtful or amended is _amended else ((), ())
        if not patches:
            continue
        proto = apply(first.target.proto, patches)
        edited = Model(
            proto, Framework.ONNX, proto, parameters=first.target.parameters, layers=first.target.layers
        )
        second = examine(source, edited, data, rtol=rtol, atol=atol, progress=progress)
        rest = causes(second)
        if len(rest) < len(found):
            return Inquiry(second, rest, patches, faults, first.comparison, first.alignment.fraction)
    return plain


def _amended(
    source: Model, first: Examination, data: Inputs, doubtful: Sequence[Finding]
) -> tuple[tuple[Patch, ...], tuple[Fault, ...]]:
    """Edits that take the target back to the source's values."""
    few = Inputs.of(data, batch_size=SAMPLES)
    place = chunk_of(first.comparison.worst, in_chunks(first.source, first.target, few))
    chunk = next(islice(in_chunks(first.source, first.target, few), place, None))
    made = amendments(first.source, first.target, (chunk.source, chunk.target))
    return tuple(patch for a in made for patch in a.patches), tuple(_amended_fault(source, first, a) for a in made)


def _belong_together(found: Sequence[Cause]) -> bool:
    """Whether several findings look like parts of one: axes moved and moved back, pieces of other sizes."""
    moved = [cause for cause in found if cause.fault.kind == FaultKind.TENSOR_LAYOUT]
    resized = [cause for cause in found if cause.finding.error.broken]
    return len(moved) > 1 or len(resized) > 1


def _is_compound(finding: Finding) -> bool:
    return not finding.region.matched and len(finding.region.target_nodes) >= COMPOUND


def _amended_fault(source: Model, first: Examination, made: Amendment) -> Fault:
    target, proposal = first.target, made.proposal
    names = tuple(
        dict.fromkeys((*proposal.names, *(target.layers[n] for n in proposal.names if n in target.layers)))
    )
    provenance = target.normal_form.provenance

    def near(finding: Finding) -> bool:
        return any(n in provenance.get(t, ()) for t in finding.region.target_nodes for n in proposal.names)

    finding = max(first.findings, key=lambda f: (near(f), f.error.relative))
    theirs = node_names(source, finding.region.source_nodes)
    return reported(
        finding, made.kind, names, theirs, made.message(target, names), parameter=proposal.parameter or None,
        native_parameter=target.parameters.get(proposal.parameter), expected=proposal.expected, actual=proposal.actual,
    )  # fmt: skip


def _edited(
    source: Model, first: Examination, data: Inputs, doubtful: Sequence[Finding]
) -> tuple[tuple[Patch, ...], tuple[Fault, ...]]:
    """Edits that bring the normal form of a piece closer to the source's."""
    made = edits(first.target, first.alignment, first.findings, doubtful)
    patches = tuple(SetNode(edit.previous, edit.value) for edit in made)
    return patches, tuple(_fault(source, first.target, first.alignment, edit) for edit in made)


def _doubtful(examination: Examination, found: Sequence[Cause]) -> tuple[Finding, ...]:
    """The findings that an edit may explain: gaps, and wrong constants into which several lowered ops were folded."""
    ops = {node.name: node.op_type for node in examination.target.proto.graph.node}
    provenance = examination.target.normal_form.provenance

    def is_doubtful(cause: Cause) -> bool:
        region, difference = cause.finding.region, cause.difference
        if not region.matched:
            return True
        if cause.patch is not None or difference is None or difference.attribute:
            return False
        if cause.attribution is not None and not cause.attribution.innocent and not cause.vague:
            return False
        behind = [n for n in provenance.get(region.target_nodes[0], ()) if n in ops and ops[n] not in MOVERS]
        return len(behind) > 1

    return tuple(dict.fromkeys(cause.finding for cause in found if is_doubtful(cause)))


def _fault(source: Model, target: Model, alignment: Alignment, edit: Edit) -> Fault:
    ops = tuple(node.op_type for name in edit.names for node in target.proto.graph.node if node.name == name)
    names = tuple(dict.fromkeys((*edit.names, *(target.layers[n] for n in edit.names if n in target.layers))))
    worst = max(edit.findings, key=lambda finding: finding.error.relative)
    theirs = node_names(source, _counterparts(alignment, edit))
    here = label(target, names)
    expected: tuple[str, ...] = ()
    if edit.value.op_type == "Identity":
        message = f"{'-'.join(ops)} at {here} is not in the source."
    elif edit.value.op_type == edit.previous.op_type:
        message = f"{ops[0]} at {here} has its operands the other way round than in the source."
        expected = ops
    else:
        message = f"{ops[0]} at {here} stands for the source's {edit.value.op_type} ({label(source, theirs)})."
        expected = (edit.value.op_type,)
    return reported(worst, _kind(ops, expected), names, theirs, message, expected=expected, actual=ops)


def _kind(ops: Sequence[str], expected: Sequence[str]) -> FaultKind:
    if expected:
        return FaultKind.GRAPH
    if _CONVERSIONS.intersection(ops):
        return FaultKind.PRECISION
    if "Dropout" in ops:
        return FaultKind.MODE
    return FaultKind.TENSOR_LAYOUT if set(ops) <= MOVERS else FaultKind.GRAPH


def _counterparts(alignment: Alignment, edit: Edit) -> tuple[str, ...]:
    """The source's nodes in the piece, those that its own op type stands for first."""
    view: GraphView = alignment.source
    names = dict.fromkeys(name for finding in edit.findings for name in finding.region.source_nodes)
    like = [name for name in names if view.nodes[name].op_type == edit.value.op_type]
    return tuple(like or names)
