"""Faults in the graph that go beyond one activation: branches, blocks, order, wiring, baked-in values."""

# ruff: noqa: D102 - candidates and apply are documented where FaultOperator declares them
from __future__ import annotations

from typing import Any

import numpy as np
import onnx

from onnxfix.diagnose.fault import FaultKind
from onnxfix.testing.faults.editor import Graph, Unfit
from onnxfix.testing.faults.operator import Candidate, FaultOperator, Site
from onnxfix.testing.visibility import random_batches, run_all

_EXCHANGED = {
    "Add": "Sub", "Sub": "Add", "Mul": "Add", "Max": "Min", "Min": "Max", "Sin": "Cos", "Cos": "Sin", "Exp": "Sigmoid",
    "ReduceMean": "ReduceMax", "ReduceSum": "ReduceMean", "ReduceMax": "ReduceMean", "ReduceMin": "ReduceMax",
    "GlobalAveragePool": "GlobalMaxPool", "GlobalMaxPool": "GlobalAveragePool", "Floor": "Round", "Less": "Greater",
    "Greater": "Less", "ArgMax": "ArgMin", "Abs": "Relu", "And": "Or", "Or": "And",
}  # fmt: skip
_NORMS = ("BatchNormalization", "LayerNormalization", "InstanceNormalization", "GroupNormalization")
_ELEMENTWISE = (
    "Relu", "Clip", "LeakyRelu", "Sigmoid", "Tanh", "Elu", "Gelu", "Softplus", "HardSwish", "BatchNormalization",
    "LayerNormalization", "MaxPool", "AveragePool", "Softmax", "InstanceNormalization", "Mul", "Add",
)  # fmt: skip
_JOINING = ("Add", "Sub", "Mul", "Div", "Max", "Min", "Concat", "Where", "MatMul")


class DropResidual(FaultOperator):
    """A skip connection is missing: one of two summands is left out."""

    name = "drop_residual"
    kind = FaultKind.GRAPH

    def candidates(self, graph: Graph) -> list[Candidate]:
        return [
            (node.name, str(slot)) for node in graph.data_nodes("Add", "Mul") for slot in (0, 1)
            if all(graph.is_data(v) for v in node.input) and node.input[0] != node.input[1]
        ]

    def apply(self, graph: Graph, candidate: Candidate, rng: np.random.Generator) -> tuple[Site, ...]:
        node, kept = graph.nodes[candidate[0]], int(candidate[1])
        dropped = node.input[1 - kept]
        around = (
            *graph.computed_by(node.input[kept]), *graph.computed_by(dropped), *graph.read_by(node.output[0]),
        )  # fmt: skip
        done = f"left out {node.op_type} {node.name} of {dropped}"
        graph.bypass(node, kept)
        names = tuple(n for n in around if n in graph.nodes)
        if not names:
            raise Unfit(f"{candidate[0]} is the whole graph")
        return (self.site(names[0], None, done, names[1:], expected=node.op_type),)


class ExchangeOp(FaultOperator):
    """An op is another one of the same signature."""

    name = "exchange_op"
    kind = FaultKind.GRAPH

    def candidates(self, graph: Graph) -> list[Candidate]:
        return [(node.name,) for node in graph.data_nodes(*_EXCHANGED)]

    def apply(self, graph: Graph, candidate: Candidate, rng: np.random.Generator) -> tuple[Site, ...]:
        node = graph.nodes[candidate[0]]
        old, new = node.op_type, _EXCHANGED[node.op_type]
        operand = len(node.input) > 1
        if new.startswith("Reduce") and operand and graph.opset < (13 if new == "ReduceSum" else 18):
            raise Unfit(f"{new} takes no axes as an operand in opset {graph.opset}")
        if old == "ReduceSum" and not operand and graph.opset >= 13:
            raise Unfit(f"{node.name} reduces everything")
        node.op_type = new
        around = (*graph.computed_by(node.input[0]), *graph.read_by(node.output[0]))
        return (self.site(node.name, None, f"exchanged {old} {node.name} for {new}", around, expected=old, actual=new),)


