"""The source's own noise floor: what rounding of its inputs alone does to its outputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from onnxfix.compare.comparators import Choice
from onnxfix.compare.output import OutputTrack

if TYPE_CHECKING:
    from onnxfix.model import Model


def noise_floor(source: Model, feed: Mapping[str, np.ndarray], seed: int = 0) -> float:
    """Relative change of the source's outputs when its inputs move by one unit in the last place.

    Whole numbers stay as they are (a step of floor or round lies there, and is no noise), and the median over the
    samples is taken, so that a jump on one sample does not excuse the others.

    Args:
        source: The model.
        feed: A batch for it.
        seed: Seed of the signs.

    Returns:
        The largest over the outputs of the median over the samples of max|change| / max|output|.
    """
    random = np.random.default_rng(seed)
    nudged = {name: _nudge(array, random) for name, array in feed.items()}
    before, after = source.run(feed), source.run(nudged)
    floors = []
    for name, output in before.items():
        track = OutputTrack(name, name, Choice("regression"), frozenset(), movable=False)
        rows = output.shape[0] if output.ndim else None
        track.add(output, after[name], 0, rows)
        floors.append(float(np.median([relative for _, relative in track.badness(0.0)])))
    return max((f for f in floors if np.isfinite(f)), default=0.0)


def _nudge(array: np.ndarray, random: np.random.Generator) -> np.ndarray:
    if array.dtype.kind != "f":
        return array
    towards = np.where(random.random(array.shape) < 0.5, -np.inf, np.inf).astype(array.dtype)
    return np.where(array == np.rint(array), array, np.nextafter(array, towards))


