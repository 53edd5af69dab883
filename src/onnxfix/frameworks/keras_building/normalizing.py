"""Normalizations: layers whose scale and shift are weights, where these are constants."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx

from onnxfix.frameworks.keras_building.shaping import given, optional
from onnxfix.frameworks.keras_building.values import Unsupported, Value

Attributes = dict[str, Any]
Operands = Sequence[Value | None]

_EPSILON = 1e-5


def batch_norm(node: onnx.NodeProto, operands: Operands, attributes: Attributes) -> Value:
    """By constant statistics; of any rank from two up, the channels where they are."""
    from keras import layers

    x, *rest = (given(operands, slot) for slot in range(5))
    constants = [value.constant for value in rest]
    if any(value is None for value in constants) or x.rank < 2 or attributes.get("training_mode", 0):
        raise Unsupported("takes computed statistics")
    last = x.prefers_last and x.rank > 2
    layer = layers.BatchNormalization(
        axis=-1 if last else 1, epsilon=attributes.get("epsilon", _EPSILON), name=node.name
    )
    return Value(_weighted(layer, x.last() if last else x.first(), constants), last=last)


def instance_norm(node: onnx.NodeProto, operands: Operands, attributes: Attributes) -> Value:
    """Each channel of each sample by itself: groups of one channel."""
    return _grouped(node, operands, attributes, given(operands, 0).shape[1])


def group_norm(node: onnx.NodeProto, operands: Operands, attributes: Attributes) -> Value:
    """Groups of channels, scaled channel by channel."""
    return _grouped(node, operands, attributes, attributes["num_groups"])


def _grouped(node: onnx.NodeProto, operands: Operands, attributes: Attributes, groups: int | None) -> Value:
    from keras import layers

    x, scale, shift = (given(operands, slot) for slot in range(3))
    if scale.constant is None or shift.constant is None or scale.shape != (x.shape[1],) or x.rank < 3 or not groups:
        raise Unsupported("takes computed weights, or a matrix")
    layer = layers.GroupNormalization(
        int(groups), axis=-1, epsilon=attributes.get("epsilon", _EPSILON), name=node.name
    )
    return Value(_weighted(layer, x.last(), [scale.constant, shift.constant]), last=True)


def layer_norm(node: onnx.NodeProto, operands: Operands, attributes: Attributes) -> Value:
    """Over the last axes."""
    from keras import layers, ops

    x, scale, shift = given(operands, 0), given(operands, 1), optional(operands, 2)
    if len([output for output in node.output if output]) > 1:
        raise Unsupported("answers its mean too")
    axes, epsilon = _axes(x, attributes), attributes.get("epsilon", _EPSILON)
    weights = _weights(x, axes, scale, shift)
    if weights is not None:
        layer = layers.LayerNormalization(axis=axes, epsilon=epsilon, center=shift is not None, name=node.name)
        return Value(_weighted(layer, x.first(), weights))
    centred = ops.subtract(x.first(), ops.mean(x.first(), axis=axes, keepdims=True))
    return _scaled(_by_root(centred, axes, epsilon), scale, shift)


def rms_norm(node: onnx.NodeProto, operands: Operands, attributes: Attributes) -> Value:
    """Over the last axes, by the root of the mean square, nothing subtracted."""
    from keras import layers

    x, scale = given(operands, 0), given(operands, 1)
    axes, epsilon = _axes(x, attributes), attributes.get("epsilon", _EPSILON)
    weights = _weights(x, axes, scale, None)
    if weights is not None:
        layer = layers.RMSNormalization(axis=axes, epsilon=epsilon, name=node.name)
        return Value(_weighted(layer, x.first(), weights))
    return _scaled(_by_root(x.first(), axes, epsilon), scale, None)


def _axes(x: Value, attributes: Attributes) -> list[int]:
    return list(range(attributes.get("axis", -1) % x.rank, x.rank))


def _weights(x: Value, axes: Sequence[int], *parts: Value | None) -> list[np.ndarray] | None:
    """The weights as a layer holds them, one number for each place that is normalized; None where they do not fit."""
    sizes = tuple(x.shape[axis] for axis in axes)
    found = []
    for part in parts:
        if part is None:
            continue
        if part.constant is None or None in sizes or part.rank > len(sizes):
            return None
        found.append(np.broadcast_to(part.constant, [n for n in sizes if n is not None]))
    return found


def _by_root(tensor: Any, axes: Sequence[int], epsilon: float) -> Any:
    from keras import ops

    square = ops.mean(ops.multiply(tensor, tensor), axis=axes, keepdims=True)
    return ops.divide(tensor, ops.sqrt(ops.add(square, epsilon)))


def _scaled(tensor: Any, scale: Value, shift: Value | None) -> Value:
    from keras import ops

    scaled = ops.multiply(tensor, scale.first())
    return Value(scaled if shift is None else ops.add(scaled, shift.first()))


def _weighted(layer: Any, tensor: Any, weights: Sequence[np.ndarray | None]) -> Any:
    result = layer(tensor)
    layer.set_weights(weights)
    return result


NORMALIZING: dict[str, Callable[..., Value]] = {
    "BatchNormalization": batch_norm, "GroupNormalization": group_norm, "InstanceNormalization": instance_norm,
    "LayerNormalization": layer_norm, "RMSNormalization": rms_norm,
}  # fmt: skip
