"""Broken copies of :func:`small_onnx.network`: what is done to it, and the faults that must be found."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx

from small_onnx import copied, network, node, value, with_attribute, with_node_after, with_value, without_node

Fault = tuple[str, str, str | None]


def with_inputs(output: str, *names: str) -> onnx.ModelProto:
    """The node that makes ``output`` reads other values."""
    copy = copied(network())
    node(copy, output).input[:] = names
    onnx.checker.check_model(copy, full_check=True)
    return copy


def with_op(output: str, op: str, inputs: Sequence[str] = (), **attributes: object) -> onnx.ModelProto:
    """The node that makes ``output`` is another op."""
    copy = copied(network())
    own = node(copy, output)
    own.CopyFrom(onnx.helper.make_node(op, inputs or list(own.input), list(own.output), own.name, **attributes))
    onnx.checker.check_model(copy, full_check=True)
    return copy


def flattened_otherwise() -> onnx.ModelProto:
    """The dense layer expects height, width, channel; its weight was made for channel, height, width."""
    weight = value(network(), "hidden_weight")
    return with_value(network(), hidden_weight=weight.reshape(6, 8, 16).transpose(0, 2, 1).reshape(6, 128))


def perturbed(name: str) -> onnx.ModelProto:
    content = value(network(), name).copy()
    content.reshape(-1)[3] += 0.1
    return with_value(network(), **{name: content})


def _scaled(name: str, factor: float) -> onnx.ModelProto:
    return with_value(network(), **{name: value(network(), name) * np.float32(factor)})


def _zero(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    return with_value(model, **{name: np.zeros_like(value(model, name))})


def _shifted(model: onnx.ModelProto) -> onnx.ModelProto:
    return with_attribute(model, "left", pads=[2, 2, 0, 0])


# What was done -> (the broken model, its faults: kind, first guilty node, parameter).
BROKEN: dict[str, tuple[Callable[[], onnx.ModelProto], list[Fault]]] = {
    "one weight changed": (lambda: perturbed("left_kernel"), [("weights", "node_left", "left_kernel")]),
    "a bias zeroed": (lambda: _zero(network(), "stem_bias"), [("weights", "node_stem", "stem_bias")]),
    "a bias left out": (lambda: with_inputs("right", "left_clip", "right_kernel"), [("weights", "node_right", "bias")]),
    "a dense bias left out": (lambda: with_inputs("hidden", "flat", "hidden_weight"), [("weights", "node_hidden", "bias")]),
    "a kernel transposed": (
        lambda: with_value(network(), left_kernel=value(network(), "left_kernel").swapaxes(2, 3)),
        [("weights", "node_left", "left_kernel")],
    ),
    "a weight scaled": (lambda: _scaled("logits_weight", 1.01), [("weights", "node_logits", "logits_weight")]),
    "a flatten order": (flattened_otherwise, [("tensor_layout", "node_hidden", "hidden_weight")]),
    "pads shifted": (lambda: _shifted(network()), [("hyperparameters", "node_left", "pads")]),
    "a dilation": (
        lambda: with_attribute(network(), "left", dilations=[2, 2], pads=[2, 2, 2, 2]),
        [("hyperparameters", "node_left", "dilations"), ("hyperparameters", "node_left", "pads")],
    ),
    "a clip bound": (lambda: _scaled("six", 0.5), [("hyperparameters", "node_left_clip", "six")]),
    "no upper bound": (lambda: with_op("left_clip", "Relu", ["left"]), [("hyperparameters", "node_left_clip", "max")]),
    "a ReLU removed": (lambda: without_node(network(), "stem_relu"), [("graph", "node_stem", None)]),
    "a clip removed": (lambda: without_node(network(), "left_clip"), [("graph", "node_left", None)]),
    "a sigmoid removed": (lambda: without_node(network(), "gate"), [("graph", "node_pooled", None)]),
    "a tanh removed": (lambda: without_node(network(), "hidden_tanh"), [("graph", "node_hidden", None)]),
    "a tanh replaced": (lambda: with_op("hidden_tanh", "Sigmoid"), [("graph", "node_hidden_tanh", None)]),
    "a ReLU made leaky": (lambda: with_op("stem_relu", "LeakyRelu", alpha=0.1), [("graph", "node_stem_relu", None)]),
    "a ReLU replaced": (lambda: with_op("stem_relu", "Elu"), [("graph", "node_stem_relu", None)]),
    "a pool replaced": (
        lambda: with_op("pooled", "AveragePool", kernel_shape=[2, 2], strides=[2, 2]), [("graph", "node_pooled", None)]
    ),
    "a factor inserted": (
        lambda: with_node_after(network(), "pooled", "Mul", np.float32(1.3)), [("graph", "node_extra", None)]
    ),
    "a factor behind a convolution": (
        lambda: with_node_after(network(), "right", "Mul", np.float32(1.3)), [("graph", "node_extra", "extra_0")]
    ),
    "a factor per column": (
        lambda: with_node_after(network(), "pooled", "Mul", np.array([1, 2, 0.5, 3], np.float32)),
        [("graph", "node_extra", None)],
    ),
    "an op inserted": (lambda: with_node_after(network(), "pooled", "Sin"), [("graph", "node_extra", None)]),
    "a difference turned round": (lambda: with_inputs("edges", "left_clip", "residual"), [("graph", "node_edges", None)]),
    "a concatenation turned round": (lambda: with_inputs("both", "residual", "edges"), [("graph", "node_both", None)]),
    "the wrong operand": (lambda: with_inputs("residual", "right", "left_clip"), [("graph", "node_residual", None)]),
    "a residual left out": (lambda: without_node(network(), "residual"), [("graph", "node_right", None)]),
    "two at once": (
        lambda: _zero(_shifted(network()), "logits_bias"),
        [("hyperparameters", "node_left", "pads"), ("weights", "node_logits", "logits_bias")],
    ),
    "three next to each other": (
        lambda: _shifted(_zero(without_node(network(), "stem_relu"), "stem_bias")),
        [("graph", "node_stem", None), ("weights", "node_stem", "stem_bias"), ("hyperparameters", "node_left", "pads")],
    ),
    "five at once": (
        lambda: _zero(_shifted(without_node(with_node_after(_scaled("six", 0.5), "pooled", "Sin"), "stem_relu")), "hidden_bias"),
        [("graph", "node_stem", None), ("hyperparameters", "node_left", "pads"), ("hyperparameters", "node_left_clip", "six"),
         ("graph", "node_extra", None), ("weights", "node_hidden", "hidden_bias")],
    ),
}  # fmt: skip
