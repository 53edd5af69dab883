"""The examination behind a diagnosis: align, probe, judge. It keeps everything a repair needs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import helper

from onnxfix.align import Alignment, GraphView, Region, align, regions
from onnxfix.compare import Accumulator, Comparison
from onnxfix.diagnose.compensation import without_compensations
from onnxfix.diagnose.differences import Difference, corrected, differences
from onnxfix.diagnose.finding import Finding, Recording
from onnxfix.diagnose.noise import is_guilty, noise_floor
from onnxfix.errors import OnnxFixError, RuntimeFailure
from onnxfix.inputs import Chunk, Inputs, pair_inputs
from onnxfix.model import Model
from onnxfix.runtime.assembly import assemble
from onnxfix.runtime.probe import LocalError, Probe, measure, piece
from onnxfix.runtime.session import Session

Progress = Callable[[str, float], None]

# Samples per chunk of the probe: large enough to keep the kernels busy, small enough to record whole.
CHUNK = 8


@dataclass(frozen=True, eq=False)
class Examination:
    """Everything that was found out about a pair of models."""

    source: Model
    target: Model
    alignment: Alignment
    comparison: Comparison
    findings: tuple[Finding, ...]
    source_outputs: tuple[tuple[np.ndarray, ...], ...] = field(repr=False, default=())


def examine(
    source: Model,
    target: Model,
    data: Inputs,
    *,
    rtol: float = 1e-3,
    atol: float = 0.0,
    progress: Progress | None = None,
) -> Examination:
    """Align two models, probe every suspicious region over the data, judge each against its own noise.

    Args:
        source: The model that is right.
        target: The conversion of it.
        data: The data.
        rtol: Relative tolerance of the whole models' comparison.
        atol: Absolute tolerance of the same.
        progress: Told a stage and the fraction done.

    Raises:
        AlignmentError: the models' inputs do not correspond.
        RuntimeFailure: a model does not run.
    """
    tell = progress or (lambda stage, fraction: None)
    tell("aligning", 0.0)
    alignment = _alignment(source, target)
    suspects = _suspects(alignment)
    chunks = list(in_chunks(source, target, data))
    tell("probing", 0.0)
    probe, together = _probe(alignment, suspects)

    def run() -> tuple[Accumulator, list[tuple[np.ndarray, ...]]]:
        accumulator = Accumulator.for_models(source, target, rtol=rtol, atol=atol)
        return accumulator, _run(probe, chunks, accumulator, tell)

    try:
        accumulator, outputs = run()
    except RuntimeFailure:
        if not together:
            raise
        probe, together = Probe(alignment.source, alignment.target, []), False
        accumulator, outputs = run()
    if together:
        errors = probe.errors()
        loud = [k for k, error in enumerate(errors) if is_guilty(error, LocalError())]
        telling = probe.telling_chunks(loud)
    else:
        errors = [LocalError(broken="it does not run") for _ in suspects]
        telling = [(0, list(range(len(suspects))))]
    tell("judging", 0.0)
    findings = _judge(alignment, suspects, errors, telling, chunks)
    tell("judging", 1.0)
    return Examination(source, target, alignment, accumulator.result(), findings, tuple(outputs))


def in_chunks(source: Model, target: Model, data: Inputs) -> Iterator[Chunk]:
    """The data for both models, in chunks small enough to be recorded."""
    return Inputs.of(data, batch_size=min(CHUNK, data.batch_size)).chunks(source, target)


def _alignment(source: Model, target: Model) -> Alignment:
    ours, theirs = source.canonical, GraphView(target.canonical)
    inputs = {}
    adapters = []
    for pair in pair_inputs(source, target):
        inputs[pair.target.name] = pair.source.name
        if pair.permutation is not None:
            # The target's own layout of an input exists in the source as a value that nothing else reads.
            name = f"{pair.source.name}/as/{pair.target.name}"
            inputs[pair.target.name] = name
            adapters.append(helper.make_node("Transpose", [pair.source.name], [name], name, perm=pair.permutation))
    if adapters:
        ours = _with_nodes(ours, adapters)
    return align(GraphView(ours), theirs, inputs)


def _with_nodes(proto: onnx.ModelProto, nodes: Sequence[onnx.NodeProto]) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    own = list(copy.graph.node)
    del copy.graph.node[:]
    copy.graph.node.extend([*nodes, *own])
    return copy


@dataclass(frozen=True, eq=False)
class _Suspect:
    region: Region
    differences: tuple[Difference, ...]
    broken: str = ""


def _suspects(alignment: Alignment) -> list[_Suspect]:
    """Regions that differ statically; all others are innocent without being run."""
    nodes, gaps = regions(alignment)
    found = [_Suspect(region, ()) for region in gaps]
    for region in nodes:
        static = differences(alignment, region)
        if static:
            found.append(_Suspect(region, static))
    return found


def _probe(alignment: Alignment, suspects: Sequence[_Suspect]) -> tuple[Probe, bool]:
    """The probe of all suspects; one of the whole models only where they cannot be put into one graph."""
    try:
        return Probe(alignment.source, alignment.target, [s.region for s in suspects]), True
    except RuntimeFailure:
        return Probe(alignment.source, alignment.target, []), False


def _run(
    probe: Probe, chunks: Sequence[Chunk], accumulator: Accumulator, tell: Progress
) -> list[tuple[np.ndarray, ...]]:
    kept = []
    for k, chunk in enumerate(chunks):
        source, target = probe.run(chunk.source, chunk.target)
        accumulator.add(source, target, chunk.count)
        kept.append(tuple(source))
        tell("probing", (k + 1) / len(chunks))
    return kept


def _judge(
    alignment: Alignment,
    suspects: Sequence[_Suspect],
    errors: Sequence[LocalError],
    telling: Sequence[tuple[int, list[int]]],
    chunks: Sequence[Chunk],
) -> tuple[Finding, ...]:
    findings = []
    for chunk, members in telling:
        recordings = _record(alignment, [suspects[k].region for k in members], chunks[chunk].source)
        for k, recording in zip(members, recordings, strict=True):
            finding = _finding(alignment, suspects[k], errors[k], recording, chunk)
            if finding is not None:
                findings.append(finding)

    def is_innocent(region: Region, chunk: int) -> bool:
        [recording] = _record(alignment, [region], chunks[chunk].source)
        error = evaluate_target(alignment, region, recording)
        return not is_guilty(error, _noise(alignment, region, recording))

    findings = list(without_compensations(alignment, findings, is_innocent))
    order = alignment.target.order
    findings.sort(key=lambda f: min((order[n] for n in f.region.target_nodes), default=0))
    return tuple(sorted(findings, key=lambda f: -min(f.error.relative, 1e30)))


def _record(
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
    inside = {o for n in region.source_nodes for o in alignment.source.nodes[n].output}
    own = (v for n in region.source_nodes for v in alignment.source.operands(n) if v not in inside)
    return tuple(dict.fromkeys([*region.feeds.values(), *own]))


def _finding(
    alignment: Alignment, suspect: _Suspect, error: LocalError, recording: Recording, chunk: int
) -> Finding | None:
    region = suspect.region
    noise = _noise(alignment, region, recording)
    if error.broken or not np.isfinite(error.relative):
        error = evaluate_target(alignment, region, recording)
    if not is_guilty(error, noise):
        return None
    guilty = suspect.differences
    if len(guilty) > 1:
        guilty = _guilty_differences(alignment, suspect, recording, noise)
    return Finding(region, guilty, error, noise, recording, chunk)


def _noise(alignment: Alignment, region: Region, recording: Recording) -> LocalError:
    if not region.source_nodes:
        return LocalError()
    own = _entering(alignment, region)
    model = piece(alignment.source, region.source_nodes, own, [s for s, _ in region.outputs])
    return noise_floor(model, recording.feeds, recording.outputs)


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
    alignment: Alignment, suspect: _Suspect, recording: Recording, noise: LocalError
) -> tuple[Difference, ...]:
    """Of several differences, those that make an error by themselves when all others are corrected."""
    guilty = []
    for difference in suspect.differences:
        others = [d for d in suspect.differences if d is not difference]
        if is_guilty(evaluate_corrected(alignment, suspect.region, others, recording), noise):
            guilty.append(difference)
    return tuple(guilty) or suspect.differences
