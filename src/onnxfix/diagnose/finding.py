"""What an examination finds: guilty regions, and what entered and left them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from onnxfix.align import Alignment, Region
from onnxfix.diagnose.differences import Difference
from onnxfix.runtime.probe import LocalError


@dataclass(frozen=True, eq=False)
class Recording:
    """What entered and left a region of the source on one chunk of data.

    Attributes:
        feeds: Source value -> array, for everything that either side's piece is fed with.
        outputs: The source's outputs of the region.
    """

    feeds: Mapping[str, np.ndarray]
    outputs: tuple[np.ndarray, ...]


@dataclass(frozen=True, eq=False)
class Finding:
    """A guilty region.

    Attributes:
        region: Where.
        differences: For a matched node, the differences that make it guilty; empty for a gap.
        error: Its local error over all data.
        noise: The part of it that noise explains.
        recording: Boundary values on a chunk of the data that shows the error.
        chunk: Index of that chunk.
        alignment: The graphs that the region is a piece of.
    """

    region: Region
    differences: tuple[Difference, ...]
    error: LocalError
    noise: LocalError
    recording: Recording
    chunk: int
    alignment: Alignment
