"""Convolutions and pools."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx

from onnxfix.frameworks.keras_building.values import Unsupported, Value
from onnxfix.runtime.evaluation import evaluate_op

Attributes = dict[str, Any]


def conv(node: onnx.NodeProto, operands: Sequence[Value | None], attributes: Attributes) -> Value:
    """A convolution; groups that are not single channels are convolved one by one."""
    x, weight, bias = _parameters(operands)
    count = weight.ndim - 2
    strides, dilations = _per_axis(attributes, "strides", count), _per_axis(attributes, "dilations", count)
    if max(strides) > 1 and max(dilations) > 1:  # TensorFlow has no such convolution
        weight, dilations = _dilated(weight, dilations), [1] * count
    window = [(k - 1) * d + 1 for k, d in zip(weight.shape[2:], dilations, strict=True)]
    tensor, padding = _padded(x, attributes, window, strides, 0.0)
    groups = attributes.get("group", 1)
    common = {"strides": strides, "dilation_rate": dilations, "padding": padding}
    if groups == 1:
        return Value(_convolved(node.name, tensor, weight, bias, common), last=True)
    if groups == x.shape[1] and count < 3:
        return Value(_depthwise(node.name, tensor, weight, bias, groups, common), last=True)
    return Value(_grouped(node.name, tensor, weight, bias, groups, common), last=True)


def _parameters(operands: Sequence[Value | None]) -> tuple[Value, np.ndarray, np.ndarray | None]:
    x, weight, bias = (*operands, None)[:3]
    if x is None or weight is None or weight.constant is None or (bias is not None and bias.constant is None):
        raise Unsupported("takes computed weights")
    return x, weight.constant, None if bias is None else bias.constant


def _per_axis(attributes: Attributes, name: str, count: int) -> list[int]:
    return list(attributes.get(name) or [1] * count)


def _dilated(weight: np.ndarray, dilations: Sequence[int]) -> np.ndarray:
    """The kernel with zeros between its taps."""
    sizes = [(k - 1) * d + 1 for k, d in zip(weight.shape[2:], dilations, strict=True)]
    wide = np.zeros((*weight.shape[:2], *sizes), weight.dtype)
    wide[(slice(None), slice(None), *(slice(None, None, d) for d in dilations))] = weight
    return wide


def _padded(
    x: Value, attributes: Attributes, window: Sequence[int], strides: Sequence[int], value: float, *, same: bool = True
) -> tuple[Any, str]:
    """The tensor, channels last, and Keras's padding that is left to do; other padding is done here."""
    from keras import ops

    count = len(window)
    pads = list(attributes.get("pads") or [0] * 2 * count)
    if attributes.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        raise Unsupported("has padding that depends on the input")
    pairs = list(zip(pads[:count], pads[count:], strict=True))
    if not any(pads):
        return x.last(), "valid"
    if same and pairs == [
        _same(size, k, s) for size, k, s in zip(x.shape[2:], window, strides, strict=True)
    ]:
        return x.last(), "same"
    return ops.pad(x.last(), ((0, 0), *pairs, (0, 0)), mode="constant", constant_values=value), "valid"


