"""Faults in weights and biases: lost, rounded, permuted, mixed up, badly folded."""

# ruff: noqa: D102 - candidates and apply are documented where FaultOperator declares them
from __future__ import annotations

import itertools

import numpy as np
import onnx

from onnxfix.diagnose.fault import FaultKind
from onnxfix.testing.faults.editor import Graph, Unfit
from onnxfix.testing.faults.operator import Candidate, FaultOperator, Site

_LINEAR = ("Conv", "ConvTranspose", "Gemm", "MatMul")


class WeightOperator(FaultOperator):
    """An operator that gives one linear layer's weight another value."""

    kind = FaultKind.WEIGHTS
    done: str

    def candidates(self, graph: Graph) -> list[Candidate]:
        return [(node.name,) for node in graph.data_nodes(*_LINEAR) if _weight_operand(graph, node) is not None]

    def apply(self, graph: Graph, candidate: Candidate, rng: np.random.Generator) -> tuple[Site, ...]:
        node = graph.nodes[candidate[0]]
        operand, weight = weight_of(graph, node)
        changed = self.change(weight, output_axis(graph, node, operand), rng).astype(weight.dtype)
        if np.array_equal(changed, weight):
            raise Unfit(f"the weight of {node.name} would stay as it is")
        name = graph.set_parameter(node, operand, changed)
        done = f"{self.done} of {node.name}"
        return (self.site(node.name, name, done, expected=weight, actual=changed),)

    def change(self, weight: np.ndarray, axis: int, rng: np.random.Generator) -> np.ndarray:
        """The faulty weight; ``axis`` is the output channel axis."""
        raise NotImplementedError


class PerturbWeight(WeightOperator):
    """One element of a weight is off by about the weight's own range."""

    name = "perturb_weight"
    done = "changed one element of the weight"

    def change(self, weight: np.ndarray, axis: int, rng: np.random.Generator) -> np.ndarray:
        changed = weight.copy()
        place = int(rng.integers(weight.size))
        span = float(np.abs(weight).max()) or 1.0
        changed.reshape(-1)[place] += span * rng.uniform(0.5, 1.5) * rng.choice((-1, 1))
        return changed


class RoundWeightsFp16(WeightOperator):
    """A weight went through float16."""

    name = "round_weights_fp16"
    done = "rounded to float16 the weight"

    def change(self, weight: np.ndarray, axis: int, rng: np.random.Generator) -> np.ndarray:
        limit = np.finfo(np.float16).max
        rounded: np.ndarray = np.clip(weight, -limit, limit).astype(np.float16).astype(weight.dtype)
        return rounded


class TransposeKernel(WeightOperator):
    """A square kernel's height and width are swapped (HWIO read as WHIO)."""

    name = "transpose_kernel"
    done = "swapped height and width in the kernel"

    def change(self, weight: np.ndarray, axis: int, rng: np.random.Generator) -> np.ndarray:
        if weight.ndim != 4 or weight.shape[2] != weight.shape[3] or weight.shape[2] == 1:
            raise Unfit("the kernel is not square")
        return weight.swapaxes(2, 3)


class PermuteChannels(WeightOperator):
    """A weight's output channels are rotated, its bias not."""

    name = "permute_channels"
    done = "rotated the output channels of the weight"

    def change(self, weight: np.ndarray, axis: int, rng: np.random.Generator) -> np.ndarray:
        if weight.shape[axis] < 2:
            raise Unfit("there is one output channel only")
        return np.roll(weight, int(rng.integers(1, weight.shape[axis])), axis)


class SignFlip(WeightOperator):
    """A weight is negated."""

    name = "sign_flip"
    done = "negated the weight"

    def change(self, weight: np.ndarray, axis: int, rng: np.random.Generator) -> np.ndarray:
        return -weight


