"""Faults in parameters of any op: norms, tables, gates, slopes, scalars, and further ways to spoil a kernel."""

# ruff: noqa: D102 - change is documented where OperandOperator declares it
from __future__ import annotations

from typing import ClassVar

import ml_dtypes
import numpy as np
import onnx

from onnxfix.diagnose.fault import FaultKind
from onnxfix.testing.faults.editor import Graph, Unfit
from onnxfix.testing.faults.operator import Candidate, FaultOperator, OperandOperator, Site
from onnxfix.testing.faults.weights import WeightOperator

_GATES = {"LSTM": 4, "GRU": 3}


class ZeroWeight(WeightOperator):
    """A weight was never loaded: all zeros."""

    name = "zero_weight"
    done = "zeroed the weight"

    def change(self, weight: np.ndarray, axis: int, rng: np.random.Generator) -> np.ndarray:
        return np.zeros_like(weight)


class RoundWeightsBf16(WeightOperator):
    """A weight went through bfloat16."""

    name = "round_weights_bf16"
    done = "rounded to bfloat16 the weight"

    def change(self, weight: np.ndarray, axis: int, rng: np.random.Generator) -> np.ndarray:
        rounded: np.ndarray = weight.astype(ml_dtypes.bfloat16).astype(weight.dtype)
        return rounded


class RoundWeightsInt8(WeightOperator):
    """A weight was quantized to eight bits and written back as float."""

    name = "round_weights_int8"
    done = "rounded to eight bits the weight"

    def change(self, weight: np.ndarray, axis: int, rng: np.random.Generator) -> np.ndarray:
        step = float(np.abs(weight).max()) / 127
        if step == 0:
            raise Unfit("the weight is zero")
        rounded: np.ndarray = np.rint(weight / step) * step
        return rounded


class ScaleChannel(WeightOperator):
    """One output channel has lost its factor (a batch norm folded badly)."""

    name = "scale_channel"
    done = "scaled one output channel in the weight"

    def change(self, weight: np.ndarray, axis: int, rng: np.random.Generator) -> np.ndarray:
        changed = np.moveaxis(weight.copy(), axis, 0)
        changed[int(rng.integers(len(changed)))] *= float(rng.choice((0.5, 0.75, 1.5, 2.0)))
        return np.moveaxis(changed, 0, axis)


class FlipKernel(WeightOperator):
    """A kernel is turned by half a turn: convolution taken for correlation."""

    name = "flip_kernel"
    done = "turned by 180 degrees the kernel"

    def change(self, weight: np.ndarray, axis: int, rng: np.random.Generator) -> np.ndarray:
        if weight.ndim < 3 or max(weight.shape[2:]) == 1:
            raise Unfit("the weight has no spatial extent")
        return np.flip(weight, tuple(range(2, weight.ndim)))


class TransposeWeight(WeightOperator):
    """A square weight has inputs and outputs exchanged."""

    name = "transpose_weight"
    done = "exchanged inputs and outputs in the weight"

    def change(self, weight: np.ndarray, axis: int, rng: np.random.Generator) -> np.ndarray:
        first, second = (0, 1) if weight.ndim > 2 or axis >= 0 else (-2, -1)
        if weight.shape[first] != weight.shape[second]:
            raise Unfit("the weight is not square")
        return weight.swapaxes(first, second)


class PerturbNorm(OperandOperator):
    """A scale, shift or statistic of a normalisation has one wrong element."""

    name = "perturb_norm"
    kind = FaultKind.WEIGHTS
    slots: ClassVar = {
        "BatchNormalization": (1, 2, 3, 4), "LayerNormalization": (1, 2), "InstanceNormalization": (1, 2),
        "GroupNormalization": (1, 2),
    }  # fmt: skip
    done = "changed one element of a parameter"

    def change(
        self, graph: Graph, node: onnx.NodeProto, value: np.ndarray, rng: np.random.Generator
    ) -> np.ndarray:
        changed = value.copy()
        span = float(np.abs(value).max()) or 1.0
        changed.reshape(-1)[int(rng.integers(value.size))] += span * rng.uniform(0.5, 1.5)
        return changed


class PermuteNorm(PerturbNorm):
    """A scale, shift or statistic of a normalisation belongs to other channels."""

    name = "permute_norm"
    done = "rotated a parameter"

    def change(
        self, graph: Graph, node: onnx.NodeProto, value: np.ndarray, rng: np.random.Generator
    ) -> np.ndarray:
        return np.roll(value, 1, 0)


