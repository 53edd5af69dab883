"""Which conversion faults make a target differ from its source."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from onnxfix.compare import refuse_blank
from onnxfix.diagnose.boundary import bound, compared, misfed, resized, settle
from onnxfix.diagnose.cause import Cause
from onnxfix.diagnose.examination import Examination, Progress
from onnxfix.diagnose.exhibiting import show_whole
from onnxfix.diagnose.fault import Diagnosis, Fault, FaultKind
from onnxfix.diagnose.faults import causes
from onnxfix.diagnose.inquiry import Inquiry, inquire
from onnxfix.diagnose.mode import switched
from onnxfix.diagnose.quantized import activation_spans, quantizes, straightened, wrong_quantizers
from onnxfix.diagnose.runtime import runtime_notes
from onnxfix.inputs import Inputs
from onnxfix.model import Model, load
from onnxfix.quantization import is_quantized


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
    given = Inputs.of(data, limit=limit, batch_size=batch_size)
    ours = resized(ours, given)
    wrong = misfed(ours, theirs, given)
    alike = bound(given if wrong is None else given.alike(), ours, theirs)
    refuse_blank(ours, theirs, alike)
    found = _found(ours, theirs, alike, rtol, atol, progress)
    show_whole(found.faults, ours, theirs, alike)
    if wrong is None:
        return found
    comparison = compared(ours, theirs, given, rtol=rtol, atol=atol)
    return replace(found, faults=(*wrong.faults(theirs), *found.faults), comparison=comparison)


def _found(
    ours: Model, theirs: Model, given: Inputs, rtol: float, atol: float, progress: Progress | None
) -> Diagnosis:
    """Everything after loading."""
    if not is_quantized(theirs.proto) or quantizes(ours):
        mode = switched(ours, theirs, given)
        found = _diagnosed(ours, mode.model, given, rtol, atol, progress)
        if not mode.patches:
            return found
        comparison = compared(ours, theirs, given, rtol=rtol, atol=atol)
        return replace(found, faults=(*mode.faults, *found.faults), comparison=comparison)
    straight = straightened(theirs)
    inner = _diagnosed(ours, straight.model, given, rtol, atol, progress)
    spans = activation_spans(ours, theirs, straight, straight.model.proto, given)
    trusted = None if any(fault.kind == FaultKind.PRECISION for fault in inner.faults) else theirs.proto
    wrong = wrong_quantizers(theirs, straight.quantizers, spans, trusted)
    faults = sorted((*inner.faults, *(w.fault for w in wrong)), key=lambda fault: -min(fault.local_error, 1e30))
    comparison = compared(ours, theirs, given, rtol=rtol, atol=atol)
    return replace(inner, faults=tuple(faults), comparison=comparison)


def _diagnosed(
    ours: Model, theirs: Model, given: Inputs, rtol: float, atol: float, progress: Progress | None
) -> Diagnosis:
    """The same for a target that is compared as it is."""
    boundary = settle(ours, theirs, given)
    inputs = given.bind(ours, boundary.target)
    inquiry = inquire(ours, boundary.target, inputs, rtol=rtol, atol=atol, progress=progress)
    found = concluded(inquiry, inputs)
    if not boundary.changes:
        return found
    return boundary.with_faults(found, compared(ours, theirs, given, rtol=rtol, atol=atol))


def concluded(inquiry: Inquiry, data: Inputs) -> Diagnosis:
    """The diagnosis that an inquiry comes to."""
    examination = inquiry.examination
    return Diagnosis(
        faults=(*inquiry.faults, *_distinct(inquiry.causes)),
        aligned=float(np.round(inquiry.aligned, 6)),
        comparison=inquiry.before,
        notes=(*examination.notes, *runtime_notes(examination.target, data)),
        risks=_risks(examination),
    )


def _risks(examination: Examination) -> tuple[Fault, ...]:
    """What would be faults on other data."""
    if not examination.hidden:
        return ()
    found = _distinct(causes(replace(examination, findings=examination.hidden)))
    return tuple(replace(f, message=f"{f.message[:-1]}, which has no effect on these data.") for f in found)


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
