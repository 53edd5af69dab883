"""Origins: the expression over lowered parameters that made a canonical constant, and its inverse.

A constant of the normal form is rarely a parameter of the model: ``W' = Transpose(K) * gamma / Sqrt(var + eps)``. The
origin keeps that expression in ONNX's own ops, so the constant can be computed again after a parameter changed
(:func:`evaluate`), and a wanted constant can be turned into the parameter that gives it (:func:`invert`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx

from onnxfix.errors import CanonicalizationError

Array = np.ndarray


class NotInvertible(CanonicalizationError):
    """No value of the parameter gives the wanted constant; the text says why."""


@dataclass(frozen=True)
class Parameter:
    """An initializer of the lowered graph."""

    name: str


@dataclass(frozen=True, eq=False)
class Literal:
    """A value that a pass made up (an axis, a neutral element)."""

    value: Array


@dataclass(frozen=True, eq=False)
class Apply:
    """An ONNX op applied to origins."""

    op: str
    operands: tuple[Origin | None, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    output: int = 0


Origin = Parameter | Literal | Apply

# Opset of the normal form and so of these expressions: the newest that onnxruntime 1.20 runs; 22 adds no meaning to it.
EXPRESSION_OPSET = 21
# A scale below this counts as zero: dividing by it has no meaning in float32.
_TINY = float(np.finfo(np.float32).tiny)


def parameters_of(origin: Origin) -> tuple[str, ...]:
    """Names of the parameters that an origin depends on, in order of appearance, without repeats."""
    names: dict[str, None] = {}
    _collect(origin, names)
    return tuple(names)


def _collect(origin: Origin | None, names: dict[str, None]) -> None:
    if isinstance(origin, Parameter):
        names[origin.name] = None
    elif isinstance(origin, Apply):
        for operand in origin.operands:
            _collect(operand, names)


def evaluate(origin: Origin, parameters: Mapping[str, Array]) -> Array:
    """Compute the constant.

    Args:
        origin: The expression.
        parameters: Lowered parameter name -> value.

    Returns:
        The value; bit for bit what the canonicalizer computed when given the same parameters.
    """
    if isinstance(origin, Parameter):
        return parameters[origin.name]
    if isinstance(origin, Literal):
        return origin.value
    operands = [None if o is None else evaluate(o, parameters) for o in origin.operands]
    return apply(origin.op, operands, origin.attributes)[origin.output]


def describe(origin: Origin | None) -> str:
    """The expression as a formula for people: ``Mul(Transpose(conv/kernel), bn/gamma)``."""
    if isinstance(origin, Parameter):
        return origin.name
    if isinstance(origin, Literal):
        return np.array2string(origin.value, threshold=4, precision=6)
    if origin is None:
        return ""
    return f"{origin.op}({', '.join(describe(o) for o in origin.operands)})"


_ARITHMETIC: dict[str, Callable[..., Array]] = {
    "Add": np.add,
    "Sub": np.subtract,
    "Mul": np.multiply,
    "Div": np.divide,
    "Neg": np.negative,
    "Sqrt": np.sqrt,
    "Reciprocal": np.reciprocal,
}


def apply(
    op: str, operands: list[Array | None], attributes: Mapping[str, Any], *, ordered: bool = True
) -> tuple[Array, ...]:
    """Evaluate one ONNX op on arrays; float arithmetic is done in double precision and rounded once.

    Args:
        op: Op type.
        operands: Its operands.
        attributes: Its attributes.
        ordered: Whether the result must be in C order; views in another order cost nothing.

    Raises:
        CanonicalizationError: the op cannot be evaluated.
    """
    present = [o for o in operands if o is not None]
    try:
        if op in _ARITHMETIC and present and all(o.dtype.kind == "f" for o in present):
            return (_arithmetic(op, present),)
        if op in _DIRECT and len(present) == len(operands):
            return (np.asarray(_DIRECT[op](present, attributes), order="C" if ordered else "K"),)
    except (ValueError, IndexError) as error:  # what numpy raises where shapes do not fit
        raise CanonicalizationError(f"cannot evaluate {op} on constants: {error}") from error
    return _reference(op, operands, attributes)


def _arithmetic(op: str, operands: list[Array]) -> Array:
    """As if done in double precision and rounded once, as float32 and float16 arithmetic turns out by itself."""
    kind = operands[0].dtype
    with np.errstate(all="ignore"):
        if kind not in _IEEE or any(o.dtype != kind for o in operands):
            return np.asarray(_ARITHMETIC[op](*(o.astype(np.float64) for o in operands)), dtype=kind)
        shape = np.broadcast_shapes(*(o.shape for o in operands))
        if len(shape) != 2 or all(o.flags.c_contiguous for o in operands):
            return np.asarray(_ARITHMETIC[op](*operands))
        # A matrix that is stored by columns: in tiles, which caches like better, and straight into rows.
        result = np.empty(shape, kind)
        spread = [np.broadcast_to(o, shape) for o in operands]
        for tile in tiles(shape):
            _ARITHMETIC[op](*(o[tile] for o in spread), out=result[tile])
        return result


_IEEE = (np.dtype(np.float16), np.dtype(np.float32), np.dtype(np.float64))
_TILE = 256


def tiles(shape: tuple[int, ...]) -> Iterator[tuple[slice, slice]]:
    """The tiles of a matrix, row by row."""
    for row in range(0, shape[0], _TILE):
        for column in range(0, shape[1], _TILE):
            yield slice(row, row + _TILE), slice(column, column + _TILE)


def _matmul(operands: list[Array], attributes: Mapping[str, Any]) -> Array:
    """A row times a wide matrix goes by blocks of columns, so that how the matrix is stored makes no difference."""
    row, matrix = operands
    if row.shape[-1:] != matrix.shape[-2:][:1]:
        shapes = f"{list(row.shape)} and {list(matrix.shape)}"
        raise CanonicalizationError(f"cannot evaluate MatMul on constants of shapes {shapes}: they do not fit.")
    if row.ndim != 1 or matrix.ndim != 2:
        return np.asarray(np.matmul(np.ascontiguousarray(row), np.ascontiguousarray(matrix)))
    starts = range(0, max(matrix.shape[1], 1), _TILE)
    return np.asarray(np.concatenate([row @ np.ascontiguousarray(matrix[:, k : k + _TILE]) for k in starts]))


def _reshape(operands: list[Array], attributes: Mapping[str, Any]) -> Array:
    data, target = operands[0], [int(d) for d in operands[1]]
    if not attributes.get("allowzero"):
        target = [data.shape[k] if d == 0 else d for k, d in enumerate(target)]
    return data.reshape(target)


def _unsqueeze(operands: list[Array], attributes: Mapping[str, Any]) -> Array:
    return np.expand_dims(operands[0], tuple(int(a) for a in np.atleast_1d(operands[1])))


def _squeeze(operands: list[Array], attributes: Mapping[str, Any]) -> Array:
    return np.squeeze(operands[0], tuple(int(a) for a in operands[1]) if len(operands) > 1 else None)


def _expand(operands: list[Array], attributes: Mapping[str, Any]) -> Array:
    return np.broadcast_to(operands[0], np.broadcast_shapes(operands[0].shape, tuple(int(d) for d in operands[1])))


def _shape(operands: list[Array], attributes: Mapping[str, Any]) -> Array:
    return np.asarray(operands[0].shape[attributes.get("start", 0) : attributes.get("end")], dtype=np.int64)


# Ops that numpy spells directly; the reference evaluator builds a model for each call.
_DIRECT: dict[str, Callable[[list[Array], Mapping[str, Any]], Array]] = {
    "Transpose": lambda operands, attributes: np.transpose(operands[0], attributes.get("perm")),
    "Identity": lambda operands, attributes: operands[0],
    "Concat": lambda operands, attributes: np.concatenate(operands, axis=attributes["axis"]),
    "Gather": lambda operands, attributes: np.take(operands[0], operands[1], axis=attributes.get("axis", 0)),
    "Reshape": _reshape,
    "Unsqueeze": _unsqueeze,
    "Squeeze": _squeeze,
    "Expand": _expand,
    "Shape": _shape,
    "MatMul": _matmul,
}
# Ops whose result does not depend on the order in which their operands lie in memory.
ANY_ORDER = frozenset({*_ARITHMETIC, "Transpose", "Identity", "Reshape", "Unsqueeze", "Squeeze", "MatMul"})


def _reference(op: str, operands: list[Array | None], attributes: Mapping[str, Any]) -> tuple[Array, ...]:
    from onnx.reference import ReferenceEvaluator

    names = ["" if o is None else f"i{k}" for k, o in enumerate(operands)]
    schema = onnx.defs.get_schema(op, EXPRESSION_OPSET)
    variadic = schema.max_output > 16
    count = int(attributes.get("num_outputs", 0)) or (len(operands[1]) if op == "Split" and len(operands) > 1
                                                      and operands[1] is not None else 1)
    outputs = [f"o{k}" for k in range(count if variadic else 1)]
    node = onnx.helper.make_node(op, names, outputs, **attributes)
    graph = onnx.helper.make_graph(
        [node],
        "expression",
        [onnx.helper.make_value_info(n, onnx.TypeProto()) for n in names if n],
        [onnx.helper.make_value_info(o, onnx.TypeProto()) for o in outputs],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", EXPRESSION_OPSET)])
    try:
        with np.errstate(all="ignore"):
            values = ReferenceEvaluator(model).run(None, {n: o for n, o in zip(names, operands, strict=True) if n})
    except Exception as error:  # the reference evaluator raises whatever numpy does
        raise CanonicalizationError(f"cannot evaluate {op} on constants: {error}") from error
    return tuple(np.asarray(v) for v in values)


def invert(origin: Origin, parameter: str, wanted: Array, parameters: Mapping[str, Array]) -> Array:
    """Find the value of one parameter that makes an origin evaluate to ``wanted``, the others kept.

    Args:
        origin: The expression, in which ``parameter`` occurs exactly once.
        parameter: The parameter to solve for.
        wanted: The wanted value of the expression, of its shape.
        parameters: Current values of all parameters.

    Returns:
        The parameter's new value, of its own shape and dtype.

    Raises:
        NotInvertible: no exact inverse exists (a zero scale, a value lost by slicing, a broadcast that disagrees).
    """
    if isinstance(origin, Parameter) and origin.name == parameter:
        current = parameters[parameter]
        if current.size != np.size(wanted):
            raise NotInvertible(f"{parameter} has {current.size} values, {np.size(wanted)} are wanted")
        solution = np.asarray(wanted).reshape(current.shape)
        if solution.dtype.kind == "f":
            solution = np.where(np.isnan(solution), current, solution)
        return solution.astype(current.dtype)
    if not isinstance(origin, Apply):
        raise NotInvertible(f"{parameter} does not occur in the expression")
    holding = [k for k, o in enumerate(origin.operands) if o is not None and parameter in parameters_of(o)]
    if len(holding) != 1:
        raise NotInvertible(f"{parameter} occurs {len(holding)} times in {describe(origin)}")
    slot = holding[0]
    rule = _INVERSES.get(origin.op)
    if rule is None:
        raise NotInvertible(f"{origin.op} has no inverse")
    values = [None if o is None else evaluate(o, parameters) for o in origin.operands]
    try:
        inner = rule(origin, slot, values, np.asarray(wanted))
    except ValueError as error:
        raise NotInvertible(f"a value of shape {list(np.shape(wanted))} does not come out of {origin.op}") from error
    operand = origin.operands[slot]
    assert operand is not None  # slot was chosen among the present ones
    return invert(operand, parameter, inner, parameters)


Inverse = Callable[[Apply, int, list[Array | None], Array], Array]


def _operand(values: list[Array | None], slot: int) -> Array:
    value = values[slot]
    if value is None:
        raise NotInvertible("an operand is missing")
    return value


def _repeated_axes(shape: tuple[int, ...], own: tuple[int, ...]) -> tuple[int, ...]:
    """Axes of ``shape`` along which a tensor of shape ``own`` is repeated when broadcast to it."""
    lead = len(shape) - len(own)
    if lead < 0:
        raise NotInvertible(f"a parameter of shape {list(own)} does not broadcast to {list(shape)}")
    return tuple(range(lead)) + tuple(lead + k for k, d in enumerate(own) if d == 1 and shape[lead + k] != 1)


# In the rules below NaN stands for "any value will do": a weight behind a scale of zero.


def _unbroadcast(solution: Array, shape: tuple[int, ...], scale: float) -> Array:
    """Reduce a solution to the operand's own, smaller shape; all copies must agree to float noise of ``scale``."""
    axes = _repeated_axes(solution.shape, shape)
    if not axes:
        return solution
    known = ~np.isnan(solution)
    count = known.sum(axis=axes, keepdims=True)
    mean = np.where(known, solution, 0.0).sum(axis=axes, keepdims=True) / np.where(count, count, np.nan)
    if np.abs(solution - mean).max(initial=0.0, where=known) > 2e-6 * scale:
        raise NotInvertible("the wanted values differ where the parameter is broadcast")
    return np.asarray(mean.reshape(shape))


