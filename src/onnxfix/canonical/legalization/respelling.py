"""The frame of the rules: each respells the nodes of some op types by others."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import onnx_ir as ir

from onnxfix.canonical.rewriting import Editor, is_op, live

# What a node's outputs become (its only or first one, or each in order), or None where the rule does not apply.
Rule = Callable[["Speller"], "ir.Value | Sequence[ir.Value] | None"]


class Speller:
    """Builds the replacement of one node.

    Args:
        editor: Edits the graph.
        node: The node to be replaced.
    """

    def __init__(self, editor: Editor, node: ir.Node) -> None:
        self.editor = editor
        self.origin = node

    def input(self, slot: int) -> ir.Value | None:
        """An operand of the replaced node, or None if it has none there."""
        return self.origin.inputs[slot] if slot < len(self.origin.inputs) else None

    def __call__(self, op: str, *inputs: ir.Value | None, **attributes: object) -> ir.Value:
        """Add a node with one output."""
        return self.many(op, *inputs, count=1, **attributes)[0]

    def many(self, op: str, *inputs: ir.Value | None, count: int, **attributes: object) -> tuple[ir.Value, ...]:
        """Add a node with several outputs."""
        node = self.editor.node(
            op, inputs, like=[self.origin], before=self.origin, attributes=attributes, outputs=count
        )
        return tuple(node.outputs)


class Respell(ir.passes.InPlacePass):
    """Applies rules to the nodes of their op types, subgraphs included.

    Args:
        rules: Op type -> the rule.
    """

    def __init__(self, rules: Mapping[str, Rule]) -> None:
        self._rules = rules

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Look at each node once."""
        modified = False
        for graph in model.graphs():
            editor = Editor(graph)
            for node in live(graph):
                if node.op_type not in self._rules or not is_op(node, node.op_type):
                    continue
                editor.modified = False
                result = self._rules[node.op_type](Speller(editor, node))
                if result is not None:
                    values = [result] if isinstance(result, ir.Value) else result
                    for old, new in zip(node.outputs, values, strict=False):
                        editor.replace(old, new)
                    editor.remove([node])
                modified = modified or editor.modified
        return ir.passes.PassResult(model, modified)
