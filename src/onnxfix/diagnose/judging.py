"""Judging regions on recorded values: how far off, how much of it is noise, which difference makes it so."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from onnxfix.align import Alignment, Region
from onnxfix.diagnose.compensation import without_compensations
from onnxfix.diagnose.differences import Difference, corrected
from onnxfix.diagnose.finding import Finding, Recording
from onnxfix.diagnose.noise import MARGIN, is_guilty, noise_floor
from onnxfix.diagnose.storage import expected_error, is_as_stored
from onnxfix.diagnose.weights import factor_between
from onnxfix.errors import OnnxFixError, RuntimeFailure
from onnxfix.model import Model
from onnxfix.runtime.assembly import assemble
from onnxfix.runtime.probe import LocalError, measure, piece
from onnxfix.runtime.session import Session

Feed = Mapping[str, np.ndarray]

# A fault of less than this share of what the storage of a region costs cannot be told from it.
DROWNED = 0.004
# What storage costs is measured with the source's values, and met again with these rounded.
ROOM = 1.5


@dataclass(frozen=True, eq=False)
class Suspect:
    """A region that differs statically; ``differences`` is empty for a gap."""

    region: Region
    differences: tuple[Difference, ...]


class Judge:
    """Tells guilt from noise, region by region, on recorded values.

    Args:
        alignment: The alignment.
        target: The target.
        feed_of: Gives the source's feed of a chunk of the data.
    """

    def __init__(self, alignment: Alignment, target: Model, feed_of: Callable[[int], Feed]) -> None:
        self.alignment, self.target = alignment, target
        self.feed_of = cache(feed_of)

    def findings(
        self, suspects: Sequence[Suspect], errors: Sequence[LocalError], telling: Sequence[tuple[int, list[int]]]
    ) -> tuple[Finding, ...]:
        """The guilty among the suspects, the largest error first."""
        found = []
        for chunk, members in telling:
            recordings = record(self.alignment, [suspects[k].region for k in members], self.feed_of(chunk))
            for k, recording in zip(members, recordings, strict=True):
                finding = self._finding(suspects[k], errors[k], recording, chunk)
                if finding is not None:
                    found.append(finding)
        kept = without_compensations(self.alignment, found, self._is_innocent)
        order = self.alignment.target.order
        place = {f: min((order[n] for n in f.region.target_nodes), default=0) for f in kept}
        return _effects_last(sorted(kept, key=lambda f: (-min(f.error.relative, 1e30), place[f])))

    def _finding(self, suspect: Suspect, error: LocalError, recording: Recording, chunk: int) -> Finding | None:
        region = suspect.region
        telling = tuple(d for d in suspect.differences if not self._as_stored(region, d))
        if suspect.differences and not telling:
            return None
        noise = _noise(self.alignment, region, recording)
        if error.broken or not np.isfinite(error.relative):
            error = evaluate_target(self.alignment, region, recording)
        excused = 0.0 if suspect.differences else self._excused(region)
        stored = [d for d in suspect.differences if d not in telling]
        allowed = noise
        if stored:
            # What is stored in fewer bits costs something, whatever else is wrong: the rest is judged without it.
            cost = evaluate_corrected(self.alignment, region, telling, recording)
            error = evaluate_corrected(self.alignment, region, stored, recording)
            excused, allowed = DROWNED * cost.relative, _larger(noise, cost)
        if not is_guilty(error, noise, excused):
            return None
        noise = allowed
        if len(telling) > 1:
            telling = _guilty_differences(self.alignment, suspect, telling, recording, noise)
        return Finding(region, telling, error, noise, recording, chunk, self.alignment)

    def _is_innocent(self, region: Region, chunk: int) -> bool:
        [recording] = record(self.alignment, [region], self.feed_of(chunk))
        error = evaluate_target(self.alignment, region, recording)
        return not is_guilty(error, _noise(self.alignment, region, recording), self._excused(region))

    def _as_stored(self, region: Region, difference: Difference) -> bool:
        node = self.alignment.target.nodes[region.target_nodes[0]]
        if not 0 <= difference.slot < len(node.input):
            return False
        return is_as_stored(self.target, node.input[difference.slot], difference.expected, difference.actual)

    def _excused(self, region: Region) -> float:
        return expected_error(self.target, self.alignment.target, region.target_nodes)


def _effects_last(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    """The findings, with a scaled weight behind the gap that feeds it.

    What stands in for an op may hand on values of another scale, which the converter then put right in the next weight.
    Such a weight may err more than the gap, but it is the gap's effect.
    """
    left = {value for f in findings if not f.differences for _, value in f.region.outputs}
    behind = [f for f in findings if f.differences and left.intersection(f.region.feeds)]
    effects = {f for f in behind if _are_scaled(f.differences)}
    return (*(f for f in findings if f not in effects), *(f for f in findings if f in effects))


def _are_scaled(differences: Sequence[Difference]) -> bool:
    pairs = ((difference.expected, difference.actual) for difference in differences)
    return all(
        isinstance(a, np.ndarray) and isinstance(b, np.ndarray) and a.size > 1 and factor_between(a, b) is not None
        for a, b in pairs
    )


def _larger(noise: LocalError, cost: LocalError) -> LocalError:
    """The noise of a region together with what its storage costs; a cost is known and needs no margin."""
    if cost.broken:
        return noise
    return LocalError(
        max(noise.max_difference, ROOM * cost.max_difference / MARGIN),
        max(noise.rms_difference, ROOM * cost.relative_rms * (noise.rms_source or cost.rms_source) / MARGIN),
        noise.max_source or cost.max_source,
        noise.rms_source or cost.rms_source,
    )


def record(
    alignment: Alignment, chosen: Sequence[Region], feed: Mapping[str, np.ndarray]
) -> list[Recording]:
    """Run the source once and keep what enters and leaves the chosen regions."""
    source = alignment.source
    wanted: dict[str, None] = {}
    for region in chosen:
        wanted.update(dict.fromkeys((*_entering(alignment, region), *(s for s, _ in region.outputs))))
    computed = [v for v in wanted if v in source.producer]
    nodes = sorted({n for v in computed for n in source.upstream(v, set())[0]}, key=source.order.__getitem__)
    values: dict[str, np.ndarray] = {v: source.constant(v) for v in wanted if source.is_constant(v)}
    values.update((v, feed[v]) for v in wanted if v in source.inputs)
    if computed:
        values.update(Session(piece(source, nodes, source.inputs, computed)).run(feed, computed))
    return [
        Recording(
            {v: values[v] for v in _entering(alignment, region)}, tuple(values[s] for s, _ in region.outputs)
        )
        for region in chosen
    ]


def _entering(alignment: Alignment, region: Region) -> tuple[str, ...]:
    """Source values that enter either side's piece of a region."""
    return tuple(dict.fromkeys([*region.feeds.values(), *entering_source(alignment, region)]))


