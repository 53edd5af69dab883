"""What a comparator says about a batch of samples."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Verdict:
    """One number per sample of each.

    Attributes:
        differs: Whether the label differs.
        margin: The source's lead of the best class over the second, relative to its largest magnitude.
        tau: Rank correlation, -1..1; NaN where it is not defined.
    """

    differs: np.ndarray
    margin: np.ndarray
    tau: np.ndarray
