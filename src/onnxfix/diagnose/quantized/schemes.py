"""A stored tensor whose integers are right but whose scale or zero point is not."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from onnxfix.canonical.origins import evaluate, parameters_of
from onnxfix.diagnose.attribution import Attribution, WrongConstant, agrees
from onnxfix.diagnose.storage import Widening, slack, widenings
from onnxfix.errors import CanonicalizationError
from onnxfix.model import Model

# A scale that is fitted to rounded numbers is off itself, by a little less than rounding.
_ROOM = 1.5
# A scale of fewer elements than this explains any numbers.
_FEWEST = 4
# A scale that is off by less is no other scale.
_TELLING = 0.01


def misscaled(target: Model, constant: WrongConstant) -> Attribution | None:
    """The scale or zero point that makes a wrong constant right, the stored integers kept.

    Args:
        target: The target.
        constant: A wrong canonical constant of it.
    """
    form = target.normal_form
    origin = form.origins.get(constant.name)
    if origin is None or constant.actual is None or constant.expected is None:
        return None
    if constant.actual.shape != constant.expected.shape or not np.any(constant.actual):
        return None
    for widening in widenings(origin, form.parameters):
        for name, value in _candidates(target, widening, constant):
            changed = {p: form.parameters[p] for p in parameters_of(origin)} | {name: value}
            try:
                made = evaluate(origin, changed)
                room = slack(origin, changed, constant.expected)
            except CanonicalizationError:
                continue
            if agrees(made, constant.expected, 0.0, _ROOM * room):
                return Attribution(name, value, form.parameters[name], (constant,))
    return None


def _candidates(target: Model, widening: Widening, constant: WrongConstant) -> Iterator[tuple[str, np.ndarray]]:
    parameters = target.normal_form.parameters
    expected, actual = constant.expected.astype(np.float64), constant.actual.astype(np.float64)
    scale = parameters[widening.scale]
    for factor in _factors(expected, actual, scale.size):
        if np.all(factor > 0) and np.max(np.abs(factor - 1)) > _TELLING:
            yield widening.scale, (scale * np.broadcast_to(factor, scale.size).reshape(scale.shape)).astype(scale.dtype)
    zero = parameters[widening.zero] if widening.zero else None
    if zero is not None and zero.size == 1 and scale.size == 1:
        shift = int(np.rint(np.mean(actual - expected) / float(scale.reshape(-1)[0])))
        info = np.iinfo(zero.dtype)
        if shift and info.min <= int(zero.item()) + shift <= info.max:
            yield widening.zero, np.asarray(zero + shift, zero.dtype).reshape(zero.shape)


def _factors(expected: np.ndarray, actual: np.ndarray, count: int) -> Iterator[np.ndarray]:
    """By what a scale of so many elements may be off: as the peaks tell, which round least, and by least squares."""
    axes: list[int | None] = [None]
    if count > 1 and actual.size >= _FEWEST * count:
        axes = [k for k in range(actual.ndim) if actual.shape[k] == count]
    for axis in axes:
        others = None if axis is None else tuple(k for k in range(actual.ndim) if k != axis)
        peak, power = np.max(np.abs(actual), axis=others), np.sum(actual * actual, axis=others)
        some = power > 0
        sign = np.sign(np.sum(expected * actual, axis=others))
        yield np.where(some, sign * np.max(np.abs(expected), axis=others) / np.where(some, peak, 1.0), 1.0)
        yield np.where(some, np.sum(expected * actual, axis=others) / np.where(some, power, 1.0), 1.0)
