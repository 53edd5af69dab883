"""Which conversion faults make a target differ from its source."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from onnxfix.diagnose.cause import Cause
from onnxfix.diagnose.examination import Examination, Progress, examine
from onnxfix.diagnose.fault import Diagnosis, Fault
from onnxfix.diagnose.faults import causes
from onnxfix.diagnose.runtime import runtime_notes
from onnxfix.inputs import Inputs
from onnxfix.model import load


def diagnose(
    source: Any,
    target: Any,
    data: Any,
    *,
    rtol: float = 1e-3,
    atol: float = 0.0,
    limit: int | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Diagnosis:
    """Say which conversion faults make ``target`` differ from ``source``.

    All faults are found in one pass: every region of the target is fed with the source's own activations, so a fault
    is blamed where it is and not on what follows. Differences that float noise explains, and differences without any
    effect on the data, are no faults.

    Args:
        source: The model that is right; anything :func:`onnxfix.load` takes.
        target: The conversion of it; anything :func:`onnxfix.load` takes.
        data: Inputs; anything :class:`onnxfix.Inputs` takes.
        rtol: Relative tolerance of the whole models' comparison.
        atol: Absolute tolerance of the same.
        limit: Use only that many samples.
        batch_size: Samples per run.
        seed: Unused by the diagnosis itself; accepted so that all verbs take the same options.
        progress: Called with a stage and the fraction done, 0..1.

    Returns:
        The diagnosis.

    Raises:
        LoadError: a model cannot be read.
        InputError: the data cannot be fed to the models.
        AlignmentError: the models do not take the same inputs.

    Example:
        >>> onnxfix.diagnose("net.h5", "net.tflite", "digits.npz").faults        # doctest: +SKIP
        ()
    """
    ours, theirs = load(source), load(target)
    inputs = Inputs.of(data, limit=limit, batch_size=batch_size).bind(ours, theirs)
    examination = examine(ours, theirs, inputs, rtol=rtol, atol=atol, progress=progress)
    return concluded(examination, causes(examination), inputs)


def concluded(examination: Examination, found: tuple[Cause, ...], data: Inputs) -> Diagnosis:
    """The diagnosis that an examination comes to."""
    return Diagnosis(
        faults=_distinct(found),
        aligned=float(np.round(examination.alignment.fraction, 6)),
        comparison=examination.comparison,
        notes=(*examination.notes, *runtime_notes(examination.target, data)),
    )


def _distinct(found: tuple[Cause, ...]) -> tuple[Fault, ...]:
    """The faults; a parameter that is wrong for several readers is one fault, and names them all."""
    faults: dict[object, Fault] = {}
    for cause in found:
        if cause.follows:
            continue
        key = cause if cause.attribution is None else cause.attribution.parameter
        first = faults.get(key)
        if first is None:
            faults[key] = cause.fault
            continue
        targets = tuple(dict.fromkeys((*first.target_nodes, *cause.fault.target_nodes)))
        sources = tuple(dict.fromkeys((*first.source_nodes, *cause.fault.source_nodes)))
        faults[key] = replace(first, target_nodes=targets, source_nodes=sources)
    return tuple(faults.values())
