"""Concatenations of concatenations are one."""

from __future__ import annotations

import onnx_ir as ir

from onnxfix.canonical.queries import nodes_of, producer, used_once
from onnxfix.canonical.rewriting import Editor


class FlattenConcats(ir.passes.InPlacePass):
    """``Concat(a, Concat(b, c)) = Concat(a, b, c)`` along the same axis, where nothing else reads the inner one."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Flatten."""
        editor = Editor(model.graph)
        for node in nodes_of(model.graph, "Concat"):
            axis = node.attributes.get_int("axis")
            operands: list[ir.Value | None] = []
            inner: list[ir.Node] = []
            for value in node.inputs:
                made = producer(value, "Concat")
                if made is not None and used_once(made.outputs[0]) and made.attributes.get_int("axis") == axis:
                    operands += made.inputs
                    inner.append(made)
                else:
                    operands.append(value)
            if inner:
                flat = editor.node("Concat", operands, like=[node, *inner], before=node, attributes={"axis": axis})
                editor.replace(node.outputs[0], flat.outputs[0])
                editor.remove([node, *inner])
        return ir.passes.PassResult(model, editor.modified)
