"""Products, reductions, and whatever looks along an axis."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx

from onnxfix.frameworks.keras_building.shaping import given, optional
from onnxfix.frameworks.keras_building.values import Unsupported, Value, along, moved_axis

Attributes = dict[str, Any]
Operands = Sequence[Value | None]


def matmul(node: onnx.NodeProto, operands: Operands, attributes: Attributes) -> Value:
    """A product of matrices; by a constant one, a dense layer."""
    from keras import ops

    a, b = given(operands, 0), given(operands, 1)
    if b.constant is not None and b.rank == 2 and a.constant is None and a.rank > 1 and a.dtype.startswith("float"):
        return Value(_dense(node.name, a.first(), b.constant, None))
    return Value(ops.matmul(a.first(), b.first()))


def gemm(node: onnx.NodeProto, operands: Operands, attributes: Attributes) -> Value:
    """``alpha A B + beta C``."""
    from keras import ops

    a, b, c = given(operands, 0), given(operands, 1), optional(operands, 2)
    alpha, beta = attributes.get("alpha", 1.0), attributes.get("beta", 1.0)
    left = ops.transpose(a.first()) if attributes.get("transA", 0) else a.first()
    if b.constant is not None and (c is None or c.constant is not None):
        kernel = b.constant.T if attributes.get("transB", 0) else b.constant
        kernel = kernel * np.float32(alpha) if alpha != 1 else kernel
        extra = None if c is None or c.constant is None else c.constant * np.float32(beta)
        if extra is None or (extra.size in (1, kernel.shape[1]) and extra.shape[:-1] in ((), (1,))):
            bias = None if extra is None else np.broadcast_to(extra.reshape(-1), kernel.shape[1:])
            return Value(_dense(node.name, left, kernel, bias))
    right = ops.transpose(b.first()) if attributes.get("transB", 0) else b.first()
    product = ops.multiply(ops.matmul(left, right), alpha)
    return Value(product if c is None else ops.add(product, ops.multiply(c.first(), beta)))


def _dense(name: str, tensor: Any, kernel: np.ndarray, bias: np.ndarray | None) -> Any:
    from keras import layers

    layer = layers.Dense(kernel.shape[1], use_bias=bias is not None, name=name)
    result = layer(tensor)
    layer.set_weights([kernel] if bias is None else [kernel, bias])
    return result


def einsum(node: onnx.NodeProto, operands: Operands, attributes: Attributes) -> Value:
    """By its equation."""
    from keras import ops

    return Value(ops.einsum(attributes["equation"], *(v.first() for v in operands if v is not None)))


def softmax(node: onnx.NodeProto, operands: Operands, attributes: Attributes) -> Value:
    """Along one axis."""
    import keras

    apply = keras.ops.softmax if node.op_type == "Softmax" else keras.ops.log_softmax
    return along(given(operands, 0), attributes.get("axis", -1), lambda tensor, k: apply(tensor, axis=k))


def reduction(function: Callable[[Any, Any, tuple[int, ...], bool], Any]) -> Callable[..., Value]:
    """An op that takes axes away, by a function of (keras.ops, tensor, axes, keepdims)."""

    def rule(node: onnx.NodeProto, operands: Operands, attributes: Attributes) -> Value:
        from keras import ops

        x, given_axes = given(operands, 0), optional(operands, 1)
        chosen = attributes.get("axes") if given_axes is None else given_axes.ints()
        if not chosen and attributes.get("noop_with_empty_axes", 0):
            return x
        axes = sorted({axis % x.rank for axis in chosen or range(x.rank)})
        keep = bool(attributes.get("keepdims", 1))
        if x.prefers_last and x.rank > 2 and (keep or axes == list(range(2, x.rank))):
            moved = tuple(sorted(moved_axis(axis, x.rank) for axis in axes))
            return Value(function(ops, x.last(), moved, keep), last=keep)
        return Value(function(ops, x.first(), tuple(axes), keep))

    return rule


def global_pool(function: str) -> Callable[..., Value]:
    """Over the whole map."""

    def rule(node: onnx.NodeProto, operands: Operands, attributes: Attributes) -> Value:
        import keras

        x = given(operands, 0)
        axes = tuple(range(1, x.rank - 1))
        return Value(getattr(keras.ops, function)(x.last(), axis=axes, keepdims=True), last=True)

    return rule


def top_k(node: onnx.NodeProto, operands: Operands, attributes: Attributes) -> list[Value]:
    """The largest or smallest, and where they are."""
    from keras import ops

    x, (count,) = given(operands, 0), given(operands, 1).ints()
    axis = attributes.get("axis", -1) % x.rank
    order = [k for k in range(x.rank) if k != axis] + [axis]
    back = np.argsort(order).tolist()
    tensor = ops.transpose(x.first(), order)
    largest = bool(attributes.get("largest", 1))
    values, places = ops.top_k(tensor if largest else ops.negative(tensor), count, sorted=True)
    values = values if largest else ops.negative(values)
    return [Value(ops.transpose(values, back)), Value(ops.cast(ops.transpose(places, back), "int64"))]


def arg_max(node: onnx.NodeProto, operands: Operands, attributes: Attributes) -> Value:
    """Where the largest (or smallest) is, the first of several."""
    from keras import ops

    if attributes.get("select_last_index", 0):
        raise Unsupported("looks for the last of several")
    x = given(operands, 0)
    axis = attributes.get("axis", 0) % x.rank
    order = [k for k in range(x.rank) if k != axis] + [axis]
    tensor = ops.transpose(x.first(), order)
    _, places = ops.top_k(ops.negative(tensor) if node.op_type == "ArgMin" else tensor, 1)
    places = ops.cast(ops.transpose(places, np.argsort(order).tolist()), "int64")
    return Value(places if attributes.get("keepdims", 1) else ops.squeeze(places, axis=axis))


def cum_sum(node: onnx.NodeProto, operands: Operands, attributes: Attributes) -> Value:
    """Running sums along an axis."""
    from keras import ops

    x, (axis,) = given(operands, 0), given(operands, 1).ints()
    tensor = x.first()
    turned = ops.flip(tensor, axis=axis) if attributes.get("reverse", 0) else tensor
    total = ops.cumsum(turned, axis=axis)
    total = ops.subtract(total, turned) if attributes.get("exclusive", 0) else total
    return Value(ops.flip(total, axis=axis) if attributes.get("reverse", 0) else total)


REDUCING: dict[str, Callable[..., Any]] = {
    "ArgMax": arg_max, "ArgMin": arg_max, "CumSum": cum_sum, "Einsum": einsum, "Gemm": gemm,
    "GlobalAveragePool": global_pool("mean"), "GlobalMaxPool": global_pool("max"), "LogSoftmax": softmax,
    "MatMul": matmul, "Softmax": softmax, "TopK": top_k,
    "ReduceL1": reduction(lambda ops, x, axes, keep: ops.sum(ops.absolute(x), axes, keep)),
    "ReduceL2": reduction(lambda ops, x, axes, keep: ops.sqrt(ops.sum(ops.multiply(x, x), axes, keep))),
    "ReduceLogSum": reduction(lambda ops, x, axes, keep: ops.log(ops.sum(x, axes, keep))),
    "ReduceLogSumExp": reduction(lambda ops, x, axes, keep: ops.logsumexp(x, axes, keep)),
    "ReduceMax": reduction(lambda ops, x, axes, keep: ops.max(x, axes, keep)),
    "ReduceMean": reduction(lambda ops, x, axes, keep: ops.mean(x, axes, keep)),
    "ReduceMin": reduction(lambda ops, x, axes, keep: ops.min(x, axes, keep)),
    "ReduceProd": reduction(lambda ops, x, axes, keep: ops.prod(x, axes, keep)),
    "ReduceSum": reduction(lambda ops, x, axes, keep: ops.sum(x, axes, keep)),
    "ReduceSumSquare": reduction(lambda ops, x, axes, keep: ops.sum(ops.multiply(x, x), axes, keep)),
}  # fmt: skip
