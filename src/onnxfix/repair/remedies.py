"""Remedies: the patches that set a finding right, from least to most invasive.

Parameters and attributes of the caller's own graph come first. Where the lowered graph has no single place for a
change (a missing op, a pad that the canonicalizer folded), the same change is made to the normal form.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper

from onnxfix import mapped
from onnxfix.align import Alignment, Region
from onnxfix.align.graph import attributes, renamed
from onnxfix.canonical.origins import invert, parameters_of
from onnxfix.diagnose.cause import Cause
from onnxfix.diagnose.differences import SETTING_NAMES, SETTINGS, Difference, corrected
from onnxfix.diagnose.examination import Examination
from onnxfix.diagnose.finding import Finding
from onnxfix.diagnose.gaps import NARROWING_OPS
from onnxfix.errors import CanonicalizationError
from onnxfix.model import Model
from onnxfix.runtime.assembly import Constant, constants_read
from onnxfix.surgeon.patch import Patch, ReplaceRegion, SetAttribute, SetConstant, SetNode, SetParameter


@dataclass(frozen=True, eq=False)
class Remedy:
    """What sets one finding right.

    Attributes:
        finding: The finding.
        causes: Its causes.
        lowered: Patches of the lowered graph; None where it has no place for the change.
        canonical: Patches of the normal form; None where there is no remedy, ``reason`` says why.
        reason: Why there is none, or "".
    """

    finding: Finding
    causes: tuple[Cause, ...]
    lowered: tuple[Patch, ...] | None
    canonical: tuple[Patch, ...] | None
    reason: str = ""


def remedies(examination: Examination, causes: Iterable[Cause]) -> tuple[Remedy, ...]:
    """One remedy for each finding."""
    by_finding: dict[Finding, list[Cause]] = {}
    for cause in causes:
        by_finding.setdefault(cause.finding, []).append(cause)
    return tuple(
        _remedy(examination, k, finding, tuple(own)) for k, (finding, own) in enumerate(by_finding.items())
    )


def _remedy(examination: Examination, index: int, finding: Finding, own: tuple[Cause, ...]) -> Remedy:
    alignment, region = examination.alignment, finding.region
    prefix = f"repaired{index}/"
    if not region.matched:
        try:
            return Remedy(finding, own, _left_out(examination, region), (_transplant(alignment, region, prefix),))
        except _Unreachable as reason:
            return Remedy(finding, own, None, None, str(reason))
    lowered: list[Patch] | None = []
    for cause in own:
        if cause.follows:
            continue
        patch = _lowered(examination, finding, cause)
        if patch is None or lowered is None:
            lowered = None
            continue
        lowered.append(patch)
    return Remedy(
        finding, own, None if lowered is None else tuple(lowered), tuple(_canonical(alignment, finding, prefix))
    )


def _left_out(examination: Examination, region: Region) -> tuple[Patch, ...] | None:
    """Casts to another type and back that the source does not have: the lowered graph can do without them."""
    target = examination.target
    view = examination.alignment.target
    if region.source_nodes or not region.target_nodes or len(region.feeds) != 1 or len(region.outputs) != 1:
        return None
    if any(view.nodes[name].op_type not in NARROWING_OPS for name in region.target_nodes):
        return None
    lowered = {node.name: node for node in target.proto.graph.node}
    patches: list[Patch] = []
    for name in region.target_nodes:
        behind = [lowered[n] for n in target.normal_form.provenance.get(name, ()) if n in lowered]
        if len(behind) != 1 or behind[0].op_type != view.nodes[name].op_type:
            return None
        node = behind[0]
        patches.append(SetNode(node, helper.make_node("Identity", [node.input[0]], [node.output[0]], name=node.name)))
    return tuple(patches)


def _lowered(examination: Examination, finding: Finding, cause: Cause) -> Patch | None:
    target, difference = examination.target, cause.difference
    if cause.patch is not None:
        return cause.patch
    if cause.attribution is not None:
        made = cause.attribution
        return SetParameter(
            made.parameter, made.value, made.previous, _readers(examination, finding, made.parameter, made.value)
        )
    if difference is None or difference.op:
        return None
    node = examination.alignment.target.nodes[finding.region.target_nodes[0]]
    if difference.attribute:
        return _lowered_attribute(target, node, difference)
    if difference.slot in SETTINGS.get(node.op_type, ()) and difference.slot < len(node.input):
        setting = _lowered_setting(examination, finding, node.input[difference.slot], difference)
        return setting or _setting_as_attribute(target, node, difference)
    return None


def _readers(examination: Examination, finding: Finding, parameter: str, value: np.ndarray) -> tuple[str, ...]:
    """The lowered nodes for which a parameter is to change; () where nobody else reads it.

    Others that read it and are found to want the same value count as nobody else.
    """
    target = examination.target
    behind = {
        n for name in finding.region.target_nodes for n in target.normal_form.provenance.get(name, ())
    }
    reading = readers(target, parameter)
    return () if all(n in behind for n in reading) else tuple(n for n in reading if n in behind)


def readers(target: Model, parameter: str) -> tuple[str, ...]:
    """The lowered nodes that read a parameter's content; who asks for its shape does not care."""
    nodes = (node for node in target.proto.graph.node if node.op_type not in ("Shape", "Size"))
    return tuple(node.name for node in nodes if parameter in node.input)


