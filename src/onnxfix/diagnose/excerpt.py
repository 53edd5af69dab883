"""A piece of a lowered graph as a model of its own, to see what normal form it has by itself."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property

import onnx

from onnxfix.align.graph import captured, varying
from onnxfix.diagnose.naming import MOVERS
from onnxfix.model import Model

# Initializers of more elements than this hold weights, which shapes never depend on.
_WEIGHT = 256


class Excerpts:
    """Cuts pieces out of one lowered graph.

    Args:
        model: The model.
    """

    def __init__(self, model: Model) -> None:
        self.proto = model.proto
        graph = self.proto.graph
        self.nodes: dict[str, onnx.NodeProto] = {node.name: node for node in graph.node}
        self.tensors: dict[str, onnx.TensorProto] = {tensor.name: tensor for tensor in graph.initializer}
        self.maker: dict[str, onnx.NodeProto] = {o: node for node in graph.node for o in node.output if o}
        self.readers: dict[str, list[str]] = {}
        for node in graph.node:
            for value in (*node.input, *captured(node)):
                self.readers.setdefault(value, []).append(node.name)
        self._outputs = {output.name for output in graph.output}

    @cached_property
    def types(self) -> Mapping[str, onnx.TypeProto]:
        """Value name -> type and shape, as far as they can be inferred without the weights."""
        skeleton = onnx.ModelProto()
        skeleton.ir_version = self.proto.ir_version
        skeleton.opset_import.extend(self.proto.opset_import)
        skeleton.functions.extend(self.proto.functions)
        graph = skeleton.graph
        graph.node.extend(self.proto.graph.node)
        named = {info.name for info in self.proto.graph.input}
        graph.input.extend(self.proto.graph.input)
        graph.output.extend(self.proto.graph.output)
        for tensor in self.tensors.values():
            if sum(1 for _ in tensor.dims) and _size(tensor) > _WEIGHT:
                if tensor.name not in named:
                    graph.input.append(
                        onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
                    )
            else:
                graph.initializer.append(tensor)
        try:
            found = onnx.shape_inference.infer_shapes(skeleton, data_prop=True).graph
        except Exception:  # onnx raises whatever an op's own inference does; then only declared types are known
            found = self.proto.graph
        infos = (*self.proto.graph.value_info, *found.value_info, *found.input, *found.output)
        return {info.name: info.type for info in infos}

    def takes(self, op: str, count: int) -> bool:
        """Whether an op of the standard takes so many operands in the graph's opset."""
        version = next((o.version for o in self.proto.opset_import if o.domain in ("", "ai.onnx")), 1)
        try:
            schema = onnx.defs.get_schema(op, version)
        except onnx.defs.SchemaError:  # an op that is younger than the graph
            return False
        return bool(schema.min_input <= count <= schema.max_input)

    @cached_property
    def variable(self) -> frozenset[str]:
        """The values that depend on a graph input."""
        return varying(self.proto)

    def connected(self, names: Iterable[str]) -> set[str]:
        """Some nodes, and those between them that only move elements.

        Transposes that cancel stand behind no canonical node.
        """
        found = set(names)
        for name in tuple(found):
            for value in self.nodes[name].input:
                passed: list[str] = []
                maker = self.maker.get(value)
                while maker is not None and maker.op_type in MOVERS and maker.name not in found:
                    passed.append(maker.name)
                    maker = self.maker.get(maker.input[0]) if maker.input else None
                if maker is not None and maker.name in found:
                    found.update(passed)
        return found

    def cut(self, names: Iterable[str], changed: Mapping[str, onnx.NodeProto] = {}) -> onnx.ModelProto | None:
        """The piece that some nodes make up, with the constants they read.

        Args:
            names: Lowered node names.
            changed: Node name -> another node that takes its place.

        Returns:
            The piece, whose inputs and outputs are the values at its boundary; None where the type of one is unknown.
        """
        inside = self._with_constants(set(names))
        nodes = [changed.get(node.name, node) for node in self.proto.graph.node if node.name in inside]
        made = {o for node in nodes for o in node.output}
        read = dict.fromkeys(v for node in nodes for v in (*node.input, *captured(node)) if v and v not in made)
        entering = [v for v in read if v not in self.tensors]
        leaving = [
            o for node in nodes for o in node.output
            if o and (o in self._outputs or any(reader not in inside for reader in self.readers.get(o, ())))
        ]  # fmt: skip
        if any(v not in self.types for v in (*entering, *leaving)) or not leaving:
            return None
        piece = onnx.ModelProto()
        piece.ir_version = self.proto.ir_version
        piece.opset_import.extend(self.proto.opset_import)
        piece.functions.extend(self.proto.functions)
        piece.graph.name = "piece"
        piece.graph.node.extend(nodes)
        piece.graph.initializer.extend(self.tensors[v] for v in read if v in self.tensors)
        piece.graph.input.extend(_info(v, self.types[v]) for v in entering)
        piece.graph.output.extend(_info(v, self.types[v]) for v in leaving)
        return piece

    def _with_constants(self, inside: set[str]) -> set[str]:
        """The nodes, and those that compute the constants they read."""
        pending = list(inside)
        while pending:
            node = self.nodes.get(pending.pop())
            for value in () if node is None else (*node.input, *captured(node)):
                maker = self.maker.get(value)
                if maker is not None and value not in self.variable and maker.name not in inside:
                    inside.add(maker.name)
                    pending.append(maker.name)
        return inside


def _size(tensor: onnx.TensorProto) -> int:
    size = 1
    for dim in tensor.dims:
        size *= dim
    return size


def _info(name: str, kind: onnx.TypeProto) -> onnx.ValueInfoProto:
    info = onnx.ValueInfoProto()
    info.name = name
    info.type.CopyFrom(kind)
    return info
