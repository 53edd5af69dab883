"""What went wrong while a converter folded a constant: a parameter left out, another epsilon.

The source's own expression for the constant is computed again with one thing changed; if that gives what the target
has, the change is what the converter did.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from onnxfix.canonical.origins import Apply, Literal, Origin, evaluate, parameters_of
from onnxfix.diagnose.differences import close
from onnxfix.errors import CanonicalizationError
from onnxfix.model import Model

LEFT_OUT = "was folded without"
# Defaults of the frameworks' normalisation layers.
EPSILONS = (1e-3, 1e-5, 1e-6, 1e-7, 1e-4, 1e-2, 1e-8, 1e-12, 0.0, 2e-5)


def misfolded(source: Model, origin: Origin | None, actual: np.ndarray | None) -> str:
    """Say how the target's constant follows from the source's expression, or ""."""
    if not isinstance(origin, Apply) or actual is None or actual.dtype.kind != "f":
        return ""
    form = source.normal_form
    names = [n for n in parameters_of(origin) if n in form.parameters]
    values = {n: form.parameters[n] for n in names}
    for name in names:
        content = values[name]
        if content.dtype.kind != "f" or not np.any(content):
            continue
        if _gives(origin, {**values, name: np.zeros_like(content)}, actual):
            return f"{LEFT_OUT} the source's {source.parameters.get(name, name)}"
    for current, epsilon, other in _other_epsilons(origin):
        if _gives(other, values, actual):
            return f"was folded with epsilon {epsilon:g} instead of {current:g}"
    return ""


def _gives(origin: Origin, values: Mapping[str, np.ndarray], actual: np.ndarray) -> bool:
    try:
        value = evaluate(origin, values)
    except CanonicalizationError:
        return False  # a range whose step is left out, say
    if value.shape != actual.shape or not np.any(actual):
        return False
    peak = float(np.abs(actual).max())
    return close(value, actual) or bool(np.allclose(value, actual, rtol=1e-5, atol=1e-6 * peak))


def _other_epsilons(origin: Origin) -> Iterator[tuple[float, float, Origin]]:
    """The expression with the scalars under square roots replaced: (the scalar, the other one, the expression)."""
    for current in dict.fromkeys(_under_roots(origin, inside=False)):
        for epsilon in EPSILONS:
            if not np.isclose(epsilon, current, rtol=1e-6, atol=0):
                yield current, epsilon, _replaced(origin, current, epsilon)


def _under_roots(origin: Origin | None, *, inside: bool) -> Iterator[float]:
    if isinstance(origin, Literal) and inside and origin.value.size == 1:
        yield float(origin.value.reshape(-1)[0])
    if isinstance(origin, Apply):
        for operand in origin.operands:
            yield from _under_roots(operand, inside=inside or origin.op == "Sqrt")


def wrong_epsilon(
    source: Model, target: Model, constants: Iterable[tuple[str, str | None, np.ndarray]]
) -> tuple[float, float] | None:
    """The epsilon that the target folded its constants with, and the one that makes all of them right.

    Args:
        source: The source, whose epsilons are tried first.
        target: The target.
        constants: Canonical names in target and source, and the expected values.
    """
    constants = tuple(constants)
    origins = [target.normal_form.origins.get(name) for name, _, _ in constants]
    if not origins or any(origin is None for origin in origins):
        return None
    known = [source.normal_form.origins.get(name or "") for _, name, _ in constants]
    wanted = dict.fromkeys([*(e for origin in known for e in _under_roots(origin, inside=False)), *EPSILONS])
    parameters = target.normal_form.parameters
    for current in dict.fromkeys(_under_roots(origins[0], inside=False)):
        for epsilon in wanted:
            if not np.isclose(epsilon, current, rtol=1e-6, atol=0) and all(
                origin is not None and _gives(_replaced(origin, current, epsilon), parameters, expected)
                for origin, (_, _, expected) in zip(origins, constants, strict=True)
            ):
                return current, epsilon
    return None


def is_under_root(origin: Origin, parameter: str) -> bool:
    """Whether a parameter stands under a square root in an expression."""
    if not isinstance(origin, Apply):
        return False
    if origin.op == "Sqrt":
        return parameter in parameters_of(origin)
    return any(is_under_root(operand, parameter) for operand in origin.operands if operand is not None)


def _replaced(origin: Origin, current: float, epsilon: float) -> Origin:
    if isinstance(origin, Literal) and origin.value.size == 1 and float(origin.value.reshape(-1)[0]) == current:
        return Literal(np.full_like(origin.value, epsilon))
    if not isinstance(origin, Apply):
        return origin
    operands = tuple(None if o is None else _replaced(o, current, epsilon) for o in origin.operands)
    return Apply(origin.op, operands, origin.attributes, origin.output)
