"""LSTM, GRU and RNN in one form: what is the default is left out, and biases that are added are one."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxfix.canonical.queries import dims, is_float, nodes_of
from onnxfix.canonical.rewriting import Editor, array, attribute, producer

_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
_ACTIVATIONS = {"LSTM": ["Sigmoid", "Tanh", "Tanh"], "GRU": ["Sigmoid", "Tanh"], "RNN": ["Tanh"]}
# Slots: X, W, R, B, sequence_lens, initial_h, initial_c.
_BIAS, _LENGTHS, _STATES = 3, 4, (5, 6)
# Ops whose result holds nothing but elements of their first operand.
_MOVING = ("Expand", "Slice", "Reshape", "Transpose", "Tile", "Gather", "Squeeze", "Unsqueeze", "Identity", "Cast")


class SpellRecurrent(ir.passes.InPlacePass):
    """Recurrent layers without what changes nothing.

    - an initial state of zeros is left out, and so are lengths that are those of the sequence, and default activations
    - ``B = [Wb, Rb]`` is ``[Wb + Rb, 0]`` where the two are only ever added: all gates of LSTM and RNN, the update and
      reset gates of GRU, and its hidden gate too unless ``linear_before_reset``; no B is a B of zeros
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Respell."""
        editor = Editor(model.graph)
        for node in nodes_of(model.graph, *_GATES):
            _defaults(editor, node)
            _bias(editor, node)
        return ir.passes.PassResult(model, editor.modified)


def _defaults(editor: Editor, node: ir.Node) -> None:
    for slot in _STATES:
        if len(node.inputs) > slot and node.inputs[slot] is not None and is_zero(node.inputs[slot]):
            node.replace_input_with(slot, None)
            editor.modified = True
    lengths = array(node.inputs[_LENGTHS]) if len(node.inputs) > _LENGTHS else None
    steps = (dims(node.inputs[0]) or (None,))[attribute(node, "layout", 0)]
    if lengths is not None and steps is not None and bool((lengths == steps).all()):
        node.replace_input_with(_LENGTHS, None)
        editor.modified = True
    count = 2 if attribute(node, "direction") == "bidirectional" else 1
    if attribute(node, "activations") == _ACTIVATIONS[node.op_type] * count:
        del node.attributes["activations"]
        editor.modified = True


def is_zero(value: ir.Value | None) -> bool:
    """Whether a value is made of zeros, whatever its size."""
    content = array(value)
    if content is not None:
        return not content.any()
    node = producer(value, "ConstantOfShape", "Concat", *_MOVING)
    if node is None:
        return False
    if node.op_type == "Concat":
        return all(is_zero(part) for part in node.inputs)
    if node.op_type in _MOVING:
        return is_zero(node.inputs[0])
    fill = attribute(node, "value")
    return fill is None or not fill.numpy().any()


def _bias(editor: Editor, node: ir.Node) -> None:
    gates, size = _GATES[node.op_type], attribute(node, "hidden_size")
    kernel = node.inputs[1]
    shape = dims(kernel)
    if kernel is None or shape is None or shape[0] is None or size is None or not is_float(kernel):
        return
    bias = node.inputs[_BIAS] if len(node.inputs) > _BIAS else None
    if bias is None:
        zeros = editor.literal(np.zeros((shape[0], 2 * gates * size), kernel.dtype.numpy()))  # type: ignore[union-attr]
        if len(node.inputs) <= _BIAS:
            node.resize_inputs(_BIAS + 1)
        node.replace_input_with(_BIAS, zeros)
        return
    content = array(bias)
    added = gates if node.op_type != "GRU" or not attribute(node, "linear_before_reset", 0) else 2
    if content is None or content.shape != (shape[0], 2 * gates * size):
        return
    recurrent = slice(gates * size, (gates + added) * size)
    if not content[:, recurrent].any():
        return
    parts = [_columns(editor, bias, 0, added * size), _columns(editor, bias, gates * size, (gates + added) * size)]
    pieces = [editor.constant("Add", *parts)]
    if added < gates:
        pieces.append(_columns(editor, bias, added * size, gates * size))
    pieces.append(editor.literal(np.zeros((shape[0], added * size), content.dtype)))
    if added < gates:
        pieces.append(_columns(editor, bias, (gates + added) * size, 2 * gates * size))
    node.replace_input_with(_BIAS, editor.constant("Concat", *pieces, axis=1))


def _columns(editor: Editor, bias: ir.Value, start: int, end: int) -> ir.Value:
    bounds = [editor.literal(np.array([n], np.int64)) for n in (start, end, 1)]
    return editor.constant("Slice", bias, *bounds)
