"""RMS and L2 normalization in one spelling each: a value divided by the root of its squares."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxfix.canonical.queries import finite, is_float, nodes_of, producer, rank, scalar, used_once
from onnxfix.canonical.rewriting import Editor, is_constant


class SpellRootNorms(ir.passes.InPlacePass):
    """No op of opset 21 is a norm by root mean square, nor one by length with an epsilon; both are quotients.

    - ``ReduceSum(x * x) = ReduceSumSquare(x)``, ``Sqrt(ReduceSumSquare(x)) = ReduceL2(x)``
    - ``Sqrt(Clip(v, e, none)) = Clip(Sqrt(v), Sqrt(e), none)`` for e >= 0, since roots keep the order
    - ``RMSNormalization(x, g) = x / Sqrt(ReduceMean(x * x) + epsilon) * g``
    - with s such a root of the squares of x, or a Clip of it: ``x * Reciprocal(s) = x / s``,
      ``(x * g) / s = (x / s) * g`` for constants g, in any order
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Respell."""
        editor = Editor(model.graph)
        for node in nodes_of(model.graph, "RMSNormalization"):
            _rms_op(editor, node)
        for node in nodes_of(model.graph, "ReduceSum", "Sqrt"):
            if is_float(node.inputs[0]):
                (_sum if node.op_type == "ReduceSum" else _root)(editor, node)
        for node in nodes_of(model.graph, "Sqrt", "ReduceL2", "Clip"):
            value = _measured(node)
            if value is not None:
                _quotients(editor, _Length(value, node.outputs[0]))
        return ir.passes.PassResult(model, editor.modified)


def _squared(value: ir.Value | None) -> tuple[ir.Node, ir.Value] | None:
    """The product that squares a value, and that value."""
    square = producer(value, "Mul")
    if square is None or square.inputs[0] is None or square.inputs[0] is not square.inputs[1]:
        return None
    return square, square.inputs[0]


def _swap(editor: Editor, node: ir.Node, value: ir.Value, gone: list[ir.Node]) -> None:
    editor.replace(node.outputs[0], value)
    editor.remove([node, *gone])


def _sum(editor: Editor, node: ir.Node) -> None:
    found = _squared(node.inputs[0])
    if found is None or not used_once(found[0].outputs[0]):
        return
    made = editor.node("ReduceSumSquare", [found[1], *node.inputs[1:]], like=[node, found[0]], before=node,
                       attributes=dict(node.attributes))
    _swap(editor, node, made.outputs[0], [found[0]])


def _root(editor: Editor, node: ir.Node) -> None:
    below = producer(node.inputs[0], "ReduceSumSquare", "Clip")
    if below is None or not used_once(below.outputs[0]):
        return
    if below.op_type == "ReduceSumSquare":
        made = editor.node("ReduceL2", below.inputs, like=[below, node], before=node, attributes=dict(below.attributes))
        _swap(editor, node, made.outputs[0], [below])
        return
    low = below.inputs[1] if len(below.inputs) > 1 else None
    least = scalar(low)
    if low is None or least is None or least < 0 or (len(below.inputs) > 2 and below.inputs[2] is not None):
        return
    root = editor.node("Sqrt", [below.inputs[0]], like=[node], before=node)
    clip = editor.node("Clip", [root.outputs[0], editor.constant("Sqrt", low)], like=[below], before=node)
    _swap(editor, node, clip.outputs[0], [below])


@dataclass(frozen=True)
class _Length:
    """A value and its root mean square, or its length."""

    of: ir.Value
    value: ir.Value


def _measured(node: ir.Node) -> ir.Value | None:
    """The value whose length a node makes, kept from zero in either way."""
    if not is_float(node.outputs[0]):
        return None
    if node.op_type == "Clip":
        below = producer(node.inputs[0], "ReduceL2", "Sqrt")
        return None if below is None else _measured(below)
    if node.op_type == "ReduceL2":
        return node.inputs[0]
    value = node.inputs[0]
    add = producer(value, "Add")
    if add is not None:
        value = next((v for v in add.inputs if not is_constant(v)), None)
    squares = producer(value, "ReduceMean", "ReduceSumSquare")
    if squares is None or squares.op_type == "ReduceSumSquare":
        return None if squares is None else squares.inputs[0]
    found = _squared(squares.inputs[0])
    return None if found is None else found[1]


def _quotients(editor: Editor, length: _Length) -> None:
    for usage in tuple(length.value.uses()):
        node = usage.node
        if node.graph is not editor.graph or node.domain != "":
            continue
        if node.op_type == "Div" and node.inputs[1] is length.value:
            _divide(editor, node, length, [node.inputs[0]], [])
        elif node.op_type == "Reciprocal":
            for reading in tuple(node.outputs[0].uses()):
                product = reading.node
                if product.graph is editor.graph and product.op_type == "Mul" and product.domain == "":
                    _of_reciprocal(editor, product, length, node)


def _of_reciprocal(editor: Editor, product: ir.Node, length: _Length, inverse: ir.Node) -> None:
    """``x * r``, or ``x * (r * g)`` seen from the product of constants."""
    other = product.inputs[1] if product.inputs[0] is inverse.outputs[0] else product.inputs[0]
    if other is None or other is inverse.outputs[0]:
        return
    if not is_constant(other):
        _divide(editor, product, length, [other], [inverse])
        return
    for usage in tuple(product.outputs[0].uses()):
        outer = usage.node
        if outer.graph is editor.graph and outer.op_type == "Mul" and outer.domain == "":
            value = outer.inputs[1] if outer.inputs[0] is product.outputs[0] else outer.inputs[0]
            if value is not None and value is not product.outputs[0] and not is_constant(value):
                _divide(editor, outer, length, [value, other], [product, inverse])


def _divide(
    editor: Editor, node: ir.Node, length: _Length, factors: list[ir.Value | None], gone: list[ir.Node]
) -> None:
    """Replace a node by its variable factor over the length, times its constant ones."""
    value, constants = factors[0], factors[1:]
    scaled = producer(value, "Mul") if value is not length.of else None
    if scaled is not None and used_once(scaled.outputs[0]) and sum(map(is_constant, scaled.inputs)) == 1:
        constants = [*constants, *(v for v in scaled.inputs if is_constant(v))]
        value = next(v for v in scaled.inputs if not is_constant(v))
        gone = [*gone, scaled]
    if value is not length.of or (node.op_type == "Div" and not constants) or not all(map(finite, constants)):
        return
    size = rank(length.of)
    if size is None or any((rank(v) or 0) > size for v in (*constants, length.value)):
        return
    result = editor.node("Div", [length.of, length.value], like=[node, *gone], before=node).outputs[0]
    for constant in constants:
        result = editor.node("Mul", [result, constant], like=[node, *gone], before=node).outputs[0]
    _swap(editor, node, result, gone)


def _rms_op(editor: Editor, node: ir.Node) -> None:
    value, scale, size = node.inputs[0], node.inputs[1], rank(node.inputs[0])
    if value is None or value.dtype != ir.DataType.FLOAT or size is None or scale is None or scale.dtype != value.dtype:
        return
    axes = editor.literal(np.arange(node.attributes.get_int("axis", -1) % size, size, dtype=np.int64), "axes")
    epsilon = editor.literal(np.array(node.attributes.get_float("epsilon", 1e-5), np.float32), "epsilon")
    square = editor.node("Mul", [value, value], like=[node], before=node)
    mean = editor.node("ReduceMean", [square.outputs[0], axes], like=[node], before=node,
                       attributes={"keepdims": 1, "noop_with_empty_axes": 0})
    root = editor.node("Sqrt", editor.node("Add", [mean.outputs[0], epsilon], like=[node], before=node).outputs,
                       like=[node], before=node)
    quotient = editor.node("Div", [value, root.outputs[0]], like=[node], before=node)
    _swap(editor, node, editor.node("Mul", [quotient.outputs[0], scale], like=[node], before=node).outputs[0], [])
