"""Faults in attributes: pads, dilations, bounds, epsilon, axis."""

# ruff: noqa: D102 - candidates and apply are documented where FaultOperator declares them
from __future__ import annotations

import numpy as np
import onnx

from onnxfix.diagnose.fault import FaultKind
from onnxfix.testing.faults.editor import Graph, Unfit
from onnxfix.testing.faults.operator import Candidate, FaultOperator, Site
from onnxfix.testing.faults.weights import other_epsilon

_WINDOWED = ("Conv", "MaxPool", "AveragePool", "LpPool")


class ShiftPads(FaultOperator):
    """Padding moves from the end to the beginning of each axis; the output keeps its shape."""

    name = "shift_pads"
    kind = FaultKind.HYPERPARAMETERS

    def candidates(self, graph: Graph) -> list[Candidate]:
        return [(node.name,) for node in graph.data_nodes(*_WINDOWED, "Pad")]

    def apply(self, graph: Graph, candidate: Candidate, rng: np.random.Generator) -> tuple[Site, ...]:
        node = graph.nodes[candidate[0]]
        if node.op_type == "Pad":
            return (self._shift_pad_node(graph, node),)
        pads = window_pads(graph, node)
        shifted = _shifted(pads)
        graph.set_attribute(node, "auto_pad", None)
        graph.set_attribute(node, "pads", shifted)
        return (self.site(node.name, "pads", f"shifted the pads of {node.name} from {pads} to {shifted}"),)

    def _shift_pad_node(self, graph: Graph, node: onnx.NodeProto) -> Site:
        if graph.opset < 11:
            pads = list(graph.attribute(node, "pads", []))
            shifted = _shifted(pads)
            graph.set_attribute(node, "pads", shifted)
            return self.site(node.name, "pads", f"shifted the pads of {node.name} from {pads} to {shifted}")
        constant = graph.constant(node.input[1])
        if constant is None:
            raise Unfit(f"the pads of {node.name} are computed")
        pads = constant.tolist()
        shifted = _shifted(pads)
        node.input[1] = graph.add_constant(np.array(shifted, np.int64), f"{node.name}_pads")
        done = f"shifted the pads of {node.name} from {pads} to {shifted}"
        return self.site(node.name, node.input[1], done, graph.read_by(node.output[0]))


