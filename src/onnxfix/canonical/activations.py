"""Activation functions that converters spell out: hard swish, Gelu, Mish, sigmoid."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from onnxfix.canonical.polynomials import polynomial
from onnxfix.canonical.queries import is_float, near, nodes_of, operands, producer, scalar
from onnxfix.canonical.rewriting import Editor, array, is_constant

_SIXTH = 1 / 6
_ERF = math.sqrt(0.5)
_TANH = math.sqrt(2 / math.pi)


class RecognizeActivations(ir.passes.InPlacePass):
    """Chains of simple ops that are an ONNX activation become that activation.

    - ``x * Clip(x / 6 + 0.5, 0, 1) = x * HardSigmoid(x, 1/6, 0.5) = HardSwish(x)``
    - the other way round, ``HardSigmoid(x, a, b) = Clip(a * x + b, 0, 1)``, which is also what becomes of
      ``Clip(x + 3, 0, 6) / 6``: converters fold a and b into the layer before
    - ``x / 2 * (1 + Erf(x / Sqrt(2))) = Gelu(x)``; with ``Tanh(Sqrt(2 / pi) * (x + 0.044715 * x^3))`` its approximation
    - ``x * Tanh(Softplus(x)) = Mish(x)``, ``1 / (1 + Exp(-x)) = Sigmoid(x)``

    Factors may stand in any order and constants be multiplied out in any way. ``Log(1 + Exp(x))`` is no Softplus: it
    overflows where Softplus does not. Of doubles only sigmoids are recognised: runtimes have no others.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Recognise."""
        editor = Editor(model.graph)
        for node in nodes_of(model.graph, "Mul", "Div", "HardSigmoid", "Reciprocal"):
            if not is_float(node.outputs[0]):
                continue
            for rule in _RULES_OF_DOUBLES if node.outputs[0].dtype == ir.DataType.DOUBLE else _RULES:
                if rule(editor, node):
                    break
        return ir.passes.PassResult(model, editor.modified)


def _become(
    editor: Editor, node: ir.Node, op: str, value: ir.Value, inner: list[ir.Node], **attributes: float | str
) -> bool:
    """Replace a node, and what only it reads, by an activation; the outermost node is the primary one."""
    made = editor.node(op, [value], like=[node, *inner], before=node, attributes=attributes)
    editor.replace(node.outputs[0], made.outputs[0])
    editor.remove([node])
    _sweep(editor, inner)
    return True


def _sweep(editor: Editor, nodes: list[ir.Node]) -> None:
    """Remove nodes that are read no more, until none is left."""
    left = [n for n in nodes if n.graph is not None]
    while True:
        dead = [n for n in left if not any(o.uses() or o.is_graph_output() for o in n.outputs)]
        if not dead:
            return
        editor.remove(dead)
        left = [n for n in left if n not in dead]


def _factors(value: ir.Value | None, depth: int = 4) -> Iterator[tuple[ir.Value, list[ir.Node]]]:
    """The values whose product a value is, with the nodes passed through; constants included."""
    node = None if value is None else value.producer()
    if value is None:
        return
    if node is None or node.domain != "" or depth == 0 or is_constant(value):
        yield value, []
    elif node.op_type == "Mul":
        for operand in node.inputs:
            for factor, passed in _factors(operand, depth - 1):
                yield factor, [node, *passed]
    else:
        yield value, []


def _product(node: ir.Node) -> tuple[float, list[ir.Value], list[ir.Node]] | None:
    """A Mul or Div read as number times factors: (number, factors that are no constants, nodes)."""
    number, variables, nodes = 1.0, list[ir.Value](), list[ir.Node]()
    if node.op_type == "Div":
        divisor = scalar(node.inputs[1])
        if divisor is None or divisor == 0:
            return None
        number = 1.0 / divisor
    elif node.op_type != "Mul":
        return None
    for operand in node.inputs if node.op_type == "Mul" else node.inputs[:1]:
        for factor, passed in _factors(operand):
            nodes += passed
            if not is_constant(factor):
                variables.append(factor)
                continue
            value = scalar(factor)
            if value is None or len(factor.shape or ()) > len(node.outputs[0].shape or ()):
                return None
            number *= value
    return number, variables, list(dict.fromkeys(nodes))


def _clipped(value: ir.Value | None) -> tuple[ir.Node, float, float] | None:
    clip = producer(value, "Clip")
    if clip is None or len(clip.inputs) < 3:
        return None
    low, high = scalar(clip.inputs[1]), scalar(clip.inputs[2])
    return None if low is None or high is None else (clip, low, high)


def _shifted(value: ir.Value | None, slope: float, offset: float) -> tuple[ir.Value, list[ir.Node]] | None:
    """The x of ``slope * x + offset``."""
    for candidate in _ancestors(value):
        found = polynomial(value, candidate)
        if found is not None and found.near({0: offset, 1: slope}):
            return candidate, list(found.nodes)
    return None


def _ancestors(value: ir.Value | None, depth: int = 4) -> Iterator[ir.Value]:
    """Values that a value is computed from by arithmetic with numbers, nearest first."""
    node = None if value is None else value.producer()
    if node is None or depth == 0 or node.op_type not in ("Add", "Mul", "Sub", "Div"):
        return
    pair = operands(node)
    if pair is not None:
        yield pair[0]
        yield from _ancestors(pair[0], depth - 1)


def _hard_sigmoid_of(number: float, value: ir.Value | None) -> tuple[ir.Value, list[ir.Node]] | None:
    """The x where ``number * value`` is the hard sigmoid of x."""
    clip = _clipped(value)
    if clip is None:
        return None
    node, low, high = clip
    if low != 0 or not math.isclose(high * number, 1.0, rel_tol=1e-5):
        return None
    found = _shifted(node.inputs[0], _SIXTH / number, 0.5 / number)
    return None if found is None else (found[0], [node, *found[1]])


def _hard_sigmoid(editor: Editor, node: ir.Node) -> bool:
    """Write a hard sigmoid as Clip, so that a Conv before it can take its scale and shift."""
    if node.op_type == "HardSigmoid":
        alpha, beta = node.attributes.get_float("alpha", 0.2), node.attributes.get_float("beta", 0.5)
        return node.inputs[0] is not None and _gate(editor, node, node.inputs[0], alpha, beta, [])
    product = _product(node)
    if product is None or len(product[1]) != 1:
        return False
    found = _hard_sigmoid_of(product[0], product[1][0])
    return found is not None and _gate(editor, node, found[0], _SIXTH, 0.5, [*product[2], *found[1]])


def _gate(editor: Editor, node: ir.Node, value: ir.Value, alpha: float, beta: float, inner: list[ir.Node]) -> bool:
    if value.dtype is None:
        return False
    dtype = value.dtype.numpy()
    slope, offset, low, high = (editor.literal(np.asarray(v, dtype)) for v in (alpha, beta, 0.0, 1.0))
    like = [node, *inner]
    scaled = editor.node("Mul", [value, slope], like=like, before=node)
    shifted = editor.node("Add", [scaled.outputs[0], offset], like=like, before=node)
    clipped = editor.node("Clip", [shifted.outputs[0], low, high], like=like, before=node)
    editor.replace(node.outputs[0], clipped.outputs[0])
    editor.remove([node])
    _sweep(editor, inner)
    return True


def _hard_swish(editor: Editor, node: ir.Node) -> bool:
    product = _product(node)
    if product is None or len(product[1]) != 2:
        return False
    number, variables, nodes = product
    for value, gate in (variables, variables[::-1]):
        found = _hard_sigmoid_of(number, gate)
        if found is not None and found[0] is value:
            return _become(editor, node, "HardSwish", value, [*nodes, *found[1]])
    return False


def _gelu(editor: Editor, node: ir.Node) -> bool:
    product = _product(node)
    if product is None or len(product[1]) != 2:
        return False
    number, variables, nodes = product
    for value, gate in (variables, variables[::-1]):
        for curve in _curves(gate):
            factor = polynomial(gate, curve.outputs[0])
            inner = polynomial(curve.inputs[0], value)
            if factor is None or inner is None or not inner.coefficients:
                continue
            sign = math.copysign(1.0, inner.coefficients.get(1, 0.0))  # both curves are odd
            wanted = {1: sign * _ERF} if curve.op_type == "Erf" else {1: sign * _TANH, 3: sign * _TANH * 0.044715}
            if factor.near({0: 0.5 / number, 1: sign * 0.5 / number}) and inner.near(wanted):
                mode = "none" if curve.op_type == "Erf" else "tanh"
                return _become(editor, node, "Gelu", value, [*nodes, *factor.nodes, curve, *inner.nodes],
                               approximate=mode)
    return False


def _curves(gate: ir.Value) -> Iterator[ir.Node]:
    for value in (gate, *_ancestors(gate)):
        curve = producer(value, "Erf", "Tanh")
        if curve is not None:
            yield curve


def _mish(editor: Editor, node: ir.Node) -> bool:
    if node.op_type != "Mul":
        return False
    for value, gate in (node.inputs, node.inputs[::-1]):
        tanh = producer(gate, "Tanh")
        softplus = None if tanh is None else producer(tanh.inputs[0], "Softplus")
        if value is not None and tanh is not None and softplus is not None and softplus.inputs[0] is value:
            return _become(editor, node, "Mish", value, [tanh, softplus])
    return False


def _sigmoid(editor: Editor, node: ir.Node) -> bool:
    if node.op_type == "Reciprocal":
        below = node.inputs[0]
    elif node.op_type == "Div" and near(node.inputs[0], 1.0) and np.ndim(array(node.inputs[0])) == 0:  # type: ignore[arg-type]
        below = node.inputs[1]
    else:
        return False
    add = producer(below, "Add")
    pair = None if add is None else operands(add)
    exponential = None if pair is None or not near(pair[1], 1.0) else producer(pair[0], "Exp")
    if add is None or exponential is None or len(pair[1].shape or ()) > 0:  # type: ignore[index]
        return False
    for value in _ancestors(exponential.inputs[0]):
        negative = polynomial(exponential.inputs[0], value)
        if negative is not None and negative.near({1: -1.0}, 0.0):
            return _become(editor, node, "Sigmoid", value, [add, exponential, *negative.nodes])
    return False


_RULES = (_hard_swish, _hard_sigmoid, _gelu, _mish, _sigmoid)
_RULES_OF_DOUBLES = (_hard_sigmoid, _sigmoid)
