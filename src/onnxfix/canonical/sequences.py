"""A Conv over a map that is one element high is a Conv over a sequence."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxfix.canonical.queries import dims, integers, nodes_of
from onnxfix.canonical.rewriting import Editor, is_constant


class SqueezeConvs(ir.passes.InPlacePass):
    """``Conv(x[N, C, 1, L], W[O, C, 1, K]) = Reshape(Conv(Reshape(x, [N, C, L]), W[O, C, K]))``, also for width one.

    TensorFlow has no one-dimensional convolution but this one. Where height and width are both one the layer is dense
    (see ``dense.py``).
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Squeeze."""
        editor = Editor(model.graph)
        for node in nodes_of(model.graph, "Conv"):
            shape, kernel = dims(node.inputs[0]), dims(node.inputs[1])
            if shape is None or kernel is None or len(shape) != 4 or None in kernel or not is_constant(node.inputs[1]):
                continue
            if node.attributes.get_string("auto_pad", "NOTSET") != "NOTSET":
                continue
            pads = integers(node, "pads", [0] * 4)
            flat = [k for k in (0, 1) if shape[2 + k] == 1 and kernel[2 + k] == 1 and not pads[k] and not pads[2 + k]]
            if len(flat) == 1 and dims(node.outputs[0]) is not None:
                _squeeze(editor, node, flat[0])
        return ir.passes.PassResult(model, editor.modified)


def _squeeze(editor: Editor, node: ir.Node, flat: int) -> None:
    """Take spatial axis ``flat`` out of a Conv."""
    value, kernel = node.inputs[:2]
    shape, window = dims(value) or (), dims(kernel) or ()
    length, result = shape[3 - flat], (dims(node.outputs[0]) or (None,) * 4)[3 - flat]
    if length is None or result is None or value is None:
        return
    pads = integers(node, "pads", [0] * 4)
    kept = 1 - flat
    attributes = {
        "kernel_shape": [window[2 + kept]],
        "strides": [integers(node, "strides", [1, 1])[kept]],
        "dilations": [integers(node, "dilations", [1, 1])[kept]],
        "pads": [pads[kept], pads[2 + kept]],
        "group": node.attributes.get_int("group", 1),
        "auto_pad": "NOTSET",
    }
    weights = editor.constant("Reshape", kernel, _shape(editor, [*window[:2], window[2 + kept]]))
    before = editor.node(
        "Reshape", [value, _shape(editor, [0, shape[1], length])], like=[node], before=node, attributes={"allowzero": 0}
    )
    conv = editor.node(
        "Conv", [before.outputs[0], weights, *node.inputs[2:]], like=[node], before=node, attributes=attributes
    )
    full = [0, window[0], result, result]
    full[2 + flat] = 1
    after = editor.node(
        "Reshape", [conv.outputs[0], _shape(editor, full)], like=[node], before=node, attributes={"allowzero": 0}
    )
    editor.replace(node.outputs[0], after.outputs[0])
    editor.remove([node])


def _shape(editor: Editor, sizes: list[int | None]) -> ir.Value:
    return editor.literal(np.array([0 if d is None else d for d in sizes], np.int64))
