"""Whether a lowered graph computes what its native model does, and if not, which layer was lowered wrongly."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from onnxfix.errors import ExportError, InputError, OnnxFixError, UnfaithfulLoweringError
from onnxfix.frameworks.agreement import disagreement, distance
from onnxfix.frameworks.example_inputs import accepted_feeds
from onnxfix.runtime.session import Session

if TYPE_CHECKING:
    from onnxfix.frameworks import Feeds
    from onnxfix.model import Model

# Relative. Two runtimes round a deep float32 network differently by up to 1e-4; a wrong op is far off.
_FLOAT_TOLERANCE = 1e-3
# Quantized arithmetic rounds to steps of 1/255, and float runtimes round at other places: over a deep network on
# random inputs that adds up to about ten steps.
_QUANTIZED_TOLERANCE = 5e-2


@dataclass(frozen=True)
class Defect:
    """A native layer whose lowered form is wrong.

    Attributes:
        layer: The native name.
        nodes: The lowered nodes that stand for it.
        ops: Their op types.
        error: How far the nearest lowered value is off, relative to the native value's largest.
    """

    layer: str
    nodes: tuple[str, ...]
    ops: tuple[str, ...]
    error: float


def verify_lowering(model: Model, inputs: Any = None) -> None:
    """Run a model natively and lowered, side by side.

    Args:
        model: The model.
        inputs: What :func:`onnxfix.load` was given; random inputs when None.

    Raises:
        UnfaithfulLoweringError: they differ. The message names the first layer whose lowered form is wrong.
        InputError: the model takes no random input, and none were given.
    """
    tolerance = _QUANTIZED_TOLERANCE if _quantized(model.proto) else _FLOAT_TOLERANCE
    for feeds in _feeds(model, inputs):
        native = model.run_native(feeds)
        problem = disagreement(_as_floats(native), _as_floats(model.run(feeds)), tolerance)
        if problem is not None:
            raise _accusation(model, first_defect(model, feeds, tolerance), problem)


def first_defect(model: Model, feeds: Feeds, tolerance: float = _FLOAT_TOLERANCE) -> Defect | None:
    """The first native intermediate value that none of the lowered values made for it reproduces.

    Args:
        model: The model.
        feeds: Input name -> array.
        tolerance: Allowed difference, relative to the native value's largest.

    Returns:
        The defect, or None where every value that can be compared is reproduced.
    """
    try:
        native = model.activations(feeds)
    except OnnxFixError:
        return None  # a runtime that does not tell its intermediate values
    lowered = _all_values(model.proto, feeds)
    makers = {output: node for node in model.proto.graph.node for output in node.output}
    by_layer: dict[str, list[str]] = defaultdict(list)
    for output, node in makers.items():
        layer = model.layers.get(node.name, "")
        while layer:  # a layer stands for everything inside it
            by_layer[layer].append(output)
            layer = layer.rpartition("." if "." in layer else "/")[0]
    for name, value in native.items():
        own = [name] if name in makers else by_layer.get(name.split("#")[0].split(":")[0], [])
        errors = {output: _error(value, lowered[output]) for output in own if output in lowered}
        known = {output: error for output, error in errors.items() if error is not None}
        if known and min(known.values()) > tolerance:
            nodes = tuple(dict.fromkeys(makers[output].name for output in own))
            ops = tuple(dict.fromkeys(makers[output].op_type for output in own))
            return Defect(name, nodes, ops, min(known.values()))
    return None


def _accusation(model: Model, defect: Defect | None, problem: str) -> UnfaithfulLoweringError:
    start = f"the ONNX form of this {model.framework} model computes something else than the model itself ({problem})"
    end = "a fault of the lowering, not of the model"
    if defect is None:
        return UnfaithfulLoweringError(f"{start}: {end}.")
    return UnfaithfulLoweringError(
        f"{start}: {defect.layer}, lowered as {', '.join(defect.ops[:6])}, is the first that is off, by "
        f"{defect.error:.2g} of its largest value; {end}.",
        defect.layer, defect.nodes,
    )


def _feeds(model: Model, inputs: Any) -> list[dict[str, np.ndarray]]:
    """The caller's example inputs by name, or random ones."""
    given = {} if inputs is None else _by_name(model, inputs)
    if given:
        return [given]
    try:
        return accepted_feeds(model)
    except ExportError as error:
        raise InputError("the model runs on no random input, so it cannot be verified: give inputs.") from error


def _by_name(model: Model, inputs: Any) -> dict[str, np.ndarray]:
    names = [spec.name for spec in model.inputs]
    if isinstance(inputs, Mapping):
        ordered = [inputs[name] for name in names] if set(names) <= set(inputs) else list(inputs.values())
    else:
        ordered = list(inputs) if isinstance(inputs, tuple | list) else [inputs]
    arrays = [np.asarray(value.detach() if hasattr(value, "detach") else value) for value in ordered
              if hasattr(value, "shape")]
    if len(arrays) != len(names):
        return {}
    return {spec.name: array.astype(spec.dtype) for spec, array in zip(model.inputs, arrays, strict=True)}


def _quantized(proto: onnx.ModelProto) -> bool:
    return any(node.op_type in ("QuantizeLinear", "DequantizeLinear") for node in proto.graph.node)


def _as_floats(values: Feeds) -> dict[str, np.ndarray]:
    """Integers of one byte are quantized numbers, compared by how far apart they are."""
    return {name: value.astype(np.float32) if value.dtype.kind in "iu" and value.dtype.itemsize == 1 else value
            for name, value in values.items()}


def _all_values(proto: onnx.ModelProto, feeds: Feeds) -> dict[str, np.ndarray]:
    """Every value of the main graph by name."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    there = {output.name for output in copy.graph.output}
    for node in proto.graph.node:
        for name in node.output:
            if name and name not in there:
                there.add(name)
                copy.graph.output.append(onnx.helper.make_value_info(name, onnx.TypeProto()))
    values: dict[str, Any] = Session(copy).run(feeds)
    return {name: value for name, value in values.items() if isinstance(value, np.ndarray)}


def _error(native: np.ndarray, lowered: np.ndarray) -> float | None:
    """How far a lowered value is off; None where it is no candidate for the native one."""
    same_shape = [n for n in native.shape if n != 1] == [n for n in lowered.shape if n != 1]
    if not same_shape or native.dtype.kind != lowered.dtype.kind:
        return None
    return distance(native.reshape(-1).astype(np.float64), lowered.reshape(-1).astype(np.float64))
