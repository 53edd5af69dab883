"""Faults in attributes of all ops, and in operands that act as attributes."""

# ruff: noqa: D102 - change and apply are documented where the operators' bases declare them
from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import onnx

from onnxfix.diagnose.fault import FaultKind
from onnxfix.testing.faults.editor import Graph, Unfit
from onnxfix.testing.faults.operator import AttributeOperator, Candidate, FaultOperator, Site

_REDUCTIONS = ("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2")
_NEXT_ACTIVATION = {"Sigmoid": "HardSigmoid", "Tanh": "Softsign", "Relu": "Tanh", "HardSigmoid": "Sigmoid"}


class ChangeEpsilon(AttributeOperator):
    """A normalisation has another epsilon, large enough to be seen."""

    name = "change_epsilon"
    kind = FaultKind.HYPERPARAMETERS
    attribute = "epsilon"
    defaults: ClassVar = dict.fromkeys(
        ("LayerNormalization", "InstanceNormalization", "GroupNormalization", "RMSNormalization"), 1e-5
    )

    def change(self, graph: Graph, node: onnx.NodeProto, old: Any, rng: np.random.Generator) -> Any:
        return float(rng.choice((1e-2, 1e-1)))


class ChangeAlpha(AttributeOperator):
    """A slope or steepness is another framework's default."""

    name = "change_alpha"
    kind = FaultKind.HYPERPARAMETERS
    attribute = "alpha"
    defaults: ClassVar = {
        "LeakyRelu": 0.01, "Elu": 1.0, "Selu": 1.67326, "Celu": 1.0, "ThresholdedRelu": 1.0, "HardSigmoid": 0.2,
        "Gemm": 1.0, "Swish": 1.0,
    }  # fmt: skip

    def change(self, graph: Graph, node: onnx.NodeProto, old: Any, rng: np.random.Generator) -> Any:
        return float(old) * float(rng.choice((0.5, 1.5, 2.0)))


class CountPadding(AttributeOperator):
    """An average pool counts its padding, or no longer does."""

    name = "count_include_pad"
    kind = FaultKind.HYPERPARAMETERS
    attribute = "count_include_pad"
    defaults: ClassVar = {"AveragePool": 0}

    def change(self, graph: Graph, node: onnx.NodeProto, old: Any, rng: np.random.Generator) -> Any:
        return 1 - int(old)


class CeilMode(AttributeOperator):
    """A pool rounds its output size the other way."""

    name = "ceil_mode"
    kind = FaultKind.HYPERPARAMETERS
    attribute = "ceil_mode"
    defaults: ClassVar = {"AveragePool": 0, "MaxPool": 0, "LpPool": 0}

    def change(self, graph: Graph, node: onnx.NodeProto, old: Any, rng: np.random.Generator) -> Any:
        return 1 - int(old)


class PadMode(AttributeOperator):
    """A Pad fills the border in another way."""

    name = "pad_mode"
    kind = FaultKind.HYPERPARAMETERS
    attribute = "mode"
    defaults: ClassVar = {"Pad": b"constant"}

    def change(self, graph: Graph, node: onnx.NodeProto, old: Any, rng: np.random.Generator) -> Any:
        return str(rng.choice([m for m in ("constant", "reflect", "edge") if m.encode() != old])).encode()


class ResizeMode(AttributeOperator):
    """A Resize interpolates otherwise."""

    name = "resize_mode"
    kind = FaultKind.HYPERPARAMETERS
    attribute = "mode"
    defaults: ClassVar = {"Resize": b"nearest"}

    def change(self, graph: Graph, node: onnx.NodeProto, old: Any, rng: np.random.Generator) -> Any:
        return str(rng.choice([m for m in ("nearest", "linear", "cubic") if m.encode() != old])).encode()


