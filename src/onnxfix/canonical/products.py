"""One spelling for the batch of a product of two computed matrices."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from onnxfix.canonical.permutation import reshape
from onnxfix.canonical.regrouping import groups
from onnxfix.canonical.reshaping import constant_target
from onnxfix.canonical.rewriting import Editor, is_constant, is_op, live, producer, rank
from onnxfix.canonical.symbolic import Size, sizes_of


class SpellProducts(ir.passes.InPlacePass):
    """Products of two computed operands, such as those of attention.

    - leading dimensions of size one are left out: ``[1, H, S, K] @ [1, H, K, T]`` and ``[1, H, S, K] @ [H, K, T]`` are
      ``[H, S, K] @ [H, K, T]`` between Reshapes
    - ``Reshape(x, [B * H, S, K]) @ Reshape(y, [B * H, K, T]) = Reshape(x @ y, [B * H, S, T])`` where x and y have the
      same batch [B, H], in whatever way the Reshapes merge or split it
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Look at every product once."""
        editor = Editor(model.graph)
        for node in live(model.graph):
            if is_op(node, "MatMul") and not any(is_constant(value) for value in node.inputs):
                _without_ones(editor, node)
                if node.graph is not None:
                    _same_batch(editor, node)
        return ir.passes.PassResult(model, editor.modified)


def _without_ones(editor: Editor, node: ir.Node) -> None:
    result = sizes_of(node.outputs[0])
    operands = [sizes_of(value) for value in node.inputs]
    if result is None or any(sizes is None or not 2 <= len(sizes) <= len(result) for sizes in operands):
        return
    first, second = ([Size(1)] * (len(result) - len(sizes)) + sizes for sizes in operands if sizes is not None)
    batch = range(len(result) - 2)
    kept = [k for k in batch if first[k].number != 1 or second[k].number != 1]
    if len(kept) == len(batch) and all(rank(value) == len(result) for value in node.inputs):
        return
    values = []
    for value, sizes in zip(node.inputs, (first, second), strict=True):
        wanted = [sizes[k] for k in (*kept, len(sizes) - 2, len(sizes) - 1)]
        target = constant_target(sizes_of(value) or [], wanted)
        if value is None or target is None:
            return
        values.append((value, target, wanted))
    _emit(editor, node, values, [result[k] for k in (*kept, len(result) - 2, len(result) - 1)], result, [])


def _same_batch(editor: Editor, node: ir.Node) -> None:
    """Both operands are reshaped alike in front of their last two dimensions."""
    movers = [mover for value in node.inputs if (mover := producer(value, "Reshape")) is not None]
    result = sizes_of(node.outputs[0])
    if len(movers) != 2 or result is None or len(result) < 3 or any(not is_constant(m.inputs[1]) for m in movers):
        return
    before, after = ([sizes_of(m.inputs[0]) for m in movers], [sizes_of(m.outputs[0]) for m in movers])
    batches, matrices = [], []
    for old, new in zip(before, after, strict=True):
        if old is None or new is None or len(old) < 3 or len(new) != len(result) or old[-2:] != new[-2:]:
            return
        batches.append((old[:-2], new[:-2]))
        matrices.append((old, old[-2:]))
    if batches[0] != batches[1] or groups(*batches[0]) is None or _long(batches[0][0]) == _long(batches[0][1]):
        return
    full = [*batches[0][0], matrices[0][1][0], matrices[1][1][1]]
    values = [(m.inputs[0], list[int](), old) for m, (old, _) in zip(movers, matrices, strict=True)]
    if constant_target(full, result) is None:
        return
    _emit(editor, node, [(v, t, s) for v, t, s in values if v is not None], full, result, movers)


def _long(batch: Sequence[Size]) -> list[Size]:
    return [size for size in batch if size.number != 1]


def _emit(
    editor: Editor, node: ir.Node, operands: Sequence[tuple[ir.Value, list[int], list[Size]]], full: Sequence[Size],
    result: Sequence[Size], movers: Sequence[ir.Node],
) -> None:
    """The product of operands, each reshaped to its target if it has one, and the Reshape to the old result."""
    after = constant_target(full, result)
    if after is None:
        return
    inputs = [reshape(editor, v, target, sizes, [node], node) if target else v for v, target, sizes in operands]
    product = editor.node("MatMul", inputs, like=[node], before=node)
    product.outputs[0].type = product.outputs[0].type or node.outputs[0].type
    editor.replace(node.outputs[0], reshape(editor, product.outputs[0], after, result, [node], node))
    editor.remove([node, *movers])
