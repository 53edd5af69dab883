"""From findings to faults: what it is, where in both frameworks' own names, in one plain sentence."""

from __future__ import annotations

from onnxfix.diagnose.cause import Cause
from onnxfix.diagnose.constants import wrong_constants
from onnxfix.diagnose.examination import Examination
from onnxfix.diagnose.gaps import gap
from onnxfix.diagnose.hyperparameters import settings


def causes(examination: Examination) -> tuple[Cause, ...]:
    """The causes of all findings, in their order."""
    found: list[Cause] = []
    for finding in examination.findings:
        if not finding.region.matched:
            found.append(gap(examination, finding))
            continue
        found.extend(settings(examination, finding))
        found.extend(wrong_constants(examination, finding))
    return tuple(found)
