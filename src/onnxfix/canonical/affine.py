"""Batch norm and per-channel scale and shift, folded into the Conv, ConvTranspose or Gemm next to them."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxfix.canonical.channels import (
    channel_vector,
    foldable,
    is_made_up_zero,
    response_to_shift,
    scaled_inputs,
    scaled_outputs,
)
from onnxfix.canonical.queries import (
    dims,
    feeds_steps,
    finite,
    integers,
    is_float,
    nodes_of,
    operands,
    producer,
    rank,
    reader,
    scalar,
    used_once,
)
from onnxfix.canonical.rewriting import Editor, array, is_constant

_LINEAR = ("Conv", "ConvTranspose", "Gemm")


class SplitBatchNorm(ir.passes.InPlacePass):
    """``BatchNorm(x) = x * s + t`` with ``s = gamma / Sqrt(var + epsilon)``, ``t = beta - mean * s``, both [C, 1, ...].

    Only inference-mode batch norm with constant statistics.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Split into Mul and Add."""
        editor = Editor(model.graph)
        for node in nodes_of(model.graph, "BatchNormalization"):
            size = rank(node.inputs[0]) or rank(node.outputs[0])
            parameters = node.inputs[1:5]
            if size is None or size < 2 or len(parameters) < 4 or not all(map(is_constant, parameters)):
                continue
            if node.attributes.get_int("training_mode", 0) or any(o.uses() for o in node.outputs[1:]):
                continue
            if not is_float(node.inputs[0]) or len({v.dtype for v in node.inputs if v is not None}) != 1:
                continue
            self._split(editor, node, size)
        return ir.passes.PassResult(model, editor.modified)

    @staticmethod
    def _split(editor: Editor, node: ir.Node, size: int) -> None:
        value, gamma, beta, mean, variance = node.inputs[:5]
        dtype = np.asarray(array(variance)).dtype
        epsilon = editor.literal(np.asarray(node.attributes.get_float("epsilon", 1e-5), dtype), "epsilon")
        deviation = editor.constant("Sqrt", editor.constant("Add", variance, epsilon))
        scale = editor.constant("Div", gamma, deviation)
        shift = editor.constant("Sub", beta, editor.constant("Mul", mean, scale))
        shape = editor.literal(np.array([-1] + [1] * (size - 2), np.int64))
        scaled = editor.node("Mul", [value, editor.constant("Reshape", scale, shape)], like=[node], before=node)
        shifted = editor.node(
            "Add", [scaled.outputs[0], editor.constant("Reshape", shift, shape)], like=[node], before=node
        )
        editor.replace(node.outputs[0], shifted.outputs[0])
        editor.remove([node])


class MergeAffine(ir.passes.InPlacePass):
    """Chains of Mul and Add with constants become at most one Mul, then one Add.

    ``(x * a) * b = x * (a * b)``, ``(x + a) + b = x + (a + b)``, ``(x + a) * b = x * b + a * b``; the merged constant
    must not be larger than the larger one, and nothing that rounds or compares may read the result.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Merge."""
        editor = Editor(model.graph)
        for node in nodes_of(model.graph, "Mul", "Add"):
            pair = operands(node)
            inner = producer(pair[0], "Mul", "Add") if pair else None
            below = operands(inner) if inner is not None else None
            if pair is None or inner is None or below is None or not used_once(inner.outputs[0]):
                continue
            if not is_float(pair[1]) or not finite(pair[1]) or not finite(below[1]) or feeds_steps(node.outputs[0]):
                continue
            if node.op_type == inner.op_type:
                self._same(editor, node, inner, pair[1], below)
            elif node.op_type == "Mul":
                self._distribute(editor, node, inner, pair[1], below)
        return ir.passes.PassResult(model, editor.modified)

    @staticmethod
    def _same(
        editor: Editor, node: ir.Node, inner: ir.Node, outer: ir.Value, below: tuple[ir.Value, ir.Value]
    ) -> None:
        if not _no_outer_product(outer, below[1]):
            return
        constant = editor.constant(node.op_type, below[1], outer)
        merged = editor.node(node.op_type, [below[0], constant], like=[inner, node], before=node)
        editor.replace(node.outputs[0], merged.outputs[0])
        editor.remove([node, inner])

    @staticmethod
    def _distribute(
        editor: Editor, node: ir.Node, inner: ir.Node, scale: ir.Value, below: tuple[ir.Value, ir.Value]
    ) -> None:
        if not _no_outer_product(scale, below[1]):
            return
        size = rank(below[0])
        if size is None or len(scale.shape or ()) > size:
            return
        scaled = editor.node("Mul", [below[0], scale], like=[node], before=node)
        shift = editor.constant("Mul", below[1], scale)
        shifted = editor.node("Add", [scaled.outputs[0], shift], like=[inner, node], before=node)
        editor.replace(node.outputs[0], shifted.outputs[0])
        editor.remove([node, inner])


def _no_outer_product(first: ir.Value, second: ir.Value) -> bool:
    one, two = np.asarray(array(first)).shape, np.asarray(array(second)).shape
    return np.broadcast_shapes(one, two) in (one, two) if _broadcastable(one, two) else False


def _broadcastable(one: tuple[int, ...], two: tuple[int, ...]) -> bool:
    return all(a == b or 1 in (a, b) for a, b in zip(reversed(one), reversed(two), strict=False))


class FoldAffineAfter(ir.passes.InPlacePass):
    """``Conv(x, W, b) * s + t = Conv(x, W * s, b * s + t)`` per output channel; also ConvTranspose, Gemm, MatMul.

    Folded only where nothing else reads the unscaled value.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Fold."""
        editor = Editor(model.graph)
        for node in nodes_of(model.graph, "Mul", "Add"):
            pair = operands(node)
            if pair is None or not is_float(pair[1]) or not finite(pair[1]):
                continue
            linear = producer(pair[0], *_LINEAR)
            if linear is not None and foldable(linear) and used_once(linear.outputs[0]):
                self._fold(editor, node, linear, pair[1])
            elif node.op_type == "Mul" and _scale_before_clip(editor, node, pair):
                continue
            elif node.op_type == "Mul":
                _fold_into_matmul(editor, node, producer(pair[0], "MatMul"), pair[1])
        return ir.passes.PassResult(model, editor.modified)

    @staticmethod
    def _fold(editor: Editor, node: ir.Node, linear: ir.Node, constant: ir.Value) -> None:
        bias, shape = linear.inputs[2], dims(linear.inputs[1])
        if bias is None or shape is None or bias.dtype != constant.dtype:
            return
        channels = (dims(bias) or (0,))[0] or 0
        vector = channel_vector(editor, constant, rank=len(shape), axis=1, channels=channels)
        if vector is None:
            return
        kernel = linear.inputs[1]
        if node.op_type == "Mul":
            kernel = scaled_outputs(editor, linear, vector)
        folded = editor.node(
            linear.op_type,
            [linear.inputs[0], kernel, _shifted(editor, bias, vector, node.op_type)],
            like=[linear, node],
            before=node,
            attributes=dict(linear.attributes),
        )
        editor.replace(node.outputs[0], folded.outputs[0])
        editor.remove([node, linear])


def _scale_before_clip(editor: Editor, node: ir.Node, pair: tuple[ir.Value, ir.Value]) -> bool:
    """``Clip(Conv(x), a, b) * s = Clip(Conv(x) * s, a * s, b * s)`` for a number s > 0, for the Conv to take in."""
    clip = producer(pair[0], "Clip")
    scale = scalar(pair[1])
    linear = None if clip is None else producer(clip.inputs[0], *_LINEAR)
    if clip is None or scale is None or scale <= 0 or rank(pair[1]) != 0 or not used_once(clip.outputs[0]):
        return False
    if linear is None or not foldable(linear) or not used_once(linear.outputs[0]) or feeds_steps(node.outputs[0]):
        return False
    if any(bound is not None and not is_constant(bound) for bound in clip.inputs[1:]):
        return False
    scaled = editor.node("Mul", [clip.inputs[0], pair[1]], like=[node], before=node)
    bounds = [None if bound is None else editor.constant("Mul", bound, pair[1]) for bound in clip.inputs[1:]]
    clipped = editor.node("Clip", [scaled.outputs[0], *bounds], like=[clip], before=node)
    editor.replace(node.outputs[0], clipped.outputs[0])
    editor.remove([node, clip])
    return True


def _shifted(editor: Editor, bias: ir.Value, vector: ir.Value, op: str) -> ir.Value:
    """The new bias; zeros that no parameter stands behind are left out of the expression."""
    if is_made_up_zero(bias):
        return bias if op == "Mul" else vector
    return editor.constant(op, bias, vector)


def _fold_into_matmul(editor: Editor, node: ir.Node, matmul: ir.Node | None, constant: ir.Value) -> None:
    """``(x @ W) * s = x @ (W * s)`` for a constant matrix W and s along the last axis."""
    if matmul is None or not used_once(matmul.outputs[0]) or not is_constant(matmul.inputs[1]):
        return
    shape, size = dims(matmul.inputs[1]), rank(matmul.outputs[0])
    if shape is None or len(shape) != 2 or size is None or shape[1] is None:
        return
    vector = channel_vector(editor, constant, rank=size, axis=size - 1, channels=shape[1])
    if vector is None:
        return
    kernel = editor.constant("Mul", matmul.inputs[1], vector)
    folded = editor.node("MatMul", [matmul.inputs[0], kernel], like=[matmul, node], before=node)
    editor.replace(node.outputs[0], folded.outputs[0])
    editor.remove([node, matmul])


class FoldAffineBefore(ir.passes.InPlacePass):
    """``Conv(x * s + t, W, b) = Conv(x, W * s, b + sum(W * t))`` per input channel; also Gemm.

    The shift can only be folded where the convolution does not pad: padding is zero after the shift, not before it.
    Nothing is folded from what a Conv before could take, or what several nodes read.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Fold."""
        editor = Editor(model.graph)
        for node in nodes_of(model.graph, "Mul", "Add"):
            pair = operands(node)
            linear = reader(node.outputs[0], "Conv", "Gemm")
            if pair is None or linear is None or linear.inputs[0] is not node.outputs[0] or not foldable(linear):
                continue
            if node.op_type == "Add" and not _unpadded(linear):
                continue
            if rank(pair[0]) != rank(linear.inputs[1]) or not finite(pair[1]):
                continue
            self._fold(editor, node, linear, pair)
        return ir.passes.PassResult(model, editor.modified)

    @staticmethod
    def _fold(editor: Editor, node: ir.Node, linear: ir.Node, pair: tuple[ir.Value, ir.Value]) -> None:
        shape, bias = dims(linear.inputs[1]) or (), linear.inputs[2]
        rows = shape[0] if linear.op_type == "Gemm" else shape[1]
        channels = (rows or 0) * linear.attributes.get_int("group", 1)
        if bias is None or (dims(pair[0]) or (None, None))[1] != channels:
            return
        vector = channel_vector(editor, pair[1], rank=len(shape), axis=1, channels=channels)
        if vector is None:
            return
        kernel = linear.inputs[1]
        if node.op_type == "Mul":
            kernel = scaled_inputs(editor, linear, vector)
        else:
            bias = _shifted(editor, bias, response_to_shift(editor, linear, vector), "Add")
        folded = editor.node(
            linear.op_type, [pair[0], kernel, bias], like=[linear, node], before=linear,
            attributes=dict(linear.attributes),
        )
        editor.replace(linear.outputs[0], folded.outputs[0])
        editor.remove([linear, node])


def _unpadded(node: ir.Node) -> bool:
    if node.op_type == "Gemm":
        return True
    return node.attributes.get_string("auto_pad", "NOTSET") in ("NOTSET", "VALID") and not any(
        integers(node, "pads", ())
    )