def entering_source(alignment: Alignment, region: Region) -> tuple[str, ...]:
    """Source values that enter the source's piece of a region."""
    inside = {o for n in region.source_nodes for o in alignment.source.nodes[n].output}
    own = (v for n in region.source_nodes for v in alignment.source.operands(n) if v not in inside)
    # What a region hands on as it came in (an op that is only the target's) enters it, too.
    through = (s for s, _ in region.outputs if s not in inside and not alignment.source.is_constant(s))
    return tuple(dict.fromkeys((*own, *(through if region.source_nodes else ()))))


def _noise(alignment: Alignment, region: Region, recording: Recording) -> LocalError:
    if not region.source_nodes:
        return LocalError()
    own = entering_source(alignment, region)
    model = piece(alignment.source, region.source_nodes, own, [s for s, _ in region.outputs])
    return noise_floor(model, {v: recording.feeds[v] for v in own}, recording.outputs)


def evaluate_target(alignment: Alignment, region: Region, recording: Recording) -> LocalError:
    """The region's own error on recorded values."""
    try:
        model = piece(alignment.target, region.target_nodes, list(region.feeds), [t for _, t in region.outputs])
        feeds = {t: recording.feeds[s] for t, s in region.feeds.items()}
        return measure(recording.outputs, list(Session(model).run(feeds).values()))
    except RuntimeFailure as error:
        return LocalError(broken=str(error))


def evaluate_corrected(
    alignment: Alignment, region: Region, chosen: Sequence[Difference], recording: Recording
) -> LocalError:
    """The error of a matched node in which the chosen differences are set to the source's values."""
    node, constants = corrected(alignment, region, chosen)
    inputs = {t: alignment.target.element_types.get(t, 0) for t in region.feeds}
    model = assemble(alignment.target.proto, [node], constants, inputs, [t for _, t in region.outputs])
    try:
        outputs = Session(model).run({t: recording.feeds[s] for t, s in region.feeds.items()})
        return measure(recording.outputs, list(outputs.values()))
    except OnnxFixError as error:
        return LocalError(broken=str(error))


def _guilty_differences(
    alignment: Alignment, suspect: Suspect, telling: tuple[Difference, ...], recording: Recording, noise: LocalError
) -> tuple[Difference, ...]:
    """Of several differences, the one whose correction is enough; else those that err when all others are corrected."""
    for difference in telling:
        if not is_guilty(evaluate_corrected(alignment, suspect.region, [difference], recording), noise):
            return (difference,)
    guilty = []
    for difference in telling:
        others = [d for d in suspect.differences if d is not difference]
        if is_guilty(evaluate_corrected(alignment, suspect.region, others, recording), noise):
            guilty.append(difference)
    return tuple(guilty) or telling
