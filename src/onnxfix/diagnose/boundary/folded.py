"""Read off two first layers how their inputs relate: ``W_t[:, j] = a_j * W_s[:, p(j)]``, in closed form.

A preparation that was folded into the first layer of one model is found in its weights: each input channel's kernel is
that of one of the source's channels times a factor, and what a shift of the input adds is in the bias.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxfix.diagnose.boundary.first_layers import FirstLayer

# Share of a channel's weights that must follow its factor: single wrong weights do not hide the rest.
MAJORITY = 0.8
RTOL = 1e-3


@dataclass(frozen=True, eq=False)
class Relation:
    """``input_t[j] = input_s[order[j]] * scale[j] + shift[j]`` makes both layers answer alike.

    Attributes:
        scale: One factor per channel.
        shift: One summand per channel.
        order: Source channel of each target channel.
    """

    scale: np.ndarray
    shift: np.ndarray
    order: np.ndarray

    def is_identity(self) -> bool:
        """Whether the layers have the same input."""
        plain = np.array_equal(self.order, np.arange(len(self.order)))
        return plain and bool(np.allclose(self.scale, 1, rtol=RTOL) and np.allclose(self.shift, 0, atol=RTOL))

    def is_telling(self) -> bool:
        """Whether no wrong weight looks like it: different factors for the channels, or a shift that all biases show.

        One factor for the whole kernel is a wrong weight as well as a wrong scale of the input.
        """
        uneven = float(np.ptp(self.scale)) > 10 * RTOL * float(np.abs(self.scale).max())
        return uneven or not np.allclose(self.shift, 0, atol=RTOL)


def relation(ours: FirstLayer, theirs: FirstLayer) -> Relation | None:
    """The relation of two first layers, or None where their weights do not have one."""
    if ours.op not in ("Conv", "Gemm") or ours.weight.shape != theirs.weight.shape:
        return None
    source, target = _by_channel(ours), _by_channel(theirs)
    if len(source) > _MOST:
        return None
    order, scale, free = [], [], set(range(len(source)))
    for j, kernel in enumerate(target):
        # The channel of the same place goes first: kernels of equal content must not be mixed up.
        for k in sorted(free, key=lambda k: k != j):
            factor = _factor(source[k], kernel)
            if factor is not None:
                order.append(k)
                scale.append(1 / factor)
                free.discard(k)
                break
        else:
            return None
    shift = _shift(ours, theirs, target)
    return Relation(np.asarray(scale), shift, np.asarray(order))


_MOST = 16  # channels; features of tables beyond that are not matched one by one


def _by_channel(layer: FirstLayer) -> np.ndarray:
    """Weights as [input channel, the rest]."""
    weight = layer.weight.astype(np.float64)
    inward = np.moveaxis(weight, 1, 0) if layer.op == "Conv" else weight
    return inward.reshape(inward.shape[0], -1)


def _factor(source: np.ndarray, target: np.ndarray) -> float | None:
    """The factor between two channels' kernels that most weights follow."""
    usable = np.abs(source) > 1e-3 * np.abs(source).max(initial=0.0)
    if not usable.any():
        return None
    factor = float(np.median(target[usable] / source[usable]))
    if factor == 0 or not np.isfinite(factor):
        return None
    close = np.abs(target - factor * source) <= RTOL * np.abs(factor * source).max()
    return factor if close.mean() >= MAJORITY else None


def _shift(ours: FirstLayer, theirs: FirstLayer, target: np.ndarray) -> np.ndarray:
    """The shift that explains the biases exactly, else zero; zeros padded after it would not have been shifted."""
    none = np.zeros(len(target))
    if ours.bias is None or theirs.bias is None or ours.padded or theirs.padded:
        return none
    outward = theirs.weight if theirs.op == "Conv" else theirs.weight.T
    summed = outward.astype(np.float64).reshape(*outward.shape[:2], -1).sum(axis=2)  # [output, input channel]
    wanted = ours.bias.astype(np.float64) - theirs.bias
    if summed.shape[0] <= summed.shape[1]:
        return none  # as many unknowns as equations explain anything
    found, *_ = np.linalg.lstsq(summed, wanted, rcond=None)
    left = np.abs(summed @ found - wanted).max()
    return found if left <= RTOL * np.abs(wanted).max(initial=0.0) else none
