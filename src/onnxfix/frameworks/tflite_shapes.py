"""Shapes of an edited TFLite file: those of the patched graph's inputs, and what follows from them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx

from onnxfix.errors import ExportError, LoadError
from onnxfix.frameworks.flatbuffer_editing import FlatbufferEditor
from onnxfix.frameworks.lowering_tf2onnx import first_line

_OPEN = 2  # size of open dimensions to see which others depend on them


def with_true_shapes(editor: FlatbufferEditor, wanted: onnx.ModelProto) -> bytes:
    """The edited file, its tensors of the shapes that LiteRT finds.

    Raises:
        ExportError: LiteRT refuses the file.
    """
    moved = _set_inputs(editor, wanted)
    data = editor.result()
    fixed = _shapes(editor, data, None)
    is_open = any(_signature(editor.tensors[i]).min(initial=0) < 0 for i in editor.inputs)
    larger = _shapes(editor, data, _OPEN) if is_open else None
    known = {id(t) for t in editor.file.graph.tensors}
    for index, tensor in enumerate(list(editor.tensors)):
        shape = fixed.get(index)
        if shape is None or not _is_computed(editor, index):
            continue
        stale = not np.array_equal(shape, _shape(tensor))
        if stale:
            editor.edit(editor.tensors, index).shape = shape
        if larger is None or not (stale or moved or id(tensor) not in known):
            continue
        grown = larger.get(index)
        if grown is not None and len(grown) == len(shape):
            _set_signature(editor, index, np.where(grown != shape, -1, shape).astype(np.int32))
    return editor.result()


def _set_inputs(editor: FlatbufferEditor, wanted: onnx.ModelProto) -> bool:
    """Give the inputs their sizes; whether one of them changed."""
    moved = False
    for index, info in zip(editor.inputs, wanted.graph.input, strict=False):
        dims = info.type.tensor_type.shape.dim
        signature = np.array([d.dim_value if d.HasField("dim_value") else -1 for d in dims], np.int32)
        present = editor.tensors[index]
        if np.array_equal(signature, _signature(present)):
            continue
        moved = True
        tensor = editor.edit(editor.tensors, index)
        tensor.shape = np.where(signature < 0, 1, signature).astype(np.int32)
        _set_signature(editor, index, signature)
    return moved


def _set_signature(editor: FlatbufferEditor, index: int, signature: np.ndarray) -> None:
    present = editor.tensors[index]
    if np.array_equal(signature, _signature(present)):
        return
    tensor = editor.edit(editor.tensors, index)
    # A file says the signature only where it differs from the shape.
    tensor.shapeSignature = signature if (signature < 0).any() or present.shapeSignature is not None else None


def _shape(tensor: Any) -> np.ndarray:
    return np.zeros(0, np.int32) if tensor.shape is None else np.asarray(tensor.shape)


def _signature(tensor: Any) -> np.ndarray:
    return _shape(tensor) if tensor.shapeSignature is None else np.asarray(tensor.shapeSignature)


def _is_computed(editor: FlatbufferEditor, index: int) -> bool:
    data = editor.buffers[editor.tensors[index].buffer].data
    return (data is None or not len(data)) and any(index in op.outputs for op in editor.operators)


def _shapes(editor: FlatbufferEditor, data: bytes, size: int | None) -> dict[int, np.ndarray]:
    """Tensor index -> shape as LiteRT finds it, with open dimensions of 1 or of a given size."""
    from onnxfix.frameworks.tflite import open_interpreter

    try:
        interpreter = open_interpreter(data)
        if size is not None:
            for index in editor.inputs:
                signature = _signature(editor.tensors[index])
                interpreter.resize_tensor_input(index, [int(n) if n >= 0 else size for n in signature])
        interpreter.allocate_tensors()
    except (LoadError, ValueError, RuntimeError) as error:
        if size is not None:
            return {}  # it says that the size is open, and cannot take another one
        raise ExportError(f"LiteRT refuses the edited file: {first_line(error)}") from error
    return {d["index"]: np.array(d["shape"], np.int32) for d in interpreter.get_tensor_details() if d["name"]}
