"""Wrong constants: which parameter made them so, and how it came about."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import onnx

from onnxfix import mapped
from onnxfix.align import Region
from onnxfix.align.graph import attributes
from onnxfix.canonical.origins import parameters_of
from onnxfix.diagnose.attribution import Attribution, WrongConstant, attribute
from onnxfix.diagnose.cause import Cause, reported, short
from onnxfix.diagnose.differences import SETTINGS, Difference
from onnxfix.diagnose.examination import Examination
from onnxfix.diagnose.fault import FaultKind
from onnxfix.diagnose.finding import Finding
from onnxfix.diagnose.folding import LEFT_OUT, is_under_root, misfolded, wrong_epsilon
from onnxfix.diagnose.naming import WIDENS, counterpart, label, node_names, others_behind
from onnxfix.diagnose.quantized.schemes import misscaled
from onnxfix.diagnose.weights import explain, has_name
from onnxfix.model import Model
from onnxfix.surgeon.patch import SetAttribute


def wrong_constants(
    examination: Examination, finding: Finding, settled: Mapping[str, np.ndarray]
) -> Iterator[Cause]:
    """The causes behind the constants that make a matched node guilty.

    Args:
        examination: What was found.
        finding: The node.
        settled: Parameters that other nodes have shown to be wrong, with the values that they should have.
    """
    target = examination.alignment.target
    node = target.nodes[finding.region.target_nodes[0]]
    wrong = {}
    for difference in finding.differences:
        if difference.slot >= 0 and difference.slot not in SETTINGS.get(node.op_type, ()):
            wrong[_wrong(examination, finding.region, difference)] = difference
    folded = wrong_epsilon(
        examination.source, examination.target, ((c.name, c.source_name, c.expected) for c in wrong)
    )
    if folded is not None:
        yield _epsilon(examination, finding, *folded)
        return
    right = {v for v in node.input if v and target.is_constant(v)} - {constant.name for constant in wrong}
    for constant in tuple(wrong):
        scaled = misscaled(examination.target, constant)
        if scaled is not None:
            yield _scheme(examination, finding, wrong.pop(constant), scaled)
    made, left = attribute(examination.source, examination.target, wrong, sorted(right), settled)
    for attribution in made:
        first = attribution.constants[0]
        yield _weight(examination, finding, wrong[first], first, attribution)
    for constant in left:
        yield _weight(examination, finding, wrong[constant], constant, None)


def _scheme(
    examination: Examination, finding: Finding, difference: Difference, attribution: Attribution
) -> Cause:
    """Integers that are stored rightly and stand for other numbers."""
    target = examination.target
    names = node_names(target, finding.region.target_nodes, readers_of=(attribution.parameter,))
    widening = tuple(n.name for n in target.proto.graph.node if attribution.parameter in n.input)
    what = "scale" if attribution.value.dtype.kind == "f" else "zero point"
    fault = reported(
        finding,
        FaultKind.PRECISION,
        tuple(dict.fromkeys((*names, *_quantizing(target, widening)))),
        node_names(examination.source, finding.region.source_nodes),
        f"the {what} of the weight of {label(target, names)} is {short(attribution.previous)} instead of "
        f"{short(attribution.value)}.",
        parameter=attribution.parameter,
        native_parameter=target.parameters.get(attribution.parameter),
        expected=attribution.value,
        actual=attribution.previous,
    )
    return Cause(fault, finding, difference, attribution)


def _quantizing(target: Model, names: tuple[str, ...]) -> tuple[str, ...]:
    """The nodes of the quantized graph that spelled-out widenings stand for."""
    spelled = {
        node.name: prop.value
        for node in target.proto.graph.node
        for prop in node.metadata_props
        if prop.key == WIDENS
    }
    return tuple(dict.fromkeys(spelled.get(name, name) for name in names))


def _epsilon(examination: Examination, finding: Finding, actual: float, expected: float) -> Cause:
    """A normalisation whose epsilon is an attribute of the lowered node, seen in the constants folded from it."""
    target = examination.target
    behind = target.normal_form.provenance.get(finding.region.target_nodes[0], ())
    guilty = [
        node
        for node in target.proto.graph.node
        if node.name in behind and np.isclose(_own_epsilon(node), actual, rtol=1e-6, atol=0)
    ]
    names = tuple(dict.fromkeys((*(n.name for n in guilty), *(target.layers.get(n.name, n.name) for n in guilty))))
    names = names or node_names(target, finding.region.target_nodes)
    fault = reported(
        finding,
        FaultKind.HYPERPARAMETERS,
        names,
        node_names(examination.source, finding.region.source_nodes),
        f"epsilon of {label(target, names)} is {actual:g} instead of {expected:g}.",
        parameter="epsilon",
        source_parameter="epsilon",
        expected=expected,
        actual=actual,
    )
    patch = SetAttribute(guilty[0].name, "epsilon", expected, actual) if len(guilty) == 1 else None
    return Cause(fault, finding, patch=patch)


def _own_epsilon(node: onnx.NodeProto) -> float:
    value = attributes(node).get("epsilon", -1.0)
    return value if isinstance(value, float) else -1.0


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
    omitted = folding.startswith(LEFT_OUT) and (
        attribution is None or _only_makes_up(target, constant, attribution)
    )
    if omitted:  # what was left out is stored as zeros, or nowhere
        parameter, expected, actual = _zeros(target, finding, constant), constant.expected, constant.actual
        how = "was dropped (all zero)" if parameter else how
    behind = () if omitted and parameter is None else _parameters_behind(target, constant, parameter)
    names = node_names(target, finding.region.target_nodes, readers_of=behind)
    if attribution is not None and attribution.innocent and not omitted:
        pair, moving = (finding.region.target_nodes[0], finding.region.source_nodes[0]), kind == FaultKind.TENSOR_LAYOUT
        names = others_behind(target, source, pair, attribution.parameter, moving=moving) or names
    what = target.parameters.get(parameter or "", parameter or _operand(examination, finding, difference))
    here = label(target, names)
    message = f"{what} of {here} {how}."
    vague = not folding and not has_name(how)
    if attribution is not None and _is_epsilon(target, constant, attribution):
        kind, vague = FaultKind.HYPERPARAMETERS, False
        message = f"epsilon of {here} is {short(actual)} instead of {short(expected)}."
    if attribution is not None and _is_extra_factor(target, attribution):
        kind, vague = FaultKind.GRAPH, False
        message = f"{here} multiplies by {short(actual)} what the source does not."
    fault = reported(
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
    return Cause(fault, finding, difference, attribution, vague=vague)


def _parameters_behind(target: Model, constant: WrongConstant, parameter: str | None) -> tuple[str, ...]:
    """The guilty parameter, or all that make up a constant where none is guilty by itself."""
    if parameter is not None:
        return (parameter,)
    origin = target.normal_form.origins.get(constant.name)
    return () if origin is None else parameters_of(origin)


def _only_makes_up(target: Model, constant: WrongConstant, attribution: Attribution) -> bool:
    """Whether a parameter is one of several, or the source's own, that can make up for another that is missing."""
    origin = target.normal_form.origins.get(constant.name)
    several = origin is not None and len(parameters_of(origin)) > 1
    return bool(np.any(attribution.previous)) and (several or attribution.innocent)


def _zeros(target: Model, finding: Finding, constant: WrongConstant) -> str | None:
    """A stored parameter that could be what is left out: all zero, of the constant's size, added right behind it."""
    provenance = set(target.normal_form.provenance.get(finding.region.target_nodes[0], ()))
    made = {o for node in target.proto.graph.node if node.name in provenance for o in node.output}
    size = np.size(constant.expected)
    near = {v for n in target.proto.graph.node if n.op_type == "Add" and made.intersection(n.input) for v in n.input}
    for tensor in target.proto.graph.initializer:
        if tensor.name in near and np.prod(tensor.dims) == size and not np.any(mapped.to_array(tensor)):
            return str(tensor.name)
    return None


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
