"""Shapes of all values, also where axes and target shapes are computed from constants."""

from __future__ import annotations

import math

import numpy as np
import onnx
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

_STANDARD = ("", "ai.onnx")
_SMALL = 64  # elements: axes, shapes, pads; never a weight


def value_shapes(proto: onnx.ModelProto) -> dict[str, tuple[int | None, ...]]:
    """Inferred shape of every value that shape inference reaches; unknown dimensions are None."""
    inferred = onnx.shape_inference.infer_shapes(_small_constants_folded(proto), data_prop=True).graph
    found: dict[str, tuple[int | None, ...]] = {}
    for info in (*inferred.input, *inferred.value_info, *inferred.output):
        if info.type.tensor_type.HasField("shape"):
            dims = info.type.tensor_type.shape.dim
            found[info.name] = tuple(d.dim_value if d.HasField("dim_value") else None for d in dims)
    return found


def _small_constants_folded(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which computed axes and shapes are initializers: shape inference does not see through casts."""
    opset = next((o.version for o in proto.opset_import if o.domain in _STANDARD), 1)
    small = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer if _is_small(t)}
    folded = onnx.ModelProto()
    folded.CopyFrom(proto)
    del folded.graph.node[:]
    for node in proto.graph.node:
        if _is_plain(node) and node.input and all(value in small for value in node.input if value):
            feeds = {value: small[value] for value in node.input if value}
            results = [np.asarray(r) for r in ReferenceEvaluator(node, opsets={"": opset}).run(None, feeds)]
            small.update(zip(node.output, results, strict=True))
            folded.graph.initializer.extend(map(numpy_helper.from_array, results, node.output))
        else:
            folded.graph.node.append(node)
            content = constant_value(node) if node.op_type == "Constant" else None
            if content is not None and content.size <= _SMALL and content.dtype.kind in "iu":
                small[node.output[0]] = content
    return folded


def _is_plain(node: onnx.NodeProto) -> bool:
    graphs = (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)
    return node.domain in _STANDARD and not any(attribute.type in graphs for attribute in node.attribute)


def _is_small(tensor: onnx.TensorProto) -> bool:
    return math.prod(tensor.dims) <= _SMALL and onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).kind in "iu"


def constant_value(node: onnx.NodeProto) -> np.ndarray | None:
    """The content of a ``Constant`` node; None for sparse tensors and strings."""
    attribute = node.attribute[0]
    value = onnx.helper.get_attribute_value(attribute)
    if isinstance(value, onnx.TensorProto):
        return numpy_helper.to_array(value)
    kinds = {"value_float": np.float32, "value_floats": np.float32, "value_int": np.int64, "value_ints": np.int64}
    kind = kinds.get(attribute.name)
    return None if kind is None else np.asarray(value, kind)
