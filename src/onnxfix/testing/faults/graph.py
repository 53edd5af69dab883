"""Faults in the graph: an op missing, extra, doubled, replaced, or with its operands in the wrong order."""

# ruff: noqa: D102 - candidates and apply are documented where FaultOperator declares them
from __future__ import annotations

from typing import Any

import numpy as np
import onnx

from onnxfix.diagnose.fault import FaultKind
from onnxfix.testing.faults.editor import Graph, Unfit
from onnxfix.testing.faults.operator import Candidate, FaultOperator, Site

# What a converter mistakes an activation for: op -> (op, attributes). Inputs beyond the first are dropped.
_MISTAKEN: dict[str, tuple[str, dict[str, Any]]] = {
    "Relu": ("Elu", {}),
    "Clip": ("Relu", {}),
    "LeakyRelu": ("Relu", {}),
    "PRelu": ("Relu", {}),
    "Elu": ("LeakyRelu", {"alpha": 0.1}),
    "Selu": ("Elu", {}),
    "Sigmoid": ("HardSigmoid", {}),
    "HardSigmoid": ("Sigmoid", {}),
    "Tanh": ("Softsign", {}),
    "Softplus": ("Relu", {}),
    "Softsign": ("Tanh", {}),
    "HardSwish": ("Relu", {}),
    "Gelu": ("Relu", {}),
    "Mish": ("Relu", {}),
}
_IDEMPOTENT = frozenset({"Relu", "Clip", "Identity", "Abs", "Ceil", "Floor", "Round", "Cast", "Reshape", "Flatten"})


class RemoveActivation(FaultOperator):
    """An activation is missing."""

    name = "remove_activation"
    kind = FaultKind.GRAPH

    def candidates(self, graph: Graph) -> list[Candidate]:
        return [(node.name,) for node in graph.data_nodes(*_MISTAKEN)]

    def apply(self, graph: Graph, candidate: Candidate, rng: np.random.Generator) -> tuple[Site, ...]:
        node = graph.nodes[candidate[0]]
        names = graph.computed_by(node.input[0]) or graph.read_by(node.output[0])
        if not names:
            raise Unfit(f"{node.name} is the whole graph")
        done = f"removed {node.op_type} {node.name}"
        graph.bypass(node)
        return (self.site(names[0], None, done, names[1:]),)


class ReplaceActivation(FaultOperator):
    """An activation is another function."""

    name = "replace_activation"
    kind = FaultKind.GRAPH

    def candidates(self, graph: Graph) -> list[Candidate]:
        return [(node.name,) for node in graph.data_nodes(*_MISTAKEN)]

    def apply(self, graph: Graph, candidate: Candidate, rng: np.random.Generator) -> tuple[Site, ...]:
        node = graph.nodes[candidate[0]]
        op_type, attributes = _MISTAKEN[node.op_type]
        done = f"replaced {node.op_type} {node.name} by {op_type}"
        node.op_type = op_type
        node.domain = ""
        del node.input[1:]
        del node.attribute[:]
        node.attribute.extend(onnx.helper.make_attribute(key, value) for key, value in attributes.items())
        return (self.site(node.name, None, done),)


class InsertMul(FaultOperator):
    """A value is scaled by a constant on its way."""

    name = "insert_mul"
    kind = FaultKind.GRAPH

    def candidates(self, graph: Graph) -> list[Candidate]:
        return [(node.name, node.output[0]) for node in graph.data_nodes() if node.output[0] not in graph.outputs]

    def apply(self, graph: Graph, candidate: Candidate, rng: np.random.Generator) -> tuple[Site, ...]:
        node, value = candidate
        around = (*graph.computed_by(value), *graph.read_by(value))
        if not graph.consumers(value):
            raise Unfit(f"nothing reads {value}")
        factor = np.array(rng.choice((0.5, 0.8, 1.25, 1.5)), np.float32)
        mul = graph.splice(value, "Mul", graph.add_constant(factor, "factor"))
        done = f"inserted Mul {mul.name} by {factor:g} after {node}"
        # A scale folds into the layer before or after it, so these are rightly named as well.
        return (self.site(mul.name, None, done, around),)


class DuplicateNode(FaultOperator):
    """A node is applied twice in a row."""

    name = "duplicate_node"
    kind = FaultKind.GRAPH

    def candidates(self, graph: Graph) -> list[Candidate]:
        return [
            (node.name,) for node in graph.data_nodes()
            if node.op_type not in _IDEMPOTENT and len(node.output) == 1 and _same_shape(graph, node)
        ]

    def apply(self, graph: Graph, candidate: Candidate, rng: np.random.Generator) -> tuple[Site, ...]:
        node = graph.nodes[candidate[0]]
        operands = [value for value in node.input if graph.is_data(value)]
        if len(operands) != 1:
            raise Unfit(f"{node.name} has {len(operands)} data inputs")
        second = graph.splice(node.output[0], "Identity")
        name, value, result = second.name, second.input[0], second.output[0]
        second.CopyFrom(node)
        second.name, second.output[0] = name, result
        second.input[list(node.input).index(operands[0])] = value
        return (self.site(name, None, f"applied {node.op_type} {node.name} twice", (node.name,)),)


class SwapOperands(FaultOperator):
    """The operands of an op that does not commute change places."""

    name = "swap_operands"
    kind = FaultKind.GRAPH

    def candidates(self, graph: Graph) -> list[Candidate]:
        nodes = graph.data_nodes("Sub", "Div", "Pow", "Concat", "MatMul", "Less", "Greater")
        return [(node.name,) for node in nodes if len(node.input) >= 2 and node.input[0] != node.input[1]]

    def apply(self, graph: Graph, candidate: Candidate, rng: np.random.Generator) -> tuple[Site, ...]:
        node = graph.nodes[candidate[0]]
        node.input[0], node.input[1] = node.input[1], node.input[0]
        return (self.site(node.name, None, f"swapped the operands of {node.op_type} {node.name}"),)


def _same_shape(graph: Graph, node: onnx.NodeProto) -> bool:
    shapes = graph.shapes
    return bool(node.input) and shapes.get(node.input[0]) == shapes.get(node.output[0]) is not None


OPERATORS: tuple[type[FaultOperator], ...] = (
    RemoveActivation,
    ReplaceActivation,
    InsertMul,
    DuplicateNode,
    SwapOperands,
)
