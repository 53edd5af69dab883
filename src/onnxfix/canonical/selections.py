"""One spelling for comparisons, negated conditions, and the greatest or least of several values."""

from __future__ import annotations

import onnx_ir as ir

from onnxfix.canonical.queries import nodes_of, producer, scalar, used_once
from onnxfix.canonical.rewriting import Editor
from onnxfix.canonical.symbolic import sizes_of

_TURNED = {"Less": "Greater", "LessOrEqual": "GreaterOrEqual"}


class SpellSelections(ir.passes.InPlacePass):
    """What selects between values.

    - ``a < b = b > a``, ``a <= b = b >= a`` (not ``Not(b <= a)``, which is true for NaN)
    - ``Not(Not(c)) = c``, ``Where(Not(c), a, b) = Where(c, b, a)``, ``Where(c, a, a) = a``
    - ``Max(Max(a, b), c) = Max(a, b, c)``, likewise Min, where no single number makes it a Clip
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Respell."""
        editor = Editor(model.graph)
        for node in nodes_of(model.graph, *_TURNED):
            made = editor.node(_TURNED[node.op_type], node.inputs[::-1], like=[node], before=node)
            _swap(editor, node, made.outputs[0])
        for node in nodes_of(model.graph, "Not"):
            inner = producer(node.inputs[0], "Not")
            if inner is not None and inner.inputs[0] is not None:
                _swap(editor, node, inner.inputs[0], inner)
        for node in nodes_of(model.graph, "Where"):
            _where(editor, node)
        for node in nodes_of(model.graph, "Max", "Min"):
            _flatten(editor, node)
        return ir.passes.PassResult(model, editor.modified)


def _swap(editor: Editor, node: ir.Node, value: ir.Value, *gone: ir.Node) -> None:
    editor.replace(node.outputs[0], value)
    editor.remove([node, *gone])


def _where(editor: Editor, node: ir.Node) -> None:
    condition, chosen, other = node.inputs
    if chosen is not None and chosen is other:
        sizes = sizes_of(chosen)
        if sizes is not None and sizes == sizes_of(node.outputs[0]):
            _swap(editor, node, chosen)
        return
    negation = producer(condition, "Not")
    if negation is not None:
        made = editor.node("Where", [negation.inputs[0], other, chosen], like=[node, negation], before=node)
        _swap(editor, node, made.outputs[0], negation)


def _flatten(editor: Editor, node: ir.Node) -> None:
    inner = next((found for v in node.inputs if (found := producer(v, node.op_type)) and used_once(found.outputs[0])),
                 None)
    if inner is None or any(scalar(v) is not None for n in (node, inner) for v in n.inputs):
        return
    values = [v for value in node.inputs for v in (inner.inputs if value is inner.outputs[0] else [value])]
    made = editor.node(node.op_type, values, like=[node, inner], before=node)
    _swap(editor, node, made.outputs[0], inner)
