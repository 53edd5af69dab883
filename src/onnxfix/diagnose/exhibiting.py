"""Exhibits of faults: guilty regions on recorded values, whole models on the data."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from onnxfix.diagnose.differences import Difference, corrected
from onnxfix.diagnose.evidence import Exhibit
from onnxfix.diagnose.fault import Fault
from onnxfix.diagnose.finding import Finding
from onnxfix.diagnose.judging import entering_source
from onnxfix.errors import AlignmentError, InputError
from onnxfix.inputs import Inputs
from onnxfix.model import Model
from onnxfix.runtime.assembly import assemble
from onnxfix.runtime.probe import piece


def exhibit(finding: Finding, difference: Difference | None = None) -> Exhibit:
    """The guilty region, fed with what the source has there.

    Args:
        finding: The finding.
        difference: The one of several differences that is to be shown alone.
    """
    alignment, region, recording = finding.alignment, finding.region, finding.recording
    outputs = [t for _, t in region.outputs]
    others = [d for d in finding.differences if d is not difference]
    if region.matched and others and len(others) < len(finding.differences):
        node, constants = corrected(alignment, region, others)
        types = {t: alignment.target.element_types.get(t, 0) for t in region.feeds}
        model = assemble(alignment.target.proto, [node], constants, types, outputs)
    else:
        model = piece(alignment.target, region.target_nodes, list(region.feeds), outputs)
    own = list(entering_source(alignment, region))
    feeds = {t: recording.feeds[s] for t, s in region.feeds.items()}
    reference = None
    if [region.feeds[t] for t in feeds] == own:
        reference = piece(alignment.source, region.source_nodes, own, [s for s, _ in region.outputs])
    return Exhibit(model, reference, feeds, recording.outputs)


def show_whole(faults: Iterable[Fault], source: Model, target: Model, data: Inputs) -> None:
    """Let faults know the models and the data that show them all together."""
    for fault in faults:
        fault.evidence.whole = lambda: _whole(source, target, data)


def _whole(source: Model, target: Model, data: Inputs) -> Exhibit:
    """The target on the sample on which it is furthest off, or on what it cannot be fed."""
    try:
        pairs = [(chunk.source, chunk.target) for chunk in data.chunks(source, target)]
    except (InputError, AlignmentError):
        names = [spec.name for spec in target.inputs]
        pairs = [(feed, dict(zip(names, feed.values(), strict=False))) for feed in data.bind(source).feeds(source)]
    exhibits = [
        Exhibit(target.proto, source.proto, theirs, tuple(source.run(ours).values()), whole=True)
        for ours, theirs in pairs
    ]
    return max(exhibits, key=lambda exhibit: np.nan_to_num(exhibit.error(), posinf=1e300))
