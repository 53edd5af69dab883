"""Per-channel constants: recognising them by how they broadcast, and scaling kernels with them."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxfix.canonical.bias import output_channels
from onnxfix.canonical.origins import Literal
from onnxfix.canonical.queries import dims
from onnxfix.canonical.rewriting import Editor, array, is_constant, origin_of


def channel_vector(
    editor: Editor, constant: ir.Value, *, rank: int, axis: int, channels: int
) -> ir.Value | None:
    """The [channels] vector that a broadcast constant amounts to, or None if it varies along any other axis.

    Broadcasting aligns shapes at the end: next to a [N, C, H, W] value, a [W] constant varies along the width, however
    many channels there are; only [C, 1, 1], [1, C, 1, 1] and single numbers are per channel.

    Args:
        editor: Makes the reshaped constant.
        constant: The constant operand.
        rank: Rank of the other operand.
        axis: The channel axis of the other operand.
        channels: Size of that axis.
    """
    content = array(constant)
    if content is None or content.ndim > rank:
        return None
    shape = (1,) * (rank - content.ndim) + content.shape
    if any(d != 1 for k, d in enumerate(shape) if k != axis) or shape[axis] not in (1, channels):
        return None
    vector = constant
    if content.shape != (shape[axis],):
        vector = editor.constant("Reshape", constant, editor.literal(np.array([shape[axis]], np.int64)))
    if shape[axis] != channels:
        vector = editor.constant("Expand", vector, editor.literal(np.array([channels], np.int64)))
    return vector


def foldable(node: ir.Node | None) -> bool:
    """Whether a Conv, ConvTranspose or Gemm has constant kernel and bias, so that affine maps can be folded into it."""
    if node is None or len(node.inputs) < 3 or not is_constant(node.inputs[1]) or not is_constant(node.inputs[2]):
        return False
    channels = output_channels(node)
    if channels is None or dims(node.inputs[2]) != (channels,):
        return False
    return node.op_type != "Gemm" or plain_gemm(node)


def plain_gemm(node: ir.Node) -> bool:
    """Whether a Gemm computes ``x @ B + C``."""
    attributes = node.attributes
    return (
        attributes.get_float("alpha", 1.0) == 1.0
        and attributes.get_float("beta", 1.0) == 1.0
        and not attributes.get_int("transA", 0)
        and not attributes.get_int("transB", 0)
    )


def scaled_outputs(editor: Editor, node: ir.Node, scale: ir.Value) -> ir.Value:
    """The kernel whose output channels are multiplied by a [channels] vector."""
    kernel = node.inputs[1]
    shape = dims(kernel) or ()
    spatial = (1,) * (len(shape) - 2)
    if node.op_type == "Conv":
        factor = _reshaped(editor, scale, (-1, 1, *spatial))
    elif node.op_type == "Gemm":
        factor = _reshaped(editor, scale, (1, -1))
    else:
        factor = _grouped(editor, scale, node.attributes.get_int("group", 1), shape, spatial)
    return editor.constant("Mul", kernel, factor)


def _grouped(
    editor: Editor, vector: ir.Value, groups: int, shape: tuple[int | None, ...], spatial: tuple[int, ...]
) -> ir.Value:
    """A vector over ``groups * shape[1]`` channels, spread to a kernel of shape [groups * n, shape[1], ...]."""
    rows, columns = shape[0] or 0, shape[1] or 0
    if groups == 1:
        return _reshaped(editor, vector, (1, -1, *spatial))
    spread = _reshaped(editor, vector, (groups, 1, columns))
    spread = editor.constant(
        "Expand", spread, editor.literal(np.array([groups, rows // groups, columns], np.int64))
    )
    return _reshaped(editor, spread, (rows, columns, *spatial))


def scaled_inputs(editor: Editor, node: ir.Node, scale: ir.Value) -> ir.Value:
    """The kernel of a Conv or Gemm whose input channels are multiplied by a [channels] vector."""
    return editor.constant("Mul", node.inputs[1], _over_inputs(editor, node, scale))


def _over_inputs(editor: Editor, node: ir.Node, vector: ir.Value) -> ir.Value:
    shape = dims(node.inputs[1]) or ()
    spatial = (1,) * (len(shape) - 2)
    if node.op_type == "Gemm":
        return _reshaped(editor, vector, (-1, 1))
    return _grouped(editor, vector, node.attributes.get_int("group", 1), shape, spatial)


def response_to_shift(editor: Editor, node: ir.Node, shift: ir.Value) -> ir.Value:
    """What a Conv or Gemm makes of an input that is constant per channel: a [channels] vector, where nothing pads."""
    product = editor.constant("Mul", node.inputs[1], _over_inputs(editor, node, shift))
    size = len(dims(node.inputs[1]) or ())
    axes = [0] if node.op_type == "Gemm" else list(range(1, size))
    return editor.constant("ReduceSum", product, editor.literal(np.array(axes, np.int64)), keepdims=0)


def _reshaped(editor: Editor, value: ir.Value, shape: tuple[int, ...]) -> ir.Value:
    return editor.constant("Reshape", value, editor.literal(np.array(shape, np.int64)))


def is_made_up_zero(value: ir.Value | None) -> bool:
    """Whether a constant is zeros that a pass made, not a parameter that happens to be zero."""
    return value is not None and isinstance(origin_of(value), Literal) and not np.any(array(value))
