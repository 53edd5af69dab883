"""One spelling for operands that broadcast: constants without leading ones, all others of the same rank."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxfix.canonical.permutation import reshape, stripped
from onnxfix.canonical.reshaping import constant_target
from onnxfix.canonical.rewriting import Editor, array, dims, is_constant, is_op, live, rank
from onnxfix.canonical.symbolic import Size, sizes_of

_OPS = frozenset(
    {"Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "PRelu", "Where", "Equal", "Greater", "Less",
     "GreaterOrEqual", "LessOrEqual", "Mod"}
)


class SpellBroadcasts(ir.passes.InPlacePass):
    """``f(x, c[1, C, 1, 1]) -> f(x, c[C, 1, 1])`` and ``f(x, c[1]) -> f(x, c[])`` where x has at least that rank.

    A constant that one number fills is that number, ``f(x[N, 2, 3], [[c, c, c], [c, c, c]]) -> f(x, c)``, where x has
    its size. Vectors are left alone, for they are biases and scales, and so are zeros, which a weight may have become.

    ``f(x[B, S, D], y[S, D]) -> f(x, Reshape(y, [1, S, D]))`` for computed operands, which then meet other Reshapes,
    and likewise ``f(y[S, D], c[1, S, D])`` where only a constant has the ones.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Look at every constant operand once."""
        editor = Editor(model.graph)
        for node in live(model.graph):
            if not is_op(node, *_OPS):
                continue
            for slot, value in enumerate(node.inputs):
                content = array(value)
                if value is None or content is None or content.ndim == 0:
                    continue
                if _is_filled(content) and any(_covers(x, content.shape) for x in node.inputs if x is not value):
                    flat = editor.constant("Reshape", value, editor.literal(np.array([-1], np.int64)))
                    first = editor.literal(np.array(0, np.int64))
                    node.replace_input_with(slot, editor.constant("Gather", flat, first, axis=0))
                    continue
                if content.shape[0] != 1:
                    continue
                others = [rank(other) for k, other in enumerate(node.inputs) if k != slot]
                if any(r is not None and r >= content.ndim for r in others):
                    node.replace_input_with(slot, stripped(editor, value))
            _same_ranks(editor, node)
        return ir.passes.PassResult(model, editor.modified)


def _is_filled(content: np.ndarray) -> bool:
    """Whether a matrix, or more, holds one number other than zero again and again."""
    if content.dtype.kind != "f" or not content.size or sum(d > 1 for d in content.shape) < 2:
        return False
    first = content.reshape(-1)[:2]
    return bool(first[0] == first[1] != 0 and np.isfinite(first[0]) and np.all(content == first[0]))


def _covers(value: ir.Value | None, shape: tuple[int, ...]) -> bool:
    """Whether a computed value has a size by itself, so that a constant of some shape does not widen it."""
    sizes = None if value is None or is_constant(value) else dims(value)
    if sizes is None or len(sizes) < len(shape):
        return False
    return all(d in (1, size) for d, size in zip(shape, sizes[len(sizes) - len(shape) :], strict=True))


def _same_ranks(editor: Editor, node: ir.Node) -> None:
    """Give computed operands of lower rank the leading ones that broadcasting supplies."""
    computed = [value for value in node.inputs if value is not None and not is_constant(value)]
    ranks = [rank(value) for value in computed]
    highest = rank(node.outputs[0])
    if is_op(node, "PRelu") or highest is None or not ranks or None in ranks:
        return
    for slot, value in enumerate(node.inputs):
        if value not in computed or rank(value) in (0, highest):
            continue
        sizes = sizes_of(value) or []
        full = [Size(1)] * (highest - len(sizes)) + sizes
        target = constant_target(sizes, full)
        if value is not None and target is not None:
            node.replace_input_with(slot, reshape(editor, value, target, full, [node], node))
