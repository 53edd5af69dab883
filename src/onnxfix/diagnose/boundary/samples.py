"""A few samples through both models, and how far two arrays are apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnxfix.compare import Accumulator
from onnxfix.inputs import Inputs
from onnxfix.model import Model

Feeds = Mapping[str, np.ndarray]

# Samples by which boundary faults are found: enough to tell a class from another, few enough to cost little.
SAMPLES = 8


@dataclass(frozen=True, eq=False)
class Samples:
    """The same samples for both models, feed by feed.

    Attributes:
        source: Feeds of the source.
        target: Feeds of the target.
        counts: How many samples each feed holds.
    """

    source: tuple[Feeds, ...]
    target: tuple[Feeds, ...]
    counts: tuple[int, ...]

    @classmethod
    def of(cls, source: Model, target: Model, data: Inputs, wanted: int = SAMPLES) -> Samples:
        """The first ``wanted`` samples.

        Raises:
            InputError: data do not fit a model.
            AlignmentError: the models do not take the same inputs.
        """
        ours, theirs, counts = [], [], []
        bound = Inputs.of(data, batch_size=wanted).bind(source, target)
        for chunk in bound.chunks(source, target):
            ours.append(chunk.source)
            theirs.append(chunk.target)
            counts.append(chunk.count)
            if sum(counts) >= wanted:
                break
        return cls(tuple(ours), tuple(theirs), tuple(counts))

    def run(self, model: Model, side: str) -> list[list[np.ndarray]]:
        """All outputs of one model: output -> one array per feed."""
        feeds = self.source if side == "source" else self.target
        runs = [[*model.run(feed).values()] for feed in feeds]
        return [list(column) for column in zip(*runs, strict=True)]


def agree(source: Model, target: Model, samples: Samples) -> bool:
    """Whether the whole models agree on the samples, as a comparison of them would say."""
    accumulator = Accumulator.for_models(source, target)
    for ours, theirs, count in zip(samples.source, samples.target, samples.counts, strict=True):
        accumulator.add([*source.run(ours).values()], [*target.run(theirs).values()], count)
    return accumulator.result().equivalent


def distance(ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray]) -> float:
    """How far arrays are apart: 0 equal, about 1.4 unrelated, infinite where shapes differ.

    Root mean square of the difference, divided by the standard deviation of the source's values (their root mean
    square where they are all the same). Numbers that are not finite are left out.
    """
    if any(a.shape != b.shape for a, b in zip(ours, theirs, strict=True)):
        return float("inf")
    a, b = (np.concatenate([x.astype(np.float64).reshape(-1) for x in side]) for side in (ours, theirs))
    usable = np.isfinite(a) & np.isfinite(b)
    a, b = a[usable], b[usable]
    if not a.size:
        return float("inf")
    apart = float(np.sqrt(np.mean(np.square(b - a))))
    scale = float(np.std(a)) or float(np.sqrt(np.mean(np.square(a))))
    if apart == 0:
        return 0.0
    return apart / scale if scale else float("inf")