class ShiftTable(OperandOperator):
    """The rows of an embedding are one further on (a padding row lost)."""

    name = "shift_table"
    kind = FaultKind.WEIGHTS
    slots: ClassVar = {"Gather": (0,)}
    done = "shifted the rows of the table"

    def change(
        self, graph: Graph, node: onnx.NodeProto, value: np.ndarray, rng: np.random.Generator
    ) -> np.ndarray:
        axis = int(graph.attribute(node, "axis", 0))
        return np.roll(value, 1, axis) if value.ndim else value


class PermuteGates(OperandOperator):
    """The gates of a recurrent layer are in another framework's order."""

    name = "permute_gates"
    kind = FaultKind.WEIGHTS
    slots: ClassVar = {"LSTM": (1, 2), "GRU": (1, 2)}
    done = "exchanged two gates in a weight"

    def change(
        self, graph: Graph, node: onnx.NodeProto, value: np.ndarray, rng: np.random.Generator
    ) -> np.ndarray:
        gates = np.split(value, _GATES[node.op_type], axis=1)
        first, second = rng.choice(len(gates), 2, replace=False)
        gates[first], gates[second] = gates[second], gates[first]
        return np.concatenate(gates, axis=1)


class ZeroRecurrentBias(OperandOperator):
    """The bias of a recurrent layer is lost."""

    name = "zero_recurrent_bias"
    kind = FaultKind.WEIGHTS
    slots: ClassVar = {"LSTM": (3,), "GRU": (3,), "RNN": (3,)}
    done = "zeroed the bias"

    def change(
        self, graph: Graph, node: onnx.NodeProto, value: np.ndarray, rng: np.random.Generator
    ) -> np.ndarray:
        return np.zeros_like(value)


class PermuteSlopes(OperandOperator):
    """The slopes of a PRelu are off: rotated, or halved where they are all one."""

    name = "permute_slopes"
    kind = FaultKind.WEIGHTS
    slots: ClassVar = {"PRelu": (1,)}
    done = "exchanged the slopes"

    def change(
        self, graph: Graph, node: onnx.NodeProto, value: np.ndarray, rng: np.random.Generator
    ) -> np.ndarray:
        return value * 0.5 if np.ptp(value) == 0 else np.roll(value, 1, int(np.argmax(value.shape)))


class PerturbConstant(OperandOperator):
    """A constant in the arithmetic of a layer is another number (a scale, a shift, an exponent)."""

    name = "perturb_constant"
    kind = FaultKind.WEIGHTS
    slots: ClassVar = dict.fromkeys(("Add", "Sub", "Mul", "Div"), (0, 1))
    done = "scaled by 1.25 a constant operand"

    def change(
        self, graph: Graph, node: onnx.NodeProto, value: np.ndarray, rng: np.random.Generator
    ) -> np.ndarray:
        if not np.isfinite(value).all() or np.abs(value).max(initial=0.0) > 1e4:
            raise Unfit(f"the constant of {node.name} is a mask")
        return value * 1.25


class SwapStatistics(FaultOperator):
    """Two batch norms of the same width hold each other's mean."""

    name = "swap_statistics"
    kind = FaultKind.WEIGHTS

    def candidates(self, graph: Graph) -> list[Candidate]:
        """Pairs of batch norms."""
        norms = graph.data_nodes("BatchNormalization")
        return [(a.name, b.name) for a in norms for b in norms if a.name != b.name]

    def apply(self, graph: Graph, candidate: Candidate, rng: np.random.Generator) -> tuple[Site, ...]:
        """Swap the means."""
        nodes = [graph.nodes[name] for name in candidate]
        parameters = [graph.parameter(node, 3) for node in nodes]
        values = [p.value for p in parameters if p is not None]
        if len(values) < 2 or values[0].shape != values[1].shape or np.array_equal(values[0], values[1]):
            raise Unfit(f"{candidate[0]} and {candidate[1]} have no means to swap")
        names = [graph.set_parameter(n, 3, v) for n, v in zip(nodes, reversed(values), strict=True)]
        done = f"swapped the means of {candidate[0]} and {candidate[1]}"
        return tuple(
            self.site(node, name, done, expected=mine, actual=other)
            for node, name, mine, other in zip(candidate, names, values, reversed(values), strict=True)
        )


OPERATORS: tuple[type[FaultOperator], ...] = (
    ZeroWeight,
    RoundWeightsBf16,
    RoundWeightsInt8,
    ScaleChannel,
    FlipKernel,
    TransposeWeight,
    PerturbNorm,
    PermuteNorm,
    ShiftTable,
    PermuteGates,
    ZeroRecurrentBias,
    PermuteSlopes,
    PerturbConstant,
    SwapStatistics,
)
