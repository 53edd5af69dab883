"""Mend what torch.onnx lowers wrongly, by the shapes that torch itself recorded for every value.

``aten.squeeze`` of a dimension that is not 1 does nothing, ONNX ``Squeeze`` refuses it. ``aten.upsample`` by a factor
rounds the new size in double precision, ONNX ``Resize`` in single precision, which can give one more row or column
(7 rows by 11/7 are 10 in torch, 11 in onnxruntime); both place the sampling points by the factor alone.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import helper, numpy_helper

Shape = tuple[int | str, ...]


def mend(proto: onnx.ModelProto) -> None:
    """Mend the raw output of torch.onnx in place."""
    graph = proto.graph
    shapes = _shapes(graph)
    constants = _constants(graph)
    for index in reversed(range(len(graph.node))):
        node = graph.node[index]
        if node.op_type == "Squeeze" and len(node.input) > 1:
            _mend_squeeze(graph, node, shapes, constants)
        elif node.op_type == "Resize" and len(node.input) == 3:
            _mend_resize(graph, index, shapes, constants)


def _mend_squeeze(
    graph: onnx.GraphProto, node: onnx.NodeProto, shapes: Mapping[str, Shape], constants: Mapping[str, np.ndarray]
) -> None:
    shape, axes = shapes.get(node.input[0]), constants.get(node.input[1])
    if shape is None or axes is None:
        return
    real = [int(axis) for axis in axes.reshape(-1) if shape[int(axis)] == 1 or isinstance(shape[int(axis)], str)]
    if len(real) == axes.size:
        return
    if not real:
        node.op_type = "Identity"
        del node.input[1:]
        return
    name = f"{node.output[0]}_axes"
    graph.initializer.append(numpy_helper.from_array(np.array(real, np.int64), name))
    node.input[1] = name


def _mend_resize(
    graph: onnx.GraphProto, index: int, shapes: Mapping[str, Shape], constants: Mapping[str, np.ndarray]
) -> None:
    node = graph.node[index]
    before, after, scales = shapes.get(node.input[0]), shapes.get(node.output[0]), constants.get(node.input[2])
    if before is None or after is None or scales is None:
        return
    excess = {
        axis: new
        for axis, (old, new, scale) in enumerate(zip(before, after, scales, strict=True))
        if isinstance(old, int) and isinstance(new, int) and int(np.floor(np.float32(old) * np.float32(scale))) > new
    }
    if not excess:
        return
    output = node.output[0]
    node.output[0] = f"{output}_uncropped"
    bounds = {"starts": [0] * len(excess), "ends": list(excess.values()), "axes": list(excess)}
    names = [f"{output}_{name}" for name in bounds]
    for name, numbers in zip(names, bounds.values(), strict=True):
        graph.initializer.append(numpy_helper.from_array(np.array(numbers, np.int64), name))
    crop = helper.make_node("Slice", [node.output[0], *names], [output], name=f"{node.name}_crop")
    crop.metadata_props.extend(node.metadata_props)
    graph.node.insert(index + 1, crop)


def _shapes(graph: onnx.GraphProto) -> dict[str, Shape]:
    return {
        info.name: tuple(
            dim.dim_value if dim.HasField("dim_value") else dim.dim_param for dim in info.type.tensor_type.shape.dim
        )
        for info in (*graph.input, *graph.output, *graph.value_info)
        if info.type.tensor_type.HasField("shape")
    }


def _constants(graph: onnx.GraphProto) -> dict[str, np.ndarray]:
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer if len(tensor.dims) < 2}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            values[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
        elif node.op_type == "Constant" and node.attribute[0].name in ("value_ints", "value_floats"):
            values[node.output[0]] = np.array(helper.get_attribute_value(node.attribute[0]))
    return values
