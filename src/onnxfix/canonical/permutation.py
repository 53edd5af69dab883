"""Rebuild nodes on the other side of a Transpose: the vocabulary of the rules that push transposes down.

``T_p(x)`` is ``Transpose(x, perm=p)``: axis ``i`` of the result is axis ``p[i]`` of ``x``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxfix.canonical.reshaping import constant_target
from onnxfix.canonical.rewriting import Editor, array, attribute, producer, rank
from onnxfix.canonical.symbolic import Size, dims_from, sizes_of

Perm = tuple[int, ...]


def transposed(value: ir.Value | None) -> tuple[ir.Node, Perm] | None:
    """The Transpose that makes a value and its permutation, or None."""
    node = producer(value, "Transpose")
    perm = None if node is None else attribute(node, "perm")
    return None if node is None or perm is None else (node, tuple(perm))


def inverse(perm: Perm) -> Perm:
    """The permutation that undoes ``perm``."""
    return tuple(int(k) for k in np.argsort(perm))


def rebuild(
    editor: Editor,
    node: ir.Node,
    inputs: Sequence[ir.Value | None],
    attributes: Mapping[str, Any] | None = None,
    before: ir.Node | None = None,
) -> ir.Node:
    """Insert a copy of ``node`` before it (or another node), with other operands and some attributes replaced."""
    kept = {name: attr.value for name, attr in node.attributes.items()}
    return editor.node(
        node.op_type, inputs, like=[node], before=before or node, attributes={**kept, **(attributes or {})},
        outputs=len(node.outputs),
    )


def sink(
    editor: Editor,
    node: ir.Node,
    inputs: Sequence[ir.Value | None],
    perm: Perm,
    attributes: Mapping[str, Any] | None = None,
) -> bool:
    """Replace ``node`` by its copy on the untransposed operands with ``T_perm`` after each of its outputs."""
    movers = [found[0] for value in node.inputs if (found := transposed(value)) is not None]
    new = rebuild(editor, node, inputs, attributes)
    for old, made in zip(node.outputs, new.outputs, strict=True):
        if made.type is None:
            made.type = old.type
        _name_sizes(made, old, perm)
        editor.replace(old, permute(editor, made, perm, movers, node, like_shape=old))
    editor.remove([node, *movers])
    return True


def _name_sizes(made: ir.Value, old: ir.Value, perm: Perm) -> None:
    """Keep the names of sizes that inference knows no more, where ``T_perm(made)`` stands for ``old``."""
    if made.shape is None or old.shape is None or not len(made.shape) == len(old.shape) == len(perm):
        return
    back = inverse(perm)
    made.shape = ir.Shape([old.shape[back[k]] if not isinstance(size, int) and size.value is None else size
                           for k, size in enumerate(made.shape)])


def permute(
    editor: Editor, value: ir.Value, perm: Perm, like: Sequence[ir.Node], before: ir.Node, like_shape: ir.Value
) -> ir.Value:
    """``T_perm(value)``, or the value itself where that moves nothing."""
    if list(perm) == sorted(perm):
        return value
    moved = editor.node("Transpose", [value], like=like, before=before, attributes={"perm": list(perm)})
    output: ir.Value = moved.outputs[0]
    if output.shape is None:
        output.shape = like_shape.shape
    return output


@dataclass(frozen=True)
class Pull:
    """How to get ``z`` with ``T_perm(z) == value`` without a new Transpose.

    Attributes:
        build: Makes ``z``.
        borrowed: The Transpose of the value that ``z`` is, where the graph has one elsewhere.
    """

    build: Callable[[Editor], ir.Value]
    borrowed: ir.Value | None = None


def plan_pull(value: ir.Value | None, perm: Perm, node: ir.Node, *, broadcasts: bool) -> Pull | None:
    """Plan how an operand of ``node`` comes along when ``T_perm`` is pushed through it; nothing is built yet.

    Args:
        value: The operand.
        perm: The permutation that all operands are to share.
        node: The node that reads the operand.
        broadcasts: The node broadcasts its operands, so that leading dimensions of size one need not be there.

    Returns:
        The plan, or None if it would cost a Transpose.
    """
    if value is None:
        return None
    found = transposed(value)
    if found is not None and found[1] == perm and found[0].inputs[0] is not None:
        source: ir.Value = found[0].inputs[0]
        return Pull(lambda editor: source)
    sizes = sizes_of(value)
    if sizes is None or len(sizes) > len(perm) or (len(sizes) < len(perm) and not broadcasts):
        return None
    if broadcasts and all(size.number == 1 for size in sizes):
        return Pull(lambda editor: value)
    full = [Size(1)] * (len(perm) - len(sizes)) + sizes
    back = inverse(perm)
    if array(value) is not None:
        return Pull(lambda editor: _pull_constant(editor, value, full, back, broadcasts))
    target = _target_of_ones(sizes, full, back)
    if target is not None:
        return Pull(lambda editor: reshape(editor, value, target, [full[k] for k in back], [node], node))
    existing = _existing(value, back, node) if len(sizes) == len(perm) else None
    return None if existing is None else Pull(lambda editor: existing, borrowed=existing)


def _target_of_ones(sizes: Sequence[Size], full: Sequence[Size], back: Perm) -> list[int] | None:
    """The Reshape target that equals a Transpose which only moves dimensions of size one, or None."""
    moving = [k for k in back if full[k].number != 1]
    return constant_target(sizes, [full[k] for k in back]) if moving == sorted(moving) else None


def reshape(
    editor: Editor, value: ir.Value, target: Sequence[int], sizes: Sequence[Size], like: Sequence[ir.Node],
    before: ir.Node,
) -> ir.Value:
    """Insert a Reshape to a constant target whose result has these sizes."""
    shape = editor.literal(np.asarray(target, dtype=np.int64), "shape")
    node = editor.node("Reshape", [value, shape], like=like, before=before)
    output: ir.Value = node.outputs[0]
    output.shape = dims_from(sizes)
    return output


def _pull_constant(editor: Editor, value: ir.Value, full: list[Size], back: Perm, broadcasts: bool) -> ir.Value:
    content = value
    if len(full) != rank(value):
        numbers = [size.factor for size in full]
        content = editor.constant("Reshape", content, editor.literal(np.asarray(numbers, dtype=np.int64)))
    if list(back) != sorted(back):
        content = editor.constant("Transpose", content, perm=list(back))
    return stripped(editor, content) if broadcasts else content


def stripped(editor: Editor, constant: ir.Value) -> ir.Value:
    """A constant without leading dimensions of size one, which broadcasting supplies again."""
    content = array(constant)
    if content is None or content.ndim == 0 or content.shape[0] != 1 or content.size == 0:
        return constant
    lead = next((k for k, d in enumerate(content.shape) if d != 1), content.ndim)
    shape = np.asarray(content.shape[lead:], dtype=np.int64)
    return editor.constant("Reshape", constant, editor.literal(shape))


def _existing(value: ir.Value, perm: Perm, node: ir.Node) -> ir.Value | None:
    """A Transpose of the value that the graph has anyway, before ``node``."""
    for use in value.uses():
        found = transposed(use.node.outputs[0])
        if found is not None and found[1] == perm and use.node.graph is node.graph:
            result: ir.Value = use.node.outputs[0]
            return result
    return None