def _factor(goal: Array, other: Array, shape: tuple[int, ...]) -> Array:
    """Solve ``x * other = goal`` for an ``x`` of the given shape, by least squares where it is broadcast."""
    axes = _repeated_axes(goal.shape, shape)
    if not axes:
        return _quotient(goal, other)
    other = np.broadcast_to(other, goal.shape)
    factor = _quotient(np.sum(goal * other, axis=axes, keepdims=True), np.sum(other * other, axis=axes, keepdims=True))
    misfit = np.abs(goal - np.where(np.isnan(factor), 0.0, factor) * other)
    if misfit.max(initial=0.0) > 2e-6 * np.abs(goal).max(initial=0.0):
        raise NotInvertible("the wanted values differ where the parameter is broadcast")
    return np.asarray(factor.reshape(shape))


def _invert_arithmetic(origin: Apply, slot: int, values: list[Array | None], wanted: Array) -> Array:
    current = _operand(values, slot)
    other = _operand(values, 1 - slot).astype(np.float64)
    goal = wanted.astype(np.float64)
    if origin.op == "Mul":
        return _factor(goal, other, current.shape)
    if origin.op == "Div":
        if slot == 0:
            return _factor(goal, np.reciprocal(other), current.shape)
        return _unbroadcast(_quotient(other, goal), current.shape, float(np.abs(current).max(initial=0.0)))
    reverse = origin.op == "Sub" and slot == 1
    solution = other - goal if reverse else goal - other if origin.op == "Add" else goal + other
    return _unbroadcast(solution, current.shape, float(max(np.abs(goal).max(initial=0), np.abs(other).max(initial=0))))


