"""Convolutions whose dilation is spelled as one on every so-manyth pixel (TensorFlow's space to batch)."""

from __future__ import annotations

import onnx_ir as ir

from onnxfix.canonical.permutation import transposed
from onnxfix.canonical.queries import integers, nodes_of, producer, used_once
from onnxfix.canonical.rewriting import Editor, attribute

_SWAP = (1, 0, 2, 3)


class MergeDilations(ir.passes.InPlacePass):
    """``D2S_b(T(Conv(T(S2D_b(x)), pads=p))) = T(Conv(T(x), dilations=b, pads=b * p))`` with ``T`` of axes 0 and 1.

    The blocks become samples of their own: each is what a convolution of dilation ``b`` sees of its pixels. Padding by
    ``p`` of them is padding by ``b * p`` of the whole. The convolution has no strides.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Merge."""
        editor = Editor(model.graph)
        for node in nodes_of(model.graph, "DepthToSpace"):
            blocks = _convolved_blocks(node)
            if blocks is None:
                continue
            after, conv, before, split = blocks
            size = node.attributes.get_int("blocksize", 1)
            like = [conv, node, split]
            moved = editor.node("Transpose", split.inputs[:1], like=[before], before=node, attributes={"perm": _SWAP})
            dilations = [size * d for d in integers(conv, "dilations", [1, 1])]
            attributes = {
                "dilations": dilations, "pads": [size * p for p in integers(conv, "pads", [0] * 4)],
                "kernel_shape": conv.attributes.get_ints("kernel_shape"), "strides": [1, 1],
                "group": conv.attributes.get_int("group", 1),
            }  # fmt: skip
            whole = editor.node(
                "Conv", [moved.outputs[0], *conv.inputs[1:]], like=like, before=node, attributes=attributes
            )
            back = editor.node("Transpose", whole.outputs, like=[after], before=node, attributes={"perm": _SWAP})
            editor.replace(node.outputs[0], back.outputs[0])
            editor.remove([node, after, conv, before, split])
        return ir.passes.PassResult(model, editor.modified)


def _convolved_blocks(node: ir.Node) -> tuple[ir.Node, ir.Node, ir.Node, ir.Node] | None:
    """The Transpose, convolution, Transpose and SpaceToDepth before a DepthToSpace that undoes the latter."""
    if attribute(node, "mode", "DCR") != "DCR":
        return None
    after = transposed(node.inputs[0])
    conv = producer(after[0].inputs[0], "Conv") if after is not None and after[1] == _SWAP else None
    before = transposed(conv.inputs[0]) if conv is not None else None
    split = producer(before[0].inputs[0], "SpaceToDepth") if before is not None and before[1] == _SWAP else None
    if after is None or conv is None or before is None or split is None:
        return None
    plain = attribute(conv, "auto_pad", "NOTSET") == "NOTSET" and set(integers(conv, "strides", [1, 1])) == {1}
    same = node.attributes.get_int("blocksize", 0) == split.attributes.get_int("blocksize", 0)
    inside = (after[0], conv, before[0], split)
    if not plain or not same or not all(used_once(step.outputs[0]) for step in inside):
        return None
    return inside
