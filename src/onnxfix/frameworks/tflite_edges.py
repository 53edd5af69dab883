"""New nodes moved out of the operators that they were put into.

A lowered operator begins and ends with transposes. A node that was put between such a transpose and the operator proper
does the same in front of the transpose, or behind it, if it treats every element alike: there it lies between two
tensors of the file.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx

_ELEMENTWISE = frozenset({
    "Abs", "Cast", "Ceil", "Clip", "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish", "Identity",
    "LeakyRelu", "Log", "Mish", "Neg", "Reciprocal", "Relu", "Round", "Selu", "Sigmoid", "Sign", "Softplus", "Sqrt",
    "Tanh",
})  # fmt: skip


def at_edges(proto: onnx.ModelProto, owners: Mapping[str, int]) -> onnx.ModelProto:
    """The graph with its new element-wise nodes outside of the operators' transposes.

    Args:
        proto: A patched lowered graph.
        owners: Name of a lowered node -> its operator; new nodes are absent.
    """
    moved = onnx.ModelProto()
    moved.CopyFrom(proto)
    for _ in moved.graph.node:  # each node can pass every other one at most
        if not (_hoisted(moved.graph, owners) or _sunk(moved.graph, owners)):
            break
    return moved


def _is_new(node: onnx.NodeProto, owners: Mapping[str, int]) -> bool:
    return node.name not in owners and node.op_type in _ELEMENTWISE


def _readers(graph: onnx.GraphProto, value: str) -> list[onnx.NodeProto]:
    found = [node for node in graph.node if value in node.input]
    return found if all(output.name != value for output in graph.output) else []


def _hoisted(graph: onnx.GraphProto, owners: Mapping[str, int]) -> bool:
    """Move one node from behind a transpose that nothing else reads to the front of it."""
    makers = {o: node for node in graph.node for o in node.output}
    for index, node in enumerate(graph.node):
        transpose = makers.get(node.input[0]) if _is_new(node, owners) else None
        if transpose is None or transpose.op_type != "Transpose" or transpose.name not in owners:
            continue
        before = makers.get(transpose.input[0])
        if before is not None and _same(before, transpose, owners):
            continue  # it is the one that ends its operator
        if _readers(graph, transpose.output[0]) != [node] or not _readers(graph, node.output[0]):
            continue
        result, name = transpose.output[0], f"{transpose.input[0]}/{node.name}"
        for reader in _readers(graph, node.output[0]):
            reader.input[:] = [result if v == node.output[0] else v for v in reader.input]
        node.input[0], node.output[0] = transpose.input[0], name
        transpose.input[0] = name
        _put(graph, index, list(graph.node).index(transpose))
        return True
    return False


def _sunk(graph: onnx.GraphProto, owners: Mapping[str, int]) -> bool:
    """Move one node from the front of a transpose to behind it."""
    for index, node in enumerate(graph.node):
        readers = _readers(graph, node.output[0]) if _is_new(node, owners) else []
        if len(readers) != 1 or readers[0].op_type != "Transpose" or readers[0].name not in owners:
            continue
        transpose = readers[0]
        if any(owner.name in owners for owner in _makers_of(graph, node.input[0]) if _same(owner, transpose, owners)):
            result = transpose.output[0]
            transpose.input[0], transpose.output[0] = node.input[0], f"{result}/{node.name}"
            node.input[0], node.output[0] = transpose.output[0], result
            _put(graph, index, list(graph.node).index(transpose))
            return True
    return False


def _makers_of(graph: onnx.GraphProto, value: str) -> list[onnx.NodeProto]:
    return [node for node in graph.node if value in node.output]


def _same(one: onnx.NodeProto, two: onnx.NodeProto, owners: Mapping[str, int]) -> bool:
    return owners.get(one.name) == owners.get(two.name)


def _put(graph: onnx.GraphProto, index: int, other: int) -> None:
    """Let two nodes change places so that makers stay in front of readers: the one at ``index`` goes to ``other``."""
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in graph.node]
    nodes.insert(other, nodes.pop(index))
    del graph.node[:]
    graph.node.extend(nodes)