def _quotient(numerator: Array, denominator: Array) -> Array:
    numerator, denominator = np.broadcast_arrays(numerator, denominator)
    zero = np.abs(denominator) < _TINY
    if np.any(zero & (np.abs(numerator) > _TINY)):
        raise NotInvertible("a scale is zero where the wanted value is not")
    return np.asarray(np.divide(numerator, denominator, out=np.full(zero.shape, np.nan), where=~zero))


def _invert_shape(origin: Apply, slot: int, values: list[Array | None], wanted: Array) -> Array:
    if slot != 0:
        raise NotInvertible(f"the parameter is the shape operand of {origin.op}")
    return wanted.reshape(_operand(values, 0).shape)


def _invert_transpose(origin: Apply, slot: int, values: list[Array | None], wanted: Array) -> Array:
    perm = origin.attributes.get("perm") or tuple(reversed(range(wanted.ndim)))
    return np.transpose(wanted, np.argsort(perm))


def _invert_concat(origin: Apply, slot: int, values: list[Array | None], wanted: Array) -> Array:
    axis = int(origin.attributes["axis"])
    begin = sum(_operand(values, k).shape[axis] for k in range(slot))
    return np.take(wanted, range(begin, begin + _operand(values, slot).shape[axis]), axis=axis)


def _invert_selection(origin: Apply, slot: int, values: list[Array | None], wanted: Array) -> Array:
    """Slice, Gather, Split: write the wanted elements into the current value."""
    if slot != 0:
        raise NotInvertible(f"the parameter is an index operand of {origin.op}")
    current = _operand(values, 0)
    positions = np.arange(current.size).reshape(current.shape)
    chosen = apply(origin.op, [positions, *values[1:]], origin.attributes)[origin.output]
    if len(np.unique(chosen)) != chosen.size:
        raise NotInvertible(f"{origin.op} picks an element twice")
    result = current.copy()
    result.reshape(-1)[chosen.reshape(-1)] = wanted.reshape(-1)
    return result


