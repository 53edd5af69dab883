"""A quantized model without its rounding: every activation in float, every stored integer widened where it is read.

The straightened model computes what the quantized one would if its steps were infinitely fine. It is aligned and
compared with a float source like any other conversion, so that faults of weights, attributes and graph are found as
everywhere. What is left out, the quantizers of activations, is kept in a list to be judged by its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from onnxfix.diagnose.naming import WIDENS
from onnxfix.frameworks import Framework
from onnxfix.model import Model
from onnxfix.quantization import DEQUANTIZE, QUANTIZE, Quantization, quantization_of

DYNAMIC = "DynamicQuantizeLinear"
# Layers of integers and what they are of floats.
INTEGER_LAYERS = {"MatMulInteger": "MatMul", "ConvInteger": "Conv"}
# Ops that do not clip by themselves: behind them a quantizer that starts at zero stands for a Relu.
_UNBOUNDED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "Add", "BatchNormalization"})


@dataclass(frozen=True, eq=False)
class Quantizer:
    """One activation that a model keeps in integers.

    Attributes:
        value: The float value that is rounded, a name in the straightened model.
        first: The QuantizeLinear node; the first DequantizeLinear where integers are a graph input.
        readers: All DequantizeLinear nodes that widen it again.
        scheme: Scale and zero point of the QuantizeLinear (of the first reader at a graph input); None where it is
            computed when the model runs.
        schemes: Those of the readers, in their order.
    """

    value: str
    first: str
    readers: tuple[str, ...]
    scheme: Quantization | None
    schemes: tuple[Quantization | None, ...]


@dataclass(frozen=True, eq=False)
class Straightened:
    """A quantized model, straightened.

    Attributes:
        model: The model without rounding; node and parameter names are those of the quantized one.
        quantizers: The activations that the quantized one rounds, in graph order.
    """

    model: Model
    quantizers: tuple[Quantizer, ...]


def quantizes(model: Model) -> bool:
    """Whether a model rounds by itself, so that its steps are part of what it computes."""
    return any(node.op_type in (QUANTIZE, DEQUANTIZE, DYNAMIC, "Round") for node in model.proto.graph.node)


def straightened(model: Model) -> Straightened:
    """Take the rounding of activations out of a model, and spell the widening of stored integers as arithmetic."""
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    graph = proto.graph
    quantizers = _quantizers(model.proto)
    constants = _constants(model.proto)
    renamed: dict[str, str] = {}
    nodes: list[onnx.NodeProto] = []
    for node in model.proto.graph.node:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.input[:] = [renamed.get(v, v) for v in node.input]
        if node.op_type == DEQUANTIZE and node.input[0] in constants:
            nodes.extend(_widened(copy, constants, graph))
        elif node.op_type in (QUANTIZE, DEQUANTIZE, DYNAMIC):
            value = _clipped(copy, nodes, quantization_of(model.proto, node))
            renamed[node.output[0]] = value
            if node.op_type == DYNAMIC:
                # With infinitely fine steps the integers are the numbers themselves.
                renamed[node.output[1]] = _one(graph)
        elif node.op_type in INTEGER_LAYERS and node.input[1] in constants:
            nodes.extend(_layer_in_float(copy, constants))
        else:
            nodes.append(copy)
    del graph.node[:]
    graph.node.extend(nodes)
    _outputs_in_float(graph, renamed)
    _inputs_in_float(graph, quantizers)
    del graph.value_info[:]
    return Straightened(
        Model(proto, Framework.ONNX, proto, parameters=model.parameters, layers=model.layers), quantizers
    )


def _constants(proto: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    """What is known before the model runs: initializers, also behind nodes that only move them."""
    return {t.name: t for t in proto.graph.initializer}


def _quantizers(proto: onnx.ModelProto) -> tuple[Quantizer, ...]:
    stored = {t.name for t in proto.graph.initializer}
    makers = {o: node for node in proto.graph.node for o in node.output}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in proto.graph.node:
        if node.op_type == DEQUANTIZE and node.input[0] not in stored:
            readers.setdefault(_origin(node.input[0], makers), []).append(node)
    found = []
    for value, nodes in readers.items():
        maker = makers.get(value)
        if maker is not None and maker.op_type not in (QUANTIZE, DYNAMIC):
            continue
        first = nodes[0] if maker is None else maker
        schemes = tuple(quantization_of(proto, node) for node in nodes)
        scheme = schemes[0] if maker is None else None if maker.op_type == DYNAMIC else quantization_of(proto, maker)
        name = value if maker is None else _float_value(maker.input[0], makers)
        found.append(Quantizer(name, first.name, tuple(node.name for node in nodes), scheme, schemes))
    outputs = {o.name for o in proto.graph.output}
    for node in proto.graph.node:
        if node.op_type == DYNAMIC and node.output[0] not in readers:
            found.append(Quantizer(_float_value(node.input[0], makers), node.name, (), None, ()))
        if node.op_type == QUANTIZE and node.output[0] in outputs and node.output[0] not in readers:
            value = _float_value(node.input[0], makers)
            found.append(Quantizer(value, node.name, (), quantization_of(proto, node), ()))
    order = {node.name: k for k, node in enumerate(proto.graph.node)}
    return tuple(sorted(found, key=lambda q: order[q.first]))


def _origin(value: str, makers: Mapping[str, onnx.NodeProto]) -> str:
    """The integers that a value is made of, seen through ops that only move or pick them."""
    while (maker := makers.get(value)) is not None and maker.op_type in _MOVING:
        value = maker.input[0]
    return value


_MOVING = frozenset(
    {"Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Slice", "Gather", "MaxPool", "Split"}
)


def _float_value(value: str, makers: Mapping[str, onnx.NodeProto]) -> str:
    """What a value is called in the straightened model: quantizers in front of it are gone."""
    while (maker := makers.get(value)) is not None and maker.op_type in (QUANTIZE, DEQUANTIZE, DYNAMIC):
        if maker.op_type == DEQUANTIZE and maker.input[0] not in makers:
            break
        value = maker.input[0]
    return value


def _clipped(node: onnx.NodeProto, nodes: list[onnx.NodeProto], scheme: Quantization | None) -> str:
    """The value that goes on in place of a quantizer's result: behind a Relu where its range stands for one."""
    value: str = node.input[0]
    maker = next((n for n in reversed(nodes) if value in n.output), None)
    if node.op_type != QUANTIZE or scheme is None or maker is None or maker.op_type not in _UNBOUNDED:
        return value
    if scheme.limits[0] < 0:
        return value
    made = f"{value}/clipped"
    if not any(made in n.output for n in nodes):
        nodes.append(helper.make_node("Relu", [value], [made], name=node.name))
    return made


