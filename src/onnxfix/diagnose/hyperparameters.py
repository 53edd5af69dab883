"""Attributes that differ, operands that act as attributes, and ops exchanged within a family."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from onnxfix.diagnose.cause import Cause, reported, short
from onnxfix.diagnose.differences import SETTING_NAMES, SETTINGS, Difference
from onnxfix.diagnose.examination import Examination
from onnxfix.diagnose.fault import FaultKind
from onnxfix.diagnose.finding import Finding
from onnxfix.diagnose.naming import counterpart, label, node_names, nodes_of_op
from onnxfix.model import Model


def settings(examination: Examination, finding: Finding) -> Iterator[Cause]:
    """Attributes, operands that act as attributes, and ops exchanged within a family."""
    node = examination.alignment.target.nodes[finding.region.target_nodes[0]]
    partner = examination.alignment.source.nodes[finding.region.source_nodes[0]]
    for difference in finding.differences:
        if difference.op:
            yield _exchanged(examination, finding, difference)
        elif difference.attribute or difference.slot in SETTINGS.get(node.op_type, ()):
            name = difference.attribute or SETTING_NAMES.get((node.op_type, difference.slot), "operand")
            parameter = name if difference.attribute else _lowered_setting(examination, finding, difference) or name
            expected = (difference.attribute, difference.expected)
            names = nodes_of_op(examination.target, node.name, node.op_type, unless=expected)
            if not _is_spelled_out(examination.target, names, node.op_type):
                names = node_names(examination.target, [node.name], readers_of=(parameter,)) or names
            moves = (node.op_type, difference.attribute) == ("Transpose", "perm")
            here = label(examination.target, names)
            message = f"{name} of {here} is {short(difference.actual)} instead of {short(difference.expected)}."
            fault = reported(
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


def _is_spelled_out(target: Model, names: Iterable[str], op: str) -> bool:
    """Whether a lowered node of an op stands for it; a clip can be spelled as a minimum and a maximum."""
    wanted = set(names)
    return any(lowered.op_type == op for lowered in target.proto.graph.node if lowered.name in wanted)


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
    fault = reported(
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
