"""What is cut off a transposed convolution is padding of its own."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from onnxfix.canonical.queries import dims, integers, nodes_of, producer, set_attribute, used_once
from onnxfix.canonical.rewriting import Editor
from onnxfix.canonical.slices import END, pieces_of


class CropTransposedConvs(ir.passes.InPlacePass):
    """``ConvTranspose(x, pads=[b, e])[s : -t] = ConvTranspose(x, pads=[b + s, e + t])``.

    Padding of a transposed convolution takes away from its output, output_padding o gives back at the end; only b and
    ``n = e - o`` count. PyTorch's spelling is kept, with equal padding on either side where it can be:

    - ``n >= b``: pads ``[b, n]``, no output_padding
    - ``b - n < stride``: pads ``[b, b]``, output_padding ``b - n``; runtimes refuse more
    - otherwise pads ``[b, n]``, or ``[b, 0]`` and output_padding ``-n`` where n is negative
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Crop."""
        editor = Editor(model.graph)
        for node in nodes_of(model.graph, "ConvTranspose"):
            edges = _edges(node)
            if edges is not None:
                editor.modified |= edges.write(node)
        for node in nodes_of(model.graph, "Slice"):
            conv = producer(node.inputs[0], "ConvTranspose")
            if conv is not None and used_once(conv.outputs[0]):
                _crop(editor, node, conv)
        return ir.passes.PassResult(model, editor.modified)


@dataclass(frozen=True)
class _Edges:
    """What a transposed convolution leaves out, per spatial axis.

    Attributes:
        begins: Elements left out at the begin.
        ends: Elements left out at the end; less than none is output_padding.
        spans: The largest output_padding that the op may have, plus one.
        reach: Elements that one element of the input spreads over.
    """

    begins: tuple[int, ...]
    ends: tuple[int, ...]
    spans: tuple[int, ...]
    reach: tuple[int, ...]

    def write(self, node: ir.Node) -> bool:
        """Spell them out in the attributes; whether that changed anything."""
        ends, extra = [], []
        for begin, end, span in zip(self.begins, self.ends, self.spans, strict=True):
            even = end < begin and begin - end < span
            ends.append(begin if even else max(end, 0))
            extra.append(begin - end if even else max(-end, 0))
        changed = set_attribute(node, "pads", [*self.begins, *ends])
        return set_attribute(node, "output_padding", extra) or changed


def _edges(node: ir.Node) -> _Edges | None:
    window = node.attributes.get_ints("kernel_shape")
    if window is None or node.attributes.get_string("auto_pad", "NOTSET") != "NOTSET":
        return None
    if "output_shape" in node.attributes:
        return None
    count = len(window)
    pads, extra = integers(node, "pads", [0] * (2 * count)), integers(node, "output_padding", [0] * count)
    strides, dilations = integers(node, "strides", [1] * count), integers(node, "dilations", [1] * count)
    return _Edges(
        begins=pads[:count],
        ends=tuple(pad - more for pad, more in zip(pads[count:], extra, strict=True)),
        spans=strides,
        reach=tuple((k - 1) * d + 1 for k, d in zip(window, dilations, strict=True)),
    )


def _crop(editor: Editor, node: ir.Node, conv: ir.Node) -> None:
    edges, pieces, shape = _edges(conv), pieces_of(node), dims(conv.outputs[0])
    if edges is None or pieces is None or shape is None or len({p[0] for p in pieces}) != len(pieces):
        return
    begins, ends = list(edges.begins), list(edges.ends)
    for axis, start, stop, step in pieces:
        cut = _cut(start, stop, shape[axis])
        if step != 1 or axis < 2 or cut is None:
            return
        begins[axis - 2] += cut[0]
        ends[axis - 2] += cut[1]
    for axis, (begin, end, reach) in enumerate(zip(begins, ends, edges.reach, strict=True)):
        static = shape[axis + 2]
        left = reach - edges.begins[axis] - edges.ends[axis] if static is None else static
        cut_off = begin - edges.begins[axis] + end - edges.ends[axis]
        if left <= cut_off or begin >= reach or end >= reach:
            return  # nothing may be left, or whole elements of the input are cut off
    made = editor.node("ConvTranspose", conv.inputs, like=[conv, node], before=node, attributes=dict(conv.attributes))
    _Edges(tuple(begins), tuple(ends), edges.spans, edges.reach).write(made)
    editor.replace(node.outputs[0], made.outputs[0])
    made.outputs[0].shape = node.outputs[0].shape
    editor.remove([node, conv])


def _cut(start: int, stop: int, total: int | None) -> tuple[int, int] | None:
    """Elements that a Slice cuts off at the begin and the end; None if that depends on a size that is not static."""
    if start < 0:
        return None
    if stop == END:
        return start, 0
    if stop < 0:
        return start, -stop
    return None if total is None else (start, total - stop)