class SwapWeights(FaultOperator):
    """Two layers of the same shape hold each other's weights."""

    name = "swap_weights_between_layers"
    kind = FaultKind.WEIGHTS

    def candidates(self, graph: Graph) -> list[Candidate]:
        by_shape: dict[tuple[int, ...], list[str]] = {}
        for node in graph.data_nodes(*_LINEAR):
            if _weight_operand(graph, node) is not None:
                by_shape.setdefault(weight_of(graph, node)[1].shape, []).append(node.name)
        return [pair for names in by_shape.values() for pair in itertools.permutations(names, 2)]

    def apply(self, graph: Graph, candidate: Candidate, rng: np.random.Generator) -> tuple[Site, ...]:
        first, second = (graph.nodes[name] for name in candidate)
        (operand, weight), (other_operand, other) = weight_of(graph, first), weight_of(graph, second)
        if np.array_equal(weight, other):
            raise Unfit(f"{first.name} and {second.name} have the same weight")
        names = (graph.set_parameter(first, operand, other), graph.set_parameter(second, other_operand, weight))
        done = f"swapped the weights of {first.name} and {second.name}"
        return tuple(self.site(node, name, done) for node, name in zip(candidate, names, strict=True))


class ZeroBias(FaultOperator):
    """A bias is all zeros."""

    name = "zero_bias"
    kind = FaultKind.WEIGHTS

    def candidates(self, graph: Graph) -> list[Candidate]:
        return [(node.name,) for node, _ in biases(graph)]

    def apply(self, graph: Graph, candidate: Candidate, rng: np.random.Generator) -> tuple[Site, ...]:
        node, operand = _bias_of(graph, candidate[0])
        bias = graph.parameter(node, operand)
        if bias is None or not bias.value.any():
            raise Unfit(f"{node.name} has no bias but zero")
        name = graph.set_parameter(node, operand, np.zeros_like(bias.value))
        return (self.site(node.name, name, f"zeroed the bias of {node.name}", _linear_input(graph, node)),)


class DropBias(FaultOperator):
    """A bias is gone: the operand of a Conv or Gemm, or the Add after a MatMul."""

    name = "drop_bias"
    kind = FaultKind.WEIGHTS

    def candidates(self, graph: Graph) -> list[Candidate]:
        return [(node.name,) for node, _ in biases(graph)]

    def apply(self, graph: Graph, candidate: Candidate, rng: np.random.Generator) -> tuple[Site, ...]:
        node, operand = _bias_of(graph, candidate[0])
        bias = graph.parameter(node, operand)
        if bias is None or not bias.value.any():
            raise Unfit(f"{node.name} has no bias but zero")
        guilty = node.name
        if node.op_type == "Add":
            (guilty,) = _linear_input(graph, node)
            graph.bypass(node, 1 - operand)
        else:
            del node.input[operand]
        return (self.site(guilty, None, f"dropped the bias {bias.name} of {guilty}"),)


class BatchNormEpsilonFolded(FaultOperator):
    """A batch norm is folded into its convolution with another epsilon than its own."""

    name = "bn_epsilon_folded"
    kind = FaultKind.WEIGHTS

    def candidates(self, graph: Graph) -> list[Candidate]:
        found: list[Candidate] = []
        for norm in graph.data_nodes("BatchNormalization"):
            conv = graph.producer(norm.input[0])
            if conv is not None and conv.op_type == "Conv" and len(graph.consumers(norm.input[0])) == 1:
                found.append((norm.name, conv.name))
        return found

    def apply(self, graph: Graph, candidate: Candidate, rng: np.random.Generator) -> tuple[Site, ...]:
        norm, conv = (graph.nodes[name] for name in candidate)
        parameters = [graph.parameter(norm, operand) for operand in range(1, 5)]
        if any(parameter is None for parameter in parameters) or conv.output[0] in graph.outputs:
            raise Unfit(f"the statistics of {norm.name} are not constant")
        gamma, beta, mean, variance = (p.value for p in parameters if p is not None)
        epsilon = other_epsilon(float(graph.attribute(norm, "epsilon", 1e-5)), variance)
        factor = gamma / np.sqrt(variance + epsilon)
        operand, weight = weight_of(graph, conv)
        name = graph.set_parameter(conv, operand, (weight * factor[:, None, None, None]).astype(weight.dtype))
        old = graph.parameter(conv, 2)
        bias = (beta + ((old.value if old else 0) - mean) * factor).astype(weight.dtype)
        del conv.input[2:]
        conv.input.append(graph.add_constant(bias, f"{conv.name}_bias"))
        guilty = conv.name
        graph.bypass(norm)
        return (self.site(guilty, name, f"folded batch norm into {guilty} with epsilon {epsilon:g}"),)