def _widened(
    node: onnx.NodeProto, constants: Mapping[str, onnx.TensorProto], graph: onnx.GraphProto
) -> Iterable[onnx.NodeProto]:
    """``(cast(q) - cast(z)) * s``, scale and zero point shaped to broadcast along the quantized axis."""
    stored, scale = node.input[0], node.input[1]
    zero = node.input[2] if len(node.input) > 2 else ""
    rank = len(constants[stored].dims)
    axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
    columns = len(constants[scale].dims) == 1 and rank > 1 and list(constants[scale].dims) != [1]
    shape = [-1 if k == axis % rank else 1 for k in range(rank)] if columns else None

    def made(op: str, inputs: list[str], name: str, **attributes: Any) -> onnx.NodeProto:
        result = node.output[0] if name == "" else f"{node.output[0]}/{name}"
        step = helper.make_node(op, inputs, [result], name=f"{node.name}/{name}" if name else node.name, **attributes)
        step.metadata_props.add(key=WIDENS, value=node.name)
        steps.append(step)
        return step

    def shaped(value: str, name: str) -> str:
        if shape is None:
            return value
        target = f"{node.output[0]}/shape"
        if not any(t.name == target for t in graph.initializer):
            graph.initializer.append(numpy_helper.from_array(np.asarray(shape, np.int64), target))
        return str(made("Reshape", [value, target], name).output[0])

    steps: list[onnx.NodeProto] = []
    wide = made("Cast", [stored], "wide", to=TensorProto.FLOAT).output[0]
    if zero and np.any(numpy_helper.to_array(constants[zero])):
        offset = made("Cast", [zero], "zero", to=TensorProto.FLOAT).output[0]
        wide = made("Sub", [wide, shaped(offset, "zeros")], "steps").output[0]
    made("Mul", [wide, shaped(scale, "scales")], "")
    return steps


def _one(graph: onnx.GraphProto) -> str:
    name = "quantization/one"
    if not any(t.name == name for t in graph.initializer):
        graph.initializer.append(numpy_helper.from_array(np.ones((), np.float32), name))
    return name


def _layer_in_float(
    node: onnx.NodeProto, constants: Mapping[str, onnx.TensorProto]
) -> Iterable[onnx.NodeProto]:
    """``MatMulInteger(q, w, z, zw) -> MatMul(x, cast(w) - cast(zw))``; the same for convolutions."""
    wide = f"{node.output[0]}/wide"
    steps = [helper.make_node("Cast", [node.input[1]], [wide], name=wide, to=TensorProto.FLOAT)]
    zero = node.input[3] if len(node.input) > 3 else ""
    if zero in constants and np.any(numpy_helper.to_array(constants[zero])):
        offset, shifted = f"{node.output[0]}/zero", f"{node.output[0]}/steps"
        steps.append(helper.make_node("Cast", [zero], [offset], name=offset, to=TensorProto.FLOAT))
        steps.append(helper.make_node("Sub", [wide, offset], [shifted], name=shifted))
        wide = shifted
    for step in steps:
        step.metadata_props.add(key=WIDENS, value=node.name)
    layer = onnx.NodeProto()
    layer.CopyFrom(node)
    layer.op_type = INTEGER_LAYERS[node.op_type]
    layer.input[:] = [node.input[0], wide]
    return [*steps, layer]


def _outputs_in_float(graph: onnx.GraphProto, renamed: Mapping[str, str]) -> None:
    for output in graph.output:
        if output.name in renamed:
            output.type.tensor_type.elem_type = TensorProto.FLOAT
            wide = helper.make_node("Identity", [renamed[output.name]], [output.name], f"{output.name}/wide")
            graph.node.append(wide)


def _inputs_in_float(graph: onnx.GraphProto, quantizers: Iterable[Quantizer]) -> None:
    wide = {q.value for q in quantizers}
    for value in graph.input:
        if value.name in wide and value.type.tensor_type.elem_type in (TensorProto.INT8, TensorProto.UINT8):
            value.type.tensor_type.elem_type = TensorProto.FLOAT
