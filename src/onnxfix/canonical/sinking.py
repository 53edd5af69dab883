"""Push reshapes towards the outputs through elementwise ops, so that they meet, merge or cancel."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from onnxfix.canonical.permutation import rebuild, reshape
from onnxfix.canonical.reshaping import constant_target
from onnxfix.canonical.rewriting import Editor, is_constant, is_op, live, producer
from onnxfix.canonical.symbolic import Size, sizes_of
from onnxfix.canonical.transposes import ELEMENTWISE


class SinkReshapes(ir.passes.InPlacePass):
    """``f(Reshape(x), scalars) -> Reshape(f(x, scalars))``, and the same for operands that are all reshaped alike."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Push through the whole graph in one topological walk."""
        editor = Editor(model.graph)
        for node in live(model.graph):
            if is_op(node, *ELEMENTWISE) and len(node.outputs) == 1:
                _sink(editor, node)
        return ir.passes.PassResult(model, editor.modified)


def _sink(editor: Editor, node: ir.Node) -> None:
    movers = [producer(value, "Reshape") for value in node.inputs]
    present = [mover for mover in movers if mover is not None]
    if not present or present[0].inputs[0] is None or not is_constant(present[0].inputs[1]):
        return
    shape, sizes = sizes_of(present[0].inputs[0]), sizes_of(present[0].outputs[0])
    if shape is None or sizes is None or sizes_of(node.outputs[0]) != sizes:
        return
    inputs: list[ir.Value | None] = []
    for value, mover in zip(node.inputs, movers, strict=True):
        if mover is not None and sizes_of(mover.inputs[0]) == shape and sizes_of(mover.outputs[0]) == sizes:
            inputs.append(mover.inputs[0])
        elif value is None or (is_constant(value) and value.shape is not None and _single(value, shape)):
            inputs.append(value)
        else:
            return
    target = constant_target(shape, sizes)
    if target is None:
        return
    new = rebuild(editor, node, inputs)
    if new.outputs[0].type is None:
        new.outputs[0].type = node.outputs[0].type
    editor.replace(node.outputs[0], reshape(editor, new.outputs[0], target, sizes, present, node))
    editor.remove([node, *present])


def _single(value: ir.Value, shape: Sequence[Size]) -> bool:
    """Whether a constant holds one element and does not add dimensions."""
    dimensions = value.shape
    return dimensions is not None and all(d == 1 for d in dimensions) and len(dimensions) <= len(shape)
