"""Precision that was asked for: parameters stored in fewer bits, and quantized activations.

A file that stores float16 or int8 was made so on request; what that costs is no fault. How much it may cost is read
off the file: the types behind a region's constants, and the quantizing nodes in it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import TensorProto

from onnxfix.align import GraphView
from onnxfix.canonical.origins import Apply, Origin, Parameter, evaluate, parameters_of
from onnxfix.diagnose.differences import ULPS
from onnxfix.model import Model
from onnxfix.quantization import is_quantized
from onnxfix.runtime.probe import MASKED, saturated

_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16)
# Rounding leaves half a step; scales are themselves rounded to float32.
_HALF_STEP = 0.501
# Trials by which the effect of rounding on a constant is measured, and how far beyond them its tail may reach.
_TRIALS = 4
_TAIL = 4.0
# Relative error of a region that a correct use of the type may make: two units of its precision.
HALF = 2.0**-9
# Eight bits per tensor: a step of the range for each of weights, inputs and output.
BYTE = 3 * 2.0**-7
# Dynamic ranges and accumulated steps where activations are quantized, too.
QUANTIZING = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "ConvInteger", "MatMulInteger"})


def expected_error(model: Model, view: GraphView, nodes: Iterable[str]) -> float:
    """The relative error that the storage types of some canonical nodes excuse; 0 for plain float32.

    Args:
        model: The model that the nodes are of.
        view: Its canonical graph.
        nodes: Canonical node names.
    """
    form = model.normal_form
    worst = 0.0
    for name in nodes:
        node = view.nodes[name]
        asked = node.op_type not in ("QuantizeLinear", "DequantizeLinear") or is_quantized(model.proto)
        if node.op_type in QUANTIZING and asked:
            worst = max(worst, BYTE)
        for value in node.input:
            origin = form.origins.get(value)
            if origin is not None and view.constant(value).dtype.kind == "f":
                types = (form.parameters[p].dtype for p in widened(origin) if p in form.parameters)
                worst = max([worst, *(_cost(dtype) for dtype in types)])
    return worst


def is_as_stored(model: Model, constant: str, expected: Any, actual: Any) -> bool:
    """Whether a canonical constant is the expected one, rounded to the grid that the file stores it on.

    Every element may be off by half a step: of the scale of an integer, of the spacing of a half-precision float, each
    followed through the expression that makes the constant of what is stored. Masks are filled with the most negative
    float32, of which float16 keeps -65504.
    """
    origin = model.normal_form.origins.get(constant)
    if origin is None or not isinstance(expected, np.ndarray) or not isinstance(actual, np.ndarray):
        return False
    if expected.shape != actual.shape or expected.dtype.kind != "f":
        return False
    parameters = model.normal_form.parameters
    stored = [p for p in widened(origin) if p in parameters]
    if not stored:
        return False
    wanted = expected
    if all(parameters[p].dtype == np.float16 for p in stored):
        limits = np.finfo(np.float16)
        wanted = np.clip(expected, limits.min, limits.max)
    return bool(np.all(np.abs(saturated(wanted) - saturated(actual)) <= slack(origin, parameters, wanted)))


def slack(origin: Origin, parameters: Mapping[str, np.ndarray], wanted: np.ndarray) -> np.ndarray | float:
    """How far a constant may be off for the grids that its parameters are stored on, element by element; 0 for none.

    Args:
        origin: The expression that makes the constant.
        parameters: Lowered parameter name -> value.
        wanted: The value that the constant should have.
    """
    stored = dict.fromkeys(p for p in widened(origin) if p in parameters)
    if not stored:
        return 0.0
    base = evaluate(origin, parameters).astype(np.float64)
    own = {p: parameters[p] for p in parameters_of(origin) if p in parameters}
    room: np.ndarray = np.zeros(base.shape)
    for name in stored:
        generator = np.random.default_rng(0)
        with np.errstate(all="ignore"):
            moves = [
                np.abs(evaluate(origin, own | {name: _moved(own[name], up)}).astype(np.float64) - base)
                for up in _ways(own[name].shape, generator)
            ]
        # An element made of one stored number moves alike each time; a sum of many scatters, and may go further.
        room = room + np.max(moves, axis=0) + _TAIL * np.std(moves, axis=0)
    peak = float(np.abs(wanted).max(initial=0.0, where=np.abs(wanted) < MASKED))
    return np.asarray(_HALF_STEP * room + ULPS * np.minimum(np.abs(wanted), MASKED) + ULPS / 4 * peak)


def _ways(shape: tuple[int, ...], generator: np.random.Generator) -> Iterator[np.ndarray]:
    """Which elements go up, in each trial: every one goes up and down, since at a power of two the steps differ."""
    for _ in range(_TRIALS):
        up = generator.random(shape) < 0.5
        yield up
        yield ~up


def _moved(values: np.ndarray, up: np.ndarray) -> np.ndarray:
    """Every element a step up or down on the grid of its type."""
    if values.dtype.kind in "iu":
        info = np.iinfo(values.dtype)
        steps = np.where(up, 1, -1)
        steps = np.where(values == info.max, -1, np.where(values == info.min, 1, steps))
        return np.asarray(values + steps.astype(values.dtype), values.dtype)
    with np.errstate(all="ignore"):
        moved = np.nextafter(values, np.where(up, np.inf, -np.inf).astype(values.dtype))
        return np.asarray(np.where(np.isfinite(moved.astype(np.float64)), moved, values))


def _cost(dtype: np.dtype[Any]) -> float:
    if dtype.kind == "f" or dtype.name == "bfloat16":
        return HALF if dtype.itemsize == 2 else 0.0
    return BYTE if dtype.itemsize == 1 else 0.0


def widened(origin: Origin | None) -> Iterator[str]:
    """Parameters that a Cast or DequantizeLinear brought to float: those that are stored in fewer bits."""
    if not isinstance(origin, Apply):
        return
    for operand in origin.operands:
        if isinstance(operand, Parameter) and _makes_floats(origin):
            yield operand.name
        yield from widened(operand)


def _makes_floats(origin: Apply) -> bool:
    """A cast of sizes to int64 widens no weights."""
    return origin.op == "DequantizeLinear" or (origin.op == "Cast" and origin.attributes.get("to") in _FLOATS)


@dataclass(frozen=True)
class Widening:
    """``(cast(q) - cast(z)) * s`` in an expression; names of the three, "" where there is no zero point."""

    stored: str
    scale: str
    zero: str


def widenings(origin: Origin | None, parameters: Mapping[str, np.ndarray]) -> Iterator[Widening]:
    """The stored integers in an expression, each with its scale and zero point.

    Args:
        origin: The expression.
        parameters: Lowered parameter name -> value.
    """
    if not isinstance(origin, Apply):
        return
    if origin.op == "Mul":
        wide: Origin | None = origin.operands[0]
        scale = origin.operands[1]
        offset: Origin | None = None
        if isinstance(wide, Apply) and wide.op == "Sub":
            offset = wide.operands[1]
            wide = wide.operands[0]
        if isinstance(wide, Apply) and wide.op == "Cast" and isinstance(wide.operands[0], Parameter):
            stored = wide.operands[0].name
            scales = [n for n in _behind(scale, parameters) if parameters[n].dtype.kind == "f"]
            zeros = [n for n in _behind(offset, parameters) if parameters[n].dtype == parameters[stored].dtype]
            if len(scales) == 1 and len(zeros) <= 1 and parameters[stored].dtype.kind in "iu":
                yield Widening(stored, scales[0], zeros[0] if zeros else "")
    for operand in origin.operands:
        yield from widenings(operand, parameters)


def _behind(origin: Origin | None, parameters: Mapping[str, np.ndarray]) -> list[str]:
    return [] if origin is None else [n for n in parameters_of(origin) if n in parameters]
