"""Faults at a model's boundary: how inputs are prepared, what the outputs are, sizes that are frozen."""

# ruff: noqa: D102 - candidates and apply are documented where FaultOperator declares them
from __future__ import annotations

import numpy as np
import onnx
from onnx import helper

from onnxfix.diagnose.fault import FaultKind
from onnxfix.testing.faults.editor import Graph, Unfit
from onnxfix.testing.faults.operator import Candidate, FaultOperator, Site
from onnxfix.testing.faults.weights import weight_of


class _InputOperator(FaultOperator):
    """Puts something between an input and what reads it."""

    kind = FaultKind.PREPROCESSING

    def candidates(self, graph: Graph) -> list[Candidate]:
        return [(info.name,) for info in graph.graph.input if info.name in graph.inputs and self.fits(info, graph)]

    def fits(self, info: onnx.ValueInfoProto, graph: Graph) -> bool:
        """Whether the fault can be planted at an input: one of float32 with two axes or more."""
        tensor = info.type.tensor_type
        plain = tensor.elem_type == onnx.TensorProto.FLOAT and info.name not in graph.outputs
        return plain and len(tensor.shape.dim) >= 2

    def planted(
        self, name: str, nodes: list[onnx.NodeProto], description: str, also: tuple[str, ...]
    ) -> tuple[Site, ...]:
        """Ground truth: the first node put in; the others and what reads the input are rightly named as well."""
        return (self.site(nodes[0].name, name, description, (*(node.name for node in nodes[1:]), *also)),)


class ScaleInput(_InputOperator):
    """Pixels are expected in another range: the model scales what comes scaled already."""

    name = "scale_input"

    def apply(self, graph: Graph, candidate: Candidate, rng: np.random.Generator) -> tuple[Site, ...]:
        [name] = candidate
        around = graph.read_by(name)
        factor, shift = [(1 / 255, 0.0), (255.0, 0.0), (1 / 127.5, -1.0), (2.0, -1.0)][int(rng.integers(4))]
        nodes = [graph.splice(name, "Mul", graph.add_constant(np.array(factor, np.float32), "scale"))]
        if shift:
            summand = graph.add_constant(np.array(shift, np.float32), "shift")
            nodes.append(graph.splice(nodes[0].output[0], "Add", summand))
        return self.planted(name, nodes, f"input {name} is multiplied by {factor:.4g} and shifted by {shift:g}", around)


class NormalizeInput(_InputOperator):
    """Mean and standard deviation of each channel are taken out once more."""

    name = "normalize_input"

    def fits(self, info: onnx.ValueInfoProto, graph: Graph) -> bool:
        return super().fits(info, graph) and _channels(info) is not None

    def apply(self, graph: Graph, candidate: Candidate, rng: np.random.Generator) -> tuple[Site, ...]:
        [name] = candidate
        around = graph.read_by(name)
        axis, count = _channels(_info(graph, name)) or (1, 1)
        rank = len(_info(graph, name).type.tensor_type.shape.dim)
        wide = [count if k == axis else 1 for k in range(rank)]
        mean = rng.uniform(0.3, 0.6, count).astype(np.float32).reshape(wide)
        std = rng.uniform(0.2, 0.3, count).astype(np.float32).reshape(wide)
        first = graph.splice(name, "Sub", graph.add_constant(mean, "mean"))
        second = graph.splice(first.output[0], "Div", graph.add_constant(std, "std"))
        return self.planted(name, [first, second], f"input {name} is normalized per channel", around)


class ReverseChannels(_InputOperator):
    """RGB is taken for BGR."""

    name = "reverse_channels"

    def fits(self, info: onnx.ValueInfoProto, graph: Graph) -> bool:
        channels = _channels(info)
        return super().fits(info, graph) and channels is not None and channels[1] == 3

    def apply(self, graph: Graph, candidate: Candidate, rng: np.random.Generator) -> tuple[Site, ...]:
        [name] = candidate
        around = graph.read_by(name)
        axis, count = _channels(_info(graph, name)) or (1, 1)
        order = graph.add_constant(np.arange(count)[::-1].astype(np.int64), "order")
        node = graph.splice(name, "Gather", order, axis=axis)
        return self.planted(name, [node], f"the channels of input {name} are reversed", around)


class FoldReversedChannels(FaultOperator):
    """The first convolution was made for BGR."""

    name = "fold_reversed_channels"
    kind = FaultKind.PREPROCESSING

    def candidates(self, graph: Graph) -> list[Candidate]:
        return [(node.name,) for node in graph.data_nodes("Conv") if node.input[0] in graph.inputs]

    def apply(self, graph: Graph, candidate: Candidate, rng: np.random.Generator) -> tuple[Site, ...]:
        node = graph.nodes[candidate[0]]
        operand, weight = weight_of(graph, node)
        if weight.shape[1] != 3:
            raise Unfit(f"{node.name} does not take three channels")
        name = graph.set_parameter(node, operand, weight[:, ::-1])
        return (self.site(node.name, name, f"reversed the input channels of {node.name}"),)


