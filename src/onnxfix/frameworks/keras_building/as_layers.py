"""Ops as layers of Keras instead of functions: legacy files and sequential models hold nothing else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx

from onnxfix.frameworks.keras_building.values import Value, moved_axis

Attributes = dict[str, Any]
Operands = Sequence[Value | None]

_ACTIVATIONS = {
    "Elu": "elu", "Exp": "exponential", "Selu": "selu", "Sigmoid": "sigmoid", "Softplus": "softplus",
    "Softsign": "softsign", "Tanh": "tanh",
}  # fmt: skip
_MERGES = {"Add": "Add", "Max": "Maximum", "Min": "Minimum", "Mul": "Multiply", "Sub": "Subtract", "Sum": "Add"}


def as_layer(node: onnx.NodeProto, operands: Operands, attributes: Attributes) -> Value | None:
    """The result of an op by a layer called like the node; None where there is no such layer."""
    rule = _RULES.get(node.op_type)
    x = operands[0] if operands else None
    if rule is None or x is None or not x.dtype.startswith("float"):
        return None
    return rule(node, x, operands, attributes)


def _activation(node: onnx.NodeProto, x: Value, operands: Operands, attributes: Attributes) -> Value | None:
    from keras import layers

    if node.op_type == "Elu" and attributes.get("alpha", 1.0) != 1.0:
        return _on(x, layers.ELU(attributes["alpha"], name=node.name))
    return _on(x, layers.Activation(_ACTIVATIONS[node.op_type], name=node.name))


def _rectifier(node: onnx.NodeProto, x: Value, operands: Operands, attributes: Attributes) -> Value | None:
    from keras import layers

    if node.op_type == "LeakyRelu":
        return _on(x, layers.LeakyReLU(float(str(np.float32(attributes.get("alpha", 0.01)))), name=node.name))
    return _on(x, layers.ReLU(name=node.name))


def _clip(node: onnx.NodeProto, x: Value, operands: Operands, attributes: Attributes) -> Value | None:
    from keras import layers

    low, high = (None if v is None or v.constant is None else float(v.constant.reshape(())) for v in operands[1:3])
    return _on(x, layers.ReLU(high, name=node.name)) if low == 0 and high is not None and high > 0 else None


def _gelu(node: onnx.NodeProto, x: Value, operands: Operands, attributes: Attributes) -> Value | None:
    from keras import layers

    exact = attributes.get("approximate", "none") == "none"
    return _on(x, layers.Activation("gelu", name=node.name)) if exact else None


def _softmax(node: onnx.NodeProto, x: Value, operands: Operands, attributes: Attributes) -> Value | None:
    from keras import layers

    axis = attributes.get("axis", -1) % x.rank
    last = x.prefers_last and x.rank > 2
    own = moved_axis(axis, x.rank) if last else axis
    return _on(x, layers.Softmax(axis=-1 if own == x.rank - 1 else own, name=node.name)) if axis else None


def _merge(node: onnx.NodeProto, x: Value, operands: Operands, attributes: Attributes) -> Value | None:
    """Of tensors of one shape: layers broadcast in another way. By a number, it is a rescaling."""
    from keras import layers

    given = [value for value in operands if value is not None]
    if len(given) == 2 and given[1].constant is not None and given[1].constant.size == 1 and given[1].rank <= x.rank:
        number = float(str(np.float32(given[1].constant.reshape(()))))
        lines = {"Mul": (number, 0.0), "Add": (1.0, number), "Sub": (1.0, -number)}
        return _on(x, layers.Rescaling(*lines[node.op_type], name=node.name)) if node.op_type in lines else None
    if len(given) < 2 or any(value.constant is not None or value.shape != x.shape for value in given):
        return None
    layer = getattr(layers, _MERGES[node.op_type])(name=node.name)
    if any(value.prefers_last for value in given) and x.rank > 2:
        return Value(layer([value.last() for value in given]), last=True)
    return Value(layer([value.first() for value in given]))


def _transpose(node: onnx.NodeProto, x: Value, operands: Operands, attributes: Attributes) -> Value | None:
    from keras import layers

    order = tuple(attributes.get("perm") or reversed(range(x.rank)))
    moves = ((0, *range(2, x.rank), 1), (0, x.rank - 1, *range(1, x.rank - 1)))
    if order[0] or (x.rank > 2 and order in moves):
        return None  # these are had for nothing
    return Value(layers.Permute(order[1:], name=node.name)(x.first()))


def _reshape(node: onnx.NodeProto, x: Value, operands: Operands, attributes: Attributes) -> Value | None:
    from keras import layers

    target = operands[1] if len(operands) > 1 else None
    sizes = [] if target is None or target.constant is None else target.ints()
    if node.op_type == "Flatten":
        return Value(layers.Flatten(name=node.name)(x.first())) if attributes.get("axis", 1) == 1 else None
    keeps = sizes and len(sizes) > 1 and (sizes[0] == 0 or sizes[0] == x.shape[0] or (
        sizes[0] == -1 and None not in x.shape[1:] and _product(sizes[1:]) == _product(x.shape[1:])))
    if not keeps or 0 in sizes[1:]:
        return None
    return Value(layers.Reshape(tuple(sizes[1:]), name=node.name)(x.first()))


def _product(sizes: Sequence[int | None]) -> int:
    return int(np.prod([size or 0 for size in sizes]))


def _concat(node: onnx.NodeProto, x: Value, operands: Operands, attributes: Attributes) -> Value | None:
    from keras import layers

    given = [value for value in operands if value is not None]
    axis = attributes["axis"] % x.rank
    if any(value.constant is not None for value in given) or len(given) < 2 or not axis:
        return None
    if any(value.prefers_last for value in given) and x.rank > 2:
        layer = layers.Concatenate(axis=moved_axis(axis, x.rank), name=node.name)
        return Value(layer([value.last() for value in given]), last=True)
    return Value(layers.Concatenate(axis=axis, name=node.name)([value.first() for value in given]))


def _pad(node: onnx.NodeProto, x: Value, operands: Operands, attributes: Attributes) -> Value | None:
    """By zeros, on the map alone."""
    from keras import layers

    amounts, value = (operands[slot] if slot < len(operands) else None for slot in (1, 2))
    zero = value is None or (value.constant is not None and not value.constant.any())
    if attributes.get("mode", "constant") != "constant" or not zero or len(operands) > 3 or not 3 <= x.rank <= 5:
        return None
    if amounts is None or amounts.constant is None or amounts.constant.size != 2 * x.rank or min(amounts.ints()) < 0:
        return None
    pairs = list(zip(amounts.ints()[: x.rank], amounts.ints()[x.rank :], strict=True))
    if pairs[0] != (0, 0) or pairs[1] != (0, 0):
        return None
    kind = (layers.ZeroPadding1D, layers.ZeroPadding2D, layers.ZeroPadding3D)[x.rank - 3]
    return Value(kind(pairs[2] if x.rank == 3 else tuple(pairs[2:]), name=node.name)(x.last()), last=True)


def _pool(node: onnx.NodeProto, x: Value, operands: Operands, attributes: Attributes) -> Value | None:
    """Without padding."""
    from keras import layers

    window = list(attributes["kernel_shape"])
    plain = not any(attributes.get("pads") or ()) and not attributes.get("ceil_mode", 0)
    if not plain or set(attributes.get("dilations") or [1]) != {1} or len(window) > 3 or len(node.output) > 1:
        return None
    kind = getattr(layers, f"{'Max' if node.op_type == 'MaxPool' else 'Average'}Pooling{len(window)}D")
    strides = list(attributes.get("strides") or [1] * len(window))
    sizes = (window, strides) if len(window) > 1 else (window[0], strides[0])
    return Value(kind(*sizes, name=node.name)(x.last()), last=True)


def _global_pool(node: onnx.NodeProto, x: Value, operands: Operands, attributes: Attributes) -> Value | None:
    from keras import layers

    if not 3 <= x.rank <= 5:
        return None
    kind = getattr(layers, f"Global{'Max' if 'Max' in node.op_type else 'Average'}Pooling{x.rank - 2}D")
    return Value(kind(keepdims=True, name=node.name)(x.last()), last=True)


def _on(x: Value, layer: Any) -> Value:
    """A layer of single elements, or of one axis of the layout that the tensor has."""
    if x.prefers_last and x.rank > 2:
        return Value(layer(x.last()), last=True)
    return Value(layer(x.first()))


_RULES: dict[str, Callable[[onnx.NodeProto, Value, Operands, Attributes], Value | None]] = {
    **dict.fromkeys(_ACTIVATIONS, _activation), **dict.fromkeys(_MERGES, _merge),
    "AveragePool": _pool, "Clip": _clip, "Concat": _concat, "Flatten": _reshape, "Gelu": _gelu,
    "GlobalAveragePool": _global_pool, "GlobalMaxPool": _global_pool, "LeakyRelu": _rectifier, "MaxPool": _pool,
    "Pad": _pad, "Relu": _rectifier, "Reshape": _reshape, "Softmax": _softmax, "Transpose": _transpose,
}  # fmt: skip
