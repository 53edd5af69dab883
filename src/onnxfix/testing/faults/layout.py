"""Faults in tensor layout: a pair of transposes around an op, the flatten order before a dense layer."""

# ruff: noqa: D102 - candidates and apply are documented where FaultOperator declares them
from __future__ import annotations

import math

import numpy as np
import onnx

from onnxfix.diagnose.fault import FaultKind
from onnxfix.testing.faults.editor import Graph, Unfit
from onnxfix.testing.faults.operator import Candidate, FaultOperator, Site
from onnxfix.testing.faults.weights import output_axis, weight_of

_ENCLOSED = (
    "Conv", "MaxPool", "AveragePool", "Softmax", "LogSoftmax", "LayerNormalization", "MatMul", "InstanceNormalization",
    "BatchNormalization", "ReduceMean", "ReduceMax", "GlobalAveragePool", "GlobalMaxPool", "PRelu", "CumSum",
)
_DENSE = ("Gemm", "MatMul", "Conv")


class InsertTransposePair(FaultOperator):
    """An op works between a transpose and its inverse, and so along other axes than it should."""

    name = "insert_transpose_pair"
    kind = FaultKind.TENSOR_LAYOUT

    def candidates(self, graph: Graph) -> list[Candidate]:
        found: list[Candidate] = []
        for node in graph.data_nodes(*_ENCLOSED):
            rank = len(graph.shapes.get(node.input[0], ()))
            same_rank = rank == len(graph.shapes.get(node.output[0], ()))
            swaps = [(a, b) for b in range(rank - 1, 1, -1) for a in range(b - 1, 0, -1)]
            found += [(node.name, str(a), str(b)) for a, b in swaps if same_rank and graph.is_data(node.input[0])]
        return found

    def apply(self, graph: Graph, candidate: Candidate, rng: np.random.Generator) -> tuple[Site, ...]:
        node, first, second = graph.nodes[candidate[0]], int(candidate[1]), int(candidate[2])
        perm = list(range(len(graph.shape(node.input[0]))))
        perm[first], perm[second] = perm[second], perm[first]
        turned = graph.fresh(f"{node.input[0]}_transposed")
        before = onnx.helper.make_node("Transpose", [node.input[0]], [turned], graph.fresh("Transpose"), perm=perm)
        graph.insert_node(before, before=node)
        graph.nodes[node.name].input[0] = turned
        after = graph.splice(node.output[0], "Transpose", perm=perm)  # a swap is its own inverse
        done = f"put {node.op_type} {node.name} between two transposes {perm}"
        return (self.site(before.name, None, done, (node.name, after.name)),)


class PermuteFlatten(FaultOperator):
    """A map is flattened in another order than the dense layer behind it expects.

    Where nothing with a spatial extent is flattened (a globally pooled map), the dense layer's input rows are permuted
    instead, as if its features had been a map of another layout.
    """

    name = "permute_flatten"
    kind = FaultKind.TENSOR_LAYOUT

    def candidates(self, graph: Graph) -> list[Candidate]:
        reshapes = graph.data_nodes("Flatten", "Reshape")
        flattens: list[Candidate] = [(node.name,) for node in reshapes if _flattens_map(graph, node)]
        if flattens:
            return flattens
        dense = [node for node in graph.data_nodes(*_DENSE) if _is_dense(graph, node)]
        return [(dense[-1].name,)] if dense else []

    def apply(self, graph: Graph, candidate: Candidate, rng: np.random.Generator) -> tuple[Site, ...]:
        node = graph.nodes[candidate[0]]
        if node.op_type in _DENSE:
            return (self._permute_rows(graph, node),)
        perm = [0, *range(2, len(graph.shape(node.input[0]))), 1]
        turned = graph.fresh(f"{node.input[0]}_transposed")
        turn = onnx.helper.make_node("Transpose", [node.input[0]], [turned], graph.fresh("Transpose"), perm=perm)
        graph.insert_node(turn, before=node)
        graph.nodes[node.name].input[0] = turned
        also = (node.name, *graph.read_by(node.output[0]))
        return (self.site(turn.name, None, f"flattened {node.name} channels last", also),)

    def _permute_rows(self, graph: Graph, node: onnx.NodeProto) -> Site:
        operand, weight = weight_of(graph, node)
        axis = 1 - output_axis(graph, node, operand) % 2
        rows = weight.shape[axis]
        side = next((d for d in range(math.isqrt(rows), 1, -1) if rows % d == 0), None)
        if side is None:
            raise Unfit(f"{node.name} has {rows} input features, which are no map")
        order = np.arange(rows).reshape(side, -1).T.reshape(-1)
        name = graph.set_parameter(node, operand, weight.take(order, axis))
        return self.site(node.name, name, f"permuted the input features of {node.name}")


def _flattens_map(graph: Graph, node: onnx.NodeProto) -> bool:
    before, after = graph.shapes.get(node.input[0], ()), graph.shapes.get(node.output[0], ())
    if len(before) < 3 or len(after) != 2 or before[1] in (None, 1):
        return False
    return any(size is None or size > 1 for size in before[2:])


def _is_dense(graph: Graph, node: onnx.NodeProto) -> bool:
    """A dense layer, or a convolution on a map of one pixel, with a constant weight."""
    try:
        _, weight = weight_of(graph, node)
    except Unfit:
        return False
    if node.op_type != "Conv":
        return weight.ndim == 2
    group = graph.attribute(node, "group", 1)
    return bool(graph.shapes.get(node.input[0], ())[2:] == (1, 1) and math.prod(weight.shape[2:]) == 1 and group == 1)


OPERATORS: tuple[type[FaultOperator], ...] = (
    InsertTransposePair,
    PermuteFlatten,
)