def other_epsilon(epsilon: float, variance: np.ndarray) -> float:
    """The epsilon that a converter is likely to use instead: another framework's default that matters here."""
    choices = [other for other in (1e-5, 1e-3, 1e-2, 1e-1) if abs(other - epsilon) > 0.5 * max(other, epsilon)]
    strength = [float(np.max(np.abs(np.sqrt((variance + e) / (variance + epsilon)) - 1))) for e in choices]
    return next((e for e, s in zip(choices, strength, strict=True) if s > 1e-3), choices[-1])


def weight_of(graph: Graph, node: onnx.NodeProto) -> tuple[int, np.ndarray]:
    """Operand index and value of a linear layer's constant weight.

    Raises:
        Unfit: both operands are computed.
    """
    operand = _weight_operand(graph, node)
    parameter = None if operand is None else graph.parameter(node, operand)
    if operand is None or parameter is None:
        raise Unfit(f"{node.name} has no constant weight")
    return operand, parameter.value


def _weight_operand(graph: Graph, node: onnx.NodeProto) -> int | None:
    operands = (1,) if node.op_type.startswith("Conv") else (1, 0)
    return next((i for i in operands if _is_weight(graph, node, i)), None)


def _is_weight(graph: Graph, node: onnx.NodeProto, operand: int) -> bool:
    parameter = graph.parameter(node, operand)
    return parameter is not None and parameter.value.ndim >= 2


def output_axis(graph: Graph, node: onnx.NodeProto, operand: int) -> int:
    """Which axis of a linear layer's weight (as the node sees it) counts output channels."""
    if node.op_type == "Conv":
        return 0
    if node.op_type == "ConvTranspose":
        return 1
    if node.op_type == "Gemm":
        turned = bool(graph.attribute(node, "transB" if operand == 1 else "transA", 0))
        return int(turned != (operand == 1))
    return -1 if operand == 1 else -2


def biases(graph: Graph) -> list[tuple[onnx.NodeProto, int]]:
    """Nodes that add a constant bias to a linear layer, with the bias operand."""
    found = []
    for node in graph.data_nodes("Conv", "ConvTranspose", "Gemm", "Add"):
        if node.op_type != "Add":
            operand = 2
        elif _linear_input(graph, node):
            operand = 0 if graph.parameter(node, 0) is not None else 1
        else:
            continue
        if graph.parameter(node, operand) is not None:
            found.append((node, operand))
    return found


def _bias_of(graph: Graph, name: str) -> tuple[onnx.NodeProto, int]:
    return next((node, operand) for node, operand in biases(graph) if node.name == name)


def _linear_input(graph: Graph, node: onnx.NodeProto) -> tuple[str, ...]:
    """The linear layer whose result an ``Add`` takes, as a tuple of zero or one names."""
    if node.op_type != "Add":
        return ()
    producers = [graph.producer(value) for value in node.input]
    return tuple(p.name for p in producers if p is not None and p.op_type in _LINEAR)[:1]


OPERATORS: tuple[type[FaultOperator], ...] = (
    PerturbWeight,
    RoundWeightsFp16,
    TransposeKernel,
    PermuteChannels,
    SignFlip,
    SwapWeights,
    ZeroBias,
    DropBias,
    BatchNormEpsilonFolded,
)
