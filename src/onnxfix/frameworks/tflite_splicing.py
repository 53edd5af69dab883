"""Put a piece of an ONNX graph into a TFLite file as operators of its own."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from onnxfix.errors import CanonicalizationError, ExportError, LoadError, LoweringError, MissingDependencyError
from onnxfix.frameworks.flatbuffer import Flatbuffer, schema
from onnxfix.frameworks.flatbuffer_editing import FlatbufferEditor
from onnxfix.frameworks.tflite_forms import code
from onnxfix.quantization import DEQUANTIZE, QUANTIZE


def operators_for(
    editor: FlatbufferEditor, piece: onnx.ModelProto, index: Callable[[str, onnx.ValueInfoProto], int]
) -> list[Any]:
    """Operators that compute a piece, their constants and intermediate tensors added to the file.

    The quantizing nodes at its edges become operators by themselves, what is between them is converted as float.

    Args:
        editor: The file.
        piece: The piece.
        index: The tensor that holds a value at its boundary, given the value's name and type.

    Raises:
        ExportError: TFLite cannot express it.
    """
    entering, inner, leaving = _layers(piece)
    made: list[Any] = []
    places: dict[str, int] = {info.name: index(info.name, info) for info in piece.graph.input}
    places |= {info.name: index(info.name, info) for info in piece.graph.output}
    for node in entering:
        places[node.output[0]] = _float_like(editor, places[node.input[0]], node.output[0])
        made.append(_plain(editor, "DEQUANTIZE", places[node.input[0]], places[node.output[0]]))
    last = []
    for node in leaving:
        if node.input[0] not in places:
            places[node.input[0]] = _float_like(editor, places[node.output[0]], node.input[0])
        last.append(_plain(editor, "QUANTIZE", places[node.input[0]], places[node.output[0]]))
    if inner is not None:
        made += _converted(editor, inner, places)
    return made + last


def _layers(
    piece: onnx.ModelProto,
) -> tuple[list[onnx.NodeProto], onnx.ModelProto | None, list[onnx.NodeProto]]:
    """Nodes that dequantize what enters, the float model between, and nodes that quantize what leaves."""
    graph = piece.graph
    inputs, outputs = ({info.name for info in infos} for infos in (graph.input, graph.output))
    entering = [n for n in graph.node if n.op_type == DEQUANTIZE and n.input[0] in inputs]
    leaving = [n for n in graph.node if n.op_type == QUANTIZE and n.output[0] in outputs]
    if not entering and not leaving:
        return [], piece, []
    edges = {n.name for n in (*entering, *leaving)}
    inner = onnx.ModelProto()
    inner.CopyFrom(piece)
    nodes = [n for n in graph.node if n.name not in edges]
    if not nodes:
        return entering, None, leaving
    for infos, names in (
        (inner.graph.input, [*(i for i in inputs if not _is_read_by(entering, i)), *(n.output[0] for n in entering)]),
        (inner.graph.output, [*(o for o in outputs if not _is_made_by(leaving, o)), *(n.input[0] for n in leaving)]),
    ):
        known = {info.name: info for info in infos}
        del infos[:]
        infos.extend(known.get(name) or _float(piece, name, entering, leaving) for name in dict.fromkeys(names))
    del inner.graph.node[:]
    inner.graph.node.extend(nodes)
    _fold_stored(inner.graph)
    return entering, inner, leaving


def _is_read_by(nodes: Sequence[onnx.NodeProto], name: str) -> bool:
    return any(node.input[0] == name for node in nodes)


def _is_made_by(nodes: Sequence[onnx.NodeProto], name: str) -> bool:
    return any(node.output[0] == name for node in nodes)


def _float(
    piece: onnx.ModelProto, name: str, entering: Sequence[onnx.NodeProto], leaving: Sequence[onnx.NodeProto]
) -> onnx.ValueInfoProto:
    """A float value of the shape of its quantized twin."""
    twins = {n.output[0]: n.input[0] for n in entering} | {n.input[0]: n.output[0] for n in leaving}
    infos = {info.name: info for info in (*piece.graph.input, *piece.graph.output)}
    made = onnx.ValueInfoProto()
    made.CopyFrom(infos[twins[name]])
    made.name = name
    made.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    return made


def _fold_stored(graph: onnx.GraphProto) -> None:
    """Stored integers that are dequantized become floats."""
    stored = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    for node in list(graph.node):
        if node.op_type != DEQUANTIZE or node.input[0] not in stored:
            continue
        values, scale, *zero = (stored[name] for name in node.input)
        axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
        shape = [-1 if d == axis % max(values.ndim, 1) else 1 for d in range(values.ndim)] if scale.ndim else ()
        zeros = zero[0].astype(np.float32).reshape(shape if scale.ndim else ()) if zero else np.float32(0)
        floats = (values.astype(np.float32) - zeros) * scale.reshape(shape)
        graph.initializer.append(numpy_helper.from_array(floats.astype(np.float32), node.output[0]))
        graph.node.remove(node)


def _float_like(editor: FlatbufferEditor, index: int, name: str) -> int:
    tensor = copy.copy(editor.tensors[index])
    tensor.name, tensor.type, tensor.buffer, tensor.quantization = name.encode(), schema().TensorType.FLOAT32, 0, None
    return editor.add_tensor(tensor)


def _plain(editor: FlatbufferEditor, kind: str, source: int, target: int) -> Any:
    """An operator without options."""
    return schema().OperatorT(
        opcodeIndex=editor.add_code(code(kind)), inputs=np.array([source], np.int32),
        outputs=np.array([target], np.int32),
    )  # fmt: skip


def _converted(editor: FlatbufferEditor, piece: onnx.ModelProto, places: Mapping[str, int]) -> list[Any]:
    """A float piece, converted by itself and copied over."""
    try:
        small = Flatbuffer(_tflite(piece), "The piece")
    except LoadError as error:
        raise ExportError("the converter makes a damaged file of it") from error
    if len(small.model.subgraphs) != 1 or len(small.graph.outputs) != len(piece.graph.output):
        raise ExportError("it needs control flow")
    indices: dict[int, int] = {-1: -1}
    ends = zip((*small.graph.inputs, *small.graph.outputs), (*piece.graph.input, *piece.graph.output), strict=True)
    for here, info in ends:
        if int(here) in indices:
            raise ExportError("an output of it is one of its inputs")
        indices[int(here)] = places[info.name]
    label = piece.graph.output[0].name
    for number, tensor in enumerate(small.graph.tensors):
        if number not in indices:
            indices[number] = _copied(editor, small, tensor, f"{label}/{number}")
    made = []
    for operator in small.graph.operators:
        fresh = copy.copy(operator)
        fresh.opcodeIndex = editor.add_code(small.model.operatorCodes[operator.opcodeIndex])
        fresh.inputs = np.array([indices[int(i)] for i in operator.inputs], np.int32)
        fresh.outputs = np.array([indices[int(i)] for i in operator.outputs], np.int32)
        made.append(fresh)
    return made


def _copied(editor: FlatbufferEditor, small: Flatbuffer, tensor: Any, name: str) -> int:
    fresh = copy.copy(tensor)
    data = small.model.buffers[tensor.buffer].data
    fresh.name, fresh.buffer = name.encode(), 0
    if data is None or not len(data):
        return editor.add_tensor(fresh)
    for index, present in enumerate(editor.tensors):
        if _same_constant(editor, present, tensor, data):
            return index
    fresh.buffer = editor.add_buffer(bytes(data))
    return editor.add_tensor(fresh)


def _same_constant(editor: FlatbufferEditor, present: Any, tensor: Any, data: np.ndarray) -> bool:
    """Whether a tensor of the file holds what a constant needs."""
    if present.type != tensor.type or not np.array_equal(present.shape, tensor.shape):
        return False
    if present.quantization is not None and present.quantization.scale is not None:
        return False
    content = editor.buffers[present.buffer].data
    return content is not None and np.array_equal(content, data)


def _tflite(piece: onnx.ModelProto) -> bytes:
    """A piece as a TFLite file.

    Raises:
        ExportError: no converter can do it.
    """
    from onnxfix.frameworks import Framework
    from onnxfix.frameworks.converters import has_open_batch
    from onnxfix.frameworks.export_keras import to_tflite, to_tflite_fixed
    from onnxfix.model import Model

    model = Model(piece, Framework.ONNX, piece)
    try:
        return to_tflite(model, None) if has_open_batch(model) else to_tflite_fixed(model, None)
    except (CanonicalizationError, LoweringError, MissingDependencyError) as error:
        raise ExportError(str(error)) from error
