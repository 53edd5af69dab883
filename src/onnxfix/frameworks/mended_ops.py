"""Own lowerings for operators that tf2onnx 1.17 lowers wrongly or not at all.

Each handler has tf2onnx's custom handler signature and leaves the node's output name as it was.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from onnx import TensorProto

from onnxfix.frameworks import tflite_recurrent
from onnxfix.frameworks.mended_math import HANDLERS
from onnxfix.frameworks.tf2onnx_editing import const as _const
from onnxfix.frameworks.tf2onnx_editing import make as _make
from onnxfix.frameworks.tf2onnx_editing import replace as _replace

Handler = Callable[[Any, Any, str, list[Any]], None]
_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16)
_QDQ = "OnnxfixQuantizeAndDequantize"


def handlers() -> dict[str, tuple[Handler, list[Any]]]:
    """The handlers, as ``custom_op_handlers`` of tf2onnx wants them."""
    mended: dict[str, Handler] = {
        "FloorMod": _floor_mod,
        "FloorDiv": _floor_div,
        "OneHot": _one_hot,
        "Conv2DBackpropInput": _conv_transpose,
        "Conv3DBackpropInputV2": _conv_transpose,
        "ScatterNd": _scatter_nd,
        "Erfc": _erfc,
        "TFL_EMBEDDING_LOOKUP": _embedding_lookup,
        _QDQ: _quantize_and_dequantize,
        **HANDLERS,
    }
    mended.update(tflite_recurrent.handlers())
    mended.update({f"UnsortedSegment{kind}": _unsorted_segment for kind in _SEGMENTS})
    return {name: (handler, []) for name, handler in mended.items()}


def claim(graph: Any) -> None:
    """Rename the operators that tf2onnx rewrites before it asks any handler."""
    for node in graph.get_nodes():
        if node.type.startswith("QuantizeAndDequantizeV"):
            node.type = _QDQ


def _floor_mod(graph: Any, node: Any, name: str, args: list[Any]) -> None:
    """FloorMod takes the sign of the divisor; ONNX ``Mod`` with fmod=0 does too, but exists for integers only.

    tf2onnx writes ``x - (x / y) * y``, and the ONNX division of integers truncates.
    """
    from tf2onnx.onnx_opset.math import FloorMod

    if graph.get_dtype(node.input[0]) in _FLOATS:
        FloorMod.version_7(graph, node)
    else:
        _replace(graph, node, "Mod", node.input, fmod=0)


def _floor_div(graph: Any, node: Any, name: str, args: list[Any]) -> None:
    """``floor(x / y) = (x - floormod(x, y)) / y``, whose division is exact, so truncation does not matter."""
    from tf2onnx.onnx_opset.math import FloorDiv

    if graph.get_dtype(node.input[0]) in _FLOATS:
        FloorDiv.version_6(graph, node)
        return
    dividend, divisor = node.input
    rest = _make(graph, node, "Mod", [dividend, divisor], fmod=0)
    _replace(graph, node, "Div", [_make(graph, node, "Sub", [dividend, rest]), divisor])


def _one_hot(graph: Any, node: Any, name: str, args: list[Any]) -> None:
    """A negative index gives a row of off values; in ONNX it counts from the end, so it is moved beyond the end."""
    indices, depth, on, off = node.input
    axis = node.get_attr_value("axis", -1)
    depth = _make(graph, node, "Cast", [depth], to=TensorProto.INT64)
    indices = _make(graph, node, "Cast", [indices], to=TensorProto.INT64)
    is_negative = _make(graph, node, "Less", [indices, _const(graph, np.int64(0))])
    indices = _make(graph, node, "Where", [is_negative, depth, indices])
    if graph.get_dtype(on) == TensorProto.FLOAT:
        row = _const(graph, np.array([0], np.int64))
        values = _make(
            graph, node, "Concat",
            [_make(graph, node, "Unsqueeze", [off, row]), _make(graph, node, "Unsqueeze", [on, row])], axis=0,
        )
        _replace(graph, node, "OneHot", [indices, depth, values], axis=axis)
        return
    hot = _make(graph, node, "OneHot", [indices, depth, _const(graph, np.array([0, 1], np.float32))], axis=axis)
    _replace(graph, node, "Where", [_make(graph, node, "Cast", [hot], to=TensorProto.BOOL), on, off])


def _conv_transpose(graph: Any, node: Any, name: str, args: list[Any]) -> None:
    """Say the pads explicitly, from the output's size.

    tf2onnx leaves ``output_shape`` where it does not know the input's size, for which ONNX splits odd padding the other
    way round, and writes negative pads where the stride exceeds the kernel.
    """
    from tf2onnx.onnx_opset.nn import ConvTranspose, get_shape_from_const_or_concat, is_channels_last

    same = node.get_attr_str("padding") == "SAME"
    explicit = node.get_attr_str("padding") == "EXPLICIT"
    size = get_shape_from_const_or_concat(graph, node.inputs[0])
    first = 1 if is_channels_last(node) else 2
    ConvTranspose.version_11(graph, node)
    if explicit or size is None or "kernel_shape" not in node.attr:
        return
    kernel = list(node.get_attr("kernel_shape").ints)
    size = list(size[first : first + len(kernel)])
    if min(size) < 0:
        return
    strides, dilations = (
        list(node.get_attr(key).ints) if key in node.attr else [1] * len(kernel) for key in ("strides", "dilations")
    )
    excess = []
    for length, extent, stride, dilation in zip(size, kernel, strides, dilations, strict=True):
        span = (extent - 1) * dilation + 1
        steps = -(-length // stride) if same else -(-(length - span + 1) // stride)
        excess.append((steps - 1) * stride + span - length)
    begins = [max(total, 0) // 2 for total in excess]
    node.set_attr("pads", begins + [max(total, 0) - begin for total, begin in zip(excess, begins, strict=True)])
    if min(excess) < 0:
        node.set_attr("output_padding", [max(-total, 0) for total in excess])
    for key in ("output_shape", "auto_pad"):
        node.attr.pop(key, None)


def _scatter_nd(graph: Any, node: Any, name: str, args: list[Any]) -> None:
    """Updates of one place add up; without a reduction ONNX keeps any one of them."""
    from tf2onnx.onnx_opset.tensor import ScatterND

    node.type = "ScatterND"
    ScatterND.version_11(graph, node)
    node.set_attr("reduction", "add")


def _erfc(graph: Any, node: Any, name: str, args: list[Any]) -> None:
    """``erfc(x) = 1 - erf(x)``, as in the Gelu of TensorFlow; where erfc(x) is nearly nothing its digits are lost."""
    from tf2onnx import utils

    one = _const(graph, np.array(1, utils.map_onnx_to_numpy_type(graph.get_dtype(node.input[0]))))
    _replace(graph, node, "Sub", [one, _make(graph, node, "Erf", node.input)])


def _embedding_lookup(graph: Any, node: Any, name: str, args: list[Any]) -> None:
    """Rows of a table by number.

    Raises:
        ValueError: the table is stored in another type than the rows have.
    """
    ids, table = node.input
    if graph.get_dtype(table) != graph.get_dtype(node.output[0]):
        raise ValueError(f"{node.name}: EMBEDDING_LOOKUP in a table that is stored quantized has no ONNX form")
    _replace(graph, node, "Gather", [table, ids], axis=0)


_SEGMENTS: dict[str, tuple[str, Callable[[np.dtype[Any]], Any]]] = {
    "Sum": ("add", lambda dtype: 0),
    "Prod": ("mul", lambda dtype: 1),
    "Max": ("max", lambda dtype: _limits(dtype).min),
    "Min": ("min", lambda dtype: _limits(dtype).max),
}


def _unsorted_segment(graph: Any, node: Any, name: str, args: list[Any]) -> None:
    """Rows with a negative id are dropped: they are scattered into one row more, which is cut off again.

    tf2onnx lets them wrap to the last segments, and fills empty segments of Max and Min with infinities where
    TensorFlow has the type's limits.
    """
    from tf2onnx import utils

    reduction, start = _SEGMENTS[node.type.removeprefix("UnsortedSegment")]
    data, ids, count = node.input
    dtype = graph.get_dtype(data)
    axis0, last = _const(graph, np.array([0], np.int64)), _const(graph, np.array([-1], np.int64))
    ids = _make(graph, node, "Cast", [ids], to=TensorProto.INT64)
    count = _make(graph, node, "Cast", [count], to=TensorProto.INT64)
    dropped = _make(graph, node, "Less", [ids, _const(graph, np.int64(0))])
    places = _make(graph, node, "Unsqueeze", [_make(graph, node, "Where", [dropped, count, ids]), last])
    rows = _make(graph, node, "Add", [_make(graph, node, "Unsqueeze", [count, axis0]), _const(graph, np.array([1]))])
    ids_rank = _make(graph, node, "Shape", [_make(graph, node, "Shape", [node.input[1]])])
    end = _const(graph, np.array([np.iinfo(np.int64).max]))
    row_shape = _make(graph, node, "Slice", [_make(graph, node, "Shape", [data]), ids_rank, end])
    shape = _make(graph, node, "Concat", [rows, row_shape], axis=0)
    value = _const(graph, np.array(start(utils.map_onnx_to_numpy_type(dtype)), utils.map_onnx_to_numpy_type(dtype)))
    empty = _make(graph, node, "Expand", [value, shape])
    filled = _make(graph, node, "ScatterND", [empty, places, data], reduction=reduction)
    _replace(graph, node, "Slice", [filled, axis0, last, axis0])


def _limits(dtype: Any) -> Any:
    return np.finfo(dtype) if np.issubdtype(dtype, np.floating) else np.iinfo(dtype)


def _quantize_and_dequantize(graph: Any, node: Any, name: str, args: list[Any]) -> None:
    """Fake quantization to any number of bits; tf2onnx always takes eight.

    ``round(clip(x) * s) / s`` with ``s = min(qmin / min, qmax / max)`` over the sides that have the right sign, as in
    TensorFlow's quantize_and_dequantize_op.h.
    """
    low_q, high_q = _quantized_range(graph, node)
    data = node.input[0]
    low, high = _real_range(graph, node)
    largest = _const(graph, np.float32(np.finfo(np.float32).max))
    zero = _const(graph, np.float32(0))
    has_high = _make(graph, node, "Greater", [high, zero])
    from_high = _make(graph, node, "Div", [_const(graph, high_q), high])
    scale = from_high = _make(graph, node, "Where", [has_high, from_high, largest])
    if low_q < 0:
        has_low = _make(graph, node, "Less", [low, zero])
        from_low = _make(graph, node, "Div", [_const(graph, low_q), low])
        scale = _make(graph, node, "Min", [_make(graph, node, "Where", [has_low, from_low, largest]), from_high])
    scaled = _make(graph, node, "Mul", [data, scale])
    if _round_mode(node) == "HALF_UP":
        raised = _make(graph, node, "Add", [scaled, _const(graph, np.float32(0.5))])
        rounded = _make(graph, node, "Floor", [raised])
    else:
        rounded = _make(graph, node, "Round", [scaled])
    clipped = _make(graph, node, "Clip", [rounded, _const(graph, low_q), _const(graph, high_q)])
    _replace(graph, node, "Div", [clipped, scale])


def _quantized_range(graph: Any, node: Any) -> tuple[np.float32, np.float32]:
    bits = node.get_attr_value("num_bits")
    if bits is None:  # V3 has it as an input
        bits = int(np.asarray(graph.get_tensor_value(node.input[3])))
    narrow = int(node.get_attr_value("narrow_range", 0))
    if node.get_attr_value("signed_input", 1):
        return np.float32(-(1 << (bits - 1)) + narrow), np.float32((1 << (bits - 1)) - 1)
    return np.float32(0), np.float32((1 << bits) - 1)


def _real_range(graph: Any, node: Any) -> tuple[str, str]:
    """Least and greatest value, given or measured, broadcastable to the data."""
    axis = node.get_attr_value("axis", -1)
    rank = graph.get_rank(node.input[0])
    if node.get_attr_value("range_given", 0):
        low, high = node.input[1:3]
        if axis == -1:
            return low, high
        shape = _const(graph, np.array([-1 if i == axis else 1 for i in range(rank)], np.int64))
        return _make(graph, node, "Reshape", [low, shape]), _make(graph, node, "Reshape", [high, shape])
    axes = [] if axis == -1 else [_const(graph, np.array([i for i in range(rank) if i != axis], np.int64))]
    data, keep = [node.input[0], *axes], int(axis != -1)
    return _make(graph, node, "ReduceMin", data, keepdims=keep), _make(graph, node, "ReduceMax", data, keepdims=keep)


def _round_mode(node: Any) -> str:
    mode = node.get_attr_value("round_mode", b"HALF_TO_EVEN")
    return mode.decode() if isinstance(mode, bytes) else str(mode)
