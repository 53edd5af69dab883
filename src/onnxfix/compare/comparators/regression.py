"""Outputs that are just numbers."""

from __future__ import annotations

import numpy as np

from onnxfix.compare.comparators.verdict import Verdict


class Regression:
    """Compares the numbers only."""

    name = "regression"

    def suits(self, output: np.ndarray) -> bool:
        """Any output."""
        return True

    def recognises(self, output: np.ndarray, input_widths: frozenset[int]) -> bool:
        """Any output that no other comparator recognises."""
        return True

    def judge(self, source: np.ndarray, target: np.ndarray) -> Verdict | None:
        """Nothing beyond the numbers."""
        return None
