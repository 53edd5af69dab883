"""A stored tensor whose integers are right but whose scale or zero point is not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from onnxfix.canonical.origins import Apply, Origin, Parameter, evaluate, parameters_of
from onnxfix.diagnose.attribution import Attribution, WrongConstant, agrees
from onnxfix.diagnose.storage import slack
from onnxfix.errors import CanonicalizationError
from onnxfix.model import Model

# A scale that is off by less is no other scale.
_TELLING = 0.01


@dataclass(frozen=True, eq=False)
class _Widening:
    """``(cast(q) - cast(z)) * s`` in an expression."""

    stored: str
    scale: str
    zero: str


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
    for widening in _widenings(origin):
        for name, value in _candidates(target, widening, constant):
            changed = {p: form.parameters[p] for p in parameters_of(origin)} | {name: value}
            try:
                made = evaluate(origin, changed)
                room = slack(origin, changed, constant.expected)
            except CanonicalizationError:
                continue
            if agrees(made, constant.expected, 0.0, room):
                return Attribution(name, value, form.parameters[name], (constant,))
    return None


def _widenings(origin: Origin | None) -> Iterator[_Widening]:
    if not isinstance(origin, Apply):
        return
    if origin.op == "Mul":
        wide: Origin | None = origin.operands[0]
        scale = origin.operands[1]
        offset: Origin | None = None
        if isinstance(wide, Apply) and wide.op == "Sub":
            offset = wide.operands[1]
            wide = wide.operands[0]
        names = () if scale is None else parameters_of(scale)
        if len(names) == 1 and isinstance(wide, Apply) and wide.op == "Cast":
            stored = wide.operands[0]
            if isinstance(stored, Parameter):
                zeros = () if offset is None else parameters_of(offset)
                yield _Widening(stored.name, names[0], zeros[0] if len(zeros) == 1 else "")
    for operand in origin.operands:
        yield from _widenings(operand)


def _candidates(target: Model, widening: _Widening, constant: WrongConstant) -> Iterator[tuple[str, np.ndarray]]:
    parameters = target.normal_form.parameters
    expected, actual = constant.expected.astype(np.float64), constant.actual.astype(np.float64)
    scale = parameters[widening.scale]
    for axis in range(actual.ndim) if scale.size > 1 else (None,):
        if axis is not None and actual.shape[axis] != scale.size:
            continue
        others = None if axis is None else tuple(k for k in range(actual.ndim) if k != axis)
        power = np.sum(actual * actual, axis=others)
        factor = np.where(power > 0, np.sum(expected * actual, axis=others) / np.where(power > 0, power, 1.0), 1.0)
        if np.all(factor > 0) and np.max(np.abs(factor - 1)) > _TELLING:
            yield widening.scale, (scale * factor.reshape(scale.shape)).astype(scale.dtype)
    zero = parameters[widening.zero] if widening.zero else None
    if zero is not None and zero.size == 1 and scale.size == 1:
        shift = int(np.rint(np.mean(actual - expected) / float(scale.reshape(-1)[0])))
        info = np.iinfo(zero.dtype)
        if shift and info.min <= int(zero.item()) + shift <= info.max:
            yield widening.zero, np.asarray(zero + shift, zero.dtype).reshape(zero.shape)
