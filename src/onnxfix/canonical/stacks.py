"""Stacks, concatenations along axes of size one, seen through what moves or merges the axis."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from onnxfix.canonical.permutation import reshape
from onnxfix.canonical.queries import integers, nodes_of, producer, used_once
from onnxfix.canonical.reshaping import constant_target
from onnxfix.canonical.rewriting import Editor, attribute
from onnxfix.canonical.slices import END, pieces_of
from onnxfix.canonical.symbolic import Size, product, sizes_of


class SpellStacks(ir.passes.InPlacePass):
    """One spelling for stacks.

    - ``Transpose(Concat(a, b, axis=k))`` is a Concat of reshaped operands where each is of size one along k, and the
      Transpose moves nothing else of theirs than axes of size one
    - ``Reshape(Concat(a, b, axis=k))`` that merges the stacked axis with those behind it is a Concat along these:
      ``[T, 2, N, H] -> [T, 2 * N * H]`` for example
    - a Slice that takes whole operands of a Concat is these operands
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Respell."""
        editor = Editor(model.graph)
        for node in nodes_of(model.graph, "Transpose"):
            _transposed(editor, node)
        for node in nodes_of(model.graph, "Reshape"):
            _merged(editor, node)
        for node in nodes_of(model.graph, "Slice"):
            _picked(editor, node)
        return ir.passes.PassResult(model, editor.modified)


def _stack(value: ir.Value | None) -> tuple[ir.Node, int, list[list[Size]]] | None:
    """A Concat that nothing else reads, of operands of size one along its axis: it, the axis, and their sizes."""
    node = producer(value, "Concat")
    sizes = [] if node is None else [sizes_of(part) for part in node.inputs]
    known = [s for s in sizes if s is not None]
    if node is None or value is None or not used_once(value) or len(known) != len(sizes) or len(sizes) < 2:
        return None
    axis = attribute(node, "axis") % len(known[0])
    return (node, axis, known) if all(s[axis].number == 1 for s in known) else None


def _transposed(editor: Editor, node: ir.Node) -> None:
    found, perm = _stack(node.inputs[0]), integers(node, "perm", ())
    if found is None or not perm:
        return
    concat, axis, sizes = found
    for one in sizes:
        moving = [k for k in perm if one[k].number != 1]
        if moving != sorted(moving):
            return
    _rebuilt(editor, node, concat, sizes, [[one[k] for k in perm] for one in sizes], perm.index(axis))


def _merged(editor: Editor, node: ir.Node) -> None:
    found, wanted = _stack(node.inputs[0]), sizes_of(node.outputs[0])
    if found is None or wanted is None:
        return
    concat, axis, sizes = found
    lead, count = product(sizes[0][:axis]), Size(len(sizes))
    for place, size in enumerate(wanted):
        share = size.over(count)
        if share is not None and share.number != 1 and product(wanted[:place]) == lead:
            _rebuilt(editor, node, concat, sizes, [[*wanted[:place], share, *wanted[place + 1 :]]] * len(sizes), place)
            return


def _rebuilt(
    editor: Editor, node: ir.Node, concat: ir.Node, sizes: Sequence[list[Size]], wanted: Sequence[list[Size]], axis: int
) -> None:
    """The Concat of reshaped operands in place of ``node``."""
    targets = [constant_target(one, two) for one, two in zip(sizes, wanted, strict=True)]
    if any(target is None for target in targets):
        return
    parts = [reshape(editor, part, target, two, [node], node)
             for part, target, two in zip(concat.inputs, targets, wanted, strict=True)
             if part is not None and target is not None]
    whole = editor.node("Concat", parts, like=[concat, node], before=node, attributes={"axis": axis})
    editor.replace(node.outputs[0], whole.outputs[0])
    editor.remove([node, concat])


def _picked(editor: Editor, node: ir.Node) -> None:
    concat, pieces = producer(node.inputs[0], "Concat"), pieces_of(node)
    sizes = sizes_of(node.inputs[0])
    if concat is None or pieces is None or sizes is None or len(pieces) != 1:
        return
    axis, start, end, step = pieces[0]
    widths = [None if (s := sizes_of(part)) is None else s[axis].number for part in concat.inputs]
    known = [width for width in widths if width is not None]
    if step != 1 or axis != attribute(concat, "axis") % len(sizes) or len(known) != len(widths):
        return
    bounds = [sum(known[:k]) for k in range(len(known) + 1)]
    stop = bounds[-1] if end == END else end
    if start not in bounds or stop not in bounds or start >= stop:
        return
    chosen = concat.inputs[bounds.index(start) : bounds.index(stop)]
    if len(chosen) == 1 and chosen[0] is not None and chosen[0].producer() is not None:
        editor.replace(node.outputs[0], chosen[0])
    elif len(chosen) > 1:
        part = editor.node("Concat", chosen, like=[concat, node], before=node, attributes={"axis": axis})
        editor.replace(node.outputs[0], part.outputs[0])
    editor.remove([node, concat])
