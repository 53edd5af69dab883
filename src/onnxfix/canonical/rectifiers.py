"""PRelu, LeakyRelu and Softplus that converters spell out with simpler rectifiers, comparisons and logarithms."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxfix.canonical.queries import dims, finite, nodes_of, operands, producer, scalar, used_once
from onnxfix.canonical.rewriting import Editor, array, is_constant

# Above it Softplus(x) rounds to x in single precision, and up to the other one Exp(x) is finite.
_LINEAR, _OVERFLOW = 17.0, 88.0


class RecognizeRectifiers(ir.passes.InPlacePass):
    """Single and half precision; slopes c are constants, one number makes a LeakyRelu, several a PRelu.

    - ``Relu(x) - c * Relu(-x) = Relu(x) + (-c) * Relu(-x) = Relu(x) + c * Clip(x, none, 0) = PRelu(x, c)`` (Keras)
    - ``Where(x > 0, x, c * x) = Where(x < 0, c * x, x) = PRelu(x, c)``, or with >= and <=
    - ``Max(x, c * x) = PRelu(x, c)`` for c between 0 and 1

    Single precision:

    - ``Where(x > t, x, Softplus(x)) = Softplus(x)`` for t >= 17, where both are x to the last bit; for t up to 88 also
      with ``Log(1 + Exp(x))``, which is finite there
    - ``Relu(x) + Log(1 + Exp(-Abs(x))) = Softplus(x)``, ``Tanh(Log(1 + Exp(x))) = Tanh(Softplus(x))``
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Recognise."""
        editor = Editor(model.graph)
        for node in nodes_of(model.graph, "Add", "Sub", "Where", "Max", "Tanh"):
            dtype = node.outputs[0].dtype
            if dtype not in (ir.DataType.FLOAT, ir.DataType.FLOAT16):
                continue
            if not (_rectifier(editor, node) or dtype == ir.DataType.FLOAT16):
                _softplus(editor, node)
        return ir.passes.PassResult(model, editor.modified)


def _scaled(value: ir.Value | None) -> tuple[ir.Value, ir.Value, ir.Node] | None:
    """(variable, constant, node) of a product with a constant."""
    product = producer(value, "Mul")
    pair = None if product is None else operands(product)
    return None if product is None or pair is None else (*pair, product)


def _rectifier(editor: Editor, node: ir.Node) -> bool:
    if node.op_type in ("Add", "Sub"):
        return _sum(editor, node)
    if node.op_type == "Where":
        found = _branches(node)
        if found is None or found[2] != 0:
            return False
        scaled = _scaled(found[1])
        return scaled is not None and scaled[0] is found[0] and _become(editor, node, scaled[0], scaled[1])
    if node.op_type == "Max" and len(node.inputs) == 2:
        for value, other in (node.inputs, node.inputs[::-1]):
            scaled = _scaled(other)
            if scaled is not None and scaled[0] is value:
                slope = np.asarray(array(scaled[1]))
                return bool(((slope >= 0) & (slope <= 1)).all()) and _become(editor, node, scaled[0], scaled[1])
    return False


def _sum(editor: Editor, node: ir.Node) -> bool:
    """``Relu(x) + c * Clip(x, none, 0)``, or with ``Relu(-x)``."""
    for first, other in (node.inputs, node.inputs[::-1]):
        positive, scaled = producer(first, "Relu"), _scaled(other)
        if positive is None or scaled is None or positive.inputs[0] is None:
            continue
        value, negated = positive.inputs[0], _negative_part(scaled[0])
        if negated is None or negated[0] is not value or (node.op_type == "Sub" and first is not node.inputs[0]):
            continue
        slope = editor.constant("Neg", scaled[1]) if negated[1] != (node.op_type == "Sub") else scaled[1]
        return _become(editor, node, value, slope)
    return False


def _negative_part(value: ir.Value) -> tuple[ir.Value, bool] | None:
    """The x of which a value is the negative part, and whether with its sign turned."""
    part = producer(value, "Relu", "Clip")
    if part is None or part.inputs[0] is None:
        return None
    if part.op_type == "Relu":
        negated = _scaled(part.inputs[0])
        return None if negated is None or scalar(negated[1]) != -1 else (negated[0], True)
    low, high = ([*part.inputs, None, None][k] for k in (1, 2))
    return (part.inputs[0], False) if low is None and scalar(high) == 0 else None


def _branches(node: ir.Node) -> tuple[ir.Value, ir.Value, float] | None:
    """(x, y, t) of what is x above t and y below; which of them it is at t itself is left open."""
    test = producer(node.inputs[0], "Greater", "GreaterOrEqual", "Less", "LessOrEqual")
    pair = None if test is None else operands(test)
    bound = None if pair is None else scalar(pair[1])
    if test is None or pair is None or bound is None:
        return None
    above = test.op_type.startswith("Greater") == (test.inputs[0] is pair[0])
    upper, lower = (node.inputs[1], node.inputs[2]) if above else (node.inputs[2], node.inputs[1])
    return None if upper is not pair[0] or upper is None or lower is None else (upper, lower, bound)


def _become(editor: Editor, node: ir.Node, value: ir.Value, slope: ir.Value) -> bool:
    content, shape = np.asarray(array(slope)), dims(value)
    if shape is None or content.ndim > len(shape) or not finite(slope):
        return False
    beside = shape[len(shape) - content.ndim :]
    if any(d not in (1, size) for d, size in zip(content.shape, beside, strict=True)):
        return False
    like = [node, *_inner(node)]
    if content.size == 1:
        made = editor.node("LeakyRelu", [value], like=like, before=node, attributes={"alpha": float(content.item())})
    else:
        made = editor.node("PRelu", [value, slope], like=like, before=node)
    editor.replace(node.outputs[0], made.outputs[0])
    editor.remove([node])
    return True


def _inner(node: ir.Node) -> list[ir.Node]:
    """The nodes that only a node reads."""
    makers = (value.producer() for value in node.inputs if value is not None and used_once(value))
    return [maker for maker in makers if maker is not None]


def _softplus(editor: Editor, node: ir.Node) -> None:
    value: ir.Value | None = None
    if node.op_type == "Tanh":
        value = _logarithm(node.inputs[0])
        if value is not None:
            softplus = editor.node("Softplus", [value], like=[node], before=node)
            node.replace_input_with(0, softplus.outputs[0])
        return
    if node.op_type == "Where":
        value = _thresholded(node)
    elif node.op_type == "Add":
        value = _split(node)
    if value is not None:
        softplus = editor.node("Softplus", [value], like=[node, *_inner(node)], before=node)
        editor.replace(node.outputs[0], softplus.outputs[0])
        editor.remove([node])


def _thresholded(node: ir.Node) -> ir.Value | None:
    found = _branches(node)
    if found is None or found[2] < _LINEAR:
        return None
    smooth = producer(found[1], "Softplus")
    below = smooth.inputs[0] if smooth is not None else _logarithm(found[1]) if found[2] <= _OVERFLOW else None
    return below if below is found[0] else None


def _split(node: ir.Node) -> ir.Value | None:
    """The x of ``Relu(x) + Log(1 + Exp(-Abs(x)))``."""
    for first, other in (node.inputs, node.inputs[::-1]):
        positive, negated = producer(first, "Relu"), _scaled(_logarithm(other))
        size = None if negated is None or scalar(negated[1]) != -1 else producer(negated[0], "Abs")
        if positive is not None and size is not None and positive.inputs[0] is size.inputs[0]:
            return size.inputs[0]
    return None


def _logarithm(value: ir.Value | None) -> ir.Value | None:
    """The x of ``Log(1 + Exp(x))``."""
    logarithm = producer(value, "Log")
    add = None if logarithm is None else producer(logarithm.inputs[0], "Add")
    pair = None if add is None else operands(add)
    exponential = None if pair is None or scalar(pair[1]) != 1 else producer(pair[0], "Exp")
    if pair is None or exponential is None or len(pair[1].shape or ()) > len(pair[0].shape or ()):
        return None
    return None if is_constant(exponential.inputs[0]) else exponential.inputs[0]
