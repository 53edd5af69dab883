"""A fault at a model's boundary, together with the patch that sets it right."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx

from onnxfix.align import GraphView
from onnxfix.diagnose.fault import Fault, FaultKind
from onnxfix.errors import OnnxFixError
from onnxfix.frameworks import Framework, adapter
from onnxfix.model import Model
from onnxfix.surgeon.apply import apply
from onnxfix.surgeon.patch import ChangeBoundary, Patch


@dataclass(frozen=True, eq=False)
class Change:
    """A fault at the boundary.

    Attributes:
        fault: The fault, as reported.
        patches: What sets it right, in terms of the target's lowered graph; empty where another change's patch does
            it, too, or nothing can.
        reason: Why nothing can, or "".
    """

    fault: Fault
    patches: tuple[Patch, ...] = ()
    reason: str = ""


def view_of(model: Model) -> GraphView:
    """A view of the lowered graph; nodes without a name go by their first output, as everywhere."""
    proto = model.proto
    if all(node.name for node in proto.graph.node):
        return GraphView(proto)
    named = onnx.ModelProto()
    named.CopyFrom(proto)
    for node in named.graph.node:
        node.name = node.name or next((o for o in node.output if o), "")
    return GraphView(named)


def changed(model: Model, patches: Iterable[Patch]) -> Model:
    """The target with patches of its boundary: as ONNX, where no framework's file has a place for them."""
    given = list(patches)
    proto = apply(model.proto, given)
    if model.framework != Framework.ONNX:
        try:
            return replace(model, proto=proto, native=adapter(model.framework).edited(model, given))
        except OnnxFixError:
            pass  # its file cannot hold them: the ONNX can
    initializers = {t.name: t.name for t in proto.graph.initializer}
    return Model(proto, Framework.ONNX, proto, parameters=initializers, layers=model.layers)


def boundary_patch(
    model: Model,
    summary: str,
    *,
    inputs: Mapping[str, onnx.ValueInfoProto] | None = None,
    outputs: Iterable[onnx.ValueInfoProto] | None = None,
    **parts: Any,
) -> ChangeBoundary:
    """A patch of a model's boundary.

    Args:
        model: The model.
        summary: What it is for.
        inputs: Input name -> what it becomes; others stay.
        outputs: All outputs afterwards; None: as they are.
        parts: The other attributes of the patch.
    """
    graph, wanted = model.proto.graph, inputs or {}
    return ChangeBoundary(
        summary,
        inputs=tuple(wanted.values()),
        outputs=() if outputs is None else tuple(outputs),
        previous_inputs=tuple(info for info in graph.input if info.name in wanted),
        previous_outputs=() if outputs is None else tuple(graph.output),
        **parts,
    )


def named(model: Model, nodes: Iterable[onnx.NodeProto]) -> tuple[str, ...]:
    """Names of lowered nodes, then of the layers that they belong to."""
    names = list(dict.fromkeys(node.name or node.output[0] for node in nodes))
    return tuple(dict.fromkeys((*names, *(model.layers[n] for n in names if n in model.layers))))


def boundary_fault(
    kind: FaultKind,
    target_nodes: tuple[str, ...],
    source_nodes: tuple[str, ...],
    parameter: str,
    message: str,
    *,
    expected: Any,
    actual: Any,
    error: float,
) -> Fault:
    """A fault of a whole input or output, which ``parameter`` names."""
    return Fault(
        kind=kind, target_nodes=target_nodes, source_nodes=source_nodes, parameter=parameter, expected=expected,
        actual=actual, local_error=error, message=message,
    )  # fmt: skip


def listed(array: np.ndarray) -> float | list[float]:
    """A broadcast factor for people: one number where all are the same."""
    values = [float(f"{v:.6g}") for v in np.asarray(array, np.float64).reshape(-1)[:16]]
    return values[0] if len(set(values)) == 1 else values
