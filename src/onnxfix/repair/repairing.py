"""Repair a conversion: choose remedies, apply them, prove the result on inputs that the repair never saw."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, TypedDict

import numpy as np
import onnx

from onnxfix.compare import Accumulator, Comparison, refuse_blank
from onnxfix.diagnose.boundary import Misfed, bound, compared, misfed, resized, settle
from onnxfix.diagnose.diagnosis import concluded
from onnxfix.diagnose.examination import Examination, Progress, in_chunks
from onnxfix.diagnose.exhibiting import show_whole
from onnxfix.diagnose.fault import Diagnosis
from onnxfix.diagnose.inquiry import inquire
from onnxfix.diagnose.judging import evaluate_corrected
from onnxfix.diagnose.mode import switched
from onnxfix.diagnose.noise import is_guilty
from onnxfix.diagnose.quantized import quantizes, straightened
from onnxfix.errors import OnnxFixError
from onnxfix.frameworks import Framework
from onnxfix.inputs import Inputs
from onnxfix.model import Model, load
from onnxfix.quantization import is_quantized
from onnxfix.repair.foreign import another_network
from onnxfix.repair.grafting import agrees, grafted
from onnxfix.repair.quantized import QuantizedRepair, left, of_target
from onnxfix.repair.remedies import Remedy, readers, remedies
from onnxfix.repair.result import Repair, Unrepaired
from onnxfix.runtime.session import Session
from onnxfix.surgeon.apply import apply
from onnxfix.surgeon.giveback import in_framework
from onnxfix.surgeon.patch import Patch, SetParameter


class Tolerances(TypedDict):
    """Of the whole models' comparison."""

    rtol: float
    atol: float


# Share of the data held out for the proof where the caller gives none.
HOLDOUT = 0.2


