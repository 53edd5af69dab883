"""Where a target leaves the source's values: the nodes behind the last right ones, and trials of edits of them."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from functools import cached_property

import numpy as np
import onnx
from onnx import helper

from onnxfix.align.graph import captured, varying
from onnxfix.diagnose.anchors import Anchors, all_values, handed_out
from onnxfix.errors import OnnxFixError
from onnxfix.runtime.session import Session

# Nodes behind the last right values that are looked at.
ZONE = 48
# Ops that may spoil the order of values that are right all the same.
_ORDERING = frozenset(
    {"Transpose", "Reshape", "Concat", "Gather", "Slice", "Split", "Cast", "Flatten", "Squeeze", "Unsqueeze",
     "SplitToSequence", "SequenceAt"}
)
# Ops that hand on a part of what they are given.
_SELECTING = frozenset(
    {"Slice", "Gather", "GatherND", "GatherElements", "Split", "Compress", "SplitToSequence", "SequenceAt"}
)


class Frontier:
    """The nodes of a lowered graph among which the first wrong one is.

    Args:
        proto: The lowered graph.
        feed: A few samples.
        anchors: What the source computes on them.

    Attributes:
        nodes: By name, in order.
        values: All values on the samples, those of graph inputs included.
        maker: Value -> the node that makes it.
        readers: Value -> nodes that read it.
        zone: The suspects, the first ones first.
        reached: Anchors that the target computes.

    Raises:
        RuntimeFailure: the graph does not run.
    """

    def __init__(self, proto: onnx.ModelProto, feed: Mapping[str, np.ndarray], anchors: Anchors) -> None:
        self.proto, self.anchors = proto, anchors
        graph = proto.graph
        self.nodes = {node.name: node for node in graph.node}
        self.order = {name: k for k, name in enumerate(self.nodes)}
        self.tensors = {tensor.name: tensor for tensor in graph.initializer}
        self.maker = {o: node for node in graph.node for o in node.output if o}
        self.readers: dict[str, list[str]] = {}
        for node in graph.node:
            for value in dict.fromkeys((*node.input, *captured(node))):
                self.readers.setdefault(value, []).append(node.name)
        self.values = {**feed, **all_values(proto, feed)}
        right = {value: anchors.find(self.values[value]) for value in self.maker if self._seen(value)}
        self.reached = {number for number in right.values() if number is not None}
        self.right = {value for value, number in right.items() if number is not None}
        self.zone = self._zone()

    @cached_property
    def variable(self) -> frozenset[str]:
        """Values that depend on a graph input."""
        return varying(self.proto)

    @property
    def work(self) -> int:
        """How many multiplications the suspects take, about."""
        return sum(
            self.values[o].size * self._depth(self.nodes[name])
            for name in self.zone for o in self.nodes[name].output if o in self.values
        )  # fmt: skip

    def _depth(self, node: onnx.NodeProto) -> int:
        """How many products make one number of a node's result."""
        if node.op_type not in ("Conv", "Gemm", "MatMul"):
            return 1
        weight = node.input[1]
        shape = self.tensors[weight].dims if weight in self.tensors else np.shape(self.values.get(weight, 0.0))
        return max(1, int(np.prod(shape[1:] if node.op_type == "Conv" else shape[-2:-1])))

    def _seen(self, value: str) -> bool:
        return value in self.variable and value in self.values

    def constant(self, value: str) -> np.ndarray | None:
        """What a value holds that no input changes."""
        if value in self.variable:
            return None
        if value in self.tensors:
            return onnx.numpy_helper.to_array(self.tensors[value])
        return self.values.get(value)

    def _zone(self) -> list[str]:
        """Nodes that nothing right was computed from, ordered by how many of them lie behind where they join others."""
        cleared = self._cleared()
        open_ = [
            name for name, node in self.nodes.items() if name not in cleared and self.variable.intersection(node.output)
        ]
        bit = {name: 1 << k for k, name in enumerate(open_)}
        behind: dict[str, int] = {}
        for name in open_:
            behind[name] = bit[name]
            for value in self.nodes[name].input:
                maker = self.maker.get(value)
                if maker is not None and maker.name in behind:
                    behind[name] |= behind[maker.name]
        weight: dict[str, int] = {}
        for name in reversed(open_):
            following = [r for o in self.nodes[name].output for r in self.readers.get(o, ()) if r in weight]
            joins = len({v for v in self.nodes[name].input if v in self.variable}) > 1
            own = behind[name].bit_count()
            weight[name] = own if joins or not following else min(weight[r] for r in following)
        chosen = sorted(open_, key=lambda name: (weight[name], self.order[name]))[:ZONE]
        inside = set(chosen)
        extra: dict[str, None] = {}
        for name in chosen:
            for value in self.nodes[name].input:
                while value in self.variable and (maker := self.maker.get(value)) is not None:
                    if maker.name not in inside:
                        extra[maker.name] = None
                    if maker.op_type not in _ORDERING:
                        break
                    value = maker.input[0]
        return [*chosen, *extra]

    def _cleared(self) -> set[str]:
        """Nodes that something right was computed from. A part that is right does not speak for the whole."""
        cleared: set[str] = set()
        for name, node in reversed(self.nodes.items()):
            read = [o for o in node.output if o and self.readers.get(o)]
            known = [o in self.right or self._vouched(o, cleared) for o in node.output if o in read or o in self.right]
            if (all if node.op_type in _SELECTING else any)(known) and known:
                cleared.add(name)
        return cleared

    def _vouched(self, value: str, cleared: set[str]) -> bool:
        following = self.readers.get(value, ())
        known = [reader for reader in following if reader in cleared]
        return any(self.nodes[reader].op_type not in _SELECTING for reader in known) or (
            bool(known) and len(known) == len(following)
        )

    def gains(
        self,
        changed: Mapping[str, onnx.NodeProto],
        added: Sequence[onnx.NodeProto] = (),
        constants: Mapping[str, np.ndarray] = {},
        *,
        whole: bool = False,
    ) -> tuple[set[int], bool]:
        """The anchors that a changed graph reaches and did not reach before, and whether all its results are right.

        Args:
            changed: Node name -> what stands in its place.
            added: Nodes put in.
            constants: Initializers put in.
            whole: Look at all nodes rather than at the suspects, behind which a result stays wrong.
        """
        inside = self.nodes.keys() if whole else {*self.zone, *changed}
        nodes = self._with_sequences(self._affected(changed, added, inside))
        made = {o for node in nodes for o in node.output if o}
        read = dict.fromkeys(v for node in nodes for v in (*node.input, *captured(node)) if v and v not in made)
        inputs = {v: self.values[v] for v in read if v in self.values and v not in constants}
        model = onnx.ModelProto()
        model.ir_version = self.proto.ir_version
        model.opset_import.extend(self.proto.opset_import)
        model.functions.extend(self.proto.functions)
        model.graph.name = "trial"
        model.graph.node.extend(nodes)
        model.graph.initializer.extend(self.tensors[v] for v in read if v in self.tensors and v not in constants)
        model.graph.initializer.extend(
            onnx.numpy_helper.from_array(np.asarray(v, order="C"), name) for name, v in constants.items()
        )
        model.graph.input.extend(
            helper.make_tensor_value_info(v, helper.np_dtype_to_tensor_dtype(a.dtype), None) for v, a in inputs.items()
        )
        wanted = handed_out(nodes)
        model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted)
        try:
            values = Session(model, intra_threads=1).run(inputs, wanted)
        except OnnxFixError:
            return set(), False
        arrays = {name: array for name, array in values.items() if isinstance(array, np.ndarray)}
        found = (self.anchors.find(array, self.reached) for array in arrays.values())
        results = [o.name for o in self.proto.graph.output if o.name not in self.right]
        right = bool(results) and all(o in arrays and self.anchors.find(arrays[o]) is not None for o in results)
        return {number for number in found if number is not None}, right

    def _with_sequences(self, nodes: list[onnx.NodeProto]) -> list[onnx.NodeProto]:
        """The nodes, and those that make the sequences they read: what a session hands out of those is no input."""
        made = {o for node in nodes for o in node.output}
        for node in tuple(nodes):
            for value in node.input:
                maker = self.maker.get(value)
                if maker is not None and value not in made and value not in self.values:
                    nodes.insert(0, maker)
                    made.update(maker.output)
        return nodes

    def _affected(
        self, changed: Mapping[str, onnx.NodeProto], added: Iterable[onnx.NodeProto], inside: Container[str]
    ) -> list[onnx.NodeProto]:
        """The nodes that a change can make compute otherwise, in order."""
        touched: set[str] = set()
        after = list(added)
        found: list[onnx.NodeProto] = []
        for name, own in self.nodes.items():
            node = changed.get(name, own)
            for extra in [extra for extra in after if self._ready(extra, node)]:
                after.remove(extra)
                found.append(extra)
                touched.update(extra.output)
            if name in changed or (name in inside and touched.intersection((*node.input, *captured(node)))):
                found.append(node)
                touched.update(node.output)
        return found

    def _ready(self, extra: onnx.NodeProto, reader: onnx.NodeProto) -> bool:
        return bool(set(extra.output).intersection(reader.input))
