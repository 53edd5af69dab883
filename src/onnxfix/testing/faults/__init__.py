"""Fault operators: each plants one kind of conversion fault in an ONNX graph. One family per file."""

from __future__ import annotations

from onnxfix.testing.faults import (
    blocks,
    boundary,
    graph,
    hyperparameters,
    layout,
    mode,
    outputs,
    parameters,
    precision,
    settings,
    weights,
)
from onnxfix.testing.faults.editor import Graph, Unfit
from onnxfix.testing.faults.operator import FaultOperator, Site

REGISTRY: dict[str, FaultOperator] = {
    operator.name: operator()
    for family in (
        weights, parameters, hyperparameters, settings, graph, blocks, layout, boundary, outputs, precision, mode
    )
    for operator in family.OPERATORS
}

__all__ = ["REGISTRY", "FaultOperator", "Graph", "Site", "Unfit"]
