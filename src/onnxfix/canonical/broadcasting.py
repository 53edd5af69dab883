"""One spelling for constants that broadcast: no leading dimensions of size one, single elements as scalars."""

from __future__ import annotations

import onnx_ir as ir

from onnxfix.canonical.permutation import stripped
from onnxfix.canonical.rewriting import Editor, array, is_op, live, rank

_OPS = frozenset(
    {"Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "PRelu", "Where", "Equal", "Greater", "Less",
     "GreaterOrEqual", "LessOrEqual", "Mod"}
)


class SpellBroadcasts(ir.passes.InPlacePass):
    """``f(x, c[1, C, 1, 1]) -> f(x, c[C, 1, 1])`` and ``f(x, c[1]) -> f(x, c[])`` where x has at least that rank."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Look at every constant operand once."""
        editor = Editor(model.graph)
        for node in live(model.graph):
            if not is_op(node, *_OPS):
                continue
            for slot, value in enumerate(node.inputs):
                content = array(value)
                if value is None or content is None or content.ndim == 0 or content.shape[0] != 1:
                    continue
                others = [rank(other) for k, other in enumerate(node.inputs) if k != slot]
                if any(r is not None and r >= content.ndim for r in others):
                    node.replace_input_with(slot, stripped(editor, value))
        return ir.passes.PassResult(model, editor.modified)
