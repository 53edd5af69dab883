"""Precision that was asked for: parameters stored in fewer bits, and quantized activations.

A file that stores float16 or int8 was made so on request; what that costs is no fault. How much it may cost is read
off the file: the types behind a region's constants, and the quantizing nodes in it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from onnxfix.align import GraphView
from onnxfix.canonical.origins import Apply, Origin, Parameter
from onnxfix.model import Model

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
        if node.op_type in QUANTIZING:
            worst = max(worst, BYTE)
        for value in node.input:
            origin = form.origins.get(value)
            if origin is not None and view.constant(value).dtype.kind == "f":
                types = (form.parameters[p].dtype for p in _widened(origin) if p in form.parameters)
                worst = max([worst, *(_cost(dtype) for dtype in types)])
    return worst


def is_as_stored(model: Model, constant: str, expected: Any, actual: Any) -> bool:
    """Whether a canonical constant is the expected one, rounded and clipped to the type that the file stores it in.

    Masks are filled with the most negative float32, of which float16 keeps -65504.
    """
    origin = model.normal_form.origins.get(constant)
    if origin is None or not isinstance(expected, np.ndarray) or not isinstance(actual, np.ndarray):
        return False
    types = {model.normal_form.parameters[p].dtype for p in _widened(origin) if p in model.normal_form.parameters}
    if types != {np.dtype(np.float16)} or expected.shape != actual.shape:
        return False
    limits = np.finfo(np.float16)
    rounded = np.clip(expected, limits.min, limits.max).astype(np.float16)
    return bool(np.allclose(rounded.astype(np.float64), actual, rtol=2.0**-10, atol=float(limits.tiny)))


def _cost(dtype: np.dtype[Any]) -> float:
    if dtype.kind == "f" or dtype.name == "bfloat16":
        return HALF if dtype.itemsize == 2 else 0.0
    return BYTE if dtype.itemsize == 1 else 0.0


def _widened(origin: Origin | None) -> Iterator[str]:
    """Parameters that a Cast or DequantizeLinear brought to float."""
    if not isinstance(origin, Apply):
        return
    for operand in origin.operands:
        if isinstance(operand, Parameter) and origin.op in ("Cast", "DequantizeLinear"):
            yield operand.name
        yield from _widened(operand)
