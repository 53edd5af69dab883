"""Data that can show nothing: whatever the models compute, they answer the same to all of them, or with NaN."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from onnxfix.errors import AlignmentError, InputError, RuntimeFailure
from onnxfix.inputs import Inputs

if TYPE_CHECKING:
    from onnxfix.model import Model

# Samples per run: two answers that differ are enough, and most data have them in front.
_FEW = 2
_SAME = 1e-3  # relative; answers this close are the same answer of both models


def refuse_blank(source: Model, target: Model | None, data: Inputs) -> None:
    """Refuse data that can show nothing about a pair of models.

    A single sample counts unless all numbers of its answer are alike; several must not all have the same answer.

    Args:
        source: The source.
        target: The target; None where there is only the source yet.
        data: The data, bound to the source, or to both.

    Raises:
        InputError: all answers of both models are NaN, or the same for all samples and in both models.
    """
    few = Inputs.of(data, batch_size=_FEW)
    try:
        ours = _only_answer((source.run(chunk.source), chunk.count) for chunk in few.chunks(source, target or source))
        if ours is None:
            return
        theirs = ours
        if target is not None:
            given = _only_answer((target.run(chunk.target), chunk.count) for chunk in few.chunks(source, target))
            if given is None or not _agree(ours, given):
                return
            theirs = given
    except (AlignmentError, InputError, RuntimeFailure):
        return  # models that cannot be run on the data show that much; who runs them next says why
    who = "both models give" if theirs is not ours else "the model gives"
    if all(np.isnan(answer).all() for answer in ours):
        raise InputError(f"{who} only NaN on these data, which can show nothing: give data in the models' range.")
    raise InputError(
        f"{who} the same constant answer to all of these data, which can show nothing: give samples that differ."
    )


def _only_answer(answers: Iterable[tuple[Mapping[str, np.ndarray], int]]) -> list[np.ndarray] | None:
    """The outputs for one sample, where those for all others are the same and tell nothing; else None."""
    first: list[np.ndarray] = []
    count = 0
    for answer, rows in answers:
        for sample in _samples([np.asarray(output) for output in answer.values()], rows):
            first = first or sample
            count += 1
            if any(output.dtype.kind != "f" for output in sample) or not all(map(_equal, first, sample)):
                return None
    return first if first and (count > 1 or all(map(_is_flat, first))) else None


def _samples(outputs: list[np.ndarray], rows: int) -> list[list[np.ndarray]]:
    """The samples of a chunk; rows beyond their number are padding."""
    if any(output.ndim == 0 or len(output) < rows for output in outputs):
        return [outputs]
    return [[output[row] for output in outputs] for row in range(rows)]


def _equal(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and np.array_equal(a, b, equal_nan=True)


def _is_flat(output: np.ndarray) -> bool:
    """Whether all numbers of an output are alike; of a single one that says nothing, unless it is NaN."""
    return bool(np.isnan(output).all()) or (output.size > 1 and bool(np.all(output == output.flat[0])))


def _agree(ours: list[np.ndarray], theirs: list[np.ndarray]) -> bool:
    if len(ours) != len(theirs):
        return False
    return all(
        a.size == b.size and np.allclose(np.sort(a, None), np.sort(b, None), rtol=_SAME, atol=0.0, equal_nan=True)
        for a, b in zip(ours, theirs, strict=True)
    )
