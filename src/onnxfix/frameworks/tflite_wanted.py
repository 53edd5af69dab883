"""A patched lowered graph beside the TFLite file it came from: which operators it still has, and what differs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import onnx
from onnx import numpy_helper

from onnxfix.errors import ExportError
from onnxfix.frameworks.tflite_edges import at_edges
from onnxfix.quantization import DEQUANTIZE

_POSITION = re.compile(r"@(\d+) \(")


@dataclass(frozen=True, eq=False)
class Difference:
    """What the patches make of one operator's lowered nodes.

    Attributes:
        nodes: Its nodes in the patched graph; none where it is gone.
        rewired: Value it read -> value it reads now, where that is all; None where its own nodes changed.
    """

    nodes: tuple[onnx.NodeProto, ...]
    rewired: Mapping[str, str] | None = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Unit:
    """Nodes of the patched graph that become operators together.

    Attributes:
        operators: The operators of the file that they take the place of.
        nodes: The nodes, in the graph's order.
    """

    operators: tuple[int, ...]
    nodes: tuple[onnx.NodeProto, ...]

    def joined(self, other: Unit, order: Mapping[str, int]) -> Unit:
        """Two units as one; ``order`` is where each node stands."""
        nodes = sorted((*self.nodes, *other.nodes), key=lambda node: order[node.name])
        return Unit((*self.operators, *other.operators), tuple(nodes))


class Wanted:
    """The patched graph, seen operator by operator.

    Args:
        before: The lowered graph.
        after: The same with the patches.
        layers: Lowered node name -> location of its operator in the file.
        written: Initializers whose new content the file already has.
    """

    def __init__(
        self, before: onnx.ModelProto, after: onnx.ModelProto, layers: Mapping[str, str], written: Iterable[str]
    ) -> None:
        owners = {name: position for name, layer in layers.items() if (position := _position(layer)) is not None}
        before, after = (_with_own_dequantizers(proto, owners) for proto in (before, after))
        after = at_edges(after, owners)
        self.proto = after
        self._before = before
        self._written = frozenset(written)
        self.owners = owners
        self.nodes = {node.name: node for node in after.graph.node}
        self.tensors = {t.name: t for t in after.graph.initializer}
        self._old_tensors = {t.name: t for t in before.graph.initializer}
        self.makers = {o: node for node in after.graph.node for o in node.output if o}
        self.outputs = [o.name for o in after.graph.output]
        self._by_operator: dict[int, list[onnx.NodeProto]] = {}
        for node in before.graph.node:
            if node.name in self.owners:
                self._by_operator.setdefault(self.owners[node.name], []).append(node)

    @cached_property
    def renamed(self) -> dict[str, str]:
        """Value of the lowered graph -> its name in the patched one, where nodes make it that both have."""
        found = {}
        for node in self._before.graph.node:
            twin = self.nodes.get(node.name)
            if twin is not None and len(twin.output) == len(node.output):
                found.update({old: new for old, new in zip(node.output, twin.output, strict=True) if old != new})
        return found

    @cached_property
    def foreign(self) -> list[onnx.NodeProto]:
        """Nodes that no operator of the file lowers to."""
        return [node for node in self.proto.graph.node if node.name not in self.owners]

    @cached_property
    def order(self) -> dict[str, int]:
        """Node name -> where it stands in the graph."""
        return {name: index for index, name in enumerate(self.nodes)}

    def difference(self, position: int) -> Difference:
        """How an operator's nodes differ from what they were."""
        before = self._by_operator.get(position, [])
        after = [self.nodes[node.name] for node in before if node.name in self.nodes]
        if len(before) != len(after):
            return Difference(tuple(after), None)
        inside = {o for node in before for o in node.output}
        rewired: dict[str, str] = {}
        for old, new in zip(before, after, strict=True):
            if not self._alike(old, new, inside, rewired):
                return Difference(tuple(after), None)
        return Difference(tuple(after), rewired)

    def _alike(self, old: onnx.NodeProto, new: onnx.NodeProto, inside: set[str], rewired: dict[str, str]) -> bool:
        if old == new and not any(name in self._old_tensors for name in old.input):
            return True
        counts = (len(old.input), len(old.output)) == (len(new.input), len(new.output))
        if not counts or (old.op_type, old.domain) != (new.op_type, new.domain) or not _same_attributes(old, new):
            return False
        for was, now in zip(old.input, new.input, strict=True):
            if was in self._old_tensors:
                if not self._same_constant(was, now):
                    return False
            elif now != self.renamed.get(was, was) and (
                was in inside or now in self.tensors or rewired.setdefault(was, now) != now
            ):
                return False
        return True

    def _same_constant(self, was: str, now: str) -> bool:
        if was == now and was in self._written:
            return True
        tensor = self.tensors.get(now)
        return tensor is not None and (tensor == self._old_tensors[was])

    def piece(self, nodes: Sequence[onnx.NodeProto], types: Mapping[str, onnx.ValueInfoProto]) -> onnx.ModelProto:
        """Some nodes of the patched graph as a model of their own.

        Args:
            nodes: The nodes, in the graph's order.
            types: Types of the values that may enter.

        Raises:
            ExportError: they read a value that no tensor of the file holds, or make one of unknown type.
        """
        made = {o for node in nodes for o in node.output}
        read = dict.fromkeys(v for node in nodes for v in node.input if v and v not in made)
        strange = [v for v in read if v not in self.tensors and v not in types]
        if strange:
            raise ExportError(f"{strange[0]} is inside of an operator, and no tensor of the file holds it")
        used = {v for node in self.proto.graph.node if not any(node is n for n in nodes) for v in node.input}
        leaving = [o for node in nodes for o in node.output if o in used or o in self.outputs]
        piece = onnx.ModelProto()
        piece.ir_version = self.proto.ir_version
        piece.opset_import.extend(self.proto.opset_import)
        graph = piece.graph
        graph.name = "piece"
        graph.node.extend(nodes)
        graph.initializer.extend(self.tensors[v] for v in read if v in self.tensors)
        graph.input.extend(types[v] for v in read if v not in self.tensors)
        graph.output.extend(onnx.ValueInfoProto(name=v) for v in leaving)
        return _typed(piece)


