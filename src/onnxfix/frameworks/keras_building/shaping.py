"""Ops that move elements about, or take some of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx

from onnxfix.frameworks.keras_building.values import Unsupported, Value, along, moved_axis
from onnxfix.runtime.evaluation import evaluate_op

Attributes = dict[str, Any]
Operands = Sequence[Value | None]


def given(operands: Operands, slot: int) -> Value:
    """An operand that must be there."""
    value = operands[slot] if slot < len(operands) else None
    if value is None:
        raise Unsupported("lacks an operand")
    return value


def optional(operands: Operands, slot: int) -> Value | None:
    """An operand that may be left out."""
    return operands[slot] if slot < len(operands) else None


def reshape(node: onnx.NodeProto, operands: Operands, attributes: Attributes) -> Value:
    """Zeros in the target copy sizes; the batch, where it is open, is the size that is worked out."""
    x, target = given(operands, 0), given(operands, 1).ints()
    if not attributes.get("allowzero", 0):
        target = [x.shape[k] if n == 0 else n for k, n in enumerate(target)]  # type: ignore[misc]
    return _reshaped(x, target)


def _reshaped(x: Value, target: Sequence[int | None]) -> Value:
    from keras import ops

    sizes = list(target)
    if None in sizes and -1 in sizes:
        rest = [n for n in x.shape if n is not None]
        known = math.prod(n for n in sizes if n is not None and n != -1)
        if len(rest) != x.rank - 1 or sizes.count(None) > 1 or known == 0:
            raise Unsupported("has several open sizes")
        sizes[sizes.index(-1)] = math.prod(rest) // known
    if sizes.count(None) > 1:
        raise Unsupported("has several open sizes")
    return Value(ops.reshape(x.first(), [-1 if n is None else n for n in sizes]))


def flatten(node: onnx.NodeProto, operands: Operands, attributes: Attributes) -> Value:
    """To a matrix."""
    x = given(operands, 0)
    axis = attributes.get("axis", 1) % (x.rank + 1)
    rows, columns = x.shape[:axis], x.shape[axis:]
    sizes = [math.prod(n or 0 for n in part) if None not in part else None for part in (rows, columns)]
    return _reshaped(x, [int(n) if n is not None else None for n in sizes])


def squeeze(node: onnx.NodeProto, operands: Operands, attributes: Attributes) -> Value:
    """Without some axes of size one."""
    from keras import ops

    x, axes = given(operands, 0), optional(operands, 1)
    chosen = [k for k, n in enumerate(x.shape) if n == 1] if axes is None else axes.ints()
    return Value(ops.squeeze(x.first(), axis=tuple(sorted(axis % x.rank for axis in chosen))))


def unsqueeze(node: onnx.NodeProto, operands: Operands, attributes: Attributes) -> Value:
    """With further axes of size one."""
    from keras import ops

    x, axes = given(operands, 0), given(operands, 1).ints()
    tensor = x.first()
    for axis in sorted(axis % (x.rank + len(axes)) for axis in axes):
        tensor = ops.expand_dims(tensor, axis)
    return Value(tensor)


def transpose(node: onnx.NodeProto, operands: Operands, attributes: Attributes) -> Value:
    """A permutation of axes; one that moves the channels last is had for nothing."""
    from keras import ops

    x = given(operands, 0)
    order = tuple(attributes.get("perm") or reversed(range(x.rank)))
    if x.rank > 2 and order == (0, *range(2, x.rank), 1):
        return Value(x.last())
    if x.rank > 2 and order == (0, x.rank - 1, *range(1, x.rank - 1)):
        return Value(x.first(), last=True)
    return Value(ops.transpose(x.first(), order))


def concat(node: onnx.NodeProto, operands: Operands, attributes: Attributes) -> Value:
    """End to end; constants get the batch of the others only where it is one."""
    from keras import ops

    parts = [value for value in operands if value is not None]
    rank = parts[0].rank
    axis = attributes["axis"] % rank
    if rank > 2 and any(v.prefers_last for v in parts):
        return Value(ops.concatenate([v.last() for v in parts], axis=moved_axis(axis, rank)), last=True)
    return Value(ops.concatenate([v.first() for v in parts], axis=axis))


def split(node: onnx.NodeProto, operands: Operands, attributes: Attributes) -> list[Value]:
    """Into parts of given or equal sizes."""
    from keras import ops

    x, sizes = given(operands, 0), optional(operands, 1)
    axis = attributes.get("axis", 0) % x.rank
    size = x.shape[axis]
    if sizes is None and size is None:
        raise Unsupported("splits an open size")
    parts = len(node.output)
    lengths = [-(-(size or 0) // parts)] * parts if sizes is None else sizes.ints()
    last = x.prefers_last and x.rank > 2
    places = np.cumsum(lengths)[:-1].tolist()
    pieces = ops.split(x.last() if last else x.first(), places, axis=moved_axis(axis, x.rank) if last else axis)
    return [Value(piece, last=last) for piece in pieces]


def slice_(node: onnx.NodeProto, operands: Operands, attributes: Attributes) -> Value:
    """Strided ranges along axes."""
    x = given(operands, 0)
    starts, ends = given(operands, 1).ints(), given(operands, 2).ints()
    axes, steps = (None if (v := optional(operands, slot)) is None else v.ints() for slot in (3, 4))
    ranges = [slice(None)] * x.rank
    for start, end, axis, step in zip(
        starts, ends, axes or range(len(starts)), steps or [1] * len(starts), strict=True
    ):
        ranges[axis % x.rank] = _range(start, end, step, x.shape[axis % x.rank])
    if x.prefers_last and x.rank > 2:
        batch, channels, *space = ranges
        return Value(x.last()[(batch, *space, channels)], last=True)
    return Value(x.first()[tuple(ranges)])


def _range(start: int, end: int, step: int, size: int | None) -> slice:
    if size is not None:
        start, end, step = slice(start, end, step).indices(size)
        return slice(start, end if end >= 0 else None, step)
    far = 1 << 31
    if step < 0:
        raise Unsupported("turns an open size round")
    return slice(start, None if end >= far - 1 else end, step)


def gather(node: onnx.NodeProto, operands: Operands, attributes: Attributes) -> Value:
    """Elements by their places along an axis; rows of a constant matrix are an embedding."""
    from keras import layers, ops

    x, indices = given(operands, 0), given(operands, 1)
    axis = attributes.get("axis", 0) % x.rank
    if x.constant is not None and x.rank == 2 and axis == 0 and indices.constant is None:
        layer = layers.Embedding(*x.constant.shape, name=node.name)
        result = layer(indices.first())
        layer.set_weights([x.constant])
        return Value(result)
    places = indices.first()
    if indices.constant is not None and x.shape[axis] is not None:
        places = np.where(indices.constant < 0, indices.constant + (x.shape[axis] or 0), indices.constant)
        if places.ndim == 1 and x.constant is None:
            return along(x, axis, lambda tensor, k: ops.take(tensor, places.astype(np.int32), axis=k))
        if places.ndim == 0 and x.constant is None:
            return Value(x.first()[(*[slice(None)] * axis, int(places))])
    return Value(ops.take(x.first(), places, axis=axis))


def gather_elements(node: onnx.NodeProto, operands: Operands, attributes: Attributes) -> Value:
    """Each element by its own place along an axis."""
    from keras import ops

    x, indices = given(operands, 0), given(operands, 1)
    return Value(ops.take_along_axis(x.first(), indices.first(), axis=attributes.get("axis", 0)))


def scatter_nd(node: onnx.NodeProto, operands: Operands, attributes: Attributes) -> Value:
    """Some elements replaced."""
    from keras import ops

    if attributes.get("reduction", "none") != "none":
        raise Unsupported(f"reduces by {attributes['reduction']}")
    x, indices, updates = (given(operands, slot).first() for slot in range(3))
    return Value(ops.scatter_update(x, indices, updates))


def scatter_elements(node: onnx.NodeProto, operands: Operands, attributes: Attributes) -> Value:
    """Elements replaced along an axis: the other coordinates of each are known where all sizes are."""
    from keras import ops

    x, indices, updates = (given(operands, slot) for slot in range(3))
    shape = [size for size in indices.shape if size is not None]
    axis = attributes.get("axis", 0) % x.rank
    if attributes.get("reduction", "none") != "none" or len(shape) < indices.rank or x.shape[axis] is None:
        raise Unsupported("reduces, or has an open size")
    places = ops.cast(indices.first(), "int64")
    places = ops.where(ops.less(places, 0), ops.add(places, x.shape[axis]), places)
    grid = [np.asarray(g, np.int64) for g in np.indices(shape)]
    columns = [ops.reshape(places if k == axis else ops.convert_to_tensor(g), [-1, 1]) for k, g in enumerate(grid)]
    return Value(ops.scatter_update(x.first(), ops.concatenate(columns, axis=1), ops.reshape(updates.first(), [-1])))


def expand(node: onnx.NodeProto, operands: Operands, attributes: Attributes) -> Value:
    """Broadcast to a shape."""
    from keras import ops

    x, target = given(operands, 0), given(operands, 1).ints()
    shape: tuple[int, ...] = tuple(target)
    if x.dtype == "bool":
        return Value(ops.logical_or(x.first(), np.zeros(shape, bool)))
    if x.rank >= len(shape) and all(n in (1, m) for n, m in zip(shape[::-1], x.shape[::-1], strict=False)):
        return x
    return Value(ops.multiply(x.first(), np.ones(shape, np.dtype(x.dtype))))


def tile(node: onnx.NodeProto, operands: Operands, attributes: Attributes) -> Value:
    """Repeated along axes."""
    from keras import ops

    x = given(operands, 0)
    for axis, times in enumerate(given(operands, 1).ints()):
        if times != 1:
            x = along(x, axis, lambda tensor, k, times=times: ops.concatenate([tensor] * times, axis=k))  # type: ignore[misc]
    return x


def pad(node: onnx.NodeProto, operands: Operands, attributes: Attributes) -> Value:
    """By a constant or by reflection; negative amounts are spelled by slices."""
    from keras import ops

    x, amounts = given(operands, 0), given(operands, 1).ints()
    value, axes = optional(operands, 2), optional(operands, 3)
    mode = attributes.get("mode", "constant")
    if mode not in ("constant", "reflect") or min(amounts) < 0 or (value is not None and value.constant is None):
        raise Unsupported(f"pads by {mode}, or by a negative or computed amount")
    half, pairs = len(amounts) // 2, [(0, 0)] * x.rank
    for k, axis in enumerate(range(x.rank) if axes is None else axes.ints()):
        pairs[axis] = (amounts[k], amounts[half + k])
    options = {"constant_values": 0 if value is None or value.constant is None else value.constant.reshape(()).item()}
    if mode == "reflect":
        options = {}
    if x.prefers_last and x.rank > 2:
        batch, channels, *space = pairs
        return Value(ops.pad(x.last(), (batch, *space, channels), mode=mode, **options), last=True)
    return Value(ops.pad(x.first(), pairs, mode=mode, **options))


def resize(node: onnx.NodeProto, operands: Operands, attributes: Attributes) -> Value:
    """A linear map along each axis: ``W x`` with the weights that Resize makes of the unit matrix."""
    from keras import ops

    x, scales, sizes = given(operands, 0), optional(operands, 2), optional(operands, 3)
    if scales is not None and (scales.constant is None or not scales.constant.size):
        scales = None
    result = x
    for axis, size in enumerate(x.shape):
        factor = None if scales is None or scales.constant is None else float(scales.constant.reshape(-1)[axis])
        wanted = int((size or 0) * factor) if factor is not None else sizes.ints()[axis] if sizes else size
        if wanted == size or axis == 0:
            continue
        if size is None:
            raise Unsupported("resizes an open size")
        one = np.eye(size, dtype=np.float32)
        inputs = [one, None, np.array([1, factor], np.float32)] if factor is not None else [
            one, None, None, np.array([size, wanted], np.int64)]
        (weights,) = evaluate_op("Resize", inputs, attributes)
        result = along(result, axis, lambda tensor, k, w=weights: _mapped(ops, tensor, k, w))  # type: ignore[misc]
    return result


def _mapped(ops: Any, tensor: Any, axis: int, weights: np.ndarray) -> Any:
    """``y = W^T x`` along an axis; picking elements where each weight is one or zero."""
    if np.array_equal(weights, weights.astype(bool)) and (weights.sum(axis=0) == 1).all():
        return ops.take(tensor, weights.argmax(axis=0).astype(np.int32), axis=axis)
    order = [k for k in range(len(tensor.shape)) if k != axis] + [axis]
    moved = ops.matmul(ops.transpose(tensor, order), weights)
    return ops.transpose(moved, np.argsort(order).tolist())


SHAPING = {
    "Concat": concat, "Expand": expand, "Flatten": flatten, "Gather": gather, "GatherElements": gather_elements,
    "Pad": pad, "Reshape": reshape, "Resize": resize,
    "ScatterElements": scatter_elements, "ScatterND": scatter_nd, "Slice": slice_, "Split": split,
    "Squeeze": squeeze, "Tile": tile, "Transpose": transpose, "Unsqueeze": unsqueeze,
}  # fmt: skip
