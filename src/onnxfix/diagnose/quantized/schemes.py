"""A stored tensor whose integers are right but whose scale or zero point is not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from onnxfix.canonical.origins import Origin, evaluate, parameters_of
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
    own = {p: form.parameters[p] for p in parameters_of(origin) if p in form.parameters}
    for widening in widenings(origin, own):
        for name, value in _candidates(origin, own, widening, constant):
            changed = own | {name: value}
            try:
                made = evaluate(origin, changed)
                room = slack(origin, changed, constant.expected)
            except CanonicalizationError:
                continue
            if agrees(made, constant.expected, 0.0, _ROOM * room):
                return Attribution(name, value, form.parameters[name], (constant,))
    return None


def _candidates(
    origin: Origin, parameters: Mapping[str, np.ndarray], widening: Widening, constant: WrongConstant
) -> Iterator[tuple[str, np.ndarray]]:
    expected, actual = constant.expected.astype(np.float64), constant.actual.astype(np.float64)
    scale = parameters[widening.scale]
    for factor in _factors(expected, actual, scale.size):
        if np.all(factor > 0) and np.max(np.abs(factor - 1)) > _TELLING:
            yield widening.scale, (scale * np.broadcast_to(factor, scale.size).reshape(scale.shape)).astype(scale.dtype)
    zero = parameters[widening.zero] if widening.zero else None
    if zero is None or zero.size not in (1, scale.size) or np.any(zero == np.iinfo(zero.dtype).max):
        return
    info = np.iinfo(zero.dtype)
    further = np.asarray(zero + np.ones((), zero.dtype), zero.dtype)
    step = evaluate(origin, {**parameters, widening.zero: further}).astype(np.float64) - actual
    for others in _axes(actual, zero.size):
        power = np.sum(step * step, axis=others)
        shift = np.rint(np.sum((expected - actual) * step, axis=others) / np.where(power > 0, power, np.inf))
        moved = np.asarray(zero.reshape(-1) + shift)
        if np.any(shift) and np.all((moved >= info.min) & (moved <= info.max)):
            yield widening.zero, moved.astype(zero.dtype).reshape(zero.shape)


def _axes(actual: np.ndarray, count: int) -> list[tuple[int, ...] | None]:
    """The axes that one element of a scale of so many goes for, for every axis along which it may lie."""
    if count == 1 or actual.size < _FEWEST * count:
        return [None]
    along = (k for k in range(actual.ndim) if actual.shape[k] == count)
    return [tuple(k for k in range(actual.ndim) if k != axis) for axis in along]


def _factors(expected: np.ndarray, actual: np.ndarray, count: int) -> Iterator[np.ndarray]:
    """By what a scale of so many elements may be off: as the peaks tell, which round least, and by least squares."""
    for others in _axes(actual, count):
        peak, power = np.max(np.abs(actual), axis=others), np.sum(actual * actual, axis=others)
        some = power > 0
        sign = np.sign(np.sum(expected * actual, axis=others))
        yield np.where(some, sign * np.max(np.abs(expected), axis=others) / np.where(some, peak, 1.0), 1.0)
        yield np.where(some, np.sum(expected * actual, axis=others) / np.where(some, power, 1.0), 1.0)
