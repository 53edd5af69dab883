"""Where dimensions of size one stand around a Transpose is nobody's choice but ours."""

from __future__ import annotations

import onnx_ir as ir

from onnxfix.canonical.permutation import reshape, transposed
from onnxfix.canonical.reshaping import constant_target
from onnxfix.canonical.rewriting import Editor, is_constant, is_op, live, producer, sole_consumer
from onnxfix.canonical.symbolic import sizes_of


class PlaceUnitAxes(ir.passes.InPlacePass):
    """``T_p(Reshape(x))`` with dimensions of size one: the Reshape puts them where the result has them.

    ``T_[1,2,3,0](x[S, 1, H, K])`` and ``T_[0,2,3,1](x[1, S, H, K])`` are the same; the second is the one kept. A
    Transpose that only a Reshape reads has no ones at all: ``Reshape(T_p(x)) = Reshape(T_q(Reshape(x)))``.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Place them."""
        editor = Editor(model.graph)
        for node in live(model.graph):
            found = transposed(node.outputs[0]) if node.op_type == "Transpose" else None
            if found is None or _leave_out(editor, node, found[1]):
                continue
            if producer(node.inputs[0], "Reshape") is not None:
                _place(editor, node, found[1])
        return ir.passes.PassResult(model, editor.modified)


def _leave_out(editor: Editor, node: ir.Node, perm: tuple[int, ...]) -> bool:
    value, after = node.inputs[0], sole_consumer(node.outputs[0])
    sizes = sizes_of(value)
    wanted = None if after is None or not is_op(after, "Reshape") else sizes_of(after.outputs[0])
    if after is None or value is None or sizes is None or wanted is None or not is_constant(after.inputs[1]):
        return False
    kept = [axis for axis, size in enumerate(sizes) if size.number != 1]
    small = [sizes[axis] for axis in kept]
    order = [kept.index(axis) for axis in perm if axis in kept]
    before, back = constant_target(sizes, small), constant_target([small[k] for k in order], wanted)
    if len(kept) == len(sizes) or order == sorted(order) or before is None or back is None or is_constant(value):
        return False
    squeezed = reshape(editor, value, before, small, [node], node)
    moved = editor.node("Transpose", [squeezed], like=[node], before=node, attributes={"perm": order})
    editor.replace(after.outputs[0], reshape(editor, moved.outputs[0], back, wanted, [after], after))
    editor.remove([after, node])
    return True


def _place(editor: Editor, node: ir.Node, perm: tuple[int, ...]) -> None:
    value = node.inputs[0]
    sizes = sizes_of(value)
    if value is None or sizes is None or is_constant(value):
        return
    ones = [k for k, axis in enumerate(perm) if sizes[axis].number == 1]
    rest = iter(sorted(axis for axis in perm if sizes[axis].number != 1))
    order = [perm[k] if k in ones else next(rest) for k in range(len(perm))]
    wanted = [sizes[axis] for axis in order]
    target = constant_target(sizes, wanted)
    if not ones or order == list(range(len(perm))) or target is None:
        return
    moved = reshape(editor, value, target, wanted, [node], node)
    after = [order.index(axis) for axis in perm]
    new = editor.node("Transpose", [moved], like=[node], before=node, attributes={"perm": after})
    editor.replace(node.outputs[0], new.outputs[0])
    editor.remove([node])