def _same(size: int | None, window: int, stride: int) -> tuple[int, int] | None:
    """What TensorFlow's SAME padding comes to."""
    if size is None:
        return None
    total = max((-(-size // stride) - 1) * stride + window - size, 0)
    return total // 2, total - total // 2


def _convolved(name: str, tensor: Any, weight: np.ndarray, bias: np.ndarray | None, common: Attributes) -> Any:
    from keras import layers

    kinds = (layers.Conv1D, layers.Conv2D, layers.Conv3D)
    layer = kinds[weight.ndim - 3](
        weight.shape[0], weight.shape[2:], use_bias=bias is not None, name=name, **common
    )
    return _built(layer, tensor, np.moveaxis(weight, (0, 1), (-1, -2)), bias)


def _depthwise(
    name: str, tensor: Any, weight: np.ndarray, bias: np.ndarray | None, channels: int, common: Attributes
) -> Any:
    from keras import layers

    kind = layers.DepthwiseConv1D if weight.ndim == 3 else layers.DepthwiseConv2D
    multiplier = weight.shape[0] // channels
    strides = common["strides"]
    if len(set(strides)) > 1:  # TensorFlow has no such convolution
        return _grouped(name, tensor, weight, bias, channels, common)
    layer = kind(
        weight.shape[2:], depth_multiplier=multiplier, use_bias=bias is not None, name=name, **common
    )
    kernel = np.moveaxis(weight.reshape(channels, multiplier, *weight.shape[2:]), (0, 1), (-2, -1))
    return _built(layer, tensor, kernel, bias)


def _grouped(
    name: str, tensor: Any, weight: np.ndarray, bias: np.ndarray | None, groups: int, common: Attributes
) -> Any:
    from keras import ops

    kernels = np.split(weight, groups)
    biases = [None] * groups if bias is None else np.split(bias, groups)
    parts = ops.split(tensor, groups, axis=-1)
    return ops.concatenate([
        _convolved(f"{name}_{index}", part, kernel, own, common)
        for index, (part, kernel, own) in enumerate(zip(parts, kernels, biases, strict=True))
    ], axis=-1)


def _built(layer: Any, tensor: Any, kernel: np.ndarray, bias: np.ndarray | None) -> Any:
    result = layer(tensor)
    layer.set_weights([kernel] if bias is None else [kernel, bias])
    return result


def conv_transpose(node: onnx.NodeProto, operands: Sequence[Value | None], attributes: Attributes) -> Value:
    """A transposed convolution without padding, which the graph crops by slices."""
    from keras import layers, ops

    x, weight, bias = _parameters(operands)
    count, groups = weight.ndim - 2, attributes.get("group", 1)
    if any(attributes.get("pads") or ()) or attributes.get("output_shape") or None in x.shape[2:] or count > 2:
        raise Unsupported("has padding of a transposed convolution")
    weight = _dilated(weight, _per_axis(attributes, "dilations", count))
    strides = _per_axis(attributes, "strides", count)
    extra = list(attributes.get("output_padding") or [0] * count)
    wanted = [((n or 0) - 1) * s + k + e for n, s, k, e in
              zip(x.shape[2:], strides, weight.shape[2:], extra, strict=True)]
    kind = layers.Conv1DTranspose if count == 1 else layers.Conv2DTranspose
    results = []
    for index, kernel in enumerate(np.split(weight, groups)):
        part = x.last() if groups == 1 else ops.split(x.last(), groups, axis=-1)[index]
        layer = kind(
            weight.shape[1], weight.shape[2:], strides=strides, padding="valid", use_bias=False,
            name=node.name if groups == 1 else f"{node.name}_{index}",
        )
        results.append(_built(layer, part, np.moveaxis(kernel, (0, 1), (-1, -2)), None))
    whole = results[0] if groups == 1 else ops.concatenate(results, axis=-1)
    # beyond the last window there is nothing but the bias
    ends = [(0, max(w - int(n), 0)) for w, n in zip(wanted, whole.shape[1:-1], strict=True)]
    if any(end for _, end in ends):
        whole = ops.pad(whole, ((0, 0), *ends, (0, 0)))
    if any(w < int(n) for w, n in zip(wanted, whole.shape[1:-1], strict=True)):
        whole = whole[(slice(None), *(slice(0, w) for w in wanted))]
    return Value(whole if bias is None else ops.add(whole, bias), last=True)


def max_pool(node: onnx.NodeProto, operands: Sequence[Value | None], attributes: Attributes) -> Value:
    """The largest in each window; padding is minus infinity."""
    from keras import ops

    x, window, strides = _pooled(node, operands, attributes)
    if len([output for output in node.output if output]) > 1 or set(attributes.get("dilations") or [1]) != {1}:
        raise Unsupported("has dilated windows or indices")
    lowest = -np.inf if x.dtype.startswith(("float", "bfloat")) else float(np.iinfo(x.dtype).min)
    tensor, padding = _padded(x, attributes, window, strides, lowest, same=False)
    return Value(ops.max_pool(tensor, window, strides, padding, "channels_last"), last=True)


def average_pool(node: onnx.NodeProto, operands: Sequence[Value | None], attributes: Attributes) -> Value:
    """The mean of each window; windows over padding that does not count are corrected by a constant."""
    from keras import ops

    x, window, strides = _pooled(node, operands, attributes)
    if set(attributes.get("dilations") or [1]) != {1}:
        raise Unsupported("has dilated windows")
    counted = bool(attributes.get("count_include_pad", 0))
    tensor, padding = _padded(x, attributes, window, strides, 0.0, same=not counted)
    pooled = ops.average_pool(tensor, window, strides, padding, "channels_last")
    if padding == "same" or counted or not any(attributes.get("pads") or ()):
        return Value(pooled, last=True)  # TensorFlow's SAME does not count padding
    space = [size for size in x.shape[2:] if size is not None]
    if len(space) < len(window):
        raise Unsupported("has padding that does not count, on a map of open size")
    ones = np.ones((1, 1, *space), np.float32)
    (share,) = evaluate_op("AveragePool", [ones], {**attributes, "count_include_pad": 1})
    return Value(ops.divide(pooled, np.moveaxis(share, 1, -1)), last=True)


def _pooled(
    node: onnx.NodeProto, operands: Sequence[Value | None], attributes: Attributes
) -> tuple[Value, list[int], list[int]]:
    x = operands[0]
    window = list(attributes["kernel_shape"])
    if x is None or attributes.get("ceil_mode", 0):
        raise Unsupported("has part windows at the end")
    if len(window) > 3:
        raise Unsupported("has more than three axes")
    return x, window, _per_axis(attributes, "strides", len(window))
