"""A fixed order for the operands of commutative ops, from structure alone."""

from __future__ import annotations

import hashlib

import numpy as np
import onnx_ir as ir

from onnxfix.canonical.rewriting import Editor, array, is_constant, is_op

# On an input that stands for a value from around a control-flow body: the hash of what makes that value.
CAPTURED = "onnxfix.captured"
_COMMUTATIVE = ("Add", "Mul", "Max", "Min", "Sum", "Mean", "And", "Or", "Xor", "Equal")


class OrderOperands(ir.passes.InPlacePass):
    """``Add(c, x) -> Add(x, c)``; ``Add(b, a) -> Add(a, b)`` by the hash of what makes a and b.

    The hash holds ops, attributes and small integer constants but no weights, so that a wrong weight never changes the
    order. Operands that are alike in all this are ordered by the average size of the weights behind them.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Order in topological order, so that hashes below are settled."""
        editor = Editor(model.graph)
        seen = _inputs(model.graph)
        weights = _Weights()
        for node in model.graph:
            operands = [_key(seen, value) for value in node.inputs]
            if len(operands) > 1 and is_op(node, *_COMMUTATIVE):
                operands = _reorder(editor, node, operands, weights)
            _note(seen, node, operands)
        return ir.passes.PassResult(model, editor.modified)


def structural_keys(graph: ir.Graph) -> dict[ir.Value, str]:
    """For the inputs and all values that nodes make, the hash of what makes them."""
    seen = _inputs(graph)
    for node in graph:
        _note(seen, node, [_key(seen, value) for value in node.inputs])
    return seen


def _inputs(graph: ir.Graph) -> dict[ir.Value, str]:
    return {value: value.meta.get(CAPTURED) or _digest("input", str(k)) for k, value in enumerate(graph.inputs)}


def _note(seen: dict[ir.Value, str], node: ir.Node, operands: list[str]) -> None:
    stem = _digest(node.domain, node.op_type, _attributes(node), *operands)
    for k, output in enumerate(node.outputs):
        seen[output] = _digest(stem, str(k))


def _reorder(editor: Editor, node: ir.Node, keys: list[str], weights: _Weights) -> list[str]:
    ranks: list[tuple[bool, str, float]] = [
        (is_constant(value), key, 0.0) for value, key in zip(node.inputs, keys, strict=True)
    ]
    if len(set(ranks)) < len(ranks):  # the weights are read only where all else is alike
        ranks = [(*rank[:2], weights.behind(value)) for rank, value in zip(ranks, node.inputs, strict=True)]
    order = sorted(range(len(keys)), key=ranks.__getitem__)
    if order != list(range(len(keys))):
        inputs = [node.inputs[k] for k in order]
        for slot, value in enumerate(inputs):
            node.replace_input_with(slot, value)
        editor.modified = True
    return [keys[k] for k in order]


class _Weights:
    """The sum of the average sizes of all weights on all paths to a value, worked out when asked for."""

    def __init__(self) -> None:
        self._known: dict[ir.Value, float] = {}

    def behind(self, value: ir.Value | None) -> float:
        """The sum for one value."""
        waiting = [value] if value is not None else []
        while waiting:
            current = waiting[-1]
            node = current.producer()
            operands = [] if node is None else [o for o in node.inputs if o is not None]
            open_ones = [o for o in operands if o not in self._known]
            if current in self._known or not open_ones:
                waiting.pop()
                self._known.setdefault(
                    current, _size(current) if node is None else sum(self._known[o] for o in operands)
                )
            else:
                waiting += open_ones
        return 0.0 if value is None else self._known[value]


def _size(value: ir.Value) -> float:
    content = array(value)
    if content is None or content.dtype.kind != "f" or not content.size:
        return 0.0
    return float(np.abs(content).mean(dtype=np.float64))


def _key(seen: dict[ir.Value, str], value: ir.Value | None) -> str:
    if value is None:
        return ""
    if value not in seen:
        tensor = value.const_value
        if tensor is None or not is_constant(value):
            seen[value] = _digest("outside")
        elif tensor.size <= 64 and tensor.numpy().dtype.kind == "i":
            seen[value] = _digest(tensor.numpy().dtype.str, str(tensor.numpy().tolist()))
        else:
            seen[value] = _digest(tensor.dtype.numpy().str, str(tuple(tensor.shape.numpy())))
    return seen[value]


def _attributes(node: ir.Node) -> str:
    plain = {name: attr.value for name, attr in node.attributes.items()
             if attr.type not in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS, ir.AttributeType.TENSOR)}
    return repr(sorted(plain.items()))


def _digest(*parts: str) -> str:
    return hashlib.blake2b("\0".join(parts).encode(), digest_size=12).hexdigest()
