"""A fault together with what a repair of it needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxfix.diagnose.attribution import Attribution
from onnxfix.diagnose.differences import Difference
from onnxfix.diagnose.evidence import Evidence
from onnxfix.diagnose.exhibiting import exhibit
from onnxfix.diagnose.fault import Fault, FaultKind
from onnxfix.diagnose.finding import Finding
from onnxfix.surgeon.patch import SetAttribute


@dataclass(frozen=True, eq=False)
class Cause:
    """A fault together with what a repair of it needs.

    Attributes:
        fault: The fault, as reported.
        finding: The guilty region.
        difference: The difference of a matched node that makes the fault; None for a gap.
        attribution: The lowered parameter behind a wrong constant, where there is one.
        patch: The attribute of a lowered node behind wrong constants, where it is that.
        follows: Setting another cause's parameter right sets this right, too; it is no fault of its own.
        vague: A parameter is wrong, but what was done to it has no name: something else may have happened.
    """

    fault: Fault
    finding: Finding
    difference: Difference | None = None
    attribution: Attribution | None = None
    patch: SetAttribute | None = None
    follows: bool = False
    vague: bool = False


def reported(
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
    """The fault of a finding, its numbers filled in."""
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
        evidence=Evidence(piece=lambda: exhibit(finding)),
    )


def short(value: Any) -> str:
    """A value for a sentence."""
    if value is None:
        return "absent"
    if isinstance(value, np.ndarray):
        return np.array2string(value, threshold=8, precision=6, separator=", ")
    return value.decode() if isinstance(value, bytes) else str(value)
