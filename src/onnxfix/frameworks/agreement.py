"""Whether two runs of what should be one model agree, in words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxfix.errors import OnnxFixError

if TYPE_CHECKING:
    from onnxfix.model import Model

# Relative to the largest value of an output: float32 arithmetic in another order gives far less on usual networks,
# an op that means something else far more.
TOLERANCE = 1e-4


def disagreement(
    expected: Mapping[str, np.ndarray], actual: Mapping[str, np.ndarray], tolerance: float = TOLERANCE
) -> str | None:
    """Say how two runs differ, or None where they agree.

    Args:
        expected: Output name -> array.
        actual: The other run's.
        tolerance: Allowed difference relative to the largest absolute value of the output.
    """
    for name, want in expected.items():
        got = actual.get(name)
        if got is None:
            return f"output {name} is missing"
        if got.shape != want.shape:
            return f"output {name} has shape {list(got.shape)} instead of {list(want.shape)}"
        if got.dtype.kind != want.dtype.kind:
            return f"output {name} is {got.dtype} instead of {want.dtype}"
        worst = distance(want, got)
        if worst > tolerance:
            return f"output {name} is off by {worst:.2g} of its largest value"
    return None


def agrees(patched: Model, native: Any, feeds: Mapping[str, np.ndarray]) -> bool:
    """Whether a native model computes what a lowered graph does; one that does not run does not.

    Args:
        patched: The lowered graph, in the model that the native one was made from.
        native: The framework's own object.
        feeds: A batch.
    """
    try:
        answers = replace(patched, native=native).run_native(feeds)
        return disagreement(patched.run(feeds), answers) is None
    except OnnxFixError:
        return False


def distance(want: np.ndarray, got: np.ndarray) -> float:
    """The largest difference of two arrays of one shape, relative to the first one's largest finite value.

    NaN equals NaN, an infinity the same infinity; anything else that is not finite is infinitely far.
    """
    if want.dtype.kind not in "fc" or got.dtype.kind not in "fc":
        return 0.0 if np.array_equal(want, got) else float("inf")
    first, second = want.astype(np.float64), got.astype(np.float64)
    same = (first == second) | (np.isnan(first) & np.isnan(second))
    if same.all():
        return 0.0
    gap = np.abs(first[~same] - second[~same])
    if not np.isfinite(gap).all():
        return float("inf")
    scale = float(np.max(np.abs(first), initial=0.0, where=np.isfinite(first)))
    return float(gap.max() / max(scale, 1e-6))
