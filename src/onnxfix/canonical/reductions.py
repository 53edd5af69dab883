"""Reductions keep their axes as ones and name only the axes that are longer than one."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxfix.canonical.permutation import reshape
from onnxfix.canonical.reshaping import constant_target
from onnxfix.canonical.rewriting import Editor, array, attribute, is_op, live, rank
from onnxfix.canonical.symbolic import Size, sizes_of

# Reductions that leave a single element as it is.
_PLAIN = ("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd")
OPS = (*_PLAIN, "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceSumSquare")


class SpellReductions(ir.passes.InPlacePass):
    """``Reduce(x, axes, keepdims=0) = Reshape(Reduce(x, axes, keepdims=1))``; axes of size one are not reduced.

    No axes are all axes. The mean, sum, product, greatest or least of one element is the element.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Respell."""
        editor = Editor(model.graph)
        for node in live(model.graph):
            if is_op(node, *OPS):
                _respell(editor, node)
        return ir.passes.PassResult(model, editor.modified)


def _respell(editor: Editor, node: ir.Node) -> None:
    sizes, value = sizes_of(node.inputs[0]), node.inputs[0]
    operand = node.inputs[1] if len(node.inputs) > 1 else None
    given = array(operand)
    if sizes is None or value is None or not sizes or (operand is not None and given is None):
        return
    if given is None or given.size == 0:
        if attribute(node, "noop_with_empty_axes", 0):
            return
        axes = list(range(len(sizes)))
    else:
        axes = sorted({int(a) % len(sizes) for a in given.reshape(-1)})
    kept = bool(attribute(node, "keepdims", 1))
    moving = [a for a in axes if sizes[a].number != 1]
    plain = not moving and node.op_type in _PLAIN
    if kept and not plain and given is not None and given.reshape(-1).tolist() == (moving or axes):
        return
    result = [Size(1) if k in axes else size for k, size in enumerate(sizes)]
    wanted = [size for k, size in enumerate(sizes) if k not in axes]
    target = None if kept else constant_target(result, wanted)
    if not kept and target is None:
        return
    reduced = value
    if not plain:
        literal = editor.literal(np.array(moving or axes, np.int64), "axes")
        made = editor.node(node.op_type, [value, literal], like=[node], before=node,
                           attributes={"keepdims": 1, "noop_with_empty_axes": 0})
        reduced = made.outputs[0]
        if rank(reduced) is None:
            return
    if target is not None:
        reduced = reshape(editor, reduced, target, wanted, [node], node)
    editor.replace(node.outputs[0], reduced)
    editor.remove([node])
