"""Faults in mode: the model was exported for training."""

# ruff: noqa: D102 - candidates and apply are documented where FaultOperator declares them
from __future__ import annotations

import numpy as np
from onnx import TensorProto

from onnxfix.diagnose.fault import FaultKind
from onnxfix.testing.faults.editor import Graph, Unfit
from onnxfix.testing.faults.operator import Candidate, FaultOperator, Site


class ActiveDropout(FaultOperator):
    """Dropout is active: one that was inert, or one in front of a linear layer, where training has it."""

    name = "active_dropout"
    kind = FaultKind.MODE

    def candidates(self, graph: Graph) -> list[Candidate]:
        present: list[Candidate] = [(node.name,) for node in graph.data_nodes("Dropout")]
        return present or [(node.name,) for node in graph.data_nodes("Conv", "Gemm", "MatMul")]

    def apply(self, graph: Graph, candidate: Candidate, rng: np.random.Generator) -> tuple[Site, ...]:
        node = graph.nodes[candidate[0]]
        if graph.opset < 12:
            raise Unfit(f"Dropout has no training mode in opset {graph.opset}")
        ratio = graph.add_constant(np.array(float(rng.choice((0.2, 0.3, 0.5))), np.float32), "ratio")
        training = graph.add_constant(np.array(True), "training")
        seed = int(rng.integers(1 << 16))
        if node.op_type == "Dropout":
            around = (*graph.computed_by(node.input[0]), *graph.read_by(node.output[0]))
            node.input[:] = [node.input[0], ratio, training]
            graph.set_attribute(node, "seed", seed)
            return (self.site(node.name, "training_mode", f"activated Dropout {node.name}", around, actual=True),)
        value = node.input[0] if graph.is_data(node.input[0]) else node.input[1]
        around = (*graph.computed_by(value), *graph.read_by(value))
        drop = graph.splice(value, "Dropout", ratio, training, seed=seed)
        return (self.site(drop.name, None, f"put an active Dropout before {node.name}", around, actual=True),)


class BatchStatistics(FaultOperator):
    """A batch norm normalises with the statistics of the batch at hand."""

    name = "batch_statistics"
    kind = FaultKind.MODE

    def candidates(self, graph: Graph) -> list[Candidate]:
        return [(node.name,) for node in graph.data_nodes("BatchNormalization")]

    def apply(self, graph: Graph, candidate: Candidate, rng: np.random.Generator) -> tuple[Site, ...]:
        node = graph.nodes[candidate[0]]
        if graph.opset < 14:
            raise Unfit(f"BatchNormalization has no training mode in opset {graph.opset}")
        if graph.proto.graph.input[0].type.tensor_type.elem_type != TensorProto.FLOAT:
            raise Unfit("onnxruntime trains in float32 alone")
        graph.set_attribute(node, "training_mode", 1)
        node.output.extend([graph.fresh(f"{node.name}_mean"), graph.fresh(f"{node.name}_variance")])
        around = (*graph.computed_by(node.input[0]), *graph.read_by(node.output[0]))
        done = f"let {node.name} use the statistics of the batch"
        return (self.site(node.name, "training_mode", done, around, expected=0, actual=1),)


OPERATORS: tuple[type[FaultOperator], ...] = (
    ActiveDropout,
    BatchStatistics,
)
