"""From findings to faults: what it is, where in both frameworks' own names, in one plain sentence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from onnxfix.canonical.origins import evaluate, parameters_of
from onnxfix.diagnose.attribution import agrees
from onnxfix.diagnose.cause import Cause
from onnxfix.diagnose.constants import wrong_constants
from onnxfix.diagnose.evidence import Evidence
from onnxfix.diagnose.examination import Examination
from onnxfix.diagnose.exhibiting import exhibit
from onnxfix.diagnose.finding import Finding
from onnxfix.diagnose.gaps import gap
from onnxfix.diagnose.hyperparameters import settings
from onnxfix.diagnose.storage import slack
from onnxfix.errors import CanonicalizationError


def causes(examination: Examination) -> tuple[Cause, ...]:
    """The causes of all findings, in their order; those that only follow from another are marked."""
    made: dict[Finding, list[Cause]] = {}
    settled: dict[str, np.ndarray] = {}
    # Fewer parameters leave less doubt: a batch norm's variance is in the kernel, its mean beside it in the bias.
    for finding in sorted(examination.findings, key=lambda f: _parameters_behind(examination, f)):
        if not finding.region.matched:
            made[finding] = [gap(examination, finding)]
            continue
        found = (*settings(examination, finding), *wrong_constants(examination, finding, settled))
        made[finding] = list(map(_shown_alone, found))
        settled |= {c.attribution.parameter: c.attribution.value for c in found if c.attribution is not None}
    return _followers_marked(examination, [cause for finding in examination.findings for cause in made[finding]])


def _parameters_behind(examination: Examination, finding: Finding) -> int:
    """How many parameters make up the wrong constants of a matched node."""
    origins = examination.target.normal_form.origins
    node = examination.alignment.target.nodes[finding.region.target_nodes[0]] if finding.region.matched else None
    names = [node.input[d.slot] for d in finding.differences if 0 <= d.slot < len(node.input)] if node else []
    return len({p for name in names if name in origins for p in parameters_of(origins[name])})


def _shown_alone(cause: Cause) -> Cause:
    """Let the fault be shown without the others of its node."""
    finding, difference = cause.finding, cause.difference
    if difference is None or len(finding.differences) < 2:
        return cause
    evidence = Evidence(piece=lambda: exhibit(finding, difference))
    return replace(cause, fault=replace(cause.fault, evidence=evidence))


def _followers_marked(examination: Examination, found: list[Cause]) -> tuple[Cause, ...]:
    """One wrong parameter can make the constants of several nodes wrong: a factor that was moved through a clip."""
    settled: dict[str, np.ndarray] = {}
    followers = set()
    for cause in sorted(found, key=lambda c: -len(c.attribution.constants) if c.attribution else 0):
        if _follows(examination, cause, settled):
            followers.add(cause)
        elif cause.attribution is not None:
            settled[cause.attribution.parameter] = cause.attribution.value
    return tuple(replace(cause, follows=True) if cause in followers else cause for cause in found)


def _follows(examination: Examination, cause: Cause, settled: Mapping[str, np.ndarray]) -> bool:
    form = examination.target.normal_form
    constants = _constants(examination, cause)
    if not constants or any(name not in form.origins for name, _ in constants):
        return False
    for name, expected in constants:
        origin = form.origins[name]
        behind = parameters_of(origin)
        own = "" if cause.attribution is None else cause.attribution.parameter
        if own in settled or not settled.keys() & set(behind):
            return False
        values = {p: settled[p] if p in settled else form.parameters[p] for p in behind}
        try:
            if not agrees(evaluate(origin, values), expected, 0.0, slack(origin, values, expected)):
                return False
        except CanonicalizationError:
            return False
    return True


def _constants(examination: Examination, cause: Cause) -> list[tuple[str, np.ndarray]]:
    """The canonical constants that a cause is about, and what they should be."""
    if cause.attribution is not None:
        return [(constant.name, constant.expected) for constant in cause.attribution.constants]
    difference = cause.difference
    if difference is None or difference.slot < 0 or not isinstance(difference.expected, np.ndarray):
        return []
    node = examination.alignment.target.nodes[cause.finding.region.target_nodes[0]]
    return [(node.input[difference.slot], difference.expected)] if difference.slot < len(node.input) else []