class ResizeCoordinates(AttributeOperator):
    """A Resize lays its grid otherwise (aligned corners, half pixels)."""

    name = "resize_coordinates"
    kind = FaultKind.HYPERPARAMETERS
    attribute = "coordinate_transformation_mode"
    defaults: ClassVar = {"Resize": b"half_pixel"}

    def change(self, graph: Graph, node: onnx.NodeProto, old: Any, rng: np.random.Generator) -> Any:
        modes = ("half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel")
        return str(rng.choice([m for m in modes if m.encode() != old])).encode()


class ResizeRounding(AttributeOperator):
    """A nearest-neighbour Resize rounds otherwise."""

    name = "resize_rounding"
    kind = FaultKind.HYPERPARAMETERS
    attribute = "nearest_mode"
    defaults: ClassVar = {"Resize": b"round_prefer_floor"}

    def change(self, graph: Graph, node: onnx.NodeProto, old: Any, rng: np.random.Generator) -> Any:
        modes = ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")
        return str(rng.choice([m for m in modes if m.encode() != old])).encode()


class GeluApproximation(AttributeOperator):
    """A Gelu is the tanh approximation instead of the exact one, or the other way round."""

    name = "gelu_approximation"
    kind = FaultKind.HYPERPARAMETERS
    attribute = "approximate"
    defaults: ClassVar = {"Gelu": b"none"}

    def change(self, graph: Graph, node: onnx.NodeProto, old: Any, rng: np.random.Generator) -> Any:
        return b"tanh" if old == b"none" else b"none"


class DepthToSpaceMode(AttributeOperator):
    """A pixel shuffle takes its channels in the other order."""

    name = "depth_to_space_mode"
    kind = FaultKind.HYPERPARAMETERS
    attribute = "mode"
    defaults: ClassVar = {"DepthToSpace": b"DCR"}

    def change(self, graph: Graph, node: onnx.NodeProto, old: Any, rng: np.random.Generator) -> Any:
        return b"CRD" if old == b"DCR" else b"DCR"


class TopKOrder(AttributeOperator):
    """A TopK takes the smallest."""

    name = "topk_order"
    kind = FaultKind.HYPERPARAMETERS
    attribute = "largest"
    defaults: ClassVar = {"TopK": 1}

    def change(self, graph: Graph, node: onnx.NodeProto, old: Any, rng: np.random.Generator) -> Any:
        return 1 - int(old)


class CumSumMode(AttributeOperator):
    """A running sum leaves the present element out, or takes it in."""

    name = "cumsum_exclusive"
    kind = FaultKind.HYPERPARAMETERS
    attribute = "exclusive"
    defaults: ClassVar = {"CumSum": 0}

    def change(self, graph: Graph, node: onnx.NodeProto, old: Any, rng: np.random.Generator) -> Any:
        return 1 - int(old)


class RecurrentDirection(AttributeOperator):
    """A recurrent layer runs backwards."""

    name = "recurrent_direction"
    kind = FaultKind.HYPERPARAMETERS
    attribute = "direction"
    defaults: ClassVar = {"LSTM": b"forward", "GRU": b"forward", "RNN": b"forward"}

    def change(self, graph: Graph, node: onnx.NodeProto, old: Any, rng: np.random.Generator) -> Any:
        if old == b"bidirectional":
            raise Unfit(f"{node.name} runs both ways")
        return b"reverse" if old == b"forward" else b"forward"


class RecurrentClip(AttributeOperator):
    """The gates of a recurrent layer are clipped."""

    name = "recurrent_clip"
    kind = FaultKind.HYPERPARAMETERS
    attribute = "clip"
    defaults: ClassVar = {"LSTM": 0.0, "GRU": 0.0, "RNN": 0.0}

    def change(self, graph: Graph, node: onnx.NodeProto, old: Any, rng: np.random.Generator) -> Any:
        return float(rng.choice((0.05, 0.1, 0.2)))


