"""What beyond numbers two outputs are compared by. A comparator is one class in one file, announced here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from onnxfix.compare.comparators.classification import Classification
from onnxfix.compare.comparators.regression import Regression
from onnxfix.compare.comparators.verdict import Verdict
from onnxfix.errors import InputError


class Comparator(Protocol):
    """Compares what an output means, sample by sample."""

    name: str

    def suits(self, output: np.ndarray) -> bool:
        """Whether it can be applied to such an output at all."""
        ...

    def recognises(self, output: np.ndarray, input_widths: frozenset[int]) -> bool:
        """Whether ``auto`` should choose it, given how many numbers a sample of each input has."""
        ...

    def judge(self, source: np.ndarray, target: np.ndarray) -> Verdict | None:
        """Compare rows of the same samples; None when there is nothing to say beyond the numbers."""
        ...


COMPARATORS: tuple[Comparator, ...] = (Classification(), Regression())
"""In the order in which ``auto`` asks them; the last one takes everything."""


@dataclass(frozen=True)
class Choice:
    """The comparator that a caller asked for, by name or ``auto``.

    Raises:
        InputError: there is no comparator of that name.
    """

    name: str

    def __post_init__(self) -> None:
        known = ("auto", *(c.name for c in COMPARATORS))
        if self.name not in known:
            raise InputError(f"there is no comparator named {self.name}: choose one of {', '.join(known)}.")

    def for_output(self, output: np.ndarray, input_widths: frozenset[int]) -> Comparator:
        """The comparator for one output."""
        for comparator in COMPARATORS:
            if self.name == "auto":
                wanted = comparator.recognises(output, input_widths)
            else:
                wanted = self.name == comparator.name and comparator.suits(output)
            if wanted:
                return comparator
        return COMPARATORS[-1]


__all__ = ["COMPARATORS", "Choice", "Comparator", "Verdict"]
