"""Change a graph at its edges: other inputs and outputs, and nodes between them and the rest."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import numpy_helper

from onnxfix.align.graph import subgraphs
from onnxfix.surgeon.patch import ChangeBoundary


def change_boundary(graph: onnx.GraphProto, patch: ChangeBoundary) -> None:
    """Carry out a change at the boundary, in place.

    Nodes that read nothing that the graph computes are put first, the others last, so that the order stays
    topological; what stays keeps its place.
    """
    gone = {tuple(node.output) for node in patch.removed}  # names may be missing
    stay = [node for node in graph.node if tuple(node.output) not in gone]
    for node in stay:
        _rename(node, patch.renamed)
    made = {o for node in stay for o in node.output}
    first: list[onnx.NodeProto] = []
    last: list[onnx.NodeProto] = []
    for node in patch.added:
        late = made.intersection(node.input)
        (last if late else first).append(node)
        if late:
            made.update(node.output)
    del graph.node[:]
    graph.node.extend([*first, *stay, *last])
    _exchange(graph, patch.dropped, patch.constants)
    wanted = {info.name: info for info in patch.inputs}
    for info in graph.input:
        if info.name in wanted:
            info.CopyFrom(wanted[info.name])
    if patch.outputs:
        del graph.output[:]
        graph.output.extend(patch.outputs)
    del graph.value_info[:]  # shapes may have changed; every runtime infers them anew


def _exchange(graph: onnx.GraphProto, dropped: Mapping[str, np.ndarray], added: Mapping[str, np.ndarray]) -> None:
    if dropped:
        kept = [tensor for tensor in graph.initializer if tensor.name not in dropped]
        del graph.initializer[:]
        graph.initializer.extend(kept)
    graph.initializer.extend(
        numpy_helper.from_array(np.asarray(value, order="C"), name) for name, value in added.items()
    )


def _rename(node: onnx.NodeProto, names: Mapping[str, str]) -> None:
    if not names:
        return
    node.input[:] = [names.get(v, v) for v in node.input]
    node.output[:] = [names.get(v, v) for v in node.output]
    for body in subgraphs(node):
        own = {i.name for i in body.input} | {t.name for t in body.initializer}
        own.update(o for inner in body.node for o in inner.output)
        visible = {old: new for old, new in names.items() if old not in own}
        for inner in body.node:
            _rename(inner, visible)
        for output in body.output:
            output.name = visible.get(output.name, output.name)
