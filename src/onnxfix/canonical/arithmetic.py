"""One spelling for arithmetic with constants: Add and Mul, squares as Mul."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxfix.canonical.queries import feeds_steps, finite, is_float, near, nodes_of, operands
from onnxfix.canonical.rewriting import Editor, array


class SpellArithmetic(ir.passes.InPlacePass):
    """Floats only.

    - ``x - c = x + (-c)``, ``c - x = x * (-1) + c``, ``-x = x * (-1)``
    - ``x / c = x * (1 / c)``, unless something that rounds or compares reads the quotient and c is no power of two
    - ``1 / x = Reciprocal(x)``, ``Pow(x, 2) = x * x``, ``Pow(x, 0.5) = Sqrt(x)``, ``Pow(x, 1) = x``,
      ``Pow(x, -1) = Reciprocal(x)``, ``Pow(x, -0.5) = Reciprocal(Sqrt(x))``
    - ``Sum(x, y, z) = (x + y) + z``
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Respell."""
        editor = Editor(model.graph)
        for node in nodes_of(model.graph, *_RULES):
            if is_float(node.inputs[0]) and is_float(node.outputs[0]):
                _RULES[node.op_type](editor, node)
        return ir.passes.PassResult(model, editor.modified)


def _binary(editor: Editor, node: ir.Node, op: str, *values: ir.Value | None) -> ir.Value:
    return editor.node(op, values, like=[node], before=node).outputs[0]


def _finish(editor: Editor, node: ir.Node, value: ir.Value) -> None:
    editor.replace(node.outputs[0], value)
    editor.remove([node])


def _minus_one(editor: Editor, like: ir.Value) -> ir.Value:
    assert like.dtype is not None
    return editor.literal(np.asarray(-1, like.dtype.numpy()))


def _sub(editor: Editor, node: ir.Node) -> None:
    pair = operands(node)
    if pair is None:
        return
    variable, constant = pair
    if node.inputs[1] is constant:
        _finish(editor, node, _binary(editor, node, "Add", variable, editor.constant("Neg", constant)))
        return
    negative = _binary(editor, node, "Mul", variable, _minus_one(editor, variable))
    _finish(editor, node, _binary(editor, node, "Add", negative, constant))


def _div(editor: Editor, node: ir.Node) -> None:
    pair = operands(node)
    if pair is None:
        return
    variable, constant = pair
    if node.inputs[0] is constant:
        if near(constant, 1.0) and array(constant).ndim == 0:  # type: ignore[union-attr]
            _finish(editor, node, _binary(editor, node, "Reciprocal", variable))
        return
    content = np.asarray(array(constant))
    with np.errstate(all="ignore"):
        inverse = 1.0 / content.astype(np.float64)
        if not np.isfinite(inverse.astype(content.dtype)).all():
            return
    exact = bool((np.frexp(content.astype(np.float64))[0] == np.copysign(0.5, content.astype(np.float64))).all())
    if not exact and feeds_steps(node.outputs[0]):
        return
    _finish(editor, node, _binary(editor, node, "Mul", variable, editor.constant("Reciprocal", constant)))


def _neg(editor: Editor, node: ir.Node) -> None:
    value = node.inputs[0]
    if value is not None:
        _finish(editor, node, _binary(editor, node, "Mul", value, _minus_one(editor, value)))


def _pow(editor: Editor, node: ir.Node) -> None:
    value, exponent = node.inputs
    content = array(exponent)
    if value is None or content is None or content.ndim > 0 or not finite(exponent):
        return
    if content == 2:
        _finish(editor, node, _binary(editor, node, "Mul", value, value))
    elif content == 0.5:
        _finish(editor, node, _binary(editor, node, "Sqrt", value))
    elif content == -0.5:
        _finish(editor, node, _binary(editor, node, "Reciprocal", _binary(editor, node, "Sqrt", value)))
    elif content == -1:
        _finish(editor, node, _binary(editor, node, "Reciprocal", value))
    elif content == 1:
        _finish(editor, node, value)


def _sum(editor: Editor, node: ir.Node) -> None:
    total = node.inputs[0]
    for value in node.inputs[1:]:
        total = _binary(editor, node, "Add", total, value)
    if total is not None:
        _finish(editor, node, total)


_RULES = {"Sub": _sub, "Div": _div, "Neg": _neg, "Pow": _pow, "Sum": _sum}
