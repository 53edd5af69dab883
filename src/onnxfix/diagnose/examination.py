"""The examination behind a diagnosis: align, probe, judge. It keeps everything a repair needs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
import onnx
from onnx import helper

from onnxfix.align import Alignment, GraphView, align, regions
from onnxfix.compare import Accumulator, Comparison
from onnxfix.diagnose.differences import differences
from onnxfix.diagnose.finding import Finding
from onnxfix.diagnose.hidden import hidden_findings
from onnxfix.diagnose.judging import Feed, Judge, Suspect
from onnxfix.diagnose.noise import FLOOR, is_guilty
from onnxfix.diagnose.soundness import sound
from onnxfix.errors import RuntimeFailure
from onnxfix.inputs import Chunk, Inputs, pair_inputs, pair_outputs
from onnxfix.model import Model
from onnxfix.runtime.probe import LocalError, Probe

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
    notes: tuple[str, ...] = ()
    hidden: tuple[Finding, ...] = ()


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
    first = next(iter(in_chunks(source, target, Inputs.of(data, batch_size=1))))
    source, note = sound(source, first.source, "source")
    target, other = sound(target, first.target, "target")
    alignment = _alignment(source, target)
    suspects = _suspects(alignment)
    tell("probing", 0.0)
    probe, together = _probe(alignment, suspects)

    def run() -> tuple[Accumulator, list[tuple[np.ndarray, ...]]]:
        accumulator = Accumulator.for_models(source, target, rtol=rtol, atol=atol)
        return accumulator, _run(probe, in_chunks(source, target, data), data.count, accumulator, tell)

    try:
        accumulator, outputs = run()
    except RuntimeFailure:
        if not together:
            raise
        probe, together = Probe(alignment.source, alignment.target, []), False
        accumulator, outputs = run()
    comparison = accumulator.result()
    worst = 0 if together else chunk_of(comparison.worst, in_chunks(source, target, data))
    errors, telling = _readings(probe, len(suspects), together, worst)
    tell("judging", 0.0)

    def feed_of(chunk: int) -> Feed:
        return next(islice(in_chunks(source, target, data), chunk, None)).source

    judge = Judge(alignment, target, feed_of)
    findings = () if _agree(comparison) else judge.findings(suspects, errors, telling)
    hidden = hidden_findings(alignment, target, suspects, errors, feed_of)
    tell("judging", 1.0)
    notes = tuple(text for text in (note, other) if text)
    return Examination(source, target, alignment, comparison, findings, tuple(outputs), notes, hidden)


def _readings(
    probe: Probe, suspects: int, together: bool, worst: int
) -> tuple[list[LocalError], list[tuple[int, list[int]]]]:
    """Each suspect's error over the data, and on which chunks to judge which of them.

    Where the suspects could not run together nothing is known yet, and all are judged on the worst chunk.
    """
    if not together:
        return [LocalError(broken="it does not run") for _ in range(suspects)], [(worst, list(range(suspects)))]
    errors = probe.errors()
    loud = [k for k, error in enumerate(errors) if is_guilty(error, LocalError())]
    return errors, probe.telling_chunks(loud)


def chunk_of(worst: Sequence[int], chunks: Iterable[Chunk]) -> int:
    """The chunk that holds the sample on which the models differ most."""
    ends = (chunk.start + chunk.count for chunk in chunks)
    return next((k for k, end in enumerate(ends) if worst and worst[0] < end), 0)


def _agree(comparison: Comparison) -> bool:
    """Whether the whole models agree to the last bits: then no difference between them is a fault."""
    return comparison.equivalent and comparison.max_rel <= FLOOR


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
    moved = {pair.source.name: pair.permutation for pair in pair_outputs(source, target) if pair.permutation}
    if adapters or moved:
        ours = _adapted(ours, adapters, moved if _movable(source, target) else {})
    return align(GraphView(ours), theirs, inputs)


def _movable(source: Model, target: Model) -> bool:
    """Whether outputs may have their channels elsewhere: the inputs do too, or have no layout to keep."""
    pairs = pair_inputs(source, target)
    return any(pair.permutation for pair in pairs) or all(len(pair.source.shape or ()) < 3 for pair in pairs)


def _adapted(
    proto: onnx.ModelProto, before: Sequence[onnx.NodeProto], moved: Mapping[str, tuple[int, ...]]
) -> onnx.ModelProto:
    """The source's graph with the target's layout at its boundary."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    own = list(copy.graph.node)
    del copy.graph.node[:]
    copy.graph.node.extend([*before, *own])
    types = {value.name: value.type.tensor_type.elem_type for value in copy.graph.input}
    copy.graph.value_info.extend(
        helper.make_tensor_value_info(node.output[0], types[node.input[0]], None) for node in before
    )
    for output in copy.graph.output:
        if output.name in moved:
            copy.graph.value_info.add().CopyFrom(output)
            name = f"{output.name}/moved"
            perm = moved[output.name]
            copy.graph.node.append(helper.make_node("Transpose", [output.name], [name], name, perm=perm))
            output.name = name
            output.type.tensor_type.ClearField("shape")
    return copy


def _suspects(alignment: Alignment) -> list[Suspect]:
    """Regions that differ statically; all others are innocent without being run."""
    nodes, gaps = regions(alignment)
    found = [Suspect(region, ()) for region in gaps]
    for region in nodes:
        static = differences(alignment, region)
        if static:
            found.append(Suspect(region, static))
    return found


def _probe(alignment: Alignment, suspects: Sequence[Suspect]) -> tuple[Probe, bool]:
    """The probe of all suspects; one of the whole models only where they cannot be put into one graph."""
    try:
        return Probe(alignment.source, alignment.target, [s.region for s in suspects]), True
    except RuntimeFailure:
        return Probe(alignment.source, alignment.target, []), False


def _run(
    probe: Probe, chunks: Iterable[Chunk], total: int, accumulator: Accumulator, tell: Progress
) -> list[tuple[np.ndarray, ...]]:
    kept = []
    for chunk in chunks:
        source, target = probe.run(chunk.source, chunk.target)
        accumulator.add(source, target, chunk.count)
        kept.append(tuple(source))
        tell("probing", min(1.0, accumulator.count / max(total, 1)))
    return kept
