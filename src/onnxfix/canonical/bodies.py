"""The inside of If, Loop and Scan: no Identity but where a result must be a copy, no dead code, one order."""

from __future__ import annotations

import onnx_ir as ir

from onnxfix.canonical.naming import order_nodes
from onnxfix.canonical.rewriting import Editor, is_op


class CleanBodies(ir.passes.InPlacePass):
    """``Identity(x) = x`` in control-flow bodies; what no result of a body depends on is removed."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Clean every body, inner ones too."""
        modified = False
        for body in model.graph.subgraphs():
            editor = Editor(body)
            for node in tuple(body):
                if is_op(node, "Identity"):
                    _bypass(editor, node)
            while any(_is_dead(node) for node in body):
                editor.remove([node for node in body if _is_dead(node)])
            order_nodes(body)
            modified |= editor.modified
        return ir.passes.PassResult(model, modified)


def _bypass(editor: Editor, node: ir.Node) -> None:
    source, output = node.inputs[0], node.outputs[0]
    if source is None:
        return
    if output.is_graph_output():
        maker = source.producer()
        if maker is None or maker.graph is not node.graph or source.is_graph_output():
            return
    editor.replace(output, source)
    editor.remove([node])


def _is_dead(node: ir.Node) -> bool:
    return not any(output.uses() or output.is_graph_output() for output in node.outputs)
