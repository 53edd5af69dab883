"""Einsum of two operands is the MatMul that it stands for."""

from __future__ import annotations

import onnx_ir as ir

from onnxfix.canonical.permutation import permute
from onnxfix.canonical.rewriting import Editor, attribute, is_op, live, rank


class SpellEinsum(ir.passes.InPlacePass):
    """``Einsum(A, B) = T(MatMul(T(A), T(B)))`` where one index is summed and each operand has one of its own.

    The other indices are in both operands and in the result: they are MatMul's batch. The operand whose own index comes
    first in the result stands left. Example: ``aecd,abcd->acbe`` is ``T(B) @ T(A)`` with batch a, c. Sums over several
    indices, diagonals and ellipses stay.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Respell."""
        editor = Editor(model.graph)
        for node in live(model.graph):
            if is_op(node, "Einsum") and len(node.inputs) == 2:
                _respell(editor, node)
        return ir.passes.PassResult(model, editor.modified)


def _respell(editor: Editor, node: ir.Node) -> None:
    operands, _, result = str(attribute(node, "equation")).replace(" ", "").partition("->")
    terms = operands.split(",")
    if not result or len(terms) != 2 or any(not t.isalpha() or len(set(t)) < len(t) for t in (*terms, result)):
        return
    pairs = sorted(zip(terms, node.inputs, strict=True), key=lambda pair: _first_own(pair[0], terms, result))
    (left, a), (right, b) = pairs
    batch = [k for k in result if k in left and k in right]
    rows = [k for k in left if k not in right]
    columns = [k for k in right if k not in left]
    summed = [k for k in left if k in right and k not in result]
    if not len(rows) == len(columns) == len(summed) == 1 or sorted(result) != sorted([*batch, *rows, *columns]):
        return
    if a is None or b is None or rank(a) != len(left) or rank(b) != len(right):
        return
    first = _moved(editor, node, a, left, [*batch, *rows, *summed])
    second = _moved(editor, node, b, right, [*batch, *summed, *columns])
    product = editor.node("MatMul", [first, second], like=[node], before=node).outputs[0]
    ready = [*batch, *rows, *columns]
    after = tuple(ready.index(k) for k in result)
    editor.replace(node.outputs[0], permute(editor, product, after, [node], node, like_shape=node.outputs[0]))
    editor.remove([node])


def _first_own(term: str, terms: list[str], result: str) -> int:
    """Where in the result the first index that only this term has stands."""
    (other,) = [t for t in terms if t != term] or [term]
    return min((result.find(k) for k in term if k not in other and k in result), default=len(result))


def _moved(editor: Editor, node: ir.Node, value: ir.Value, term: str, wanted: list[str]) -> ir.Value:
    perm = tuple(term.index(k) for k in wanted)
    return permute(editor, value, perm, [node], node, like_shape=value)
