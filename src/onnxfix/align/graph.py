"""A read-only view of a canonical graph: who makes, reads and holds what."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import onnx

from onnxfix import mapped

if TYPE_CHECKING:
    import networkx as nx

COMMUTATIVE = frozenset(
    {"Add", "Mul", "Max", "Min", "Sum", "Mean", "And", "Or", "Xor", "Equal", "BitwiseAnd", "BitwiseOr", "BitwiseXor"}
)


class GraphView:
    """Indexes over one ONNX graph whose nodes have unique names and whose constants are initializers.

    Args:
        proto: A canonical model; it is not copied and must not change while the view is in use.
    """

    def __init__(self, proto: onnx.ModelProto) -> None:
        self.proto = proto
        graph = proto.graph
        self.nodes: dict[str, onnx.NodeProto] = {node.name: node for node in graph.node}
        self.order: dict[str, int] = {name: k for k, name in enumerate(self.nodes)}
        self._tensors: dict[str, onnx.TensorProto] = {t.name: t for t in graph.initializer}
        self._arrays: dict[str, np.ndarray] = {}
        self.inputs: tuple[str, ...] = tuple(i.name for i in graph.input if i.name not in self._tensors)
        self.outputs: tuple[str, ...] = tuple(o.name for o in graph.output)
        self.producer: dict[str, tuple[str, int]] = {}
        self.consumers: dict[str, list[tuple[str, int]]] = {}
        for node in graph.node:
            for k, value in enumerate(node.output):
                if value:
                    self.producer[value] = (node.name, k)
            for k, value in enumerate(node.input):
                if value:
                    self.consumers.setdefault(value, []).append((node.name, k))
            for value in captured(node):
                self.consumers.setdefault(value, []).append((node.name, -1))

    def is_constant(self, value: str) -> bool:
        """Whether a value is an initializer."""
        return value in self._tensors

    def constant(self, value: str) -> np.ndarray:
        """The content of an initializer (a read-only view where possible)."""
        if value not in self._arrays:
            self._arrays[value] = mapped.to_array(self._tensors[value])
        return self._arrays[value]

    def tensor(self, value: str) -> onnx.TensorProto:
        """The initializer itself."""
        return self._tensors[value]

    @cached_property
    def shapes(self) -> dict[str, tuple[int | None, ...]]:
        """Value name -> shape, symbolic dimensions as None; values of unknown rank are absent."""
        graph = self.proto.graph
        found: dict[str, tuple[int | None, ...]] = {}
        for info in (*graph.input, *graph.value_info, *graph.output):
            tensor = info.type.tensor_type
            if tensor.HasField("shape"):
                found[info.name] = tuple(d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim)
        found.update((name, tuple(t.dims)) for name, t in self._tensors.items())
        return found

    @cached_property
    def element_types(self) -> dict[str, int]:
        """Value name -> ONNX element type, where known."""
        graph = self.proto.graph
        found = {i.name: i.type.tensor_type.elem_type for i in (*graph.input, *graph.value_info, *graph.output)}
        found.update((name, t.data_type) for name, t in self._tensors.items())
        return {name: kind for name, kind in found.items() if kind}

    @cached_property
    def digraph(self) -> nx.DiGraph:
        """The nodes and the values that run between them."""
        import networkx as nx  # a tenth of a second that `import onnxfix` should not cost

        graph = nx.DiGraph()
        graph.add_nodes_from(self.nodes)
        for value, (maker, _) in self.producer.items():
            graph.add_edges_from((maker, reader) for reader, _ in self.consumers.get(value, ()))
        return graph

    def operands(self, name: str) -> tuple[str, ...]:
        """Everything a node reads that is not constant, values captured by its subgraphs included."""
        node = self.nodes[name]
        return tuple(v for v in (*node.input, *captured(node)) if v and not self.is_constant(v))

    def upstream(self, value: str, stop: set[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Walk from a value towards the inputs.

        Args:
            value: Where to start.
            stop: Values at which the walk ends.

        Returns:
            The nodes passed, in topological order, and the values at which the walk ended.
        """
        nodes: set[str] = set()
        ends: dict[str, None] = {}
        pending = [value]
        while pending:
            current = pending.pop()
            if current in stop or current not in self.producer:
                ends[current] = None
                continue
            maker = self.producer[current][0]
            if maker not in nodes:
                nodes.add(maker)
                pending.extend(self.operands(maker))
        return tuple(sorted(nodes, key=self.order.__getitem__)), tuple(ends)


def subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """The graphs that a node carries in its attributes."""
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield attribute.g
        yield from attribute.graphs


def captured(node: onnx.NodeProto) -> tuple[str, ...]:
    """Values of the enclosing graph that a node's subgraphs read."""
    names: dict[str, None] = {}
    for graph in subgraphs(node):
        own = {i.name for i in graph.input} | {t.name for t in graph.initializer}
        own.update(o for n in graph.node for o in n.output)
        for inner in graph.node:
            names.update(dict.fromkeys(v for v in (*inner.input, *captured(inner)) if v and v not in own))
        names.update(dict.fromkeys(o.name for o in graph.output if o.name not in own))
    return tuple(names)


def renamed(node: onnx.NodeProto, names: dict[str, str], prefix: str = "") -> onnx.NodeProto:
    """Copy a node with its values renamed.

    Args:
        node: The node.
        names: Old value name -> new value name; others keep theirs.
        prefix: Put before the node's own name.
    """
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    copy.name = prefix + node.name
    copy.input[:] = [names.get(v, v) for v in node.input]
    copy.output[:] = [names.get(v, v) for v in node.output]
    for graph in subgraphs(copy):
        _rename_captured(graph, names)
    return copy


def _rename_captured(graph: onnx.GraphProto, names: dict[str, str]) -> None:
    own = {i.name for i in graph.input} | {t.name for t in graph.initializer}
    own.update(o for n in graph.node for o in n.output)
    visible = {old: new for old, new in names.items() if old not in own}
    for inner in graph.node:
        inner.input[:] = [visible.get(v, v) for v in inner.input]
        for nested in subgraphs(inner):
            _rename_captured(nested, visible)
    for output in graph.output:
        output.name = visible.get(output.name, output.name)


def attributes(node: onnx.NodeProto) -> dict[str, object]:
    """A node's attributes as Python values (subgraphs left out)."""
    return {
        a.name: onnx.helper.get_attribute_value(a)
        for a in node.attribute
        if a.type not in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)
    }


def varying(proto: onnx.ModelProto) -> frozenset[str]:
    """The values of a graph that depend on a graph input."""
    found = {info.name for info in proto.graph.input} - {tensor.name for tensor in proto.graph.initializer}
    for node in proto.graph.node:
        if found.intersection((*node.input, *captured(node))):
            found.update(node.output)
    return frozenset(found)
