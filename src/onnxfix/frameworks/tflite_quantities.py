"""New scales and zero points of a patched graph, written into the quantization table of its TFLite file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from onnxfix.errors import ExportError
from onnxfix.frameworks.flatbuffer_editing import FlatbufferEditor
from onnxfix.quantization import DEQUANTIZE, QUANTIZE

_SAME = 1e-6  # relative; LiteRT's kernels take scales that differ by less for equal
_Scheme = tuple[np.ndarray, np.ndarray]


def quantities(
    editor: FlatbufferEditor, native: Mapping[str, int], before: onnx.ModelProto, wanted: onnx.ModelProto
) -> tuple[onnx.ModelProto, set[str]]:
    """Give tensors the quantization that they have in the patched graph.

    An int32 bias counts in steps of its layer's input scale times the weight's, whatever its own entry says: where one
    of these changes, it is rounded anew, in the file and in the graph.

    Args:
        editor: The file.
        native: Tensor name -> index.
        before: The lowered graph.
        wanted: The patched graph.

    Returns:
        The patched graph with biases on the new grid, and the initializers that the file now agrees with.

    Raises:
        ExportError: a tensor would need two quantizations at once.
    """
    new = _changed(before, wanted)
    new = {name: scheme for name, scheme in new.items() if name in native}
    if not new:
        return wanted, set()
    wanted = _with_biases(editor, native, wanted, new)
    new = {name: scheme for name, scheme in _changed(before, wanted).items() if name in native}
    for name, (scale, zero) in new.items():
        tensor = editor.edit(editor.tensors, native[name])
        if tensor.quantization is None or tensor.quantization.scale is None:
            raise ExportError(f"{name} is not quantized in the file")
        tensor.quantization.scale = np.array(scale, np.float32).reshape(-1)
        tensor.quantization.zeroPoint = np.array(zero, np.int64).reshape(-1)
    return wanted, {name for node in _quantizing(wanted) if _data(node) in new for name in node.input[1:]}


def _quantizing(proto: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    stored = {t.name for t in proto.graph.initializer}
    for node in proto.graph.node:
        if node.op_type in (QUANTIZE, DEQUANTIZE) and len(node.input) == 3 and set(node.input[1:]) <= stored:
            yield node


def _data(node: onnx.NodeProto) -> str:
    """The quantized value at a quantizing node."""
    name: str = node.input[0] if node.op_type == DEQUANTIZE else node.output[0]
    return name


def _schemes(proto: onnx.ModelProto) -> dict[str, list[_Scheme]]:
    constants = {t.name: t for t in proto.graph.initializer}
    found: dict[str, list[_Scheme]] = {}
    for node in _quantizing(proto):
        scale, zero = (numpy_helper.to_array(constants[name]) for name in node.input[1:])
        found.setdefault(_data(node), []).append((scale, zero))
    return found


def _changed(before: onnx.ModelProto, wanted: onnx.ModelProto) -> dict[str, _Scheme]:
    """Quantized value -> its new scale and zero point."""
    old = _schemes(before)
    found = {}
    for name, schemes in _schemes(wanted).items():
        first = schemes[0]
        if name not in old or all(_same(scheme, old[name][0]) for scheme in schemes):
            continue
        if not all(_same(first, scheme) for scheme in schemes):
            raise ExportError(f"{name} would need two scales at once, one for what writes it and one for a reader")
        found[name] = first
    return found


def _same(one: _Scheme, two: _Scheme) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))


def _with_biases(
    editor: FlatbufferEditor, native: Mapping[str, int], wanted: onnx.ModelProto, new: Mapping[str, _Scheme]
) -> onnx.ModelProto:
    """The patched graph with the biases of rescaled layers on their new grid."""
    names = editor.file.tensor_names
    made = onnx.ModelProto()
    made.CopyFrom(wanted)
    tensors = {t.name: t for t in made.graph.initializer}
    readers = {_data(node): node for node in _quantizing(made)}

    def scale(index: int) -> np.ndarray | None:
        if names[index] in new:
            return new[names[index]][0]
        quantization = editor.tensors[index].quantization
        return None if quantization is None or quantization.scale is None else np.asarray(quantization.scale)

    for operator in editor.operators:
        if len(operator.inputs) < 3 or operator.inputs[2] < 0:
            continue
        data, weight, bias = (int(i) for i in operator.inputs[:3])
        node, stored = readers.get(names[bias]), tensors.get(names[bias])
        touched = names[data] in new or names[weight] in new
        if not touched or node is None or stored is None or stored.data_type != onnx.TensorProto.INT32:
            continue
        steps = [scale(i) for i in (data, weight)]
        if any(step is None for step in steps):
            continue
        _rescale(stored, tensors[node.input[1]], np.asarray(steps[0], np.float64) * np.asarray(steps[1], np.float64))
    return made


def _rescale(bias: onnx.TensorProto, scale: onnx.TensorProto, step: Any) -> None:
    old, counts = numpy_helper.to_array(scale), numpy_helper.to_array(bias)
    step = np.broadcast_to(step.reshape(-1) if old.ndim else step.reshape(()), old.shape)
    if np.allclose(step, old, rtol=_SAME, atol=0.0):
        return
    limits = np.iinfo(np.int32)
    rounded = np.clip(np.rint(counts * (old.astype(np.float64) / step)), limits.min, limits.max).astype(np.int32)
    bias.CopyFrom(numpy_helper.from_array(rounded, bias.name))
    scale.CopyFrom(numpy_helper.from_array(step.astype(np.float32), scale.name))
