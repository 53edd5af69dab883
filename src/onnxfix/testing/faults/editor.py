"""An ONNX graph that can be read and edited by value: producers, consumers, parameters behind views, splices."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from onnxfix.testing.faults.shapes import constant_value, value_shapes

# Ops that only move elements, so that a constant seen through them can be written back to where it is stored; casts
# between floats as well, whose rounding does not matter to a planted fault.
_ELEMENTWISE = frozenset({"Identity", "Cast", "CastLike"})
_QUANTIZING = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"})
_VIEWS = _ELEMENTWISE | {"Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten"}
# With constants, these fold into the layer before them.
_FOLDING = frozenset({"Add", "Sub", "Mul", "Div", "BatchNormalization"})


class Unfit(Exception):
    """A fault cannot be planted at a candidate: caught by the injector, never shown to the caller as such."""


@dataclass(frozen=True, eq=False)
class Parameter:
    """A constant operand, seen through the views (transposes, reshapes) between its storage and the node.

    Attributes:
        name: Name of the stored constant.
        value: The constant as the node sees it.
        views: The view nodes between storage and node, storage first.
    """

    name: str
    value: np.ndarray
    views: tuple[onnx.NodeProto, ...]


class Graph:
    """A view of ``proto.graph`` that edits it in place. Every node must have a name of its own."""

    def __init__(self, proto: onnx.ModelProto) -> None:
        self.proto = proto
        self.graph = proto.graph
        self.opset = next((o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")), 1)
        self.stored = {t.name: t for t in self.graph.initializer}
        self.inputs = {i.name for i in self.graph.input} - set(self.stored)
        self.outputs = {o.name for o in self.graph.output}
        self.reindex()

    def reindex(self) -> None:
        """Take note of edits made to nodes in place."""
        self.nodes: dict[str, onnx.NodeProto] = {node.name: node for node in self.graph.node}
        self._producers = {value: node for node in self.graph.node for value in node.output if value}
        self._consumers: dict[str, list[tuple[onnx.NodeProto, int]]] = defaultdict(list)
        self._captured: set[str] = set()
        for node in self.graph.node:
            for index, value in enumerate(node.input):
                if value:
                    self._consumers[value].append((node, index))
            self._captured.update(_captured(node))
        self._data = set(self.inputs)
        for node in self.graph.node:
            if not self._data.isdisjoint(node.input):
                self._data.update(node.output)
        self._names = self.nodes.keys() | self._producers.keys() | self.stored.keys() | self.inputs

    @cached_property
    def shapes(self) -> dict[str, tuple[int | None, ...]]:
        """Inferred shapes of the graph as it was given; unknown dimensions are None."""
        return value_shapes(self.proto)

    def shape(self, value: str) -> tuple[int | None, ...]:
        """The inferred shape of a value.

        Raises:
            Unfit: shape inference does not reach it.
        """
        constant = self.constant(value)
        if constant is not None:
            return constant.shape
        if value not in self.shapes:
            raise Unfit(f"the shape of {value} is unknown")
        return self.shapes[value]

    def producer(self, value: str) -> onnx.NodeProto | None:
        """The node that computes a value; None for inputs and initializers."""
        return self._producers.get(value)

    def consumers(self, value: str) -> list[tuple[onnx.NodeProto, int]]:
        """The nodes that read a value, with the operand index."""
        return list(self._consumers.get(value, ()))

    def computed_by(self, value: str) -> tuple[str, ...]:
        """Names of the node behind a value, seen through views, nearest computation first; empty for an input."""
        views: list[str] = []
        node = self.producer(value)
        while node is not None and node.op_type in _VIEWS:
            views.append(node.name)
            node = self.producer(node.input[0])
        return (node.name, *views) if node is not None else tuple(reversed(views))

    def ends_layer(self, node: onnx.NodeProto) -> bool:
        """Whether a node is a bias, scale or norm by constants, which belongs to the layer before it."""
        return node.op_type in _FOLDING and sum(self.is_data(value) for value in node.input) == 1

    def read_by(self, value: str) -> tuple[str, ...]:
        """Names of the nodes that a value reaches: its readers, and through views the readers of those."""
        found: dict[str, None] = {}
        for reader, _ in self.consumers(value):
            found[reader.name] = None
            if reader.op_type in _VIEWS | _QUANTIZING:
                found.update(dict.fromkeys(self.read_by(reader.output[0])))
        return tuple(found)

    def data_nodes(self, *op_types: str) -> list[onnx.NodeProto]:
        """Nodes that depend on a graph input, in graph order, optionally of certain types only."""
        return [
            node for node in self.graph.node
            if (not op_types or node.op_type in op_types) and any(self.is_data(value) for value in node.input)
        ]

    def is_data(self, value: str) -> bool:
        """Whether a value depends on a graph input."""
        return value in self._data

    def constant(self, value: str) -> np.ndarray | None:
        """The content of an initializer or ``Constant``; None for anything else."""
        if value in self.stored:
            return numpy_helper.to_array(self.stored[value])
        node = self.producer(value)
        if node is not None and node.op_type == "Constant":
            return constant_value(node)
        return None

    def parameter(self, node: onnx.NodeProto, operand: int) -> Parameter | None:
        """The floating-point constant behind an operand, or None."""
        if operand >= len(node.input) or not node.input[operand]:
            return None
        value: str = node.input[operand]
        views: list[onnx.NodeProto] = []
        while (content := self.constant(value)) is None:
            view = self.producer(value)
            if view is None or view.op_type not in _VIEWS:
                return None
            views.insert(0, view)
            value = view.input[0]
        if content.dtype.kind != "f":
            return None
        try:
            return Parameter(value, self._through(content, views), tuple(views))
        except Unfit:
            return None

    def _through(self, content: np.ndarray, views: list[onnx.NodeProto] | tuple[onnx.NodeProto, ...]) -> np.ndarray:
        for view in views:
            if view.op_type == "Transpose":
                content = content.transpose(self.attribute(view, "perm", None))
            elif view.op_type not in _ELEMENTWISE:
                shape = self.shape(view.output[0])
                if None in shape:
                    raise Unfit(f"the shape of {view.output[0]} is unknown")
                content = content.reshape(tuple(int(d) for d in shape if d is not None))
        return content

    def set_parameter(self, node: onnx.NodeProto, operand: int, value: np.ndarray) -> str:
        """Give a node's constant operand another value (as the node sees it); other readers keep the old one.

        Returns:
            Name of the constant that now holds it.
        """
        parameter = self.parameter(node, operand)
        stored = None if parameter is None else self.constant(parameter.name)
        if parameter is None or stored is None or parameter.value.shape != value.shape:
            raise Unfit(f"operand {operand} of {node.name} is no constant of shape {value.shape}")
        places = self._through(np.arange(stored.size).reshape(stored.shape), parameter.views)
        content = stored.copy()
        content.reshape(-1)[places] = value
        path = [parameter.name, *(view.output[0] for view in parameter.views)]
        if all(len(self.consumers(v)) == 1 and v not in self._captured | self.outputs for v in path):
            self._store(parameter.name, content)
            return parameter.name
        name = self.add_constant(content, parameter.name)
        self._clone_views(node, operand, name, parameter.views)
        return name

    def _clone_views(self, node: onnx.NodeProto, operand: int, value: str, views: tuple[onnx.NodeProto, ...]) -> None:
        for view in views:
            clone = onnx.NodeProto()
            clone.CopyFrom(view)
            clone.name = self.fresh(view.name)
            clone.input[0] = value
            value = clone.output[0] = self.fresh(view.output[0])
            self.insert_node(clone, before=node)
        node.input[operand] = value
        self.reindex()

    def _store(self, name: str, content: np.ndarray) -> None:
        tensor = numpy_helper.from_array(np.asarray(content, order="C"), name)
        if name in self.stored:
            self.stored[name].CopyFrom(tensor)
        else:
            constant = self._producers[name]
            del constant.attribute[:]
            constant.attribute.append(onnx.helper.make_attribute("value", tensor))

    def add_constant(self, content: np.ndarray, base: str = "constant") -> str:
        """Add an initializer under a fresh name."""
        name = self.fresh(base)
        self.graph.initializer.append(numpy_helper.from_array(np.asarray(content, order="C"), name))
        self.stored[name] = self.graph.initializer[-1]
        self._names.add(name)
        return name

    def fresh(self, base: str) -> str:
        """A name that nothing has yet."""
        number = 1
        while (name := f"{base}_{number}") in self._names:
            number += 1
        self._names.add(name)
        return name

    def attribute(self, node: onnx.NodeProto, name: str, default: Any) -> Any:
        """An attribute's value, or ``default`` where the node leaves it out."""
        found = next((a for a in node.attribute if a.name == name), None)
        return default if found is None else onnx.helper.get_attribute_value(found)

    def set_attribute(self, node: onnx.NodeProto, name: str, value: Any) -> None:
        """Set an attribute; None removes it."""
        kept = [a for a in node.attribute if a.name != name]
        del node.attribute[:]
        node.attribute.extend(kept)
        if value is not None:
            node.attribute.append(onnx.helper.make_attribute(name, value))

    def insert_node(self, node: onnx.NodeProto, *, before: onnx.NodeProto) -> None:
        """Put a node into the list, just before another."""
        position = next(i for i, other in enumerate(self.graph.node) if other.name == before.name)
        self.graph.node.insert(position, node)
        self.reindex()

    def splice(self, value: str, op_type: str, *constants: str, **attributes: Any) -> onnx.NodeProto:
        """Insert ``op_type(value, *constants)`` on an edge: every reader of ``value`` then reads the new node."""
        self._require_plain(value)
        name = self.fresh(op_type)
        result = self.fresh(f"{name}_out")
        readers = self.consumers(value)
        producer = self.producer(value)
        if value in self.outputs:
            if producer is None:
                raise Unfit(f"{value} is an input and an output at once")
            inner, outer = result, value
            producer.output[list(producer.output).index(value)] = inner
        else:
            inner, outer = value, result
            for reader, operand in readers:
                reader.input[operand] = outer
        node = onnx.helper.make_node(op_type, [inner, *constants], [outer], name, **attributes)
        names = [n.name for n in self.graph.node]
        self.graph.node.insert(0 if producer is None else names.index(producer.name) + 1, node)
        self.reindex()
        return self.nodes[name]

    def bypass(self, node: onnx.NodeProto, operand: int = 0) -> None:
        """Remove a single-output node; its readers read the operand instead."""
        value, result = node.input[operand], node.output[0]
        self._require_plain(result)
        if result in self.outputs:
            self._require_plain(value)
            producer = self.producer(value)
            if producer is None or len(self.consumers(value)) != 1 or value in self.outputs:
                raise Unfit(f"{node.name} computes a graph output and cannot be bypassed")
            producer.output[list(producer.output).index(value)] = result
        else:
            for reader, index in self.consumers(result):
                reader.input[index] = value
        self.graph.node.remove(node)
        self.reindex()

    def _require_plain(self, value: str) -> None:
        if value in self._captured:
            raise Unfit(f"{value} is read inside a control-flow subgraph")

    def prune_nodes(self) -> set[str]:
        """Remove nodes whose results nothing reads any more; returns their names."""
        gone: set[str] = set()
        while dead := [node for node in self.graph.node if not any(map(self._is_read, node.output))]:
            for node in dead:
                gone.add(node.name)
                self.graph.node.remove(node)
            self.reindex()
        return gone

    def _is_read(self, value: str) -> bool:
        return bool(value) and (bool(self.consumers(value)) or value in self.outputs | self._captured)

    def prune_constants(self) -> None:
        """Drop initializers and value infos that nothing refers to any more."""
        used = {v for node in self.graph.node for v in node.input} | self._captured | self.outputs
        for tensor in [t for t in self.graph.initializer if t.name not in used]:
            self.graph.initializer.remove(tensor)
            del self.stored[tensor.name]
        # Types may have changed with the edit: the runtimes infer them anew.
        del self.graph.value_info[:]


def subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """The graphs in a node's attributes."""
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield attribute.g
        yield from attribute.graphs


def _captured(node: onnx.NodeProto) -> Iterator[str]:
    for body in subgraphs(node):
        for inner in body.node:
            yield from inner.input
            yield from _captured(inner)
        yield from (output.name for output in body.output)
