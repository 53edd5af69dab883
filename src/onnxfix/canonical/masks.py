"""Masks added in front of a Softmax hide with the lowest number, not with minus infinity."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxfix.canonical.queries import nodes_of, operands, producer, rank, used_once
from onnxfix.canonical.rewriting import Editor, array, attribute

# What is this far below the rest is hidden: its exponential is zero in any format.
_HIDDEN = -1e30


class SpellMasks(ir.passes.InPlacePass):
    """``Softmax(x + c)``: ``-inf`` in c is the lowest number of the type, where no row is hidden altogether.

    Both give a weight of exactly zero. A mask that hides a whole row stays: minus infinity makes it NaN.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Respell."""
        editor = Editor(model.graph)
        for node in nodes_of(model.graph, "Softmax"):
            add = producer(node.inputs[0], "Add")
            pair = None if add is None else operands(add)
            size = rank(node.inputs[0])
            if add is None or pair is None or size is None or not used_once(add.outputs[0]):
                continue
            content = array(pair[1])
            axis = attribute(node, "axis", -1) % size - (size - (0 if content is None else content.ndim))
            if content is None or content.dtype.kind != "f" or axis < 0 or content.shape[axis] == 1:
                continue
            open_rows = (content.astype(np.float64) > _HIDDEN).any(axis=axis, keepdims=True)
            if not np.isneginf(content).any() or not open_rows.all():
                continue
            lowest = editor.literal(np.asarray(np.finfo(content.dtype).min, content.dtype))
            slot = list(add.inputs).index(pair[1])
            add.replace_input_with(slot, editor.constant("Max", pair[1], lowest))
        return ir.passes.PassResult(model, editor.modified)
