"""Compare outputs batch by batch, keeping a few numbers per sample and no output."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from onnxfix.compare.comparators import Choice
from onnxfix.compare.output import FLOAT_NOISE, OutputTrack
from onnxfix.compare.result import Comparison, OutputComparison
from onnxfix.errors import InputError

if TYPE_CHECKING:
    from onnxfix.inputs import InputPair
    from onnxfix.model import Model
    from onnxfix.quantization import Quantization

_WORST = 5


class Accumulator:
    """Collects the differences of two models' outputs over batches.

    Args:
        source_names: The source's output names.
        target_names: The target's output names.
        comparator: ``auto``, ``classification`` or ``regression``.
        input_widths: How many numbers a sample of each input has, by which ``auto`` tells autoencoders.
        movable: Whether an output may have its channel axis elsewhere (the models' inputs do, too).
        rtol: Relative tolerance.
        atol: Absolute tolerance added to it.
        scales: What each of the target's outputs stands for, where it is quantized and the source's is not.

    Example:
        >>> accumulator = Accumulator(["y"], ["y"])
        >>> accumulator.add([np.ones((2, 1))], [np.ones((2, 1))])
        >>> accumulator.result().equivalent
        True
    """

    def __init__(
        self,
        source_names: Sequence[str],
        target_names: Sequence[str],
        comparator: str = "auto",
        *,
        input_widths: frozenset[int] = frozenset(),
        movable: bool = False,
        rtol: float = 1e-3,
        atol: float = 0.0,
        scales: Sequence[Quantization | None] = (),
    ) -> None:
        if rtol < 0 or atol < 0:
            raise InputError(f"the tolerances are rtol={rtol} and atol={atol}, but must not be negative.")
        self._source_names, self._target_names = list(source_names), list(target_names)
        choice = Choice(comparator)
        self._tracks = [
            OutputTrack(a, b, choice, input_widths, movable)
            for a, b in zip(source_names, target_names, strict=False)
        ]
        self._rtol, self._atol = rtol, atol
        self._scales = list(scales) or [None] * len(self._tracks)
        self._count = 0

    @classmethod
    def for_models(
        cls, source: Model, target: Model, comparator: str = "auto", *, rtol: float = 1e-3, atol: float = 0.0
    ) -> Accumulator:
        """An accumulator for the outputs of two models.

        Raises:
            AlignmentError: their inputs do not correspond.
        """
        from onnxfix.inputs import pair_inputs

        pairs = pair_inputs(source, target)
        return cls(
            [spec.name for spec in source.outputs],
            [spec.name for spec in target.outputs],
            comparator,
            input_widths=frozenset(width for pair in pairs for width in _widths(pair)),
            movable=any(pair.permutation for pair in pairs) or not any(_has_layout(pair) for pair in pairs),
            rtol=rtol,
            atol=atol,
            scales=[
                theirs.quantization if ours.dtype.kind == "f" else None
                for ours, theirs in zip(source.outputs, target.outputs, strict=False)
            ],
        )

    @property
    def count(self) -> int:
        """Number of samples so far."""
        return self._count

    def add(
        self, source_outputs: Sequence[np.ndarray], target_outputs: Sequence[np.ndarray], count: int | None = None
    ) -> None:
        """Compare one batch.

        Args:
            source_outputs: The source's outputs, in order.
            target_outputs: The target's outputs, in order.
            count: How many samples the batch holds; rows beyond are padding and left out. By default the leading
                axis of the source's outputs, where they agree on it, else 1.
        """
        lengths = {output.shape[0] if output.ndim else None for output in source_outputs}
        rows = lengths.pop() if len(lengths) == 1 else None
        if count is None:
            count = rows or 1
        per_sample = rows is not None and rows >= count
        for track, ours, theirs, scale in zip(
            self._tracks, source_outputs, target_outputs, self._scales, strict=False
        ):
            told = theirs if scale is None else scale.dequantize(theirs)
            track.add(np.asarray(ours), np.asarray(told), self._count, count if per_sample else None)
        self._count += count

    def result(self, noise: float | None = None) -> Comparison:
        """What has been found so far.

        Args:
            noise: The source's own relative noise floor; ten times of it widens the tolerance.
        """
        rtol = max(self._rtol, 10 * (noise or 0.0))
        floor = min(rtol, max(FLOAT_NOISE, 10 * (noise or 0.0)))
        outputs = [track.result(rtol, self._atol, floor) for track in self._tracks]
        outputs += [_lone(name, "") for name in self._source_names[len(self._tracks) :]]
        outputs += [_lone("", name) for name in self._target_names[len(self._tracks) :]]
        labels = [o.label_discrepancy for o in outputs if o.label_discrepancy is not None]
        ranks = [o.rank_correlation for o in outputs if o.rank_correlation is not None]
        reasons = [o.reason for o in outputs if o.reason]
        return Comparison(
            equivalent=not reasons,
            label_discrepancy=max(labels, default=None),
            max_abs=max((o.max_abs for o in outputs), default=0.0),
            max_rel=max((o.max_rel for o in outputs), default=0.0),
            rank_correlation=min(ranks, default=None),
            per_output=tuple(outputs),
            worst=self._worst(floor),
            count=self._count,
            rtol=rtol,
            atol=self._atol,
            noise=noise,
            reason=_sentence(reasons, self._source_names, self._target_names),
        )

    def _worst(self, floor: float) -> tuple[int, ...]:
        """The samples with the largest relative differences over all outputs, the worst first."""
        badness: dict[int, float] = {}
        for track in self._tracks:
            for sample, relative in track.badness(floor):
                badness[sample] = max(relative, badness.get(sample, 0.0))
        order = sorted((-value, sample) for sample, value in badness.items() if value > 0)
        return tuple(sample for _, sample in order[:_WORST])


def _lone(source: str, target: str) -> OutputComparison:
    side, other, name = ("source", "target", source) if source else ("target", "source", target)
    return OutputComparison(
        source=source, target=target, equivalent=False, max_abs=float("inf"), max_rel=float("inf"), same_shape=False,
        same_dtype=False, permutation=None, comparator="", label_discrepancy=None, rank_correlation=None,
        reason=f"output {name} of the {side} has no counterpart in the {other}",
    )


def _sentence(reasons: list[str], source: list[str], target: list[str]) -> str:
    if not reasons:
        return ""
    if len(source) != len(target):
        ours, theirs = ", ".join(source), ", ".join(target)
        return f"The source has {len(source)} outputs ({ours}), the target {len(target)} ({theirs})."
    more = f" (and {len(reasons) - 1} more outputs differ)" if len(reasons) > 1 else ""
    return f"{reasons[0][0].upper()}{reasons[0][1:]}{more}."


def _widths(pair: InputPair) -> list[int]:
    widths = []
    for spec in (pair.source, pair.target):
        dims = (spec.shape or ())[1:]
        numbers = [dim for dim in dims if isinstance(dim, int)]
        if dims and len(numbers) == len(dims):
            widths.append(int(np.prod(numbers)))
    return widths


def _has_layout(pair: InputPair) -> bool:
    return pair.source.shape is not None and len(pair.source.shape) >= 3
