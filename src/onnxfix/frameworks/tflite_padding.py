"""Pads that neither SAME nor VALID means: a PAD operator of its own before the convolution."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import onnx
from onnx import helper

from onnxfix.frameworks.flatbuffer import schema
from onnxfix.frameworks.flatbuffer_editing import FlatbufferEditor
from onnxfix.frameworks.tflite_forms import code, constant


def without_pads(piece: onnx.ModelProto) -> tuple[onnx.ModelProto, list[tuple[int, int]]] | None:
    """A piece whose one 2-D convolution pads nothing, and what it padded, by spatial axis; None where there is none."""
    convs = [index for index, node in enumerate(piece.graph.node) if node.op_type == "Conv"]
    if len(convs) != 1:
        return None
    bare = onnx.ModelProto()
    bare.CopyFrom(piece)
    conv = bare.graph.node[convs[0]]
    given = {a.name: helper.get_attribute_value(a) for a in conv.attribute}
    pads = given.get("pads", [])
    if len(pads) != 4 or not any(pads) or min(pads) < 0:
        return None
    kept = [a for a in conv.attribute if a.name != "pads"]
    del conv.attribute[:]
    conv.attribute.extend(kept)
    conv.attribute.append(helper.make_attribute("pads", [0, 0, 0, 0]))
    for info in bare.graph.output:  # its size is another one now
        info.type.tensor_type.ClearField("shape")
    return bare, [(pads[0], pads[2]), (pads[1], pads[3])]


def padded_first(editor: FlatbufferEditor, operator: Any, pads: list[tuple[int, int]], name: str) -> Any:
    """A PAD operator in front of another one, which reads its result from then on.

    Args:
        editor: The file.
        operator: A copy of the convolution, which is changed.
        pads: Elements before and after, for height and width.
        name: What to call the padded tensor.
    """
    module = schema()
    amounts = np.array([(0, 0), *pads, (0, 0)], np.int32)
    counts = constant(amounts)
    counts.name, counts.buffer = f"{name}/paddings".encode(), editor.add_buffer(amounts.tobytes())
    source = int(operator.inputs[0])
    padded = copy.copy(editor.tensors[source])
    padded.name = name.encode()
    made = module.OperatorT(
        opcodeIndex=editor.add_code(code("PAD", 2)), builtinOptionsType=module.BuiltinOptions.PadOptions,
        builtinOptions=module.PadOptionsT(),
        inputs=np.array([source, editor.add_tensor(counts)], np.int32),
        outputs=np.array([editor.add_tensor(padded)], np.int32),
    )  # fmt: skip
    operator.inputs = np.array([made.outputs[0], *operator.inputs[1:]], np.int32)
    return made
