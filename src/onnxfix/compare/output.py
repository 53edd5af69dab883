"""What is kept of one output while batches pass by."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from onnxfix.compare.comparators import Choice, Comparator
from onnxfix.compare.result import OutputComparison
from onnxfix.inputs.matching import axis_moves

FLOAT_NOISE = 1e-5
"""What float32 rounding may leave of a deep network's output, relative to its largest magnitude; clean conversions
show 1e-7 to 7e-6. A difference below it is no difference, and a lead of one class over another no lead."""


class OutputTrack:
    """Differences of one output: three numbers per sample, and what the comparator adds."""

    def __init__(
        self, source: str, target: str, choice: Choice, input_widths: frozenset[int], movable: bool
    ) -> None:
        self._source, self._target = source, target
        self._choice, self._input_widths, self._movable = choice, input_widths, movable
        self._comparator: Comparator | None = None
        self._move: tuple[int, ...] | None = None
        self._samples: list[np.ndarray] = []
        self._differences: list[np.ndarray] = []
        self._scales: list[np.ndarray] = []
        self._differs: list[np.ndarray] = []
        self._margins: list[np.ndarray] = []
        self._taus: list[np.ndarray] = []
        self._mismatch = ""
        self._kinds: tuple[str, str] | None = None
        self._exact = False

    def add(self, source: np.ndarray, target: np.ndarray, start: int, count: int | None) -> None:
        """Compare one batch; ``count`` None: the batch is one sample."""
        if self._comparator is None:
            self._begin(source, target)
        moved = target if self._move is None else _undo(target, self._move)
        if source.shape != moved.shape and not self._mismatch:
            self._mismatch = f"shape {list(target.shape)} instead of {list(source.shape)}"
        rows = slice(0, 1) if count is None else slice(0, count)
        ours, theirs = (source[np.newaxis], moved[np.newaxis]) if count is None else (source, moved)
        self._samples.append(start + np.arange(rows.stop))
        self._scales.append(_per_row_max(_magnitude(ours[rows])))
        if ours.shape == theirs.shape:
            self._differences.append(_per_row_max(_difference(ours[rows], theirs[rows])))
        else:
            self._differences.append(np.full(rows.stop, np.inf))
        self._judge(source, moved, count)

    def _begin(self, source: np.ndarray, target: np.ndarray) -> None:
        self._comparator = self._choice.for_output(source, self._input_widths)
        self._kinds = _kind(source), _kind(target)
        # Labels, indices and counts have no rounding; 8 and 16 bit integers are quantized numbers, which have.
        self._exact = source.dtype.kind in "bOUS" or (source.dtype.kind in "iu" and source.dtype.itemsize >= 4)
        self._move = _best_move(source, target) if self._movable else None

    def _judge(self, source: np.ndarray, target: np.ndarray, count: int | None) -> None:
        if count is None or self._comparator is None:
            return
        verdict = self._comparator.judge(source[:count], target[:count] if target.ndim else target)
        if verdict is not None:
            self._differs.append(verdict.differs)
            self._margins.append(verdict.margin)
            self._taus.append(verdict.tau)

    def badness(self, floor: float) -> Iterator[tuple[int, float]]:
        """(sample index, its difference relative to its own magnitude), for every sample."""
        if not self._samples:
            return
        difference, scale = np.concatenate(self._differences), np.concatenate(self._scales)
        # The guard keeps a sample whose output is near zero from looking worse than it is.
        guard = np.maximum(scale, floor * scale.max(initial=0.0))
        with np.errstate(divide="ignore", invalid="ignore"):
            relative = np.where(difference > 0, difference / guard, 0.0)
        yield from zip(map(int, np.concatenate(self._samples)), map(float, relative), strict=True)

    def result(self, rtol: float, atol: float, floor: float) -> OutputComparison:
        """Judge what was collected.

        Args:
            rtol: Allowed difference, relative to the sample's own largest magnitude.
            atol: Allowed difference, absolute.
            floor: Allowed difference, relative to the largest magnitude over all samples.
        """
        difference = np.concatenate(self._differences) if self._differences else np.zeros(1)
        scale = np.concatenate(self._scales) if self._scales else np.zeros(1)
        top, overall = float(difference.max()), float(scale.max())
        same_dtype = self._kinds is None or self._kinds[0] == self._kinds[1]
        allowed = np.full_like(scale, atol) if self._exact else atol + np.maximum(rtol * scale, floor * overall)
        discrepancy = self._label_discrepancy(floor)
        reason = self._reason(difference, scale, allowed, rtol, same_dtype, discrepancy)
        taus = np.concatenate(self._taus) if self._taus else np.zeros(0)
        return OutputComparison(
            source=self._source,
            target=self._target,
            equivalent=not reason,
            max_abs=top,
            max_rel=_ratio(top, overall),
            same_shape=not self._mismatch,
            same_dtype=same_dtype,
            permutation=self._move,
            comparator="" if self._comparator is None else self._comparator.name,
            label_discrepancy=discrepancy,
            rank_correlation=float(taus.mean()) if taus.size and not np.isnan(taus).any() else None,
            reason=reason,
        )

    def _label_discrepancy(self, floor: float) -> float | None:
        if not self._differs:
            return None
        differs, margin = np.concatenate(self._differs), np.concatenate(self._margins)
        return float(np.count_nonzero(differs & (margin > floor)) / len(differs))

    def _reason(
        self,
        difference: np.ndarray,
        scale: np.ndarray,
        allowed: np.ndarray,
        rtol: float,
        same_dtype: bool,
        discrepancy: float | None,
    ) -> str:
        name = f"output {self._source}" + (f" (target {self._target})" if self._target != self._source else "")
        if self._mismatch:
            return f"{name} has {self._mismatch}"
        if not same_dtype and self._kinds is not None:
            return f"{name} has dtype kind {self._kinds[1]} instead of {self._kinds[0]}"
        outside = np.flatnonzero(difference > allowed)
        if outside.size:
            worst = int(outside[np.argmax(difference[outside] / np.maximum(scale[outside], np.finfo(float).tiny))])
            sample = int(np.concatenate(self._samples)[worst])
            if np.isinf(difference[worst]):
                return f"{name} is not finite where the other model's is, first on input {sample}"
            relative = _ratio(float(difference[worst]), float(scale[worst]))
            limit = "no difference is allowed" if self._exact else f"{rtol:.1e} is allowed"
            return (
                f"{name} differs by {difference[worst]:.3g} (relative {relative:.2e}; {limit}) on input {sample}, "
                f"and on {outside.size} of {difference.size} inputs in all"
            )
        if discrepancy:
            return f"{name} has another top-1 label on {discrepancy:.2%} of the inputs"
        return ""


def _ratio(difference: float, scale: float) -> float:
    if difference == 0:
        return 0.0
    return difference / scale if scale > 0 else float("inf")


def _kind(array: np.ndarray) -> str:
    return {"f": "float", "V": "float", "i": "integer", "u": "integer", "b": "boolean"}.get(array.dtype.kind, "text")


def _undo(array: np.ndarray, move: tuple[int, ...]) -> np.ndarray:
    return array.transpose(np.argsort(move)) if array.ndim == len(move) else array


def _best_move(source: np.ndarray, target: np.ndarray) -> tuple[int, ...] | None:
    """The move of the channel axis under which the target's output is nearest to the source's; None for none.

    Where the shape alone decides there is one candidate; a cube fits in every layout, and then the numbers decide.
    """
    if source.ndim != target.ndim:
        return None
    best, least = None, float("inf")
    if source.shape == target.shape:
        least = float(_per_row_max(_difference(source, target)).max(initial=0.0))
    for move in axis_moves(source.ndim):
        if tuple(source.shape[axis] for axis in move) == target.shape:
            distance = float(_per_row_max(_difference(source, _undo(target, move))).max(initial=0.0))
            if distance < least or (best is None and source.shape != target.shape):
                best, least = move, distance
    return best


def _per_row_max(values: np.ndarray) -> np.ndarray:
    return np.asarray(values.reshape(values.shape[0], -1).max(axis=1, initial=0.0))


def _magnitude(array: np.ndarray) -> np.ndarray:
    if array.dtype.kind in "OUS":
        return np.ones(array.shape)
    values = np.abs(_wide(array))
    return np.where(np.isfinite(values), values, 0.0)


def _difference(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """|target - source|; zero where both are the same NaN or infinity, infinite where only one is."""
    if source.dtype.kind in "OUS" or target.dtype.kind in "OUS":
        return np.asarray(source != target, np.float64)
    ours, theirs = _wide(source), _wide(target)
    with np.errstate(invalid="ignore"):
        distance = np.abs(theirs - ours)
    same = (ours == theirs) | (np.isnan(ours) & np.isnan(theirs))
    return np.where(same, 0.0, np.where(np.isnan(distance), np.inf, distance))


def _wide(array: np.ndarray) -> np.ndarray:
    """Float64 for small outputs and integers; float32 outputs stay, as their differences are exact near zero."""
    return array if array.dtype == np.float32 else array.astype(np.float64)
