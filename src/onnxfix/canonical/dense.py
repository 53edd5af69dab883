"""One spelling for dense layers: Gemm for matrices, MatMul and Add for anything of higher rank."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onnxfix.canonical.channels import is_made_up_zero, plain_gemm
from onnxfix.canonical.permutation import reshape
from onnxfix.canonical.queries import dims, integers, is_float, nodes_of, producer, rank, reader, scalar
from onnxfix.canonical.regrouping import groups
from onnxfix.canonical.reshaping import constant_target
from onnxfix.canonical.rewriting import Editor, array, is_constant
from onnxfix.canonical.symbolic import Size, sizes_of


class SpellDense(ir.passes.InPlacePass):
    """Dense layers with a constant kernel.

    - ``MatMul(x, W) = Gemm(x, W, 0)`` for a matrix x, and for a vector of any rank
    - ``Gemm(x, W, c, alpha, beta, transB=1) = Gemm(x, alpha * W^T, beta * c)`` with c spread to [out]
    - a 1x1 Conv on a 1x1 map is ``Reshape(Gemm(Reshape(x), W^T, b))``
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Respell."""
        editor = Editor(model.graph)
        for node in nodes_of(model.graph, "MatMul"):
            _matmul(editor, node)
        for node in nodes_of(model.graph, "Gemm"):
            _gemm(editor, node)
        for node in nodes_of(model.graph, "Conv"):
            _pointwise(editor, node)
        return ir.passes.PassResult(model, editor.modified)


def _dense(
    editor: Editor, node: ir.Node, value: ir.Value | None, kernel: ir.Value | None, bias: ir.Value | None,
    trans_a: int = 0,
) -> ir.Node:
    attributes = {"alpha": 1.0, "beta": 1.0, "transA": trans_a, "transB": 0}
    return editor.node("Gemm", [value, kernel, bias], like=[node], before=node, attributes=attributes)


def _zeros(editor: Editor, kernel: ir.Value, channels: int) -> ir.Value:
    assert kernel.dtype is not None
    return editor.literal(np.zeros(channels, kernel.dtype.numpy()), f"{kernel.name}.bias")


def _matmul(editor: Editor, node: ir.Node) -> None:
    value, kernel = node.inputs
    shape = dims(kernel)
    if kernel is None or not is_constant(kernel) or shape is None or len(shape) != 2 or not is_float(kernel):
        return
    if shape[1] is None or is_constant(value):
        return
    if rank(value) != 2:
        _vectors(editor, node, shape[1])
        return
    dense = _dense(editor, node, value, kernel, _zeros(editor, kernel, shape[1]))
    editor.replace(node.outputs[0], dense.outputs[0])
    editor.remove([node])


def _vectors(editor: Editor, node: ir.Node, channels: int) -> None:
    """``MatMul(x, W)`` where x is one vector, whatever its rank."""
    value, kernel = node.inputs
    sizes = sizes_of(value)
    if value is None or kernel is None or sizes is None or len(sizes) < 3:
        return
    if any(size.number != 1 for size in sizes[:-1]):
        return
    flat, result = sizes[-2:], [*sizes[:-1], Size(channels)]
    target, back = constant_target(sizes, flat), constant_target([flat[0], result[-1]], result)
    if target is None or back is None:
        return
    operand = reshape(editor, value, target, flat, [node], node)
    dense = _dense(editor, node, operand, kernel, _zeros(editor, kernel, channels))
    editor.replace(node.outputs[0], reshape(editor, dense.outputs[0], back, result, [node], node))
    editor.remove([node])


def _gemm(editor: Editor, node: ir.Node) -> None:
    value, kernel = node.inputs[:2]
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if kernel is None or not is_constant(kernel) or not is_float(kernel) or is_constant(value):
        return
    if bias is not None and not is_constant(bias):
        return
    trans_a = node.attributes.get_int("transA", 0)
    alpha, beta = node.attributes.get_float("alpha", 1.0), node.attributes.get_float("beta", 1.0)
    plain = plain_gemm(node) or (trans_a and alpha == beta == 1.0 and not node.attributes.get_int("transB", 0))
    shape = dims(kernel) or (0, 0)
    channels = shape[0] if node.attributes.get_int("transB", 0) else shape[1]
    if channels is None or (plain and bias is not None and dims(bias) == (channels,)):
        return
    spread = _zeros(editor, kernel, channels) if bias is None else _row(editor, bias, channels)
    if spread is None:
        return
    if node.attributes.get_int("transB", 0):
        kernel = editor.constant("Transpose", kernel, perm=[1, 0])
    if alpha != 1.0:
        kernel = editor.constant("Mul", kernel, _number(editor, kernel, alpha))
    if beta != 1.0 and bias is not None:
        spread = editor.constant("Mul", spread, _number(editor, kernel, beta))
    dense = _dense(editor, node, value, kernel, spread, trans_a)
    editor.replace(node.outputs[0], dense.outputs[0])
    editor.remove([node])


def _number(editor: Editor, like: ir.Value, value: float) -> ir.Value:
    assert like.dtype is not None
    return editor.literal(np.asarray(value, like.dtype.numpy()))


def _row(editor: Editor, bias: ir.Value, channels: int) -> ir.Value | None:
    """The [out] vector that a Gemm's third operand amounts to, if it is the same for every row."""
    content = array(bias)
    if content is None or content.size not in (1, channels) or (content.ndim == 2 and content.shape[0] != 1):
        return None
    if content.shape == (channels,):
        return bias
    if content.size == channels:
        return editor.constant("Reshape", bias, editor.literal(np.array([channels], np.int64)))
    if scalar(bias) is None:
        return None
    flat = editor.constant("Reshape", bias, editor.literal(np.array([1], np.int64)))
    return editor.constant("Expand", flat, editor.literal(np.array([channels], np.int64)))


