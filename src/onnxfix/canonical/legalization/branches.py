"""Branches that are always or never taken."""

from __future__ import annotations

import onnx_ir as ir

from onnxfix.canonical.rewriting import LOWERED, Editor, array, attribute, is_op, live


class TakeBranches(ir.passes.InPlacePass):
    """``If(constant)`` becomes the nodes of the branch that it takes."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Inline."""
        editor = Editor(model.graph)
        for node in live(model.graph):
            condition = array(node.inputs[0]) if is_op(node, "If") else None
            if condition is not None:
                branch = attribute(node, "then_branch" if condition.reshape(-1)[0] else "else_branch")
                _inline(editor, node, branch)
        return ir.passes.PassResult(model, editor.modified)


def _inline(editor: Editor, node: ir.Node, branch: ir.Graph) -> None:
    outputs = list(branch.outputs)
    constants = list(branch.initializers.values())
    branch.initializers.clear()
    for constant in constants:
        constant.name = f"{node.name}/{constant.name}"
        editor.graph.register_initializer(constant)
    nodes = list(branch)
    branch.outputs.clear()
    branch.remove(nodes)
    for inner in nodes:
        inner.name = f"{node.name}/{inner.name or inner.op_type}"
        inner.meta.setdefault(LOWERED, (inner.name,))
        for output in inner.outputs:
            output.name = f"{node.name}/{output.name}"
        editor.graph.insert_before(node, inner)
    for old, new in zip(node.outputs, outputs, strict=True):
        editor.replace(old, new)
    editor.remove([node])
