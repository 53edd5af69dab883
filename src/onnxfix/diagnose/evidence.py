"""What shows a fault: a model, inputs for it, and what it should answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import onnx

from onnxfix.errors import OnnxFixError, RuntimeFailure
from onnxfix.runtime.session import Session

# A single sample is enough to show a fault where it shows this share of the error on all.
_ENOUGH = 0.5


@dataclass(frozen=True, eq=False)
class Exhibit:
    """A runnable demonstration of a fault.

    Attributes:
        model: The piece of the target that errs, or the whole target.
        reference: What the source has in its place; None where that takes other inputs.
        inputs: Input name of ``model`` -> array.
        expected: What the source answers, in the order of ``model``'s outputs.
        whole: Whether it is the whole target rather than a piece of it.
    """

    model: onnx.ModelProto
    reference: onnx.ModelProto | None
    inputs: Mapping[str, np.ndarray]
    expected: tuple[np.ndarray, ...]
    whole: bool = False

    def shrunk(self) -> Exhibit:
        """The same on one sample, where all arrays are batches and one sample shows the fault as well."""
        arrays = [*self.inputs.values(), *self.expected]
        counts = {array.shape[0] if array.ndim else 0 for array in arrays}
        if len(counts) != 1 or min(counts) < 2 or self.error() == np.inf:
            return self
        threshold = _ENOUGH * self.error()
        for row in range(counts.pop()):
            one = replace(
                self,
                inputs={name: array[row : row + 1] for name, array in self.inputs.items()},
                expected=tuple(array[row : row + 1] for array in self.expected),
            )
            if np.inf > one.error() >= threshold > 0:
                return one
        return self

    def error(self) -> float:
        """The largest difference from what is expected; infinite where it does not run, or shapes differ."""
        try:
            actual = list(Session(self.model).run(dict(self.inputs)).values())
        except (RuntimeFailure, OnnxFixError):
            return float("inf")
        if len(actual) != len(self.expected):
            return float("inf")
        return max((_difference(a, b) for a, b in zip(self.expected, actual, strict=True)), default=0.0)


def _difference(expected: np.ndarray, actual: np.ndarray) -> float:
    if expected.shape != actual.shape:
        return float("inf")
    if expected.dtype.kind not in "fiub" or actual.dtype.kind not in "fiub":
        return 0.0 if np.array_equal(expected, actual) else float("inf")
    gap = np.abs(expected.astype(np.float64) - actual.astype(np.float64))
    same = np.isnan(expected.astype(np.float64)) & np.isnan(actual.astype(np.float64))
    gap = np.where(same, 0.0, gap)
    return float("inf") if np.isnan(gap).any() else float(gap.max(initial=0.0))


@dataclass(eq=False)
class Evidence:
    """Where a fault can be seen; the diagnosis fills it in, and nothing is built before it is asked for.

    Attributes:
        piece: Makes an exhibit of the guilty region alone.
        whole: Makes one of the whole target.
    """

    piece: Callable[[], Exhibit] | None = field(default=None, repr=False)
    whole: Callable[[], Exhibit] | None = field(default=None, repr=False)

    def exhibit(self) -> Exhibit:
        """The smallest exhibit that shows the fault.

        Raises:
            OnnxFixError: the fault does not come from a diagnosis.
        """
        if self.piece is not None:
            shown = self.piece()
            if shown.error() > 0 or self.whole is None:
                return shown.shrunk()
        if self.whole is None:
            raise OnnxFixError("this fault was not found by a diagnosis, so there is nothing that shows it.")
        return self.whole().shrunk()