class ReplacePool(FaultOperator):
    """A max pool averages, or the other way round."""

    name = "replace_pool"
    kind = FaultKind.GRAPH

    def candidates(self, graph: Graph) -> list[Candidate]:
        return [(node.name,) for node in graph.data_nodes("MaxPool", "AveragePool") if len(node.output) == 1]

    def apply(self, graph: Graph, candidate: Candidate, rng: np.random.Generator) -> tuple[Site, ...]:
        node = graph.nodes[candidate[0]]
        old, new = node.op_type, "AveragePool" if node.op_type == "MaxPool" else "MaxPool"
        for attribute in ("count_include_pad", "storage_order"):
            graph.set_attribute(node, attribute, None)
        if graph.opset < 19 and graph.attribute(node, "dilations", None) is not None:
            raise Unfit(f"{node.name} is dilated")
        node.op_type = new
        return (self.site(node.name, None, f"replaced {old} {node.name} by {new}", expected=old, actual=new),)


class InsertActivation(FaultOperator):
    """An activation stands where the source has none."""

    name = "insert_activation"
    kind = FaultKind.GRAPH

    def candidates(self, graph: Graph) -> list[Candidate]:
        makers = graph.data_nodes("Conv", "Gemm", "Add", "BatchNormalization", "LayerNormalization", "MatMul")
        return [(node.name,) for node in makers]

    def apply(self, graph: Graph, candidate: Candidate, rng: np.random.Generator) -> tuple[Site, ...]:
        node = graph.nodes[candidate[0]]
        op = str(rng.choice(("Relu", "Tanh", "Sigmoid")))
        around = (*graph.computed_by(node.output[0]), *graph.read_by(node.output[0]))
        extra = graph.splice(node.output[0], op)
        return (self.site(extra.name, None, f"inserted {op} after {node.name}", around, actual=op),)


class RemoveNorm(FaultOperator):
    """A normalisation is missing."""

    name = "remove_norm"
    kind = FaultKind.GRAPH

    def candidates(self, graph: Graph) -> list[Candidate]:
        return [(node.name,) for node in graph.data_nodes(*_NORMS)]

    def apply(self, graph: Graph, candidate: Candidate, rng: np.random.Generator) -> tuple[Site, ...]:
        node = graph.nodes[candidate[0]]
        names = (*graph.computed_by(node.input[0]), *graph.read_by(node.output[0]))
        if not names:
            raise Unfit(f"{node.name} is the whole graph")
        done = f"removed {node.op_type} {node.name}"
        graph.bypass(node)
        return (self.site(names[0], None, done, names[1:], expected=node.op_type),)


class ReorderOps(FaultOperator):
    """Two ops in a row stand in the other order (activation before norm, pool before activation)."""

    name = "reorder_ops"
    kind = FaultKind.GRAPH

    def candidates(self, graph: Graph) -> list[Candidate]:
        found: list[Candidate] = []
        for second in graph.data_nodes(*_ELEMENTWISE):
            first = graph.producer(second.input[0])
            if first is not None and first.op_type in _ELEMENTWISE and first.op_type != second.op_type:
                found.append((second.name, first.name))
        return found

    def apply(self, graph: Graph, candidate: Candidate, rng: np.random.Generator) -> tuple[Site, ...]:
        second, first = (graph.nodes[name] for name in candidate)
        middle, last = first.output[0], second.output[0]
        if len(graph.consumers(middle)) != 1 or middle in graph.outputs or len(first.output) + len(second.output) > 2:
            raise Unfit(f"others read {middle}")
        if not graph.is_data(first.input[0]) or any(graph.is_data(v) for v in (*first.input[1:], *second.input[1:])):
            raise Unfit(f"{first.name} or {second.name} joins two branches")
        copies = [onnx.NodeProto(), onnx.NodeProto()]
        copies[0].CopyFrom(second)
        copies[1].CopyFrom(first)
        copies[0].input[0], copies[0].output[0] = first.input[0], middle
        copies[1].input[0], copies[1].output[0] = middle, last
        first.CopyFrom(copies[0])
        second.CopyFrom(copies[1])
        done = f"exchanged {copies[1].op_type} {copies[1].name} and {copies[0].op_type} {copies[0].name}"
        around = (copies[1].name, *graph.computed_by(copies[0].input[0]), *graph.read_by(last))
        return (self.site(copies[0].name, None, done, around),)


