"""What the source computes on the way, as a yardstick for values of a target that is built otherwise.

A converter may spell one op as forty. Their order, layout and fusion are its own, but some of the numbers on the way
are the source's: the result of each op, the state after each step of a recurrent layer. A value of the target that
holds the numbers of one of the source's, in whatever order, is right, and so is all that it was computed from.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from copy import copy

import numpy as np
import onnx

from onnxfix.errors import RuntimeFailure
from onnxfix.model import Model
from onnxfix.runtime.session import Session

# Values differ by float noise, relative to their peak; a fault of less cannot be seen this way. The second is for
# networks that are so shallow that their noise is less.
NOISE = (2e-5, 2e-6)
# Arrays of more elements are not sorted.
LARGEST = 2**17
_RECURRENT = frozenset({"LSTM", "GRU", "RNN"})
# Element types of which onnxruntime hands out nothing.
_UNKNOWN = frozenset({
    onnx.TensorProto.BFLOAT16, onnx.TensorProto.FLOAT8E4M3FN, onnx.TensorProto.FLOAT8E5M2,
    onnx.TensorProto.FLOAT8E4M3FNUZ, onnx.TensorProto.FLOAT8E5M2FNUZ,
})  # fmt: skip

Statistics = tuple[float, float, float]


class Anchors:
    """Arrays by their content, in whatever order their elements stand.

    Args:
        arrays: The arrays; those that tell nothing are left out.
    """

    def __init__(self, arrays: Iterable[np.ndarray]) -> None:
        self.noise = NOISE[0]
        self._sizes: dict[int, list[tuple[Statistics, np.ndarray, int]]] = {}
        self.count = 0
        for array in arrays:
            if telling(array) and self.find(array) is None:
                self._sizes.setdefault(array.size, []).append((_statistics(array), np.sort(array, None), self.count))
                self.count += 1

    def within(self, noise: float) -> Anchors:
        """The same anchors, held to another noise."""
        other = copy(self)
        other.noise = noise
        return other

    def find(self, array: np.ndarray, known: frozenset[int] | set[int] = frozenset()) -> int | None:
        """The number of the anchor that holds the same values; None where none does, or only one of ``known``."""
        near = self._sizes.get(array.size)
        if not near or not telling(array):
            return None
        own = _statistics(array)
        peak = max(abs(own[0]), abs(own[1]))
        ordered: np.ndarray | None = None
        for theirs, content, number in near:
            if number in known or any(abs(a - b) > self.noise * peak for a, b in zip(own, theirs, strict=True)):
                continue
            ordered = np.sort(array, None) if ordered is None else ordered
            if float(np.abs(ordered - content).max()) <= self.noise * peak:
                return number
        return None


def telling(array: np.ndarray) -> bool:
    """Whether an array is known by its content: floats, finite, of more than two values, not too many to compare."""
    if array.dtype.kind != "f" or not 2 <= array.size <= LARGEST or not np.isfinite(array).all():
        return False
    low, high = float(array.min()), float(array.max())
    if high - low <= 1e-3 * max(abs(low), abs(high)):
        return False
    return array.size < 4 or bool(((array > low) & (array < high)).any())


def _statistics(array: np.ndarray) -> Statistics:
    return float(array.min()), float(array.max()), float(array.mean(dtype=np.float64))


def all_values(proto: onnx.ModelProto, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Run a model and keep all tensors that its nodes make.

    Raises:
        RuntimeFailure: it does not run.
    """
    tapped = onnx.ModelProto()
    tapped.CopyFrom(proto)
    del tapped.graph.output[:]
    made = handed_out(tapped.graph.node)
    tapped.graph.output.extend(onnx.ValueInfoProto(name=name) for name in made)
    return {name: value for name, value in Session(tapped).run(feed, made).items() if isinstance(value, np.ndarray)}


def handed_out(nodes: Iterable[onnx.NodeProto]) -> list[str]:
    """What some nodes make, as far as numpy has the type."""
    return [
        o for node in nodes for o in node.output
        if o and not (node.op_type == "Cast" and onnx.helper.get_node_attr_value(node, "to") in _UNKNOWN)
    ]  # fmt: skip


def source_anchors(source: Model, feed: Mapping[str, np.ndarray]) -> Anchors:
    """Everything that the source computes, in its own graph and in its normal form, each step of a recurrence apart."""
    found: list[np.ndarray] = []
    for proto in (source.proto, _with_steps(source.canonical)):
        try:
            values = all_values(proto, feed)
        except RuntimeFailure:
            continue
        found.extend(values.values())
        for node in proto.graph.node:
            if node.op_type in _RECURRENT and node.output[0] in values:
                steps = values[node.output[0]]  # [steps, directions, batch, hidden]
                found.extend(steps[t, d] for t in range(steps.shape[0]) for d in range(steps.shape[1]))
    return Anchors(found)


def _with_steps(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model, in which recurrent layers hand out the states of all steps."""
    if all(node.op_type not in _RECURRENT or node.output[0] for node in proto.graph.node):
        return proto
    stepped = onnx.ModelProto()
    stepped.CopyFrom(proto)
    for node in stepped.graph.node:
        if node.op_type in _RECURRENT and not node.output[0]:
            node.output[0] = f"{node.name}/steps"
    return stepped
