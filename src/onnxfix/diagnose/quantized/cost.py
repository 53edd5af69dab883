"""What a correct quantization costs: the straightened model with every activation cut to its range and rounded.

Rounding is played by noise of half a step, so that a model that is right need not round the same numbers the same way
to be recognised as right.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import helper, numpy_helper

from onnxfix.diagnose.quantized.straightening import Quantizer
from onnxfix.quantization import Quantization

# Rounding is no noise; where its errors line up they add up to a few times as much.
MARGIN = 3.0


def rounded(
    proto: onnx.ModelProto, quantizers: Sequence[Quantizer], schemes: Sequence[Quantization | None], seed: int = 0
) -> onnx.ModelProto:
    """The straightened model with its activations cut and made noisy.

    Args:
        proto: The straightened model.
        quantizers: The activations.
        schemes: The scheme of each; None where its range is that of the batch at hand, in eight bits.
        seed: Seed of the noise.
    """
    model = onnx.ModelProto()
    model.CopyFrom(proto)
    graph = model.graph
    order = {o: k for k, node in enumerate(graph.node) for o in node.output}
    inputs = {i.name for i in graph.input}
    places: list[tuple[int, list[onnx.NodeProto]]] = []
    for k, (quantizer, scheme) in enumerate(zip(quantizers, schemes, strict=True)):
        value = quantizer.value
        if value not in order and value not in inputs:
            continue
        result = f"{value}/rounded{k}"
        for node in graph.node:
            node.input[:] = [result if v == value else v for v in node.input]
        steps = _dynamic(graph, value, result) if scheme is None else _cut(graph, value, result, scheme)
        noise = helper.make_node(
            "RandomUniformLike", [value], [f"{result}/noise"], f"{result}/noise", low=-0.5, high=0.5,
            seed=float(seed + k),
        )  # fmt: skip
        steps += [
            noise,
            helper.make_node("Mul", [f"{result}/noise", f"{result}/step"], [f"{result}/error"], f"{result}/error"),
            helper.make_node("Add", [f"{result}/cut", f"{result}/error"], [result], result),
        ]
        places.append((order.get(value, -1), steps))
    nodes = list(graph.node)
    for position, made in sorted(places, key=lambda place: -place[0]):
        nodes[position + 1 : position + 1] = made
    del graph.node[:]
    graph.node.extend(nodes)
    return model


def _cut(graph: onnx.GraphProto, value: str, result: str, scheme: Quantization) -> list[onnx.NodeProto]:
    bounds = [_constant(graph, f"{result}/{k}", bound) for k, bound in enumerate(scheme.limits)]
    _constant(graph, f"{result}/step", scheme.scale)
    return [helper.make_node("Clip", [value, *bounds], [f"{result}/cut"], f"{result}/cut")]


def _dynamic(graph: onnx.GraphProto, value: str, result: str) -> list[onnx.NodeProto]:
    """A step is a 255th of what the batch spans."""
    share = _constant(graph, f"{result}/share", 1 / 255)
    return [
        helper.make_node("ReduceMax", [value], [f"{result}/high"], f"{result}/high", keepdims=0),
        helper.make_node("ReduceMin", [value], [f"{result}/low"], f"{result}/low", keepdims=0),
        helper.make_node("Sub", [f"{result}/high", f"{result}/low"], [f"{result}/span"], f"{result}/span"),
        helper.make_node("Mul", [f"{result}/span", share], [f"{result}/step"], f"{result}/step"),
        helper.make_node("Identity", [value], [f"{result}/cut"], f"{result}/cut"),
    ]


def _constant(graph: onnx.GraphProto, name: str, content: float) -> str:
    graph.initializer.append(numpy_helper.from_array(np.asarray(content, np.float32), name))
    return name