def _with_own_dequantizers(proto: onnx.ModelProto, owners: dict[str, int]) -> onnx.ModelProto:
    """The graph with a DequantizeLinear for each operator that reads one; the lowering lets operators share them."""
    made = onnx.ModelProto()
    made.CopyFrom(proto)
    stored = {t.name for t in proto.graph.initializer}
    nodes: list[onnx.NodeProto] = []
    copies: dict[tuple[str, int | None], str] = {}
    shared = {
        node.output[0]: node for node in proto.graph.node
        if node.op_type == DEQUANTIZE and node.input[0] not in stored and node.name in owners
    }  # fmt: skip
    for node in made.graph.node:
        owner = owners.get(node.name)
        for slot, value in enumerate(node.input):
            maker = shared.get(value)
            if maker is None or owners.get(maker.name) == owner:
                continue
            if (value, owner) not in copies:
                copies[value, owner] = f"{value}/{owner}"
                twin = onnx.NodeProto()
                twin.CopyFrom(maker)
                twin.name, twin.output[0] = f"{maker.name}/{owner}", copies[value, owner]
                nodes.append(twin)
                if owner is not None:
                    owners[twin.name] = owner
            node.input[slot] = copies[value, owner]
        nodes.append(node)
    read = {v for node in nodes for v in node.input} | {o.name for o in proto.graph.output}
    kept = [node for node in nodes if node.op_type != DEQUANTIZE or node.output[0] in read]
    fresh = [onnx.NodeProto.FromString(node.SerializeToString()) for node in kept]
    del made.graph.node[:]
    made.graph.node.extend(fresh)
    return made


def array(tensor: onnx.TensorProto) -> np.ndarray:
    """The content of an initializer."""
    return numpy_helper.to_array(tensor)


def _typed(piece: onnx.ModelProto) -> onnx.ModelProto:
    """The piece with the types of its outputs."""
    names = [o.name for o in piece.graph.output]
    try:
        inferred = onnx.shape_inference.infer_shapes(piece, data_prop=True).graph
    except Exception as error:  # onnx raises whatever an op's own inference does
        raise ExportError(f"the type of {names[0]} cannot be told") from error
    known = {info.name: info for info in (*inferred.value_info, *inferred.output)}
    unknown = [name for name in names if not known[name].type.HasField("tensor_type")]
    if unknown:
        raise ExportError(f"the type of {unknown[0]} cannot be told")
    del piece.graph.output[:]
    piece.graph.output.extend(known[name] for name in names)
    return piece


def _position(layer: str) -> int | None:
    found = _POSITION.search(layer)
    return int(found[1]) if found else None


def _same_attributes(old: onnx.NodeProto, new: onnx.NodeProto) -> bool:
    one, two = ({a.name: a.SerializeToString(deterministic=True) for a in node.attribute} for node in (old, new))
    return one == two


def components(nodes: Sequence[onnx.NodeProto]) -> list[list[onnx.NodeProto]]:
    """Nodes in groups that values connect, in order."""
    group = {index: {index} for index in range(len(nodes))}
    makers = {o: index for index, node in enumerate(nodes) for o in node.output if o}
    for index, node in enumerate(nodes):
        for value in node.input:
            other = makers.get(value)
            if other is not None and group[other] is not group[index]:
                group[other] |= group[index]
                for member in group[other]:
                    group[member] = group[other]
    distinct = {id(members): members for members in group.values()}
    return [[nodes[index] for index in sorted(members)] for members in distinct.values()]