def repair(
    source: Any,
    target: Any,
    data: Any,
    holdout: Any = None,
    *,
    rtol: float = 1e-3,
    atol: float = 0.0,
    limit: int | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Repair:
    """Find the conversion faults of ``target``, set them right, and prove it on held-out data.

    Args:
        source: The model that is right; anything :func:`onnxfix.load` takes.
        target: The conversion of it; anything :func:`onnxfix.load` takes. It is left unchanged.
        data: Inputs; anything :class:`onnxfix.Inputs` takes.
        holdout: Inputs for the proof, which the repair does not use. By default a fifth of ``data``, taken out at
            random; ``Repair.holdout_note`` says so.
        rtol: Relative tolerance of the whole models' comparison.
        atol: Absolute tolerance of the same.
        limit: Use only that many samples of ``data``.
        batch_size: Samples per run.
        seed: Seed of the split.
        progress: Called with a stage and the fraction done, 0..1.

    Returns:
        The repair; ``success`` says whether everything was repaired and verified.

    Raises:
        LoadError: a model cannot be read.
        InputError: the data cannot be fed to the models.
        AlignmentError: the models do not take the same inputs.

    Example:
        >>> fix = onnxfix.repair("net.h5", "net.tflite", "digits.npz")        # doctest: +SKIP
        >>> fix.save("fixed.tflite")                                          # doctest: +SKIP
    """
    ours, theirs = load(source), load(target)
    given = Inputs.of(data, limit=limit, batch_size=batch_size)
    ours = resized(ours, given)
    wrong = misfed(ours, theirs, given)
    inputs = bound(given if wrong is None else given.alike(), ours, theirs)
    refuse_blank(ours, theirs, inputs)
    if holdout is None:
        work, held = inputs.split(HOLDOUT, seed=seed)
        note = held.note
    else:
        others = Inputs.of(holdout, batch_size=batch_size)
        work, held = inputs, bound(others if wrong is None else others.alike(), ours, theirs)
        note = f"{held.count} samples given by the caller"
    tolerances: Tolerances = {"rtol": rtol, "atol": atol}
    fix = _found(ours, theirs, work, held, note, tolerances, progress)
    show_whole(fix.diagnosis.faults, ours, theirs, work)
    if wrong is not None:
        fix = _fed(fix, wrong, work.prepared_as(given), held.prepared_as(given), tolerances)
    return replace(fix, model=_at_home(fix))


def _fed(fix: Repair, wrong: Misfed, work: Inputs, held: Inputs, tolerances: Tolerances) -> Repair:
    """The repair of a target that was found on data like the source's, with the target's own data from here on."""
    model, patches = wrong.repaired(fix.model)
    before = compared(fix.source, fix.target, work, **tolerances)
    faults = (*wrong.faults(fix.target), *fix.diagnosis.faults)
    return replace(
        fix,
        model=model,
        patches=(*fix.patches, *patches),
        diagnosis=replace(fix.diagnosis, faults=faults, comparison=before),
        before=before,
        after=compared(fix.source, model, work, **tolerances),
        verified=compared(fix.source, model, held, **tolerances),
        holdout=held.bind(fix.source, model),
    )


def _found(
    ours: Model, theirs: Model, work: Inputs, held: Inputs, note: str, tolerances: Tolerances, progress: Progress | None
) -> Repair:
    """Everything after loading and splitting."""
    if is_quantized(theirs.proto) and not quantizes(ours):
        return _quantized(ours, theirs, work, held, note, tolerances, progress)
    mode = switched(ours, theirs, work)
    fix = _repaired(ours, mode.model, work, held, note, tolerances, progress)
    if not mode.patches:
        return fix
    before = compared(ours, theirs, work, **tolerances)
    faults = (*mode.faults, *fix.diagnosis.faults)
    return replace(
        fix,
        target=theirs,
        patches=(*mode.patches, *fix.patches),
        before=before,
        diagnosis=replace(fix.diagnosis, faults=faults, comparison=before),
    )


def _quantized(
    ours: Model, theirs: Model, work: Inputs, held: Inputs, note: str, tolerances: Tolerances, progress: Progress | None
) -> Repair:
    """A quantized target is repaired without its rounding; then the rounding itself is judged."""
    straight = straightened(theirs)
    inner = _repaired(ours, straight.model, work, held, note, tolerances, progress)
    patches = of_target(theirs, straight.model, inner.patches)
    if patches is None:
        return _restructured(ours, theirs, inner, work, held, tolerances)
    repaired = apply(straight.model.proto, inner.patches)
    straight = left(straight, apply(theirs.proto, patches), repaired)
    inner = replace(inner, patches=patches)
    task = QuantizedRepair(theirs, straight, inner, repaired, work, **tolerances)
    wrong = task.faults()
    patches = (*patches, *(patch for w in wrong for patch in w.patches))
    return task.finished(_patched(theirs, patches) if patches else theirs, wrong)


def _restructured(
    ours: Model, theirs: Model, inner: Repair, work: Inputs, held: Inputs, tolerances: Tolerances
) -> Repair:
    """A quantized target that has other ops than the source: those of the source take their place, in float."""
    try:
        whole = _repaired(ours, theirs, work, held, inner.holdout_note, tolerances, None)
        return replace(whole, diagnosis=replace(inner.diagnosis, comparison=whole.before))
    except OnnxFixError as error:
        before, verified = compared(ours, theirs, work, **tolerances), compared(ours, theirs, held, **tolerances)
        left = tuple(Unrepaired(f, f"the repair needs other ops than the quantized graph has: {error}")
                     for f in inner.diagnosis.faults)
        return replace(
            inner, model=theirs, target=theirs, patches=(), before=before, after=before, verified=verified,
            unrepaired=left, diagnosis=replace(inner.diagnosis, comparison=before),
        )  # fmt: skip


def _repaired(
    ours: Model, theirs: Model, work: Inputs, held: Inputs, note: str, tolerances: Tolerances, progress: Progress | None
) -> Repair:
    """Find, set right, prove."""
    boundary = settle(ours, theirs, work)
    work, held = work.bind(ours, boundary.target), held.bind(ours, boundary.target)
    inquiry = inquire(ours, boundary.target, work, progress=progress, **tolerances)
    examination = inquiry.examination
    foreign = another_network(ours, theirs) if inquiry.causes or inquiry.edits else ""
    if foreign:
        return _left(ours, theirs, concluded(inquiry, work), foreign, (work, held), note, tolerances)
    model, canonical, patches, left = _treated(examination, remedies(examination, inquiry.causes), work)
    if progress is not None:
        progress("verifying", 0.0)
    after = _after(examination, canonical, work, tolerances) if patches else examination.comparison
    verified = _verified(ours, model, held, tolerances)
    before, diagnosis = inquiry.before, concluded(inquiry, work)
    if boundary.changes:
        before = compared(ours, theirs, work, **tolerances)
        diagnosis = boundary.with_faults(diagnosis, before)
        left = (*(Unrepaired(c.fault, c.reason) for c in boundary.changes if c.reason), *left)
    if progress is not None:
        progress("verifying", 1.0)
    return Repair(
        model=model,
        source=ours,
        target=theirs,
        diagnosis=diagnosis,
        patches=(*boundary.patches, *inquiry.edits, *patches),
        before=before,
        after=after,
        verified=verified,
        unrepaired=left,
        holdout=held,
        holdout_note=note,
    )


def _left(
    ours: Model, theirs: Model, diagnosis: Diagnosis, reason: str, data: tuple[Inputs, Inputs], note: str,
    tolerances: Tolerances,
) -> Repair:
    """No repair of a target, for one reason."""
    before, verified = (compared(ours, theirs, part, **tolerances) for part in data)
    return Repair(
        model=theirs, source=ours, target=theirs, diagnosis=replace(diagnosis, comparison=before), patches=(),
        before=before, after=before, verified=verified, holdout=data[1], holdout_note=note,
        unrepaired=tuple(Unrepaired(fault, reason) for fault in diagnosis.faults),
    )  # fmt: skip


def _treated(
    examination: Examination, chosen: Sequence[Remedy], work: Inputs
) -> tuple[Model, onnx.ModelProto, tuple[Patch, ...], tuple[Unrepaired, ...]]:
    """Apply the remedies that work: to the caller's own graph where it has a place for all, else to the normal form.

    Returns:
        The repaired model, its canonical graph, the patches, and what is left.
    """
    target = examination.target
    working: list[Remedy] = []
    left: list[Unrepaired] = []
    for remedy in chosen:
        reason = remedy.reason or _objection(examination, remedy)
        if reason:
            left.extend(Unrepaired(cause.fault, reason) for cause in remedy.causes if not cause.follows)
        else:
            working.append(remedy)
    if not working:
        return target, target.canonical, (), tuple(left)
    # Gaps come last: they rewire operands of nodes that may themselves have been exchanged.
    working.sort(key=lambda remedy: not remedy.finding.region.matched)
    canonical = apply(target.canonical, (p for r in working for p in r.canonical or ()))
    if all(remedy.lowered is not None for remedy in working):
        patches = tuple(_in_place(p, target) for p in _merged(p for r in working for p in r.lowered or ()))
        return _patched(target, patches), canonical, patches, tuple(left)
    carried = _carried_over(target, working, canonical, work, examination.source)
    if carried is not None:
        return _patched(target, carried), canonical, carried, tuple(left)
    patches = tuple(p for r in working for p in r.canonical or ())
    return Model(canonical, Framework.ONNX, canonical), canonical, patches, tuple(left)


def _carried_over(
    target: Model, working: Sequence[Remedy], canonical: onnx.ModelProto, data: Inputs, source: Model
) -> tuple[Patch, ...] | None:
    """All remedies as patches of the lowered graph, those that the normal form has a place for grafted into it."""
    feeds = next(in_chunks(source, target, data)).target
    own = _merged(p for r in working for p in r.lowered or ())
    grafts = grafted(target, [p for r in working if r.lowered is None for p in r.canonical or ()], feeds)
    if grafts is None:
        return None
    patches = (*(_in_place(p, target) for p in own), *grafts)
    return patches if agrees(target, patches, canonical, feeds) else None


def _objection(examination: Examination, remedy: Remedy) -> str:
    """Why a remedy does not do: judged on its region alone, with the recorded values."""
    finding = remedy.finding
    if not finding.region.matched:
        return ""
    error = evaluate_corrected(examination.alignment, finding.region, finding.differences, finding.recording)
    if not is_guilty(error, finding.noise):
        return ""
    return error.broken or f"with the source's values the region still differs by {error.relative:.2g}"


def _merged(patches: Iterable[Patch]) -> tuple[Patch, ...]:
    """One patch where several ask for the same: nodes that share a parameter and want the same, or parts of it."""
    kept: list[Patch] = []
    for patch in patches:
        twin = next((k for k, p in enumerate(kept) if _same_wish(p, patch)), None)
        if twin is None:
            kept.append(patch)
            continue
        first = kept[twin]
        if isinstance(first, SetParameter) and isinstance(patch, SetParameter):
            value = np.where(_moved(first), first.value, patch.value).astype(first.value.dtype)
            kept[twin] = replace(first, value=value, readers=tuple(dict.fromkeys((*first.readers, *patch.readers))))
    return tuple(kept)


def _in_place(patch: Patch, target: Model) -> Patch:
    """Readers are named only where others keep the old value; else the parameter itself changes."""
    if not isinstance(patch, SetParameter) or not patch.readers:
        return patch
    return replace(patch, readers=()) if set(readers(target, patch.name)) <= set(patch.readers) else patch


def _same_wish(a: Patch, b: Patch) -> bool:
    if isinstance(a, SetParameter) and isinstance(b, SetParameter):
        if a.name != b.name or np.shape(a.value) != np.shape(b.value):
            return False
        apart = not (_moved(a) & _moved(b)).any() and sorted(a.readers) == sorted(b.readers)
        return apart or np.allclose(a.value, b.value, rtol=1e-6, atol=1e-7)
    return False


def _moved(patch: SetParameter) -> np.ndarray:
    """The elements that a patch changes: nodes may each read a part of a parameter."""
    return np.asarray(np.not_equal(patch.value, patch.previous))


def _patched(target: Model, patches: Sequence[Patch]) -> Model:
    """The target with lowered patches, as an ONNX model."""
    return _as_onnx(target, apply(target.proto, patches))


def _at_home(fix: Repair) -> Model:
    """The repaired model in the target's own framework where that can express all patches."""
    target = fix.target
    if fix.model.framework == target.framework or not fix.patches:
        return fix.model
    try:
        return in_framework(target, fix.model.proto, fix.patches, fix.source, fix.holdout)
    except OnnxFixError:
        return fix.model


def _as_onnx(target: Model, proto: onnx.ModelProto) -> Model:
    """A model whose nodes keep the layers they came from, but which only ONNX can run."""
    own = {t.name: t.name for t in proto.graph.initializer}
    return Model(proto, Framework.ONNX, proto, parameters=own, layers=target.layers)


def _after(
    examination: Examination, canonical: onnx.ModelProto, work: Inputs, tolerances: Tolerances
) -> Comparison:
    """The repaired normal form against the source's outputs kept from the examination."""
    source, target = examination.source, examination.target
    accumulator = Accumulator.for_models(source, target, **tolerances)
    session = Session(canonical)
    for chunk, expected in zip(in_chunks(source, target, work), examination.source_outputs, strict=True):
        accumulator.add(expected, list(session.run(chunk.target).values()), chunk.count)
    return accumulator.result()


def _verified(source: Model, repaired: Model, held: Inputs, tolerances: Tolerances) -> Comparison:
    """The whole repaired model, as it will be given back, against the source on held-out data."""
    accumulator = Accumulator.for_models(source, repaired, **tolerances)
    session = Session(source.canonical)
    for chunk in in_chunks(source, repaired, held):
        expected = list(session.run(chunk.source).values())
        accumulator.add(expected, list(repaired.run(chunk.target).values()), chunk.count)
    return accumulator.result()