def _pointwise(editor: Editor, node: ir.Node) -> None:
    """A Conv that sees a single position."""
    value, kernel = node.inputs[:2]
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    shape, window = dims(value), dims(kernel)
    if shape is None or window is None or kernel is None or not is_constant(kernel) or not is_constant(bias):
        return
    if any(d != 1 for d in (*shape[2:], *window[2:])) or len(shape) < 3 or any(integers(node, "pads", ())):
        return
    if node.attributes.get_int("group", 1) != 1:
        return
    channels = [int(d or 0) for d in window[:2]]
    matrix = editor.constant("Reshape", kernel, editor.literal(np.array(channels, np.int64)))
    matrix = editor.constant("Transpose", matrix, perm=[1, 0])
    before = editor.literal(np.array([0, channels[1]], np.int64))
    after = editor.literal(np.array([0, channels[0], *([1] * (len(shape) - 2))], np.int64))
    flat = editor.node("Reshape", [value, before], like=[node], before=node, attributes={"allowzero": 0})
    dense = _dense(editor, node, flat.outputs[0], matrix, bias)
    full = editor.node("Reshape", [dense.outputs[0], after], like=[node], before=node, attributes={"allowzero": 0})
    editor.replace(node.outputs[0], full.outputs[0])
    editor.remove([node])


class LiftFlattening(ir.passes.InPlacePass):
    """``Gemm(Reshape(x, [-1, K]), W, b) = Reshape(MatMul(x, W) + b, [-1, O])`` where x is [..., K] of higher rank.

    Exporters flatten sequences to use Gemm; the Reshape, now behind, meets the one that undoes it. A Reshape that only
    drops dimensions of size one, as after global pooling, stays: that is a dense layer on vectors.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Lift."""
        editor = Editor(model.graph)
        for node in nodes_of(model.graph, "Gemm"):
            flat = producer(node.inputs[0], "Reshape")
            value = None if flat is None else flat.inputs[0]
            shape, kernel = dims(value), dims(node.inputs[1])
            if flat is None or shape is None or kernel is None or not plain_gemm(node) or len(node.inputs) < 3:
                continue
            if not is_constant(node.inputs[1]) or not is_constant(node.inputs[2]) or dims(node.inputs[2]) != kernel[1:]:
                continue
            if len(shape) >= 3 and shape[-1] == kernel[0] and is_sequence(shape[:-1]):
                self._lift(editor, node, flat, kernel[1])
            else:
                _unflatten(editor, node, flat, kernel)
        for node in nodes_of(model.graph, "MatMul"):
            _plain_batch(editor, node)
        return ir.passes.PassResult(model, editor.modified)

    @staticmethod
    def _lift(editor: Editor, node: ir.Node, flat: ir.Node, channels: int | None) -> None:
        value = _product(editor, node, flat.inputs[0])
        target = editor.literal(np.array([-1, channels], np.int64))
        result = editor.node("Reshape", [value, target], like=[flat], before=node, attributes={"allowzero": 0})
        editor.replace(node.outputs[0], result.outputs[0])
        editor.remove([node, flat])


