"""A Reshape that only moves axes of one is the Transpose that it stands for where a constant makes them longer."""

from __future__ import annotations

import onnx_ir as ir

from onnxfix.canonical.permutation import Perm, inverse, permute, plan_pull, rebuild
from onnxfix.canonical.queries import nodes_of, operands, producer, rank
from onnxfix.canonical.rewriting import Editor, array, is_constant
from onnxfix.canonical.symbolic import sizes_of
from onnxfix.canonical.transposes import belongs_to_window


class MoveOnesByTranspose(ir.passes.InPlacePass):
    """``Reshape(x[N, 1, H, W], [0, H, W, 1]) * c[C] = T(x * c[C, 1, 1])`` with ``T = Transpose(perm=[0, 2, 3, 1])``.

    The Reshape itself could not be pushed further, the Transpose can: norms over channels whose means a converter
    brought into the other layout as Reshapes meet their operands again. Likewise Add.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Exchange."""
        editor = Editor(model.graph)
        for node in nodes_of(model.graph, "Mul", "Add"):
            pair = operands(node)
            mover = producer(pair[0], "Reshape") if pair else None
            if pair is None or mover is None or mover.inputs[0] is None or not is_constant(mover.inputs[1]):
                continue
            perm = _moved_ones(mover)
            if perm is None or not _lengthens(pair[1], mover) or belongs_to_window(node):
                continue
            plan = plan_pull(pair[1], perm, node, broadcasts=True)
            if plan is None or rank(node.outputs[0]) != len(perm):
                continue
            inputs = [mover.inputs[0] if value is pair[0] else plan.build(editor) for value in node.inputs]
            made = rebuild(editor, node, inputs).outputs[0]
            made.type = made.type or node.outputs[0].type
            sizes = node.outputs[0].shape
            if made.shape is None and sizes is not None:
                made.shape = ir.Shape([sizes[k] for k in inverse(perm)])
            editor.replace(node.outputs[0], permute(editor, made, perm, [mover], node, like_shape=node.outputs[0]))
            editor.remove([node, mover])
        return ir.passes.PassResult(model, editor.modified)


def _moved_ones(mover: ir.Node) -> Perm | None:
    """The Transpose that a Reshape is which only moves axes of one; None if it is another Reshape."""
    before, after = sizes_of(mover.inputs[0]), sizes_of(mover.outputs[0])
    if before is None or after is None or len(before) != len(after):
        return None
    ones = iter([k for k, size in enumerate(before) if size.number == 1])
    others = iter([k for k, size in enumerate(before) if size.number != 1])
    if [s for s in before if s.number != 1] != [s for s in after if s.number != 1]:
        return None
    return tuple(next(ones) if size.number == 1 else next(others) for size in after)


def _lengthens(constant: ir.Value, mover: ir.Node) -> bool:
    """Whether a constant is longer than one along an axis of one."""
    content, after = array(constant), sizes_of(mover.outputs[0]) or []
    if content is None or content.ndim > len(after):
        return False
    lead = len(after) - content.ndim
    return any(d != 1 and after[lead + k].number == 1 for k, d in enumerate(content.shape))
