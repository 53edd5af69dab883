"""Scan as opset 8 had it: over sequences, once for each element of a batch."""

from __future__ import annotations

import onnx_ir as ir

from onnxfix.canonical.rewriting import Editor
from onnxfix.errors import CanonicalizationError


def unbatch(editor: Editor, node: ir.Node) -> None:
    """``Scan_8(s, x) = Scan(s, x)`` whose body is ``Scan(s[b], x[b])`` with the body of old, over the batch.

    What the inner Scan carries at the end, and what it collects, the outer one collects for all elements of the batch.

    Raises:
        CanonicalizationError: sequences have lengths of their own.
    """
    body, lengths, values = node.attributes.pop("body").as_graph(), node.inputs[0], node.inputs[1:]
    if lengths is not None:
        raise CanonicalizationError(
            f"{node.name}: Scan of opset 8 with sequence_lens is not supported: export it at opset 9 or later."
        )
    count, name = node.attributes.get_int("num_scan_inputs", 0), node.outputs[0].name
    elements = [
        ir.Value(name=f"{name}/element{k}", shape=_without_batch(value), type=None if value is None else value.type)
        for k, value in enumerate(values)
    ]
    inner = ir.node("Scan", elements, {"num_scan_inputs": count}, num_outputs=len(node.outputs))
    directions = node.attributes.get_ints("directions")
    if directions is not None:
        inner.attributes.add(ir.AttrInt64s("scan_input_directions", directions))
    inner.attributes.add(ir.AttrGraph("body", body))
    states = len(values) - count
    for k, (output, result) in enumerate(zip(inner.outputs, body.outputs, strict=True)):
        output.name, output.type = f"{name}/result{k}", result.type
        output.shape = result.shape if k < states or result.shape is None else ir.Shape([None, *result.shape])
    step = ir.Graph(elements, inner.outputs, nodes=[inner], name=f"{name}/batch")
    outer = editor.node(
        "Scan", values, like=[node], before=node, attributes={"num_scan_inputs": len(values)}, outputs=len(node.outputs)
    )
    outer.attributes.add(ir.AttrGraph("body", step))
    for old, new in zip(node.outputs, outer.outputs, strict=True):
        editor.replace(old, new)
    editor.remove([node])


def _without_batch(value: ir.Value | None) -> ir.Shape | None:
    return None if value is None or value.shape is None else ir.Shape(list(value.shape)[1:])
