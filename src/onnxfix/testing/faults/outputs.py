"""Faults in outputs: other classes, another order, activations too many or too few."""

# ruff: noqa: D102 - candidates and apply are documented where FaultOperator declares them
from __future__ import annotations

import numpy as np
import onnx

from onnxfix.diagnose.fault import FaultKind
from onnxfix.testing.faults.boundary import output_type
from onnxfix.testing.faults.editor import Graph, Unfit
from onnxfix.testing.faults.operator import Candidate, FaultOperator, Site
from onnxfix.testing.faults.weights import output_axis, weight_of

Dims = list[int | str | None]


def _dims(info: onnx.ValueInfoProto) -> Dims:
    return [d.dim_value if d.HasField("dim_value") else (d.dim_param or None) for d in info.type.tensor_type.shape.dim]


class _OutputOperator(FaultOperator):
    """Changes what a float output is."""

    kind = FaultKind.OUTPUT

    def candidates(self, graph: Graph) -> list[Candidate]:
        return [
            (info.name,) for info in graph.graph.output
            if info.type.tensor_type.elem_type == onnx.TensorProto.FLOAT and graph.producer(info.name) is not None
            and self.fits(_dims(info))
        ]  # fmt: skip

    def fits(self, dims: Dims) -> bool:
        """Whether an output of that shape will do: class scores of each sample."""
        return len(dims) == 2 and isinstance(dims[1], int) and dims[1] > 2

    def info(self, graph: Graph, candidate: Candidate) -> onnx.ValueInfoProto:
        """The output."""
        found: onnx.ValueInfoProto = next(info for info in graph.graph.output if info.name == candidate[0])
        return found


class PermuteLabels(_OutputOperator):
    """The classes are given in another order."""

    name = "permute_labels"

    def apply(self, graph: Graph, candidate: Candidate, rng: np.random.Generator) -> tuple[Site, ...]:
        [name] = candidate
        around = graph.computed_by(name)
        classes = graph.shape(name)[1] or 0
        order = rng.permutation(classes)
        if np.array_equal(order, np.arange(classes)):
            raise Unfit("the classes would keep their order")
        node = graph.splice(name, "Gather", graph.add_constant(order.astype(np.int64), "order"), axis=1)
        return (self.site(node.name, name, f"permuted the classes of {name}", around),)


class PermuteClasses(FaultOperator):
    """The last dense layer has its classes in another order, weights and bias alike."""

    name = "permute_classes"
    kind = FaultKind.OUTPUT

    def candidates(self, graph: Graph) -> list[Candidate]:
        last = {name for output in graph.outputs for name in graph.computed_by(output)}
        through = [graph.nodes[n] for n in last if graph.nodes[n].op_type in ("Softmax", "Sigmoid", "LogSoftmax")]
        last.update(name for node in through for name in graph.computed_by(node.input[0]))
        return [(node.name,) for node in graph.data_nodes("Gemm") if node.name in last and len(node.input) > 2]

    def apply(self, graph: Graph, candidate: Candidate, rng: np.random.Generator) -> tuple[Site, ...]:
        node = graph.nodes[candidate[0]]
        operand, weight = weight_of(graph, node)
        bias = graph.parameter(node, 2)
        axis = output_axis(graph, node, operand)
        classes = weight.shape[axis]
        if bias is None or bias.value.shape != (classes,) or classes < 3 or np.ptp(bias.value) == 0:
            raise Unfit(f"{node.name} has no bias that differs from class to class")
        order = rng.permutation(classes)
        if np.array_equal(order, np.arange(classes)):
            raise Unfit("the classes would keep their order")
        name = graph.set_parameter(node, operand, weight.take(order, axis))
        graph.set_parameter(node, 2, bias.value[order])
        return (self.site(node.name, name, f"permuted the classes of {node.name}"),)


class AddBackground(_OutputOperator):
    """A class for the background comes first, and all labels are one off."""

    name = "add_background_class"
    reforms = True

    def apply(self, graph: Graph, candidate: Candidate, rng: np.random.Generator) -> tuple[Site, ...]:
        [name] = candidate
        info = self.info(graph, candidate)
        dims = _dims(info)
        around = graph.computed_by(name)
        pads = graph.add_constant(np.array([0, 1, 0, 0], np.int64), "pads")
        if graph.opset < 11:
            raise Unfit(f"Pad takes no operand in opset {graph.opset}")
        node = graph.splice(name, "Pad", pads)
        output_type(info, [dims[0], int(dims[1] or 0) + 1])
        return (self.site(node.name, name, f"put a class in front of the others of {name}", around),)


