"""From findings to faults: what it is, where in both frameworks' own names, in one plain sentence."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any

import numpy as np

from onnxfix.align import GraphView, Region
from onnxfix.canonical.origins import parameters_of
from onnxfix.diagnose.attribution import Attribution, WrongConstant, attribute
from onnxfix.diagnose.differences import SETTING_NAMES, SETTINGS, Difference
from onnxfix.diagnose.examination import Examination
from onnxfix.diagnose.fault import Fault, FaultKind
from onnxfix.diagnose.finding import Finding
from onnxfix.diagnose.folding import is_under_root, misfolded
from onnxfix.diagnose.naming import counterpart, label, last_names, node_names, nodes_of_op, others_behind
from onnxfix.diagnose.weights import explain
from onnxfix.model import Model

# Ops that only move elements about.
LAYOUT_OPS = frozenset({"Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze"})


@dataclass(frozen=True, eq=False)
class Cause:
    """A fault together with what a repair of it needs.

    Attributes:
        fault: The fault, as reported.
        finding: The guilty region.
        difference: The difference of a matched node that makes the fault; None for a gap.
        attribution: The lowered parameter behind a wrong constant, where there is one.
    """

    fault: Fault
    finding: Finding
    difference: Difference | None = None
    attribution: Attribution | None = None


def causes(examination: Examination) -> tuple[Cause, ...]:
    """The causes of all findings, in their order."""
    found: list[Cause] = []
    for finding in examination.findings:
        if not finding.region.matched:
            found.append(_gap(examination, finding))
            continue
        found.extend(_settings(examination, finding))
        found.extend(_wrong_constants(examination, finding))
    return tuple(found)


def _settings(examination: Examination, finding: Finding) -> Iterator[Cause]:
    """Attributes, operands that act as attributes, and ops exchanged within a family."""
    node = examination.alignment.target.nodes[finding.region.target_nodes[0]]
    partner = examination.alignment.source.nodes[finding.region.source_nodes[0]]
    for difference in finding.differences:
        if difference.op:
            yield _exchanged(examination, finding, difference)
        elif difference.attribute or difference.slot in SETTINGS.get(node.op_type, ()):
            name = difference.attribute or SETTING_NAMES.get((node.op_type, difference.slot), "operand")
            parameter = name if difference.attribute else _lowered_setting(examination, finding, difference) or name
            names = nodes_of_op(
                examination.target, node.name, node.op_type, unless=(difference.attribute, difference.expected)
            )
            moves = (node.op_type, difference.attribute) == ("Transpose", "perm")
            here, actual, expected = label(examination.target, names), difference.actual, difference.expected
            message = f"{name} of {here} is {_short(actual)} instead of {_short(expected)}."
            fault = _fault(
                finding,
                FaultKind.TENSOR_LAYOUT if moves else FaultKind.HYPERPARAMETERS,
                names,
                nodes_of_op(examination.source, partner.name, partner.op_type),
                message,
                parameter=parameter,
                source_parameter=name,
                expected=difference.expected,
                actual=difference.actual,
            )
            yield Cause(fault, finding, difference)


def _lowered_setting(examination: Examination, finding: Finding, difference: Difference) -> str | None:
    node = examination.alignment.target.nodes[finding.region.target_nodes[0]]
    value = node.input[difference.slot] if difference.slot < len(node.input) else ""
    origin = examination.target.normal_form.origins.get(value)
    return counterpart(examination.target, origin, np.shape(difference.actual))


def _exchanged(examination: Examination, finding: Finding, difference: Difference) -> Cause:
    names = node_names(examination.target, finding.region.target_nodes)
    bounds = {difference.expected, difference.actual} <= {"Relu", "Clip"}
    kind = FaultKind.HYPERPARAMETERS if bounds else FaultKind.GRAPH
    what = "has other bounds than" if bounds else "replaces"
    if difference.expected == difference.actual:
        what = "has another body than"
    fault = _fault(
        finding,
        kind,
        names,
        node_names(examination.source, finding.region.source_nodes),
        f"{label(examination.target, names)} ({difference.actual}) {what} the source's {difference.expected}.",
        parameter="max" if bounds else None,
        expected=difference.expected,
        actual=difference.actual,
    )
    return Cause(fault, finding, difference)


def _wrong_constants(examination: Examination, finding: Finding) -> Iterator[Cause]:
    target = examination.alignment.target
    node = target.nodes[finding.region.target_nodes[0]]
    wrong = {}
    for difference in finding.differences:
        if difference.slot >= 0 and difference.slot not in SETTINGS.get(node.op_type, ()):
            wrong[_wrong(examination, finding.region, difference)] = difference
    right = {v for v in node.input if v and target.is_constant(v)} - {constant.name for constant in wrong}
    made, left = attribute(examination.source, examination.target, wrong, sorted(right))
    for attribution in made:
        first = attribution.constants[0]
        yield _weight(examination, finding, wrong[first], first, attribution)
    for constant in left:
        yield _weight(examination, finding, wrong[constant], constant, None)


def _wrong(examination: Examination, region: Region, difference: Difference) -> WrongConstant:
    theirs = examination.alignment.target.nodes[region.target_nodes[0]]
    ours = examination.alignment.source.nodes[region.source_nodes[0]]
    own = region.operands.get(difference.slot, difference.slot)
    name = theirs.input[difference.slot] if difference.slot < len(theirs.input) else ""
    source_name = ours.input[own] if own < len(ours.input) else None
    return WrongConstant(name, difference.expected, difference.actual, source_name)


def _weight(
    examination: Examination,
    finding: Finding,
    difference: Difference,
    constant: WrongConstant,
    attribution: Attribution | None,
) -> Cause:
    source, target = examination.source, examination.target
    origin = source.normal_form.origins.get(constant.source_name or "")
    theirs = counterpart(source, origin, np.shape(constant.expected))
    kind, how = explain(constant.expected, constant.actual)
    expected, actual = constant.expected, constant.actual
    parameter = None if attribution is None else attribution.parameter
    if attribution is not None:
        expected, actual = attribution.value, attribution.previous
        if explain(expected, actual)[0] == kind:
            how = explain(expected, actual)[1]
    folding = misfolded(source, origin, constant.actual)
    if folding:
        kind, how = FaultKind.WEIGHTS, folding
    names = node_names(target, finding.region.target_nodes, readers_of=_parameters_behind(target, constant, parameter))
    if attribution is not None and attribution.innocent:
        node, moving = finding.region.target_nodes[0], kind == FaultKind.TENSOR_LAYOUT
        names = others_behind(target, node, attribution.parameter, moving=moving) or names
    what = target.parameters.get(parameter or "", parameter or _operand(examination, finding, difference))
    here = label(target, names)
    message = f"{what} of {here} {how}."
    if attribution is not None and _is_epsilon(target, constant, attribution):
        kind, message = FaultKind.HYPERPARAMETERS, f"epsilon of {here} is {_short(actual)} instead of {_short(expected)}."
    if attribution is not None and _is_extra_factor(target, attribution):
        kind, message = FaultKind.GRAPH, f"{here} multiplies by {_short(actual)} what the source does not."
    fault = _fault(
        finding,
        kind,
        names,
        node_names(source, finding.region.source_nodes, readers_of=[theirs] if theirs else ()),
        message,
        parameter=parameter or _operand(examination, finding, difference),
        source_parameter=source.parameters.get(theirs or "", theirs),
        native_parameter=target.parameters.get(parameter or ""),
        expected=expected,
        actual=actual,
    )
    return Cause(fault, finding, difference, attribution)


def _parameters_behind(target: Model, constant: WrongConstant, parameter: str | None) -> tuple[str, ...]:
    """The guilty parameter, or all that make up a constant where none is guilty by itself."""
    if parameter is not None:
        return (parameter,)
    origin = target.normal_form.origins.get(constant.name)
    return () if origin is None else parameters_of(origin)


def _is_epsilon(target: Model, constant: WrongConstant, attribution: Attribution) -> bool:
    """Whether a wrong parameter is a single number under a square root."""
    origin = target.normal_form.origins.get(constant.name)
    return attribution.value.size == 1 and origin is not None and is_under_root(origin, attribution.parameter)


def _is_extra_factor(target: Model, attribution: Attribution) -> bool:
    """Whether a wrong parameter is the factor of a Mul or Div that should do nothing."""
    reading = {node.op_type for node in target.proto.graph.node if attribution.parameter in node.input}
    return reading <= {"Mul", "Div"} and bool(np.all(np.abs(attribution.value - 1) < 1e-5))


def _operand(examination: Examination, finding: Finding, difference: Difference) -> str:
    """What an operand is called where no parameter stands behind it."""
    node = examination.alignment.target.nodes[finding.region.target_nodes[0]]
    usual = {1: "weight", 2: "bias"} if node.op_type in ("Conv", "ConvTranspose", "Gemm") else {}
    return usual.get(difference.slot, f"operand {difference.slot}")


def _gap(examination: Examination, finding: Finding) -> Cause:
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
    fault = _fault(
        finding,
        FaultKind.TENSOR_LAYOUT if moved else FaultKind.GRAPH,
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


def _short(value: Any) -> str:
    if value is None:
        return "absent"
    if isinstance(value, np.ndarray):
        return np.array2string(value, threshold=8, precision=6, separator=", ")
    return value.decode() if isinstance(value, bytes) else str(value)


def _fault(
    finding: Finding,
    kind: FaultKind,
    target_nodes: tuple[str, ...],
    source_nodes: tuple[str, ...],
    message: str,
    *,
    parameter: str | None = None,
    source_parameter: str | None = None,
    native_parameter: str | None = None,
    expected: Any = None,
    actual: Any = None,
) -> Fault:
    if finding.error.broken:
        message = f"{message[:-1]}; {finding.error.broken}."
    return Fault(
        kind=kind,
        target_nodes=target_nodes,
        source_nodes=source_nodes,
        parameter=parameter,
        expected=expected,
        actual=actual,
        local_error=finding.error.relative,
        message=message,
        source_parameter=source_parameter,
        native_parameter=native_parameter,
        noise=finding.noise.relative,
    )