class RecurrentActivation(AttributeOperator):
    """A recurrent layer's first activation is another function (Keras' old hard sigmoid)."""

    name = "recurrent_activation"
    kind = FaultKind.HYPERPARAMETERS
    attribute = "activations"
    defaults: ClassVar = {
        "LSTM": [b"Sigmoid", b"Tanh", b"Tanh"], "GRU": [b"Sigmoid", b"Tanh"], "RNN": [b"Tanh"],
    }  # fmt: skip

    def change(self, graph: Graph, node: onnx.NodeProto, old: Any, rng: np.random.Generator) -> Any:
        kept = list(old)
        if graph.attribute(node, "direction", b"forward") == b"bidirectional" and len(kept) == len(
            self.defaults[node.op_type]
        ):
            kept *= 2
        first = kept[0].decode()
        return [_NEXT_ACTIVATION.get(first, "Sigmoid").encode(), *kept[1:]]


class ResetGate(AttributeOperator):
    """A GRU applies its reset gate on the other side of the recurrent product."""

    name = "reset_gate"
    kind = FaultKind.HYPERPARAMETERS
    attribute = "linear_before_reset"
    defaults: ClassVar = {"GRU": 0}

    def change(self, graph: Graph, node: onnx.NodeProto, old: Any, rng: np.random.Generator) -> Any:
        return 1 - int(old)


class PadValue(FaultOperator):
    """A Pad fills the border with another number."""

    name = "pad_value"
    kind = FaultKind.HYPERPARAMETERS

    def candidates(self, graph: Graph) -> list[Candidate]:
        return [(node.name,) for node in graph.data_nodes("Pad")]

    def apply(self, graph: Graph, candidate: Candidate, rng: np.random.Generator) -> tuple[Site, ...]:
        node = graph.nodes[candidate[0]]
        if graph.opset < 11 or graph.attribute(node, "mode", b"constant") != b"constant":
            raise Unfit(f"{node.name} fills with no operand")
        old = graph.constant(node.input[2]) if len(node.input) > 2 and node.input[2] else np.zeros((), np.float32)
        if old is None or old.dtype != np.float32:
            raise Unfit(f"the fill of {node.name} is no constant float")
        value = np.asarray(old + float(rng.choice((-1.0, 0.5, 1.0))), np.float32)
        while len(node.input) < 3:
            node.input.append("")
        node.input[2] = graph.add_constant(value, f"{node.name}_fill")
        done = f"set the fill of Pad {node.name} to {float(value):g}"
        return (self.site(node.name, node.input[2], done, graph.read_by(node.output[0]), expected=old, actual=value),)


class SliceBounds(FaultOperator):
    """A Slice of fixed extent is taken one element further on or back."""

    name = "slice_bounds"
    kind = FaultKind.HYPERPARAMETERS

    def candidates(self, graph: Graph) -> list[Candidate]:
        return [(node.name,) for node in graph.data_nodes("Slice")]

    def apply(self, graph: Graph, candidate: Candidate, rng: np.random.Generator) -> tuple[Site, ...]:
        node = graph.nodes[candidate[0]]
        operands = [graph.constant(v) if v else None for v in node.input[1:]]
        if graph.opset < 10 or len(operands) < 2 or operands[0] is None or operands[1] is None:
            raise Unfit(f"the bounds of {node.name} are computed")
        starts, ends = operands[0], operands[1]
        if starts.size != 1 or (len(operands) > 3 and (operands[3] is None or abs(int(operands[3].item())) != 1)):
            raise Unfit(f"{node.name} slices several axes or by steps")
        axis = int(operands[2].item()) if len(operands) > 2 and operands[2] is not None else 0
        size = graph.shape(node.input[0])[axis]
        if size is None:
            raise Unfit(f"the extent of {node.input[0]} is unknown")
        begin, end, _ = slice(int(starts.item()), int(ends.item())).indices(size)
        moves = [m for m in (-1, 1) if begin + m >= 0 and end + m <= size]
        if not moves:
            raise Unfit(f"{node.name} takes all there is")
        move = int(rng.choice(moves))
        node.input[1] = graph.add_constant(np.full_like(starts, begin + move), f"{node.name}_starts")
        node.input[2] = graph.add_constant(np.full_like(ends, end + move), f"{node.name}_ends")
        done = f"moved the bounds of Slice {node.name} from {begin}:{end} to {begin + move}:{end + move}"
        return (self.site(node.name, node.input[1], done, expected=[begin, end], actual=[begin + move, end + move]),)