def _invert_expand(origin: Apply, slot: int, values: list[Array | None], wanted: Array) -> Array:
    return _unbroadcast(wanted, _operand(values, 0).shape, float(np.abs(wanted).max(initial=0.0)))


def _narrowed(wanted: Array, dtype: np.dtype[Any]) -> Array:
    """Numbers in the type that a Cast widens: integers are rounded, and saturate."""
    if dtype.kind not in "iu" or wanted.dtype.kind != "f":
        return wanted.astype(dtype)
    info = np.iinfo(dtype)
    rounded: Array = np.clip(np.nan_to_num(np.rint(wanted)), info.min, info.max)
    return rounded.astype(dtype)


def _invert_unary(origin: Apply, slot: int, values: list[Array | None], wanted: Array) -> Array:
    if origin.op == "Neg":
        return -wanted
    if origin.op == "Cast":
        return _narrowed(wanted, _operand(values, 0).dtype)
    if origin.op == "Reciprocal":
        return _quotient(np.ones_like(wanted, dtype=np.float64), wanted.astype(np.float64))
    if origin.op == "Sqrt":
        if np.any(wanted < 0):
            raise NotInvertible("a square root cannot be negative")
        return np.square(wanted.astype(np.float64))
    return wanted


_INVERSES: dict[str, Inverse] = {
    **dict.fromkeys(("Add", "Sub", "Mul", "Div"), _invert_arithmetic),
    **dict.fromkeys(("Reshape", "Squeeze", "Unsqueeze", "Flatten"), _invert_shape),
    **dict.fromkeys(("Neg", "Cast", "Reciprocal", "Sqrt", "Identity"), _invert_unary),
    **dict.fromkeys(("Slice", "Gather", "Split"), _invert_selection),
    "Transpose": _invert_transpose,
    "Concat": _invert_concat,
    "Expand": _invert_expand,
}
