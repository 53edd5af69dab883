"""QuantizeLinear and DequantizeLinear in one form; every step is exact, down to the last integer."""

from __future__ import annotations

from math import prod

import numpy as np
import onnx_ir as ir

from onnxfix.canonical.queries import dims, nodes_of, producer, rank, reader, scalar, set_attribute
from onnxfix.canonical.rewriting import Editor, array, attribute, is_constant

_OPS = ("QuantizeLinear", "DequantizeLinear")
# Between these scales neither a quotient nor a product of a 16 bit integer leaves the normal numbers of float32.
_SMALLEST, _LARGEST = 1e-30, 1e30
_NARROW = frozenset({ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT16, ir.DataType.UINT16})


class SpellQuantization(ir.passes.InPlacePass):
    """One spelling for how a model is quantized; what is quantized stays so.

    - a scale and a zero point of one element are numbers, and the axis is then 1, which means nothing
    - no zero point is a zero point of zeros; ``output_dtype`` is the type of the zero point
    - ``Q(DQ(q, s, z), s, z) = q``: the quotient is off by less than half a step
    - ``Transpose(DQ(c)) = DQ(Transpose(c))`` for a constant c, and Reshape, where the quantized axis stays one
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Respell."""
        editor = Editor(model.graph)
        for node in nodes_of(model.graph, *_OPS):
            _parameters(editor, node)
        for node in nodes_of(model.graph, "QuantizeLinear"):
            _round_trip(editor, node)
        for node in nodes_of(model.graph, "DequantizeLinear"):
            _into_constant(editor, node)
        return ir.passes.PassResult(model, editor.modified)


def _parameters(editor: Editor, node: ir.Node) -> None:
    """Scale and zero point of one element as numbers, and the zero point as an operand."""
    if attribute(node, "block_size", 0):
        return
    if len(node.inputs) < 3 or node.inputs[2] is None:
        _explicit_zero(editor, node)
    for slot in range(1, len(node.inputs)):
        value = node.inputs[slot]
        content = array(value)
        if content is not None and content.size == 1 and content.ndim == 1:
            number = editor.constant("Reshape", value, editor.literal(np.array([], np.int64)))
            node.replace_input_with(slot, number)
    if rank(node.inputs[1]) == 0:
        editor.modified |= set_attribute(node, "axis", 1)
    zero = node.inputs[2] if len(node.inputs) > 2 else None
    if zero is not None and attribute(node, "output_dtype", 0):
        editor.modified |= set_attribute(node, "output_dtype", 0)


def _explicit_zero(editor: Editor, node: ir.Node) -> None:
    value, scale = node.inputs[0], array(node.inputs[1])
    quantizes = node.op_type == "QuantizeLinear"
    kind = ir.DataType(attribute(node, "output_dtype", 0) or ir.DataType.UINT8) if quantizes else (
        None if value is None else value.dtype
    )
    if scale is None or kind not in _NARROW:
        return
    if len(node.inputs) < 3:
        node.resize_inputs(3)
    node.replace_input_with(2, editor.literal(np.zeros(scale.shape, kind.numpy()), "zero_point"))
    editor.modified = True


def _round_trip(editor: Editor, node: ir.Node) -> None:
    inner = producer(node.inputs[0], "DequantizeLinear")
    if inner is None or len(inner.inputs) < 3 or len(node.inputs) < 3 or attribute(inner, "block_size", 0):
        return
    integers = inner.inputs[0]
    pairs = [(array(a), array(b)) for a, b in zip(inner.inputs[1:], node.inputs[1:], strict=True)]
    if integers is None or integers.dtype not in _NARROW or attribute(node, "block_size", 0):
        return
    if any(a is None or b is None or a.dtype != b.dtype or not np.array_equal(a, b) for a, b in pairs):
        return
    scale = np.asarray(pairs[0][0])
    if scale.dtype != np.float32 or not ((scale > _SMALLEST) & (scale < _LARGEST)).all():
        return
    if scale.ndim and attribute(inner, "axis", 1) != attribute(node, "axis", 1):
        return
    editor.replace(node.outputs[0], integers)
    editor.remove([node, inner])


def _into_constant(editor: Editor, node: ir.Node) -> None:
    """Move the Transpose or Reshape behind dequantized constants into the constants."""
    mover = reader(node.outputs[0], "Transpose", "Reshape")
    shape = dims(node.inputs[0])
    if mover is None or shape is None or not is_constant(node.inputs[0]) or attribute(node, "block_size", 0):
        return
    axis = attribute(node, "axis", 1)
    if mover.op_type == "Transpose":
        perm = attribute(mover, "perm") or list(reversed(range(len(shape))))
        moved = editor.constant("Transpose", node.inputs[0], perm=perm)
        place: int | None = perm.index(axis % len(shape)) if rank(node.inputs[1]) else axis
    else:
        result = dims(mover.outputs[0])
        if mover.inputs[0] is not node.outputs[0] or result is None or None in result:
            return
        sizes = [int(d or 0) for d in result]
        place = _same_axis([int(d or 0) for d in shape], sizes, axis % len(shape)) if rank(node.inputs[1]) else axis
        if place is None:
            return
        moved = editor.constant("Reshape", node.inputs[0], editor.literal(np.array(sizes, np.int64)), allowzero=1)
    made = editor.node(
        "DequantizeLinear", [moved, *node.inputs[1:]], like=[node, mover], before=mover,
        attributes={**{name: attr.value for name, attr in node.attributes.items()}, "axis": place},
    )
    editor.replace(mover.outputs[0], made.outputs[0])
    editor.remove([mover, node])


def _same_axis(before: list[int], after: list[int], axis: int) -> int | None:
    """The axis that an axis is after a Reshape, or None if it is split or merged."""
    return next(
        (k for k, size in enumerate(after) if size == before[axis] and prod(after[:k]) == prod(before[:axis])), None
    )


def per_tensor(node: ir.Node) -> bool:
    """Whether a node quantizes or dequantizes all elements alike."""
    numbers = (scalar(value) for value in node.inputs[1:])
    return node.op_type in _OPS and len(node.inputs) > 2 and all(n is not None for n in numbers)
