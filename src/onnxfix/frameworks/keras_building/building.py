"""Walk a legalised graph and build a Keras model of it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx

from onnxfix import mapped
from onnxfix.errors import ExportError
from onnxfix.frameworks.keras_building.as_layers import as_layer
from onnxfix.frameworks.keras_building.functions import OTHERS, SAME, function
from onnxfix.frameworks.keras_building.normalizing import NORMALIZING
from onnxfix.frameworks.keras_building.reducing import REDUCING
from onnxfix.frameworks.keras_building.shaping import SHAPING
from onnxfix.frameworks.keras_building.values import Unsupported, Value
from onnxfix.frameworks.keras_building.windows import average_pool, conv, conv_transpose, max_pool
from onnxfix.runtime.evaluation import evaluate_op

_RULES: dict[str, Any] = {
    **dict.fromkeys((*SAME, *OTHERS), function), **SHAPING, **REDUCING, **NORMALIZING,
    "AveragePool": average_pool, "Conv": conv, "ConvTranspose": conv_transpose, "MaxPool": max_pool,
}  # fmt: skip
# In which constants are evaluated.
_OPSET = 21
_PASSED_ON = ("Identity", "Dropout")


def build(proto: onnx.ModelProto) -> Any:
    """A functional ``keras.Model`` that computes what a graph does.

    Convolutions, dense layers and embeddings become layers with weights; all else becomes ``keras.ops``. Inputs and
    outputs keep the graph's names, order and layout.

    Args:
        proto: A graph legalised for ``"keras"``; only the first dimension of an input may be open.

    Raises:
        ExportError: an op, or a use of it, has no Keras form here.
    """
    import keras

    constants = {tensor.name for tensor in proto.graph.initializer}
    inputs = {info.name: _input(info) for info in proto.graph.input if info.name not in constants}
    taken: set[str] = set()
    tensors = build_on(proto, inputs, taken)
    for operation in keras.Model([*inputs.values()], [*tensors.values()]).operations:
        taken.add(operation.name)  # those of keras.ops name themselves
    named = [named_output(tensor, name, taken) for name, tensor in tensors.items()]
    return keras.Model([*inputs.values()], named if len(named) > 1 else named[0])


def build_on(
    proto: onnx.ModelProto, inputs: Mapping[str, Any], taken: set[str], *, layers: bool = False
) -> dict[str, Any]:
    """What a graph computes from symbolic tensors of Keras, as further ones.

    Args:
        proto: A graph legalised for ``"keras"``.
        inputs: Graph input -> the tensor that it is.
        taken: Names that new layers must not have; those of the new layers are added.
        layers: Make layers where there are such, and functions of ``keras.ops`` only where there are none.

    Returns:
        Graph output -> tensor.

    Raises:
        ExportError: an op, or a use of it, has no Keras form here.
    """
    values: dict[str, Value] = {t.name: Value(mapped.to_array(t)) for t in proto.graph.initializer}
    values.update((name, Value(tensor)) for name, tensor in inputs.items())
    for node in proto.graph.node:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.name = free_name(node.name or node.op_type, taken)
        results = _results(copy, [values[name] if name else None for name in node.input], layers)
        values.update((name, value) for name, value in zip(node.output, results, strict=False) if name)
    answers = {info.name: values[info.name] for info in proto.graph.output}
    constant = next((name for name, value in answers.items() if value.constant is not None), None)
    if constant is not None:
        raise ExportError(f"output {constant} is a constant, which Keras does not answer: export it to onnx.")
    return {name: value.first() for name, value in answers.items()}


def _input(info: onnx.ValueInfoProto) -> Any:
    import keras

    tensor = info.type.tensor_type
    dims = [dim.dim_value if dim.HasField("dim_value") else None for dim in tensor.shape.dim]
    if not dims or None in dims[1:]:
        raise ExportError(f"input {info.name} has open sizes beyond the batch: give inputs that show them.")
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
    name = re.sub(r"\W", "_", info.name)
    return keras.Input(tuple(dims[1:]), batch_size=dims[0], dtype=dtype, name=name)


def free_name(name: str, taken: set[str]) -> str:
    """A name that a layer can have and that is not taken; it is from now on."""
    stem = unique = re.sub(r"\W", "_", name)
    count = 0
    while unique in taken:
        count += 1
        unique = f"{stem}_{count}"
    taken.add(unique)
    return unique


def _results(node: onnx.NodeProto, operands: list[Value | None], layers: bool) -> list[Value]:
    attributes = {a.name: _plain(onnx.helper.get_attribute_value(a)) for a in node.attribute}
    if node.op_type in _PASSED_ON and operands[0] is not None:
        return [operands[0]]
    if node.op_type not in _RULES or node.domain not in ("", "ai.onnx"):
        raise ExportError(f"Keras has no form for {node.op_type} ({node.name}) here: export the model to onnx.")
    if all(value is None or value.constant is not None for value in operands):
        constants = [None if value is None else value.constant for value in operands]
        return [Value(np.asarray(result)) for result in evaluate_op(node.op_type, constants, attributes, opset=_OPSET)]
    try:
        layer = as_layer(node, operands, attributes) if layers else None
        result = layer or _RULES[node.op_type](node, operands, attributes)
    except Unsupported as reason:
        raise ExportError(f"{node.name}: {node.op_type} {reason}, which has no Keras form here.") from reason
    return result if isinstance(result, list) else [result]


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode()
    return list(value) if not isinstance(value, str | int | float | onnx.TensorProto | onnx.GraphProto) else value


def named_output(tensor: Any, name: str, taken: set[str]) -> Any:
    """The tensor of an output, as a layer of that name makes it, so that the model's output is called so."""
    from keras import layers

    return layers.Identity(name=free_name(name, taken))(tensor)
