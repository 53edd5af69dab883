"""A fixed order for the operands of commutative ops, from structure alone."""

from __future__ import annotations

import hashlib

import numpy as np
import onnx_ir as ir

from onnxfix.canonical.rewriting import Editor, array, is_constant, is_op

_COMMUTATIVE = ("Add", "Mul", "Max", "Min", "Sum", "Mean", "And", "Or", "Xor", "Equal")


class OrderOperands(ir.passes.InPlacePass):
    """``Add(c, x) -> Add(x, c)``; ``Add(b, a) -> Add(a, b)`` by the hash of what makes a and b.

    The hash holds ops, attributes and small integer constants but no weights, so that a wrong weight never changes the
    order. Operands that are alike in all this are ordered by the average size of the weights behind them.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Order in topological order, so that hashes below are settled."""
        editor = Editor(model.graph)
        seen: dict[ir.Value, tuple[str, float]] = {
            value: (_digest("input", str(k)), 0.0) for k, value in enumerate(model.graph.inputs)
        }
        for node in model.graph:
            operands = [_key(seen, value) for value in node.inputs]
            if is_op(node, *_COMMUTATIVE) and len(operands) > 1:
                operands = _reorder(editor, node, operands)
            stem = _digest(node.domain, node.op_type, _attributes(node), *(o[0] for o in operands))
            weight = sum(o[1] for o in operands)
            for k, output in enumerate(node.outputs):
                seen[output] = (_digest(stem, str(k)), weight)
        return ir.passes.PassResult(model, editor.modified)


def _reorder(editor: Editor, node: ir.Node, keys: list[tuple[str, float]]) -> list[tuple[str, float]]:
    order = sorted(range(len(keys)), key=lambda k: (is_constant(node.inputs[k]), keys[k]))
    if order != list(range(len(keys))):
        inputs = [node.inputs[k] for k in order]
        for slot, value in enumerate(inputs):
            node.replace_input_with(slot, value)
        editor.modified = True
    return [keys[k] for k in order]


def _key(seen: dict[ir.Value, tuple[str, float]], value: ir.Value | None) -> tuple[str, float]:
    if value is None:
        return "", 0.0
    if value not in seen:
        content = array(value)
        if content is None:
            seen[value] = _digest("outside"), 0.0
        elif content.dtype.kind == "i" and content.size <= 64:
            seen[value] = _digest(content.dtype.str, str(content.tolist())), 0.0
        else:
            size = float(np.abs(content).mean(dtype=np.float64)) if content.dtype.kind == "f" and content.size else 0.0
            seen[value] = _digest(content.dtype.str, str(content.shape)), size
    return seen[value]


def _attributes(node: ir.Node) -> str:
    plain = {name: attr.value for name, attr in node.attributes.items()
             if attr.type not in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS, ir.AttributeType.TENSOR)}
    return repr(sorted(plain.items()))


def _digest(*parts: str) -> str:
    return hashlib.blake2b("\0".join(parts).encode(), digest_size=12).hexdigest()
