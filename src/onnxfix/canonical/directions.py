"""LSTM, GRU and RNN run one way at a time, on the sequence as it is, and say all that they do in their sequence."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxfix.canonical.queries import nodes_of, producer
from onnxfix.canonical.reversals import place_before, reversed_axis
from onnxfix.canonical.rewriting import Editor, array, attribute, dims

_OPS = ("LSTM", "GRU", "RNN")
_END = np.iinfo(np.int64).max
_BEGIN = np.iinfo(np.int64).min
# Slots that have a row for each direction, and the axis of it.
_WEIGHTS, _STATES = (1, 2, 3, 7), (5, 6)


class SpellDirections(ir.passes.InPlacePass):
    """One spelling for directions and for the last hidden state.

    - a bidirectional layer is a forward and a reverse one: ``Y = Concat(Y1, Y2, axis=1)``, and so for the last states
    - ``layer(reversed x) = reversed(layer'(x))`` with the other direction
    - ``Y_h`` is the last step of ``Y``, at the end for forward, at the start for reverse, where all lengths are equal

    Layers that are given lengths are left alone, but for the first rule.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Respell."""
        editor = Editor(model.graph)
        for node in nodes_of(model.graph, *_OPS):
            if attribute(node, "layout", 0):
                continue
            if attribute(node, "direction", "forward") == "bidirectional":
                _split(editor, node)
            elif len(node.inputs) <= 4 or node.inputs[4] is None:
                _unreversed(editor, node)
                _last_state(editor, node)
        return ir.passes.PassResult(model, editor.modified)


def _slice(editor: Editor, value: ir.Value, start: int, end: int, axis: int, step: int, node: ir.Node) -> ir.Value:
    bounds = [editor.literal(np.array([n], np.int64)) for n in (start, end, axis, step)]
    result: ir.Value = editor.node("Slice", [value, *bounds], like=[node], before=node).outputs[0]
    return result


def _split(editor: Editor, node: ir.Node) -> None:
    if any(v is not None and array(v) is None for v in (node.inputs[k] for k in _WEIGHTS if k < len(node.inputs))):
        return
    layers = [_one_way(editor, node, k) for k in (0, 1)]
    for slot, output in enumerate(node.outputs):
        if output.uses() or output.is_graph_output():
            both = editor.node("Concat", [layer.outputs[slot] for layer in layers], like=[node], before=node,
                               attributes={"axis": 1 if slot == 0 else 0})
            editor.replace(output, both.outputs[0])
    editor.remove([node])


def _one_way(editor: Editor, node: ir.Node, k: int) -> ir.Node:
    """The layer of one direction."""
    inputs = list(node.inputs)
    for slot in _WEIGHTS:
        if slot < len(inputs) and inputs[slot] is not None:
            bounds = [editor.literal(np.array([n], np.int64)) for n in (k, k + 1, 0)]
            inputs[slot] = editor.constant("Slice", inputs[slot], *bounds)
    for slot in _STATES:
        value = inputs[slot] if slot < len(inputs) else None
        if value is not None:
            inputs[slot] = _slice(editor, value, k, _END if k else 1, 0, 1, node)
    kept = {name: attribute(node, name) for name in node.attributes}
    for name in ("activations", "activation_alpha", "activation_beta"):
        given = kept.get(name)
        if given:
            half = len(given) // 2
            kept[name] = given[k * half : k * half + half]
    kept["direction"] = "reverse" if k else "forward"
    return editor.node(node.op_type, inputs, like=[node], before=node, attributes=kept, outputs=len(node.outputs))


def _unreversed(editor: Editor, node: ir.Node) -> None:
    """Run over a reversed sequence from the other end; between them may stand what moves the axis of time."""
    found = _reversal_before(node)
    if found is None:
        return
    mover, between = found
    source = mover.inputs[0]
    like = [node, mover, *between]
    for link in between:
        kept = {name: attribute(link, name) for name in link.attributes}
        moved = editor.node(link.op_type, [source, *link.inputs[1:]], like=[link], before=node, attributes=kept)
        source = moved.outputs[0]
    kept = {name: attribute(node, name) for name in node.attributes}
    kept["direction"] = "forward" if attribute(node, "direction", "forward") == "reverse" else "reverse"
    new = editor.node(node.op_type, [source, *node.inputs[1:]], like=like, before=node, attributes=kept,
                      outputs=len(node.outputs))
    for slot, output in enumerate(node.outputs):
        if output.uses() or output.is_graph_output():
            result = new.outputs[slot]
            editor.replace(output, _slice(editor, result, -1, _BEGIN, 0, -1, node) if slot == 0 else result)
    editor.remove([node, *between, mover])


def _reversal_before(node: ir.Node) -> tuple[ir.Node, list[ir.Node]] | None:
    """The Slice that turns the sequence around, and the node after it that moves its axes, if there is one."""
    link, axis = producer(node.inputs[0], "Slice", "Transpose", "Reshape"), 0
    between: list[ir.Node] = []
    if link is not None and link.op_type != "Slice":
        place = place_before(link, 0)
        if place is None:
            return None
        axis, between = place, [link]
        link = producer(link.inputs[0], "Slice")
    return None if link is None or reversed_axis(link) != axis else (link, between)


def _last_state(editor: Editor, node: ir.Node) -> None:
    state = node.outputs[1] if len(node.outputs) > 1 else None
    if state is None or not (state.uses() or state.is_graph_output()):
        return
    kept = {name: attribute(node, name) for name in node.attributes}
    new = editor.node(node.op_type, node.inputs, like=[node], before=node, attributes=kept, outputs=len(node.outputs))
    steps = (dims(node.inputs[0]) or (None,))[0]
    start, end = (steps - 1 if isinstance(steps, int) else -1), _END
    if attribute(node, "direction", "forward") == "reverse":
        start, end = 0, 1
    piece = _slice(editor, new.outputs[0], start, end, 0, 1, node)
    axis = editor.literal(np.array([1], np.int64))
    editor.replace(state, editor.node("Squeeze", [piece, axis], like=[node], before=node).outputs[0])
    for slot in (0, 2):
        if slot < len(node.outputs) and (node.outputs[slot].uses() or node.outputs[slot].is_graph_output()):
            editor.replace(node.outputs[slot], new.outputs[slot])
    editor.remove([node])
