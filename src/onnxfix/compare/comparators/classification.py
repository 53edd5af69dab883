"""Outputs whose greatest entry names a class."""

from __future__ import annotations

import numpy as np

from onnxfix.compare.comparators.verdict import Verdict

TOP = 50
"""Ranks beyond these are left out of the rank correlation: they are noise in a softmax, and cost k squared."""


class Classification:
    """Compares top-1 labels and the ranking of the classes (Kendall's tau-b over the source's top 50).

    ``auto`` takes an output for class scores when it is float, ``[batch, classes]`` (trailing axes of length one
    aside) with two classes or more, unless it is as wide as an input: an autoencoder's output is no class score.
    """

    name = "classification"

    def suits(self, output: np.ndarray) -> bool:
        """Float, one vector of at least two numbers per sample."""
        return output.dtype.kind in "fV" and _is_vector(output)

    def recognises(self, output: np.ndarray, input_widths: frozenset[int]) -> bool:
        """The rule given for the class."""
        return self.suits(output) and output.shape[1] not in input_widths

    def judge(self, source: np.ndarray, target: np.ndarray) -> Verdict | None:
        """Labels, margins and rank correlations; None when the target has no class scores for the same samples."""
        if not _is_vector(target) or target.shape[0] != source.shape[0]:
            return None
        ours, theirs = (np.nan_to_num(a.reshape(a.shape[:2]).astype(np.float64)) for a in (source, target))
        best = np.partition(ours, -2, axis=1)[:, -2:]
        scale = np.abs(ours).max(axis=1)
        return Verdict(
            differs=ours.argmax(axis=1) != theirs.argmax(axis=1),
            margin=(best[:, 1] - best[:, 0]) / np.where(scale > 0, scale, 1),
            tau=_tau(ours, theirs) if ours.shape == theirs.shape else np.full(len(ours), np.nan),
        )


def _is_vector(output: np.ndarray) -> bool:
    return output.ndim >= 2 and output.shape[1] >= 2 and output[0, 0].size == 1 and output.shape[0] > 0


def _tau(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Kendall's tau-b of each row, ``(concordant - discordant) / sqrt(untied in source * untied in target)``."""
    top = np.argsort(-source, axis=1, kind="stable")[:, :TOP]
    ours, theirs = np.take_along_axis(source, top, 1), np.take_along_axis(target, top, 1)
    first, second = np.triu_indices(top.shape[1], 1)
    a, b = np.sign(ours[:, first] - ours[:, second]), np.sign(theirs[:, first] - theirs[:, second])
    pairs = np.sqrt(np.count_nonzero(a, axis=1) * np.count_nonzero(b, axis=1).astype(np.float64))
    constant = ~a.any(axis=1) & ~b.any(axis=1)
    return np.where(constant, 1.0, (a * b).sum(axis=1) / np.where(pairs > 0, pairs, 1))