class RewireOperand(FaultOperator):
    """A node reads another tensor of the same shape than it should."""

    name = "rewire_operand"
    kind = FaultKind.GRAPH

    def candidates(self, graph: Graph) -> list[Candidate]:
        found: list[Candidate] = []
        before: list[str] = []
        for node in graph.graph.node:
            for slot, value in enumerate(node.input if node.op_type in _JOINING else ()):
                same = [v for v in before if v != value and graph.shapes.get(v) == graph.shapes.get(value) is not None]
                found += [(node.name, str(slot), other) for other in same[-4:] if graph.is_data(value)]
            before += [v for v in node.output if graph.is_data(v)]
        return found

    def apply(self, graph: Graph, candidate: Candidate, rng: np.random.Generator) -> tuple[Site, ...]:
        node, slot, other = graph.nodes[candidate[0]], int(candidate[1]), candidate[2]
        old = node.input[slot]
        node.input[slot] = other
        done = f"rewired operand {slot} of {node.op_type} {node.name} from {old} to {other}"
        around = (*graph.computed_by(old), *graph.computed_by(other), *graph.read_by(node.output[0]))
        return (self.site(node.name, None, done, around, expected=old, actual=other),)


class RemoveBlock(FaultOperator):
    """Several ops in a row are missing (a whole layer left out)."""

    name = "remove_block"
    kind = FaultKind.GRAPH

    def candidates(self, graph: Graph) -> list[Candidate]:
        found: list[Candidate] = []
        for last in graph.data_nodes():
            node: onnx.NodeProto | None = last
            inside = [last.name]
            while len(inside) < 6:
                node = graph.producer(node.input[0]) if node is not None else None
                if node is None or not node.input:
                    break
                inside.append(node.name)
                same = graph.shapes.get(node.input[0]) == graph.shapes.get(last.output[0]) is not None
                if len(inside) > 1 and same and graph.is_data(node.input[0]):
                    found.append((last.name, node.name))
        return found

    def apply(self, graph: Graph, candidate: Candidate, rng: np.random.Generator) -> tuple[Site, ...]:
        last, first = (graph.nodes[name] for name in candidate)
        value = first.input[0]
        names = (*graph.computed_by(value), *graph.read_by(value), *graph.read_by(last.output[0]))
        readers = graph.consumers(last.output[0])
        if not readers or last.output[0] in graph.outputs or len(last.output) > 1:
            raise Unfit(f"{last.name} computes a graph output")
        if any(graph.ends_layer(graph.nodes[n]) for v in (value, last.output[0]) for n in graph.read_by(v)):
            raise Unfit(f"half a layer would be left of {first.name} or {last.name}")
        for reader, slot in readers:
            reader.input[slot] = value
        done = f"left out all from {first.op_type} {first.name} to {last.op_type} {last.name}"
        gone = graph.prune_nodes()
        left = [n for n in names if n not in gone]
        if not left:
            raise Unfit("nothing is left beside the block")
        return (self.site(left[0], None, done, tuple(left[1:]), expected=[first.op_type, last.op_type]),)


class BakeConstant(FaultOperator):
    """A value that the source computes is the constant that it had for one input (a branch frozen at tracing)."""

    name = "bake_constant"
    kind = FaultKind.GRAPH

    def candidates(self, graph: Graph) -> list[Candidate]:
        return [
            (node.name, str(slot))
            for node in graph.data_nodes("Add", "Mul", "Sub", "Div", "Where", "Max", "Min", "Pow")
            for slot, value in enumerate(node.input)
            if graph.is_data(value) and sum(graph.is_data(v) for v in node.input) > 1
        ]

    def apply(self, graph: Graph, candidate: Candidate, rng: np.random.Generator) -> tuple[Site, ...]:
        node, slot = graph.nodes[candidate[0]], int(candidate[1])
        value = node.input[slot]
        if graph.producer(value) is None:
            raise Unfit(f"{value} is an input")
        content = _value_of(graph, value, rng)
        if content.ndim and content.shape[0] != 1:
            raise Unfit(f"{value} holds more than one sample")
        node.input[slot] = graph.add_constant(content, f"{value}_baked")
        names = (*graph.computed_by(value), *graph.read_by(node.output[0]))
        gone = graph.prune_nodes()
        done = f"baked {value} into {node.op_type} {node.name}"
        return (
            self.site(node.name, None, done, tuple(n for n in names if n not in gone), expected=value, actual=content),
        )


def _value_of(graph: Graph, value: str, rng: np.random.Generator) -> Any:
    """What a value is for one random input."""
    tapped = onnx.ModelProto()
    tapped.CopyFrom(graph.proto)
    del tapped.graph.output[:]
    tapped.graph.output.append(onnx.ValueInfoProto(name=value))
    return run_all(tapped, random_batches(tapped, rng)[:1])[0][value]


OPERATORS: tuple[type[FaultOperator], ...] = (
    DropResidual,
    ExchangeOp,
    ReplacePool,
    InsertActivation,
    RemoveNorm,
    ReorderOps,
    RewireOperand,
    RemoveBlock,
    BakeConstant,
)