class ReduceAxes(FaultOperator):
    """A reduction works along another axis of the same extent."""

    name = "reduce_axes"
    kind = FaultKind.HYPERPARAMETERS

    def candidates(self, graph: Graph) -> list[Candidate]:
        return [
            (node.name, str(axis))
            for node in graph.data_nodes(*_REDUCTIONS)
            for axis in range(1, len(graph.shapes.get(node.input[0], ())))
        ]

    def apply(self, graph: Graph, candidate: Candidate, rng: np.random.Generator) -> tuple[Site, ...]:
        node, axis = graph.nodes[candidate[0]], int(candidate[1])
        rank = len(graph.shape(node.input[0]))
        operand = len(node.input) > 1 and bool(node.input[1])
        old = graph.constant(node.input[1]) if operand else graph.attribute(node, "axes", None)
        if old is None or len(old) != 1 or int(old[0]) % rank == axis:
            raise Unfit(f"{node.name} reduces other axes than one")
        if operand:
            node.input[1] = graph.add_constant(np.array([axis], np.int64), f"{node.name}_axes")
        else:
            graph.set_attribute(node, "axes", [axis])
        done = f"set the axes of {node.op_type} {node.name} from {[int(old[0])]} to {[axis]}"
        name = node.input[1] if operand else "axes"
        return (self.site(node.name, name, done, expected=[int(old[0])], actual=[axis]),)


class DropLowerBound(FaultOperator):
    """A clip has lost its lower bound."""

    name = "drop_lower_bound"
    kind = FaultKind.HYPERPARAMETERS

    def candidates(self, graph: Graph) -> list[Candidate]:
        return [(node.name,) for node in graph.data_nodes("Clip")]

    def apply(self, graph: Graph, candidate: Candidate, rng: np.random.Generator) -> tuple[Site, ...]:
        node = graph.nodes[candidate[0]]
        bound = graph.parameter(node, 1)
        if bound is None:
            raise Unfit(f"{node.name} has no constant lower bound")
        node.input[1] = ""
        done = f"dropped the lower bound {float(bound.value.item()):g} of Clip {node.name}"
        return (self.site(node.name, "min", done, expected=bound.value),)


class PoolStride(FaultOperator):
    """A window steps otherwise along its two axes (2x1 read as 1x2)."""

    name = "swap_strides"
    kind = FaultKind.HYPERPARAMETERS

    def candidates(self, graph: Graph) -> list[Candidate]:
        return [(node.name,) for node in graph.data_nodes("Conv", "MaxPool", "AveragePool", "ConvTranspose")]

    def apply(self, graph: Graph, candidate: Candidate, rng: np.random.Generator) -> tuple[Site, ...]:
        node = graph.nodes[candidate[0]]
        old = list(graph.attribute(node, "strides", []))
        if len(set(old)) < 2:
            raise Unfit(f"{node.name} steps alike along all axes")
        graph.set_attribute(node, "strides", old[::-1])
        done = f"set the strides of {node.op_type} {node.name} from {old} to {old[::-1]}"
        return (self.site(node.name, "strides", done, expected=old, actual=old[::-1]),)


OPERATORS: tuple[type[FaultOperator], ...] = (
    ChangeEpsilon,
    ChangeAlpha,
    CountPadding,
    CeilMode,
    PadMode,
    PadValue,
    ResizeMode,
    ResizeCoordinates,
    ResizeRounding,
    GeluApproximation,
    DepthToSpaceMode,
    TopKOrder,
    CumSumMode,
    RecurrentDirection,
    RecurrentClip,
    RecurrentActivation,
    ResetGate,
    SliceBounds,
    ReduceAxes,
    DropLowerBound,
    PoolStride,
)
