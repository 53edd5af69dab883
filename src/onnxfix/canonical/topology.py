"""A graph without its names: what comparing and hashing normal forms look at."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import onnx
from onnx import numpy_helper

from onnxfix import mapped
from onnxfix.errors import CanonicalizationError

# Ops whose two (or more) operands may be given in any order.
COMMUTATIVE = frozenset(
    {"Add", "Mul", "And", "Or", "Xor", "Equal", "Max", "Min", "Sum", "Mean", "BitwiseAnd", "BitwiseOr", "BitwiseXor"}
)


@dataclass(frozen=True)
class Operand:
    """Where a node's operand comes from: a graph input, a node's output, a constant, or nowhere (left out)."""

    kind: Literal["input", "node", "constant", "absent"]
    index: int = 0
    output: int = 0


ABSENT = Operand("absent")


@dataclass(frozen=True)
class Boundary:
    """Type of a graph input or output: element type and shape, where a dimension is an int, a symbol or unknown."""

    element: int
    shape: tuple[int | str | None, ...] | None

    @property
    def kind(self) -> int:
        """The element type, int32 and int64 being one: converters to TFLite narrow indices."""
        return onnx.TensorProto.INT64 if self.element == onnx.TensorProto.INT32 else self.element

    @classmethod
    def of(cls, info: onnx.ValueInfoProto) -> Boundary:
        """Read the type of a graph input or output; anything but a tensor is known by its kind only."""
        if info.type.WhichOneof("value") not in ("tensor_type", None):
            return cls(0, None)
        tensor = info.type.tensor_type
        if not tensor.HasField("shape"):
            return cls(tensor.elem_type, None)
        dims = (d.dim_value if d.HasField("dim_value") else (d.dim_param or None) for d in tensor.shape.dim)
        return cls(tensor.elem_type, tuple(dims))


@dataclass(frozen=True, eq=False)
class Vertex:
    """A node: what it does and where its operands come from."""

    op: str
    domain: str
    attributes: dict[str, Any]
    operands: tuple[Operand, ...]
    outputs: int

    @property
    def commutative(self) -> bool:
        """Whether the order of the operands does not matter."""
        return self.domain == "" and self.op in COMMUTATIVE


@dataclass(eq=False)
class Topology:
    """A graph: vertices in topological order, constants by position, inputs and outputs in their order.

    The values that a control-flow body reads from around it are its last inputs, and the last operands of the node that
    holds it.
    """

    vertices: list[Vertex] = field(default_factory=list)
    constants: list[np.ndarray] = field(default_factory=list)
    inputs: list[Boundary] = field(default_factory=list)
    outputs: list[Operand] = field(default_factory=list)
    results: list[Boundary] = field(default_factory=list)



def topology(model: onnx.ModelProto) -> Topology:
    """Read the graph of a model; constants that it only refers to are memory-mapped."""
    result, captured = _Reader(model.graph).read()
    if captured:
        raise CanonicalizationError(f"the graph reads {captured[0]}, which nothing produces: the model is not valid.")
    return result


class _Reader:
    def __init__(self, graph: onnx.GraphProto) -> None:
        self.graph = graph
        self.result = Topology()
        self.known: dict[str, Operand] = {}
        self.captured: dict[str, int] = {}

    def read(self) -> tuple[Topology, list[str]]:
        """The topology, and the names it reads from around it."""
        for tensor in self.graph.initializer:
            self._constant(tensor.name, mapped.to_array(tensor))
        declared = [i for i in self.graph.input if i.name not in self.known]
        for position, info in enumerate(declared):
            self.known[info.name] = Operand("input", position)
            self.result.inputs.append(Boundary.of(info))
        for node in self.graph.node:
            self._node(node)
        self.result.outputs = [self._operand(o.name) for o in self.graph.output]
        self.result.results = [Boundary.of(o) for o in self.graph.output]
        self.result.inputs += [Boundary(0, None)] * len(self.captured)
        return self.result, list(self.captured)

    def _constant(self, name: str, content: np.ndarray) -> None:
        self.known[name] = Operand("constant", len(self.result.constants))
        self.result.constants.append(content)

    def _operand(self, name: str) -> Operand:
        if not name:
            return ABSENT
        if name not in self.known:
            declared = len(self.result.inputs)
            self.captured[name] = declared + len(self.captured)
            self.known[name] = Operand("input", self.captured[name])
        return self.known[name]

    def _node(self, node: onnx.NodeProto) -> None:
        operands = [self._operand(name) for name in node.input]
        while operands and operands[-1] == ABSENT:
            operands.pop()
        attributes: dict[str, Any] = {}
        for attribute in sorted(node.attribute, key=lambda a: a.name):
            attributes[attribute.name], captured = _content(attribute)
            operands += [self._operand(name) for name in captured]
        position = len(self.result.vertices)
        domain = "" if node.domain == "ai.onnx" else node.domain
        self.result.vertices.append(Vertex(node.op_type, domain, attributes, tuple(operands), len(node.output)))
        for index, name in enumerate(node.output):
            if name:
                self.known[name] = Operand("node", position, index)


def _content(attribute: onnx.AttributeProto) -> tuple[Any, list[str]]:
    if attribute.type == onnx.AttributeProto.GRAPH:
        return _Reader(attribute.g).read()
    if attribute.type == onnx.AttributeProto.TENSOR:
        return numpy_helper.to_array(attribute.t), []
    value = onnx.helper.get_attribute_value(attribute)
    if attribute.type in (onnx.AttributeProto.INTS, onnx.AttributeProto.FLOATS, onnx.AttributeProto.STRINGS):
        return tuple(value), []
    if attribute.type in (onnx.AttributeProto.INT, onnx.AttributeProto.FLOAT, onnx.AttributeProto.STRING):
        return value, []
    return attribute.SerializeToString(deterministic=True), []


@dataclass(frozen=True, eq=False)
class Core:
    """A graph with its boundary adapters taken off.

    Attributes:
        graph: What is left.
        entries: For each input the permutation that was taken off; () where there was none, None where it was a
            Reshape that only moved dimensions of size one.
        exits: The same for each output, as seen from the graph: ``output = Transpose(left, perm)``.
    """

    graph: Topology
    entries: tuple[tuple[int, ...] | None, ...]
    exits: tuple[tuple[int, ...] | None, ...]


def without_unread(graph: Topology) -> Topology:
    """The graph without inputs that nothing reads: tf2onnx leaves those of constants that it folded."""
    operands = [*graph.outputs, *(operand for vertex in graph.vertices for operand in vertex.operands)]
    read = sorted({operand.index for operand in operands if operand.kind == "input"})
    if len(read) == len(graph.inputs):
        return graph
    places = {Operand("input", index): Operand("input", place) for place, index in enumerate(read)}
    return replace(
        graph, inputs=[graph.inputs[index] for index in read],
        outputs=[places.get(operand, operand) for operand in graph.outputs],
        vertices=[replace(v, operands=tuple(places.get(o, o) for o in v.operands)) for v in graph.vertices],
    )


def without_adapters(graph: Topology) -> Core:
    """Take the boundary adapters off: Transposes that only bring an input or output into another layout.

    An input read by one Transpose alone is replaced by that Transpose's result, an output made by a Transpose by that
    Transpose's operand; a Reshape that only moves dimensions of size one counts as a Transpose.
    """
    readers: dict[Operand, list[int]] = {}
    for position, vertex in enumerate(graph.vertices):
        for operand in dict.fromkeys(vertex.operands):
            readers.setdefault(operand, []).append(position)
    moved: dict[Operand, Operand] = {}
    entries: list[tuple[int, ...] | None] = []
    for index, boundary in enumerate(graph.inputs):
        source = Operand("input", index)
        users = readers.get(source, [])
        adapter: tuple[int, ...] | None = ()
        if len(users) == 1 and source not in graph.outputs:
            adapter = _adapter(graph, graph.vertices[users[0]], boundary)
            if adapter != ():
                moved[Operand("node", users[0])] = source
        entries.append(adapter)
    vertices = [replace(v, operands=tuple(moved.get(o, o) for o in v.operands)) for v in graph.vertices]
    outputs: list[Operand] = []
    exits: list[tuple[int, ...] | None] = []
    for operand in graph.outputs:
        operand = moved.get(operand, operand)
        adapter = ()
        if operand.kind == "node" and vertices[operand.index].op == "Transpose":
            adapter = tuple(vertices[operand.index].attributes.get("perm", ()))
            operand = vertices[operand.index].operands[0]
        outputs.append(operand)
        exits.append(adapter)
    return Core(_pruned(replace(graph, vertices=vertices, outputs=outputs)), tuple(entries), tuple(exits))


def _adapter(graph: Topology, vertex: Vertex, boundary: Boundary) -> tuple[int, ...] | None:
    """The permutation that a node does to a graph input; () if it is no adapter, None if it moves sizes of one."""
    if vertex.domain or vertex.op not in ("Transpose", "Reshape"):
        return ()
    if vertex.op == "Transpose":
        return tuple(vertex.attributes.get("perm", ()))
    target = vertex.operands[1] if len(vertex.operands) > 1 else ABSENT
    if boundary.shape is None or target.kind != "constant":
        return ()
    wanted = [int(d) for d in graph.constants[target.index]]
    if len(wanted) != len(boundary.shape):
        return ()
    given = [d if isinstance(d, int) else -1 for d in boundary.shape]
    wanted = [given[k] if d == 0 else d for k, d in enumerate(wanted)]
    return None if [d for d in given if d != 1] == [d for d in wanted if d != 1] else ()


def same_layout(first: tuple[int, ...] | None, second: tuple[int, ...] | None, *, entry: bool) -> bool:
    """Whether two adapters bring tensors of the same meaning together.

    The two outer tensors must be the same or differ by where the channels stand (axis 1 or last): anything else, like
    height and width exchanged, is a difference between the models and not of layout.

    Args:
        first: Permutation taken off the first graph.
        second: Permutation taken off the second graph, at the same place.
        entry: Whether they stand at an input (else at an output).
    """
    if first is None or second is None or first == second:
        return True
    rank = max(len(first), len(second))
    identity = tuple(range(rank))
    first, second = first or identity, second or identity
    if len(first) != len(second):
        return False
    outer, inner = (first, _inverse(second)) if entry else (_inverse(first), second)
    relative = tuple(outer[k] for k in inner)
    last_to_first = (0, rank - 1, *range(1, rank - 1))
    return relative in (identity, last_to_first, _inverse(last_to_first))


def _inverse(permutation: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(sorted(range(len(permutation)), key=permutation.__getitem__))


def _pruned(graph: Topology) -> Topology:
    """Drop the vertices that no output depends on."""
    needed = set(_reached(graph))
    order = [k for k in range(len(graph.vertices)) if k in needed]
    place = {old: new for new, old in enumerate(order)}

    def renumbered(operand: Operand) -> Operand:
        return replace(operand, index=place[operand.index]) if operand.kind == "node" else operand

    vertices = [
        replace(graph.vertices[k], operands=tuple(renumbered(o) for o in graph.vertices[k].operands)) for k in order
    ]
    return replace(graph, vertices=vertices, outputs=[renumbered(o) for o in graph.outputs])


def _reached(graph: Topology) -> Iterator[int]:
    waiting = [o.index for o in graph.outputs if o.kind == "node"]
    seen: set[int] = set()
    while waiting:
        position = waiting.pop()
        if position in seen:
            continue
        seen.add(position)
        yield position
        waiting += [o.index for o in graph.vertices[position].operands if o.kind == "node"]
