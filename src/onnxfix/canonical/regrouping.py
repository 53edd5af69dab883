"""Transposes and reshapes that change places, and flatten orders that move into the rows of a dense kernel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxfix.canonical.permutation import Perm, permute, reshape, transposed
from onnxfix.canonical.reshaping import constant_target
from onnxfix.canonical.rewriting import LOWERED, Editor, array, attribute, is_constant, is_op, live, merged, producer
from onnxfix.canonical.symbolic import Size, product, sizes_of


@dataclass(frozen=True)
class Group:
    """Neighbouring axes that a Reshape turns into neighbouring axes with as many elements."""

    before: tuple[int, ...]
    after: tuple[int, ...]


def groups(old: Sequence[Size], new: Sequence[Size]) -> list[Group] | None:
    """Split a Reshape into its smallest independent pieces, sizes of one left out of ``before``.

    Axes of size one in the result belong to the group in front of them (the first group if there is none).
    """
    source = [k for k, size in enumerate(old) if size.number != 1]
    target = [k for k, size in enumerate(new) if size.number != 1]
    found: list[Group] = []
    i = j = 0
    while i < len(source) or j < len(target):
        a, b = [source[i : i + 1], target[j : j + 1]]
        if not a or not b:
            return None
        i, j = i + 1, j + 1
        while product([old[k] for k in a]) != product([new[k] for k in b]):
            left, right = product([old[k] for k in a]), product([new[k] for k in b])
            if right.over(left) is not None and i < len(source):
                a.append(source[i])
                i += 1
            elif left.over(right) is not None and j < len(target):
                b.append(target[j])
                j += 1
            elif left.number is not None and right.number is not None and (i < len(source) and j < len(target)):
                a, i = ([*a, source[i]], i + 1) if left.number < right.number else (a, i)
                b, j = ([*b, target[j]], j + 1) if left.number >= right.number else (b, j)
            else:
                return None
        found.append(Group(tuple(a), tuple(b)))
    return _with_ones(found, len(new))


def _with_ones(found: list[Group], count: int) -> list[Group]:
    if not found:
        return found
    bounds = [0, *(group.after[0] for group in found[1:]), count]
    return [Group(g.before, tuple(range(bounds[k], bounds[k + 1]))) for k, g in enumerate(found)]


class PushThroughReshapes(ir.passes.InPlacePass):
    """``Reshape(T_p(x)) -> T_q(Reshape'(x))`` where the Reshape keeps the transposed blocks apart.

    A Reshape that mixes blocks still goes when all it feeds is a dense layer with a constant kernel: with
    ``Reshape(T_p(x), [N, K]) @ W = Reshape(x, [N, K]) @ W'`` the rows of ``W'`` are those of ``W``, transposed back.
    One that mixes blocks between two transposes goes behind both where the second leaves the mixed ones together:
    ``T_q(Reshape(T_p(x))) -> Reshape'(T_r(x))``.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Look at every Reshape once."""
        editor = Editor(model.graph)
        for node in live(model.graph):
            if is_op(node, "Reshape") and is_constant(node.inputs[1]):
                found = transposed(node.inputs[0])
                if found is not None:
                    _exchange(editor, node, *found)
            elif is_op(node, "Transpose"):
                _meet(editor, node)
            elif is_op(node, "Gemm", "MatMul"):
                _into_rows(editor, node)
        return ir.passes.PassResult(model, editor.modified)


def _pieces(node: ir.Node, mover: ir.Node) -> tuple[list[Size], list[Size], list[Group]] | None:
    """Sizes of the transposed source and of the result of a Reshape, and its groups."""
    source, new = sizes_of(mover.inputs[0]), sizes_of(node.outputs[0])
    perm = attribute(mover, "perm")
    if source is None or new is None:
        return None
    found = groups([source[k] for k in perm], new)
    return None if not found else (source, new, found)


def _exchange(editor: Editor, node: ir.Node, mover: ir.Node, perm: Perm) -> None:
    pieces = _pieces(node, mover)
    if pieces is None:
        return
    source, new, found = pieces
    places = [[perm[k] for k in group.before] for group in found]
    if not all(_contiguous(place, source) for place in places):
        return
    order = sorted(range(len(found)), key=lambda g: places[g][0])
    axes = [axis for g in order for axis in found[g].after]
    wanted = [new[axis] for axis in axes]
    target = constant_target(source, wanted)
    if target is None or mover.inputs[0] is None:
        return
    after = tuple(axes.index(axis) for axis in range(len(new)))
    reshaped = reshape(editor, mover.inputs[0], target, wanted, [node], node)
    result = permute(editor, reshaped, after, [mover], node, like_shape=node.outputs[0])
    editor.replace(node.outputs[0], result)
    editor.remove([node, mover])


def _meet(editor: Editor, node: ir.Node) -> None:
    """Let the transposes before and after a Reshape meet in front of it."""
    flat, found = producer(node.inputs[0], "Reshape"), transposed(node.outputs[0])
    if flat is None or found is None or transposed(flat.inputs[0]) is None or not is_constant(flat.inputs[1]):
        return
    before, after = sizes_of(flat.inputs[0]), sizes_of(flat.outputs[0])
    pieces = None if before is None or after is None else groups(before, after)
    if before is None or after is None or not pieces or flat.inputs[0] is None:
        return
    wanted = [after[axis] for axis in found[1]]
    moved = [axis for axis in found[1] if after[axis].number != 1]
    order, axes = [], list[int]()
    for axis in moved:
        group = next(g for g in pieces if axis in g.after)
        if group not in order:
            order.append(group)
            axes += [k for k in group.after if after[k].number != 1]
    ones = [k for k, size in enumerate(before) if size.number == 1]
    perm = (*ones, *(k for group in order for k in group.before))
    target = constant_target([before[k] for k in perm], wanted)
    if axes != moved or target is None or len(perm) != len(before):
        return
    together = permute(editor, flat.inputs[0], perm, [node], node, like_shape=node.outputs[0])
    editor.replace(node.outputs[0], reshape(editor, together, target, wanted, [flat], node))
    editor.remove([node, flat])


def _contiguous(place: list[int], source: Sequence[Size]) -> bool:
    """Whether axes are neighbours in order, axes of size one between them not counted."""
    if place != sorted(place):
        return False
    between = set(range(place[0], place[-1] + 1)) - set(place)
    return all(source[axis].number == 1 for axis in between)


def _into_rows(editor: Editor, node: ir.Node) -> None:
    """Move the flatten order in front of a dense layer into its kernel."""
    flatten = producer(node.inputs[0], "Reshape")
    found = None if flatten is None else transposed(flatten.inputs[0])
    kernel = node.inputs[1]
    if flatten is None or found is None or kernel is None or not is_constant(kernel):
        return
    if is_op(node, "Gemm") and attribute(node, "transA", 0):
        return
    mover, perm = found
    pieces = _pieces(flatten, mover)
    content = array(kernel)
    if pieces is None or content is None or content.ndim != 2:
        return
    source, new, blocks = pieces
    place = [perm[k] for k in blocks[-1].before]
    columns = [k for k in blocks[-1].after if new[k].number != 1]
    if columns != [len(new) - 1] or any(source[axis].number is None for axis in place):
        return
    places = [[perm[k] for k in block.before] for block in blocks[:-1]] + [sorted(place)]
    if not all(_contiguous(p, source) for p in places) or [p[0] for p in places] != sorted(p[0] for p in places):
        return
    target = constant_target(source, new)
    if target is None or mover.inputs[0] is None:
        return
    flat = reshape(editor, mover.inputs[0], target, new, [flatten], node)
    rows = _permuted_rows(editor, node, [source[axis].factor for axis in place], place)
    node.replace_input_with(0, flat)
    node.replace_input_with(1, rows)
    node.meta[LOWERED] = merged([node, mover, flatten])
    editor.remove([flatten, mover])


def _permuted_rows(editor: Editor, node: ir.Node, extents: list[int], place: list[int]) -> ir.Value:
    """The kernel for the flatten order of ``x``: Reshape, Transpose, Reshape of its rows."""
    kernel = node.inputs[1]
    content = array(kernel)
    if kernel is None or content is None:
        raise ValueError("the kernel is a constant")
    columns_first = bool(attribute(node, "transB", 0)) and is_op(node, "Gemm")
    order = [int(k) for k in np.argsort(place)]
    split = [content.shape[0], *extents] if columns_first else [*extents, content.shape[1]]
    perm = [0, *(k + 1 for k in order)] if columns_first else [*order, len(order)]
    apart = editor.constant("Reshape", kernel, editor.literal(np.asarray(split, dtype=np.int64)))
    moved = editor.constant("Transpose", apart, perm=perm)
    return editor.constant("Reshape", moved, editor.literal(np.asarray(content.shape, dtype=np.int64)))