def _lowered_attribute(target: Model, node: onnx.NodeProto, difference: Difference) -> SetAttribute | None:
    """The one lowered node of that op behind the canonical node, if it says the same as the canonical one."""
    behind = set(target.normal_form.provenance.get(node.name, ()))
    same = [n for n in target.proto.graph.node if n.name in behind and n.op_type == node.op_type]
    if len(same) != 1 or difference.expected is None:
        return None
    actual = attributes(same[0]).get(difference.attribute)
    if actual != difference.actual:
        return None
    return SetAttribute(same[0].name, difference.attribute, difference.expected, actual)


def _setting_as_attribute(target: Model, node: onnx.NodeProto, difference: Difference) -> SetAttribute | None:
    """The attribute by which older opsets spell an operand (the axes of a reduction)."""
    name = SETTING_NAMES.get((node.op_type, difference.slot), "")
    if not name or difference.expected is None or difference.actual is None:
        return None
    expected, actual = np.asarray(difference.expected).tolist(), np.asarray(difference.actual).tolist()
    return _lowered_attribute(target, node, Difference(False, name, -1, expected, actual))


def _lowered_setting(
    examination: Examination, finding: Finding, constant: str, difference: Difference
) -> SetParameter | None:
    form = examination.target.normal_form
    origin = form.origins.get(constant)
    if origin is None or difference.expected is None:
        return None
    for name in parameters_of(origin):
        if name not in form.parameters:
            continue
        try:
            value = invert(origin, name, np.asarray(difference.expected), form.parameters)
        except CanonicalizationError:
            continue
        return SetParameter(name, value, form.parameters[name], _readers(examination, finding, name, value))
    return None


def _canonical(alignment: Alignment, finding: Finding, prefix: str) -> Iterator[Patch]:
    """Set the constants of the normal form, or exchange the node where more than constants differ."""
    region, target = finding.region, alignment.target
    node = target.nodes[region.target_nodes[0]]
    constants = [_own_constant(alignment, node, difference) for difference in finding.differences]
    if all(name is not None for name in constants):
        for name, difference in zip(constants, finding.differences, strict=True):
            yield SetConstant(name or "", np.asarray(difference.expected), np.asarray(difference.actual))
        return
    made, read = corrected(alignment, region, finding.differences)
    brought = {v: prefix + v for v in read if not target.is_constant(v)}
    yield ReplaceRegion(
        removed=region.target_nodes,
        added=(renamed(made, brought),),
        constants={brought[v]: _array(c) for v, c in read.items() if v in brought},
    )


def _own_constant(alignment: Alignment, node: onnx.NodeProto, difference: Difference) -> str | None:
    """The initializer behind a difference, if it is this node's alone and keeps its shape."""
    if difference.slot < 0 or difference.expected is None or difference.actual is None:
        return None
    name = node.input[difference.slot]
    alone = len(alignment.target.consumers.get(name, ())) == 1
    return name if alone and np.shape(difference.expected) == np.shape(difference.actual) else None


class _Unreachable(Exception):
    """A value that the source's region reads has no counterpart in the target."""


def _transplant(alignment: Alignment, region: Region, prefix: str) -> ReplaceRegion:
    """The source's nodes in the place of the target's, fed with the target's values."""
    source = alignment.source
    back = {s: t for t, s in alignment.values.items()}
    own = [source.nodes[n] for n in region.source_nodes]
    names: dict[str, str] = {o: prefix + o for node in own for o in node.output if o}
    constants: dict[str, np.ndarray] = {}

    def reached(value: str) -> str:
        if value in names:
            return names[value]
        if source.is_constant(value):
            constants[prefix + value] = source.constant(value)
            return prefix + value
        if value not in back:
            raise _Unreachable(f"the target has nothing that plays the role of the source's {value}")
        return back[value]

    for node in own:
        names.update({v: reached(v) for v in source.operands(node.name)})
        names.update({v: reached(v) for v in constants_read(source, [node])})
    rewired = {
        (place.node, place.slot): reached(s)
        for (s, _), places in zip(region.outputs, region.readers, strict=True)
        for place in places
    }
    return ReplaceRegion(
        region.target_nodes, tuple(renamed(node, names, prefix) for node in own), constants, rewired
    )


def _array(constant: Constant) -> np.ndarray:
    return constant if isinstance(constant, np.ndarray) else mapped.to_array(constant)
