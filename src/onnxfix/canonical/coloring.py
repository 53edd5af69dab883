"""Colours of vertices: hashes that isomorphic vertices share, whatever the names (Weisfeiler-Lehman refinement)."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from onnxfix.canonical.topology import Boundary, Operand, Topology, Vertex
from onnxfix.mapped import streamed

Color = bytes
ConstantLabel = Callable[[Topology, Operand, Vertex, int], Color]
AttributeLabel = Callable[[str, Any], bytes]

# Constant operands that say what a node does, as an attribute would; all other float constants are weights.
HYPERPARAMETERS = frozenset(
    {("Clip", 1), ("Clip", 2), ("Pad", 2), ("Dropout", 1), ("Resize", 1), ("Resize", 2), ("Range", 0), ("Range", 1),
     ("Range", 2), ("OneHot", 2), ("NonMaxSuppression", 3), ("NonMaxSuppression", 4)}
)
# Constant operands that hold a whole shape, where a fixed batch and a symbolic one are written differently.
SHAPES = frozenset({("Reshape", 1), ("Expand", 1), ("Resize", 3), ("ConstantOfShape", 0)})


def digest(*parts: bytes) -> Color:
    """Hash parts without ambiguity about where one ends (each is preceded by its length)."""
    state = hashlib.blake2b(digest_size=16)
    for part in parts:
        state.update(struct.pack("<Q", len(part)))
        state.update(part)
    return state.digest()


def content(value: np.ndarray) -> Color:
    """Hash of an array's dtype, shape and elements, the same on every machine."""
    little = value.astype(value.dtype.newbyteorder("<"), copy=False) if value.dtype.kind in "iufc" else value
    state = hashlib.blake2b(kind(value), digest_size=16)
    if value.dtype.kind in "OUS":
        state.update("\0".join(map(str, value.ravel())).encode())
    else:
        for piece in streamed(little):
            state.update(piece.data)
    return state.digest()


def kind(value: np.ndarray) -> bytes:
    """Dtype and shape of an array as bytes."""
    name = "string" if value.dtype.kind in "OUS" else value.dtype.name
    return f"{name}{list(value.shape)}".encode()


def is_weight(value: np.ndarray, vertex: Vertex, slot: int) -> bool:
    """Whether a constant operand is something a model learns (as opposed to something it is told)."""
    if vertex.domain == "" and (vertex.op, slot) in HYPERPARAMETERS:
        return False
    if vertex.domain == "" and vertex.op == "DequantizeLinear":
        return True
    return value.dtype.kind not in "iubOUS" or (value.dtype.itemsize == 1 and value.dtype.kind in "iu")


def boundary(spec: Boundary, symbols: dict[str, int]) -> bytes:
    """Type of a graph input or output; symbolic dimensions are numbered as they appear."""
    if spec.shape is None:
        return f"{spec.element}?".encode()
    dims = [f"s{symbols.setdefault(d, len(symbols))}" if isinstance(d, str) else str(d) for d in spec.shape]
    return f"{spec.element}[{','.join(dims)}]".encode()


def exact(name: str, value: Any) -> bytes:
    """An attribute with everything in it."""
    if isinstance(value, Topology):
        raise TypeError("a body is labelled by the caller")
    if isinstance(value, np.ndarray):
        return digest(name.encode(), content(value))
    if isinstance(value, tuple):
        return digest(name.encode(), *(exact("", v) for v in value))
    if isinstance(value, float):
        return digest(name.encode(), b"f", struct.pack("<d", value))
    if isinstance(value, int):
        return digest(name.encode(), b"i", str(value).encode())
    return digest(name.encode(), b"s", value if isinstance(value, bytes) else str(value).encode())


def without_floats(name: str, value: Any) -> bytes:
    """An attribute with its floats left out: they are compared with a tolerance later."""
    if isinstance(value, float):
        return digest(name.encode(), b"f")
    if isinstance(value, np.ndarray) and value.dtype.kind == "f":
        return digest(name.encode(), kind(value))
    if isinstance(value, tuple) and value and isinstance(value[0], float):
        return digest(name.encode(), b"f", str(len(value)).encode())
    return exact(name, value)


class Coloring:
    """Colours the vertices of a graph by what they are and by all that is before and after them.

    Args:
        graph: The graph.
        constant: Colour of a constant operand.
        attribute: Colour of an attribute.
        body: Colour of a control-flow body.
        entry: Colours of the graph inputs.
    """

    def __init__(
        self,
        graph: Topology,
        *,
        constant: ConstantLabel,
        attribute: AttributeLabel,
        body: Callable[[Topology], Color],
        entry: Sequence[Color],
    ) -> None:
        self.graph = graph
        self.entry = entry
        self.constants = {
            (position, slot): constant(graph, operand, vertex, slot)
            for position, vertex in enumerate(graph.vertices)
            for slot, operand in enumerate(vertex.operands)
            if operand.kind == "constant"
        }
        self.colors: list[Color] = [self._own(v, attribute, body) for v in graph.vertices]
        self._forward()

    def refine(self) -> None:
        """Refine until the partition is stable: what reads a vertex and what it reads, in turn."""
        classes = len(set(self.colors))
        while True:
            self._backward()
            self._forward()
            found = len(set(self.colors))
            if found <= classes:
                return
            classes = found

    @staticmethod
    def _own(vertex: Vertex, attribute: AttributeLabel, body: Callable[[Topology], Color]) -> Color:
        parts = [
            digest(name.encode(), body(value)) if isinstance(value, Topology) else attribute(name, value)
            for name, value in vertex.attributes.items()
        ]
        return digest(vertex.op.encode(), vertex.domain.encode(), str(vertex.outputs).encode(), *parts)

    def operand(self, operand: Operand, position: int, slot: int) -> Color:
        """Colour of an operand of a vertex."""
        if operand.kind == "node":
            return digest(self.colors[operand.index], bytes([operand.output % 256]))
        if operand.kind == "input":
            return self.entry[operand.index]
        if operand.kind == "constant":
            return b"c" + self.constants[position, slot]
        return b"absent"

    def _forward(self) -> None:
        previous = list(self.colors)
        for position, vertex in enumerate(self.graph.vertices):
            operands = [self.operand(o, position, slot) for slot, o in enumerate(vertex.operands)]
            if vertex.commutative:
                operands.sort()
            self.colors[position] = digest(previous[position], *operands)

    def _backward(self) -> None:
        readers: list[list[Color]] = [[] for _ in self.graph.vertices]
        for order, operand in enumerate(self.graph.outputs):
            if operand.kind == "node":
                readers[operand.index].append(digest(b"output", str((order, operand.output)).encode()))
        for position in reversed(range(len(self.graph.vertices))):
            color = digest(self.colors[position], *sorted(readers[position]))
            self.colors[position] = color
            vertex = self.graph.vertices[position]
            for slot, operand in enumerate(vertex.operands):
                if operand.kind == "node":
                    place = 0 if vertex.commutative else slot
                    readers[operand.index].append(digest(color, str((place, operand.output)).encode()))