class AddSoftmax(_OutputOperator):
    """A softmax too many."""

    name = "add_softmax"

    def apply(self, graph: Graph, candidate: Candidate, rng: np.random.Generator) -> tuple[Site, ...]:
        [name] = candidate
        around = graph.computed_by(name)
        node = graph.splice(name, "Softmax", axis=-1)
        return (self.site(node.name, name, f"put a Softmax on {name}", around),)


class DropSoftmax(_OutputOperator):
    """Logits instead of probabilities."""

    name = "drop_softmax"

    def apply(self, graph: Graph, candidate: Candidate, rng: np.random.Generator) -> tuple[Site, ...]:
        [name] = candidate
        node = graph.producer(name)
        if node is None or node.op_type not in ("Softmax", "Sigmoid", "LogSoftmax"):
            raise Unfit(f"{name} has no activation")
        around = graph.computed_by(node.input[0])
        graph.bypass(node)
        if not around:
            raise Unfit(f"nothing computes {name} but its activation")
        return (self.site(around[0], name, f"dropped {node.op_type} before {name}", around[1:]),)


class TransposeOutput(_OutputOperator):
    """The axes of an output are in another order."""

    name = "transpose_output"
    reforms = True

    def fits(self, dims: Dims) -> bool:
        return len(dims) >= 3 and all(isinstance(d, int) for d in dims[1:])

    def apply(self, graph: Graph, candidate: Candidate, rng: np.random.Generator) -> tuple[Site, ...]:
        [name] = candidate
        info = self.info(graph, candidate)
        dims = _dims(info)
        perm = [*range(len(dims) - 2), len(dims) - 1, len(dims) - 2]
        around = graph.computed_by(name)
        node = graph.splice(name, "Transpose", perm=perm)
        output_type(info, [dims[axis] for axis in perm])
        return (self.site(node.name, name, f"transposed {name} by {perm}", around),)


class ReorderOutputs(FaultOperator):
    """The outputs are given in another order."""

    name = "reorder_outputs"
    kind = FaultKind.OUTPUT
    reforms = True

    def candidates(self, graph: Graph) -> list[Candidate]:
        return [(info.name,) for info in graph.graph.output[1:]]

    def apply(self, graph: Graph, candidate: Candidate, rng: np.random.Generator) -> tuple[Site, ...]:
        outputs = list(graph.graph.output)
        moved = next(info for info in outputs if info.name == candidate[0])
        outputs.remove(moved)
        del graph.graph.output[:]
        graph.graph.output.extend([moved, *outputs])
        makers = [name for info in graph.graph.output for name in graph.computed_by(info.name)]
        return (self.site(makers[0], moved.name, f"made {moved.name} the first output", tuple(makers[1:])),)


class AddOutput(FaultOperator):
    """A value inside is given as a further output."""

    name = "add_output"
    kind = FaultKind.OUTPUT
    reforms = True

    def candidates(self, graph: Graph) -> list[Candidate]:
        return [(node.name, node.output[0]) for node in graph.data_nodes() if node.output[0] not in graph.outputs]

    def apply(self, graph: Graph, candidate: Candidate, rng: np.random.Generator) -> tuple[Site, ...]:
        node, value = candidate
        if value not in graph.shapes:
            raise Unfit(f"the shape of {value} is unknown")
        info = onnx.helper.make_tensor_value_info(value, onnx.TensorProto.FLOAT, list(graph.shapes[value]))
        graph.graph.output.insert(int(rng.integers(len(graph.graph.output) + 1)), info)
        return (self.site(node, value, f"gave {value} as an output"),)


class DropOutput(FaultOperator):
    """An output is not given any more."""

    name = "drop_output"
    kind = FaultKind.OUTPUT
    reforms = True

    def candidates(self, graph: Graph) -> list[Candidate]:
        return [(info.name,) for info in graph.graph.output] if len(graph.graph.output) > 1 else []

    def apply(self, graph: Graph, candidate: Candidate, rng: np.random.Generator) -> tuple[Site, ...]:
        [name] = candidate
        maker = graph.computed_by(name)
        gone = next(info for info in graph.graph.output if info.name == name)
        graph.graph.output.remove(gone)
        return (self.site(maker[0], name, f"left out output {name}", maker[1:]),)


OPERATORS: tuple[type[FaultOperator], ...] = (
    PermuteLabels,
    PermuteClasses,
    AddBackground,
    AddSoftmax,
    DropSoftmax,
    TransposeOutput,
    ReorderOutputs,
    AddOutput,
    DropOutput,
)