class ChangeDilation(FaultOperator):
    """A convolution's dilation doubles and its pads grow with it, so that the output keeps its shape."""

    name = "change_stride_dilation"
    kind = FaultKind.HYPERPARAMETERS

    def candidates(self, graph: Graph) -> list[Candidate]:
        return [(node.name,) for node in graph.data_nodes("Conv")]

    def apply(self, graph: Graph, candidate: Candidate, rng: np.random.Generator) -> tuple[Site, ...]:
        node = graph.nodes[candidate[0]]
        kernel = kernel_shape(graph, node)
        pads = window_pads(graph, node)
        dilations = list(graph.attribute(node, "dilations", [1] * len(kernel)))
        if max(kernel) == 1:
            raise Unfit(f"{node.name} has a kernel of one element")
        growth = [d * (k - 1) for d, k in zip(dilations, kernel, strict=True)]
        before = [p + g // 2 for p, g in zip(pads, growth, strict=False)]
        after = [p + g - g // 2 for p, g in zip(pads[len(kernel):], growth, strict=True)]
        graph.set_attribute(node, "auto_pad", None)
        graph.set_attribute(node, "dilations", [2 * d for d in dilations])
        graph.set_attribute(node, "pads", before + after)
        done = f"doubled the dilations of {node.name} and set its pads from {pads} to {before + after}"
        return (self.site(node.name, "dilations", done),)


class ChangeClipBound(FaultOperator):
    """A clipping bound is another number (a ReLU6 that clips at 3)."""

    name = "change_clip_bound"
    kind = FaultKind.HYPERPARAMETERS

    def candidates(self, graph: Graph) -> list[Candidate]:
        clips: list[Candidate] = [(node.name,) for node in graph.data_nodes("Clip")]
        bounds = [n for n in graph.data_nodes("Min") if any(_scalar(graph, n, i) is not None for i in (0, 1))]
        return clips + [(node.name,) for node in bounds]

    def apply(self, graph: Graph, candidate: Candidate, rng: np.random.Generator) -> tuple[Site, ...]:
        node = graph.nodes[candidate[0]]
        factor = float(rng.choice((0.5, 0.75)))
        if node.op_type == "Clip" and graph.opset < 11:
            bound = graph.attribute(node, "max", None)
            if bound is None:
                raise Unfit(f"{node.name} has no upper bound")
            graph.set_attribute(node, "max", bound * factor)
            return (self.site(node.name, "max", f"set the upper bound of {node.name} to {bound * factor:g}"),)
        operand = 2 if node.op_type == "Clip" else 0 if _scalar(graph, node, 0) is not None else 1
        bound = _scalar(graph, node, operand)
        if bound is None:
            raise Unfit(f"{node.name} has no constant upper bound")
        parameter = graph.parameter(node, operand)
        if parameter is None:
            raise Unfit(f"{node.name} has no constant upper bound")
        name = graph.set_parameter(node, operand, (parameter.value * factor).astype(parameter.value.dtype))
        return (self.site(node.name, name, f"set the upper bound of {node.name} to {bound * factor:g}"),)


class BatchNormEpsilon(FaultOperator):
    """A batch norm has another framework's default epsilon."""

    name = "bn_epsilon"
    kind = FaultKind.HYPERPARAMETERS

    def candidates(self, graph: Graph) -> list[Candidate]:
        return [(node.name,) for node in graph.data_nodes("BatchNormalization")]

    def apply(self, graph: Graph, candidate: Candidate, rng: np.random.Generator) -> tuple[Site, ...]:
        node = graph.nodes[candidate[0]]
        variance = graph.parameter(node, 4)
        if variance is None:
            raise Unfit(f"the variance of {node.name} is not constant")
        epsilon = other_epsilon(float(graph.attribute(node, "epsilon", 1e-5)), variance.value)
        graph.set_attribute(node, "epsilon", epsilon)
        return (self.site(node.name, "epsilon", f"set the epsilon of {node.name} to {epsilon:g}"),)


class ChangeAxis(FaultOperator):
    """A softmax, a reduction or a concatenation works on another axis."""

    name = "change_axis"
    kind = FaultKind.HYPERPARAMETERS

    def candidates(self, graph: Graph) -> list[Candidate]:
        nodes = graph.data_nodes("Softmax", "LogSoftmax", "Hardmax", "Concat", "LpNormalization", "ArgMax", "ArgMin")
        return [
            (node.name, str(axis)) for node in nodes
            for axis in range(len(graph.shapes.get(node.input[0], ())))
        ]

    def apply(self, graph: Graph, candidate: Candidate, rng: np.random.Generator) -> tuple[Site, ...]:
        node, axis = graph.nodes[candidate[0]], int(candidate[1])
        rank = len(graph.shape(node.input[0]))
        default = {"Concat": 0, "ArgMax": 0, "ArgMin": 0, "LpNormalization": -1}.get(
            node.op_type, -1 if graph.opset >= 13 else 1
        )
        old = int(graph.attribute(node, "axis", default))
        if axis in (0, old % rank):
            raise Unfit(f"axis {axis} of {node.name} is the batch axis or the one it works on")
        graph.set_attribute(node, "axis", axis)
        return (self.site(node.name, "axis", f"set the axis of {node.name} from {old} to {axis}"),)


def kernel_shape(graph: Graph, node: onnx.NodeProto) -> list[int]:
    """The spatial extent of a window."""
    kernel = graph.attribute(node, "kernel_shape", None)
    if kernel is not None:
        return list(kernel)
    shape = graph.shape(node.input[1])[2:]
    if None in shape:
        raise Unfit(f"the kernel shape of {node.name} is unknown")
    return [int(k) for k in shape if k is not None]


def window_pads(graph: Graph, node: onnx.NodeProto) -> list[int]:
    """Explicit pads of a window (begins, then ends), ``auto_pad`` resolved."""
    kernel = kernel_shape(graph, node)
    mode = graph.attribute(node, "auto_pad", b"NOTSET").decode()
    if mode in ("NOTSET", ""):
        return list(graph.attribute(node, "pads", [0] * 2 * len(kernel)))
    if mode == "VALID":
        return [0] * 2 * len(kernel)
    sizes = graph.shape(node.input[0])[2:]
    strides = graph.attribute(node, "strides", [1] * len(kernel))
    dilations = graph.attribute(node, "dilations", [1] * len(kernel))
    small, large = [], []
    for size, extent, stride, dilation in zip(sizes, kernel, strides, dilations, strict=True):
        if size is None:
            raise Unfit(f"the input shape of {node.name} is unknown")
        total = max(0, (-(-size // stride) - 1) * stride + dilation * (extent - 1) + 1 - size)
        small.append(total // 2)
        large.append(total - total // 2)
    return small + large if mode == "SAME_UPPER" else large + small


def _shifted(pads: list[int]) -> list[int]:
    half = len(pads) // 2
    moved = [1 if end > 0 else 0 for end in pads[half:]]
    if not any(moved):
        raise Unfit("there is no padding at the end to move")
    return [p + m for p, m in zip(pads, moved, strict=False)] + [
        p - m for p, m in zip(pads[half:], moved, strict=True)
    ]


def _scalar(graph: Graph, node: onnx.NodeProto, operand: int) -> float | None:
    parameter = graph.parameter(node, operand)
    return float(parameter.value.reshape(())) if parameter is not None and parameter.value.size == 1 else None


OPERATORS: tuple[type[FaultOperator], ...] = (
    ShiftPads,
    ChangeDilation,
    ChangeClipBound,
    BatchNormEpsilon,
    ChangeAxis,
)