def _product(editor: Editor, node: ir.Node, value: ir.Value | None) -> ir.Value:
    """MatMul and Add with a Gemm's constants."""
    product = editor.node("MatMul", [value, node.inputs[1]], like=[node], before=node).outputs[0]
    if is_made_up_zero(node.inputs[2]):
        return product
    return editor.node("Add", [product, node.inputs[2]], like=[node], before=node).outputs[0]


def _unflatten(editor: Editor, node: ir.Node, flat: ir.Node, kernel: tuple[int | None, ...]) -> None:
    """Where the result becomes [..., O] of higher rank again, the operand may as well become [..., K]."""
    back = reader(node.outputs[0], "Reshape")
    wanted = None if back is None or back.inputs[0] is not node.outputs[0] else dims(back.outputs[0])
    if back is None or wanted is None or len(wanted) < 3 or wanted[-1] != kernel[1] or not is_sequence(wanted[:-1]):
        return
    if sum(d is None for d in wanted) > 1:
        return
    target = editor.literal(np.array([-1 if d is None else d for d in (*wanted[:-1], kernel[0])], np.int64))
    operand = editor.node("Reshape", [flat.inputs[0], target], like=[flat], before=node, attributes={"allowzero": 0})
    editor.replace(back.outputs[0], _product(editor, node, operand.outputs[0]))
    editor.remove([back, node, flat])


def is_sequence(leading: Sequence[int | None]) -> bool:
    """Whether leading dimensions are a batch of sequences: the last is more than a step, or they are really several."""
    return bool(leading) and (leading[-1] != 1 or (len(leading) > 2 and sum(d != 1 for d in leading) >= 2))


def _plain_batch(editor: Editor, node: ir.Node) -> None:
    """``Reshape(x[A, B, C, D], [A1, A2, B, C * D]) @ W = Reshape(Reshape(x, [A, B, C * D]) @ W, [A1, A2, B, O])``.

    The batch of a dense layer is what it is in the value that is flattened for it; of a sequence alone it is one.
    """
    flat, kernel = producer(node.inputs[0], "Reshape"), node.inputs[1]
    columns = sizes_of(kernel)
    value = None if flat is None else flat.inputs[0]
    if flat is None or value is None or columns is None or len(columns) != 2 or not is_constant(kernel):
        return
    source, sizes = sizes_of(value), sizes_of(flat.outputs[0])
    found = None if source is None or sizes is None else groups(source, sizes)
    if source is None or sizes is None or not found or len(found[-1].before) < 2:
        return
    if [k for k in found[-1].after if sizes[k].number != 1] != [len(sizes) - 1]:
        return
    batch = source[: found[-1].before[0]]
    if len(batch) == 1 and batch[0].number is not None:
        batch = [Size(1), *batch]
    wanted, result = [*batch, sizes[-1]], [*batch, columns[1]]
    target, back = constant_target(source, wanted), constant_target(result, [*sizes[:-1], columns[1]])
    if wanted == sizes or len(wanted) < 3 or target is None or back is None:
        return
    operand = reshape(editor, value, target, wanted, [flat], node)
    product = editor.node("MatMul", [operand, kernel], like=[node], before=node)
    full = reshape(editor, product.outputs[0], back, [*sizes[:-1], columns[1]], [flat], node)
    editor.replace(node.outputs[0], full)
    editor.remove([node, flat])
