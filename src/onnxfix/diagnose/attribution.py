"""Which lowered parameter makes a canonical constant wrong, and which value would make it right."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from onnxfix.canonical.origins import Origin, evaluate, invert, parameters_of
from onnxfix.diagnose.differences import close
from onnxfix.diagnose.storage import slack, widened, widenings
from onnxfix.diagnose.weights import explain, has_form
from onnxfix.errors import CanonicalizationError
from onnxfix.model import Model

# Kernel layouts in which frameworks store the same convolution: OIHW, HWIO, OHWI, and depthwise forms of them.
_LAYOUTS: Mapping[int, tuple[tuple[int, ...], ...]] = {
    4: ((0, 1, 2, 3), (3, 2, 0, 1), (2, 3, 1, 0), (0, 3, 1, 2), (0, 2, 3, 1), (3, 0, 1, 2), (1, 2, 3, 0), (2, 3, 0, 1)),
    3: ((0, 1, 2), (2, 1, 0), (0, 2, 1), (2, 0, 1), (1, 2, 0)),
}


@dataclass(frozen=True, eq=False)
class WrongConstant:
    """A canonical constant of the target and the value it should have."""

    name: str
    expected: np.ndarray
    actual: np.ndarray
    source_name: str | None


@dataclass(frozen=True, eq=False)
class Attribution:
    """A lowered parameter that explains wrong constants.

    Attributes:
        parameter: Its name.
        value: The value that makes the constants right.
        previous: The value it has.
        constants: The constants it explains.
        innocent: The source has the parameter just the same: what other ops made of it is wrong, and setting it
            only makes up for that.
    """

    parameter: str
    value: np.ndarray
    previous: np.ndarray
    constants: tuple[WrongConstant, ...]
    innocent: bool = False


def attribute(
    source: Model,
    target: Model,
    wrong: Iterable[WrongConstant],
    right: Iterable[str] = (),
    settled: Mapping[str, np.ndarray] | None = None,
) -> tuple[tuple[Attribution, ...], tuple[WrongConstant, ...]]:
    """Explain wrong constants of one node by as few parameters as possible.

    One parameter behind all of them comes first (a batch norm's scale makes both kernel and bias wrong); else each
    constant gets a parameter of its own, the earlier ones taken as set right. Parameters that agree with the source's
    are not suspected.

    Args:
        source: The source.
        target: The target.
        wrong: The wrong constants of the node.
        right: Names of its other constants, which must stay as they are.
        settled: Parameters that are wrong for certain, with the values that they should have.

    Returns:
        The attributions, and the constants that no parameter can make right.
    """
    wrong = tuple(wrong)
    form = target.normal_form
    kept = [(name, evaluate(form.origins[name], form.parameters)) for name in right if name in form.origins]
    parameters = {**form.parameters, **(settled or {})}
    single = _explained(source, _State(target, parameters, tuple(kept)), wrong) if len(wrong) > 1 else None
    if single is not None:
        return (single,), ()
    found: list[Attribution] = []
    left = []
    for constant in wrong:
        made = _explained(source, _State(target, parameters, tuple(kept)), (constant,))
        if made is None:
            left.append(constant)
        else:
            found.append(made)
            parameters[made.parameter] = made.value
            kept.append((constant.name, constant.expected))
    return tuple(found), tuple(left)


@dataclass(frozen=True, eq=False)
class _State:
    """A target in the middle of an explanation: its parameters as set right so far, and constants that must stay."""

    target: Model
    parameters: Mapping[str, np.ndarray]
    kept: tuple[tuple[str, np.ndarray], ...]


def _explained(source: Model, state: _State, wrong: tuple[WrongConstant, ...]) -> Attribution | None:
    """The parameter that explains all of some constants, one that the source has otherwise before any other."""
    target = state.target
    shared = set.intersection(*(set(_parameters(target, constant)) for constant in wrong))
    suspects = {n for n in shared if any(n in _suspects(source, target, constant) for constant in wrong)}
    made = _first(state, wrong, sorted(suspects))
    if made is None:
        made = _first(state, wrong, sorted(shared - suspects))
        return None if made is None else replace(made, innocent=True)
    return made


def _first(state: _State, wrong: tuple[WrongConstant, ...], names: Iterable[str]) -> Attribution | None:
    solved = [s for s in (_solve(state, wrong, name) for name in names) if s is not None]
    return solved[0] if len(solved) == 1 else min(solved, key=_implausibility, default=None)


def _implausibility(made: Attribution) -> tuple[bool, bool, float]:
    """A parameter that was zeroed explains more than others, then one that was scaled, permuted or rounded as a whole.

    So does a single number that makes many right. Of those whose change says nothing, the one that changes least.
    """
    scale = float(np.linalg.norm(made.previous.astype(np.float64)))
    change = float(np.linalg.norm(made.value.astype(np.float64) - made.previous))
    single = made.value.size == 1
    told = made.constants[0].expected.size > 1 if single else has_form(explain(made.value, made.previous)[1])
    return scale > 0, not told, change / scale if scale > 0 else 0.0


def _solve(state: _State, wrong: tuple[WrongConstant, ...], name: str) -> Attribution | None:
    origins = state.target.normal_form.origins
    goals = [(constant.name, constant.expected) for constant in wrong]
    goals += [(kept, content) for kept, content in state.kept if name in parameters_of(origins[kept])]
    try:
        value = invert(origins[wrong[0].name], name, wrong[0].expected, state.parameters)
        changed = {n: state.parameters[n] for goal, _ in goals for n in parameters_of(origins[goal])} | {name: value}
        rounding = float(np.finfo(value.dtype).eps) if value.dtype.kind == "f" and value.dtype.itemsize == 2 else 0.0
        for goal, content in goals:
            room = slack(origins[goal], changed, content)
            if not agrees(evaluate(origins[goal], changed), content, rounding, room):
                return None
    except CanonicalizationError:
        return None
    return Attribution(name, value, state.parameters[name], wrong)


def agrees(
    value: np.ndarray, expected: np.ndarray, rounding: float, room: np.ndarray | float = 0.0
) -> bool:
    """Whether a constant is as expected, to within the rounding of the type that its parameter is stored in.

    Args:
        value: The constant.
        expected: What it should be.
        rounding: Relative rounding of the type.
        room: How far each element may be off for the grid that it is stored on.
    """
    if value.shape != expected.shape:
        return False
    peak = float(np.abs(expected).max(initial=0.0)) or 1.0
    if np.any(room):
        return bool(np.all(np.abs(value.astype(np.float64) - expected) <= room + 1e-6 * peak))
    return bool(np.allclose(value, expected, rtol=2e-6 + rounding, atol=1e-6 * peak))


def _parameters(target: Model, constant: WrongConstant) -> list[str]:
    """Parameters behind a constant that hold numbers: floats, and integers that stand for floats."""
    form = target.normal_form
    origin = form.origins.get(constant.name)
    names = () if origin is None else parameters_of(origin)
    stored = set() if origin is None else set(widened(origin))
    # A scale of as many elements as there are numbers explains whatever these are.
    scales = {widening.scale for widening in widenings(origin, form.parameters)}
    return [
        n for n in names
        if n in form.parameters and n not in scales and (form.parameters[n].dtype.kind == "f" or n in stored)
    ]


def _suspects(source: Model, target: Model, constant: WrongConstant) -> list[str]:
    """Those of the parameters that the source does not have just the same, up to a framework's kernel layout."""
    parameters = target.normal_form.parameters
    known = _contents(source, constant.source_name)
    return [n for n in _parameters(target, constant) if not _is_known(known, n, parameters[n])]


def _is_known(known: Mapping[str, np.ndarray], name: str, content: np.ndarray) -> bool:
    """Whether the source has a parameter; zeros and ones tell nothing, so there a namesake decides."""
    if name in known and np.ptp(content) == 0:
        return _alike(known[name], content)
    return any(_alike(other, content) for other in known.values())


def _alike(source: np.ndarray, target: np.ndarray) -> bool:
    if source.ndim != target.ndim or source.size != target.size:
        return False
    return any(close(np.transpose(source, axes), target) for axes in _LAYOUTS.get(source.ndim, (range(source.ndim),)))


def _contents(source: Model, name: str | None) -> dict[str, np.ndarray]:
    origin: Origin | None = source.normal_form.origins.get(name or "")
    if origin is None:
        return {}
    parameters = source.normal_form.parameters
    return {n: parameters[n] for n in parameters_of(origin) if n in parameters}