class FreezeReshape(FaultOperator):
    """One sample is baked into the target of a Reshape."""

    name = "freeze_reshape"
    kind = FaultKind.INPUT_DIMENSIONS
    reforms = True

    def candidates(self, graph: Graph) -> list[Candidate]:
        return [(node.name,) for node in graph.data_nodes("Reshape", "Flatten")]

    def apply(self, graph: Graph, candidate: Candidate, rng: np.random.Generator) -> tuple[Site, ...]:
        node = graph.nodes[candidate[0]]
        if node.op_type == "Flatten" and graph.attribute(node, "axis", 1) != 1:
            raise Unfit(f"{node.name} does not flatten samples")
        before, after = graph.shape(node.input[0]), graph.shape(node.output[0])
        if before[0] is not None or None in after[1:] or len(after) < 2:
            raise Unfit(f"{node.name} takes no free number of samples")
        node.op_type = "Reshape"
        del node.attribute[:]
        shape = graph.add_constant(np.asarray([1, *(int(d or 1) for d in after[1:])], np.int64), "shape")
        node.input[:] = [node.input[0], shape]
        return (self.site(node.name, shape, f"baked one sample into {node.name}"),)


class FreezeInput(_InputOperator):
    """The height and width of an input are fixed to others than the data have."""

    name = "freeze_input"
    kind = FaultKind.INPUT_DIMENSIONS
    reforms = True

    def fits(self, info: onnx.ValueInfoProto, graph: Graph) -> bool:
        return any(not dim.HasField("dim_value") for dim in info.type.tensor_type.shape.dim[1:])

    def apply(self, graph: Graph, candidate: Candidate, rng: np.random.Generator) -> tuple[Site, ...]:
        info, size = _info(graph, candidate[0]), int(rng.choice((33, 35, 37)))
        for dim in list(info.type.tensor_type.shape.dim)[1:]:
            if not dim.HasField("dim_value"):
                dim.dim_value = size
        readers = graph.read_by(info.name)
        return (self.site(readers[0], info.name, f"fixed the size of {info.name} to {size}", readers[1:]),)


class TransposeInput(_InputOperator):
    """Two axes of the same size are taken for each other: rows for columns."""

    name = "transpose_input"
    kind = FaultKind.TENSOR_LAYOUT

    def fits(self, info: onnx.ValueInfoProto, graph: Graph) -> bool:
        return super().fits(info, graph) and _square(info) is not None

    def apply(self, graph: Graph, candidate: Candidate, rng: np.random.Generator) -> tuple[Site, ...]:
        [name] = candidate
        info = _info(graph, name)
        i, j = _square(info) or (0, 0)
        perm = list(range(len(info.type.tensor_type.shape.dim)))
        perm[i], perm[j] = j, i
        around = graph.read_by(name)
        node = graph.splice(name, "Transpose", perm=perm)
        return self.planted(name, [node], f"input {name} is transposed by {perm}", around)


def _info(graph: Graph, name: str) -> onnx.ValueInfoProto:
    found: onnx.ValueInfoProto = next(info for info in graph.graph.input if info.name == name)
    return found


def _channels(info: onnx.ValueInfoProto) -> tuple[int, int] | None:
    """Axis and number of an input's channels: one or three of them, after the batch or last."""
    sizes = [dim.dim_value for dim in info.type.tensor_type.shape.dim]
    if len(sizes) < 3:
        return (1, sizes[1]) if len(sizes) == 2 and sizes[1] > 1 else None
    return next(((axis, sizes[axis]) for axis in (1, len(sizes) - 1) if sizes[axis] in (1, 3)), None)


def _square(info: onnx.ValueInfoProto) -> tuple[int, int] | None:
    """The last two axes behind the batch that have the same size."""
    sizes = [dim.dim_value for dim in info.type.tensor_type.shape.dim]
    pairs = [(i, j) for j in range(len(sizes) - 1, 0, -1) for i in range(j - 1, 0, -1) if sizes[i] == sizes[j] > 1]
    return pairs[0] if pairs else None


def output_type(info: onnx.ValueInfoProto, dims: list[int | str | None], kind: int = 0) -> None:
    """Give a graph output another shape, and another element type where one is given."""
    made = helper.make_tensor_value_info(info.name, kind or info.type.tensor_type.elem_type, dims)
    info.CopyFrom(made)


OPERATORS: tuple[type[FaultOperator], ...] = (
    ScaleInput,
    NormalizeInput,
    ReverseChannels,
    FoldReversedChannels,
    FreezeReshape,
    FreezeInput,
    TransposeInput,
)
