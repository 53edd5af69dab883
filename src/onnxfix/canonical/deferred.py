"""Large constants are worked out when somebody reads them and not kept, so that the weights are never held twice.

A weight that no pass touches is copied once, from the lowered model into the canonical one. One that is transposed and
scaled is read, transposed and scaled when the canonical model is written.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from onnxfix.canonical.origins import Array, apply, tiles
from onnxfix.mapped import release

# Constants of fewer elements are worked out at once.
LARGE = 2**14
_SAMPLE = "onnxfix.sample"
_SAMPLED = 64


class Deferred(ir.LazyTensor):
    """A constant that is computed when it is read, and kept as long as somebody holds it.

    Args:
        make: Computes the content, in any memory order.
        dtype: Its element type.
        shape: Its shape.
        name: Its name.

    Attributes:
        source: Where the content is stored as it is, in ``raw_data``; None for one that is computed.
    """

    def __init__(self, make: Callable[[], Array], dtype: ir.DataType, shape: Sequence[int], name: str | None) -> None:
        super().__init__(lambda: ir.Tensor(self.numpy(), dtype=dtype), dtype, ir.Shape(shape), name=name)
        self.source: onnx.TensorProto | None = None
        self._make = make
        self._held: weakref.ref[Array] | None = None

    def strided(self) -> Array:
        """The content in the memory order that is at hand."""
        found = None if self._held is None else self._held()
        if found is None:
            found = self._make()
            self._held = weakref.ref(found)
        return found

    def numpy(self) -> Array:
        """The content in C order."""
        content = self.strided()
        ordered = _in_order(content)
        if ordered is not content:
            release(content)
        return ordered


def _in_order(content: Array) -> Array:
    """An array in C order; a large matrix that is stored by columns is copied in tiles, which caches like better."""
    if content.ndim != 2 or content.flags.c_contiguous or content.dtype.hasobject:
        return np.asarray(content, order="C")
    result = np.empty_like(content, order="C")
    for tile in tiles(content.shape):
        result[tile] = content[tile]
    return result


def strided(tensor: ir.TensorProtocol) -> Array:
    """The content of a tensor in the memory order that is at hand."""
    return tensor.strided() if isinstance(tensor, Deferred) else tensor.numpy()


def borrowed(tensor: ir.TensorProtocol, name: str | None) -> Deferred:
    """The content of another tensor, which keeps it; the name is our own."""
    found = Deferred(tensor.numpy, tensor.dtype, tensor.shape.numpy(), name)
    if isinstance(tensor, ir.serde.TensorProtoTensor) and tensor.raw.HasField("raw_data"):
        found.source = tensor.raw
    return found


def deferred(op: str, operands: Sequence[ir.TensorProtocol | None], attributes: Mapping[str, Any]) -> Deferred | None:
    """An op over constants as a constant computed later; None where it, or a small result, is better done at once."""
    tensors = [tensor for tensor in operands if tensor is not None]
    if len(tensors) != len(operands) or not tensors or max(tensor.size for tensor in tensors) < LARGE:
        return None
    shape = _shape(op, tensors, attributes)
    if shape is None:
        return None

    def make() -> Array:
        contents: list[Array | None] = [strided(tensor) for tensor in tensors]
        result = apply(op, contents, attributes, ordered=False)[0]
        for content in contents:
            release(content)
        return result

    return Deferred(make, tensors[0].dtype, shape, None)


_MOVES = frozenset({"Transpose", "Reshape", "Unsqueeze", "Squeeze", "Identity"})
_BINARY = frozenset({"Add", "Sub", "Mul", "Div"})
_FLOATS = (ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16)


def _shape(op: str, tensors: list[ir.TensorProtocol], attributes: Mapping[str, Any]) -> tuple[int, ...] | None:
    """Shape of the result of an op that is deferred."""
    if op in _MOVES:
        empty = np.broadcast_to(np.zeros((), np.bool_), tensors[0].shape.numpy())
        return apply(op, [empty, *(tensor.numpy() for tensor in tensors[1:])], attributes, ordered=False)[0].shape
    if op in _BINARY and tensors[0].dtype in _FLOATS and len({tensor.dtype for tensor in tensors}) == 1:
        return np.broadcast_shapes(*(tensor.shape.numpy() for tensor in tensors))
    return None


def sample(tensor: ir.TensorProtocol) -> bytes:
    """Some elements of a large constant, spread over it: equal constants have equal samples."""
    found = tensor.meta.get(_SAMPLE)
    if found is None:
        content = strided(tensor)
        found = tensor.meta[_SAMPLE] = content.flat[:: max(content.size // _SAMPLED, 1)].tobytes()
        release(content)
    return bytes(found)


def write(proto: onnx.TensorProto, tensor: ir.TensorProtocol, name: str) -> None:
    """Write a constant under a name; one that is stored already is copied as it is.

    Args:
        proto: Where to; it is empty.
        tensor: The constant.
        name: What it is called in the model.
    """
    source = tensor.source if isinstance(tensor, Deferred) else None
    if source is None:
        tensor.name = name
        ir.serde.serialize_tensor_into(proto, tensor)
        return
    proto.CopyFrom(source)
    proto.name = name
    for field in ("doc_string", "metadata_props", "data_location"):
        proto.ClearField(field)
