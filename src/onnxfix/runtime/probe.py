"""The probe: source, target and every suspicious region in one graph, from which only scalars leave.

Errors propagate, so a target's own activations blame everything after the first fault. Here each region of the target
is fed with the *source's* activations instead, and the graph itself reduces the difference to the source's outputs. One
run over the data gives every region its own error, no matter how many are faulty.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from onnxfix import mapped
from onnxfix.align.graph import GraphView, renamed
from onnxfix.align.regions import Region
from onnxfix.runtime.assembly import Constant, assemble, constants_read
from onnxfix.runtime.session import Session

TARGET = "target/"
COMPARABLE = frozenset(
    {
        TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.BOOL,
        TensorProto.INT8, TensorProto.INT16, TensorProto.INT32, TensorProto.INT64, TensorProto.UINT8,
        TensorProto.UINT16, TensorProto.UINT32, TensorProto.UINT64,
    }
)  # fmt: skip
MASKED = 1e30
# Elements by which large constants are looked up before they are compared whole.
_SAMPLE = 4096
STATISTICS = ("max_difference", "mean_square_difference", "max_source", "mean_square_source")


@dataclass(frozen=True)
class LocalError:
    """How far a region is from the source when fed with the source's activations.

    Attributes:
        max_difference: max|d|.
        rms_difference: Root of the mean of d^2.
        max_source: max|source|.
        rms_source: Root of the mean of source^2.
        broken: The region cannot be run on the source's activations, or its output has another shape; says why.
    """

    max_difference: float = 0.0
    rms_difference: float = 0.0
    max_source: float = 0.0
    rms_source: float = 0.0
    broken: str = ""

    @property
    def relative(self) -> float:
        """max|d| / max|source|; infinite where the region is broken or its source is zero throughout."""
        return math.inf if self.broken else _ratio(self.max_difference, self.max_source)

    @property
    def relative_rms(self) -> float:
        """The same for the root mean squares."""
        return math.inf if self.broken else _ratio(self.rms_difference, self.rms_source)

    def joined(self, other: LocalError) -> LocalError:
        """The larger of both maxima; root mean squares add as squares, the caller divides by the number of parts."""
        return LocalError(
            max(self.max_difference, other.max_difference),
            math.hypot(self.rms_difference, other.rms_difference),
            max(self.max_source, other.max_source),
            math.hypot(self.rms_source, other.rms_source),
            self.broken or other.broken,
        )


def _ratio(difference: float, scale: float) -> float:
    if difference == 0:
        return 0.0
    return difference / scale if scale > 0 else math.inf


def measure(source: Sequence[np.ndarray], target: Sequence[np.ndarray]) -> LocalError:
    """The local error between arrays at hand.

    NaN equals NaN and infinity equals infinity in the same place. So does what a mask is filled with: the most
    negative float, which file formats of fewer bits cannot hold.
    """
    error = LocalError()
    for s, t in zip(source, target, strict=True):
        if s.shape != t.shape:
            return LocalError(broken=f"its output has shape {list(t.shape)} instead of {list(s.shape)}")
        if s.size == 0:
            continue
        a, b = saturated(s), saturated(t)
        with np.errstate(all="ignore"):
            difference = np.where((a == b) | (np.isnan(a) & np.isnan(b)), 0.0, np.abs(a - b))
        difference = np.where(np.isnan(difference), np.inf, difference)
        finite = a[np.isfinite(a)]
        peak = float(np.abs(finite).max(initial=0.0))
        error = error.joined(
            LocalError(
                float(difference.max()),
                float(np.sqrt(np.mean(np.square(difference)))),
                peak,
                float(np.sqrt(np.mean(np.square(finite)))) if finite.size else 0.0,
            )
        )
    return error


def saturated(values: np.ndarray) -> np.ndarray:
    """The values in double precision, with all that only a mask is filled with taken for infinite."""
    wide = values.astype(np.float64)
    return np.where(np.abs(wide) >= MASKED, np.copysign(np.inf, wide), wide) if values.dtype.kind == "f" else wide


class Probe:
    """One session over source, target and regions.

    Args:
        source: The source's canonical graph; its inputs keep their names.
        target: The target's canonical graph; its inputs are read under ``target/<name>``.
        regions: The regions to measure.

    Raises:
        RuntimeFailure: onnxruntime refuses the combined graph (then measure the regions one by one).
    """

    def __init__(self, source: GraphView, target: GraphView, regions: Sequence[Region]) -> None:
        self.source, self.target = source, target
        self._nodes = [*source.proto.graph.node]
        self._constants: dict[str, Constant] = {t.name: t for t in source.proto.graph.initializer}
        self._names = {v: TARGET + v for v in (*target.inputs, *target.producer)}
        self._share_constants()
        self._nodes += [renamed(n, self._names, TARGET) for n in target.proto.graph.node]
        self._scalars: list[list[str]] = [self._measured(k, region) for k, region in enumerate(regions)]
        self.session = Session(self._model())
        names = self.session.output_names
        self._source_outputs = names[: len(source.outputs)]
        self._target_outputs = names[len(source.outputs) : len(source.outputs) + len(target.outputs)]
        self._statistics = names[len(source.outputs) + len(target.outputs) :]
        self._history: list[list[LocalError]] = [[] for _ in regions]

    def _share_constants(self) -> None:
        """Equal constants are held once."""
        contents = {_content_key(t): t for t in self.source.proto.graph.initializer}
        for tensor in self.target.proto.graph.initializer:
            twin = contents.get(_content_key(tensor))
            if twin is None or not _same_content(twin, tensor):
                self._constants[TARGET + tensor.name] = tensor
                self._names[tensor.name] = TARGET + tensor.name
            else:
                self._names[tensor.name] = twin.name

    def _measured(self, index: int, region: Region) -> list[str]:
        """Add a copy of the region's target piece, fed by the source, and the reductions; return the scalars' names."""
        prefix = f"probe{index}/"
        names = {v: self._names[v] for v in self._names if self.target.is_constant(v)}
        names.update(region.feeds)
        own = [self.target.nodes[n] for n in region.target_nodes]
        names.update({v: prefix + v for node in own for v in node.output if v})
        self._nodes += [renamed(node, names, prefix) for node in own]
        scalars = []
        for k, (s, t) in enumerate(region.outputs):
            scalars += self._reduced(f"{prefix}{k}/", s, names.get(t, t), self.source.element_types.get(s))
        return scalars

    def _reduced(self, prefix: str, source: str, copy: str, kind: int | None) -> list[str]:
        def add(op: str, inputs: list[str], name: str, **attributes: Any) -> str:
            self._nodes.append(helper.make_node(op, inputs, [prefix + name], name=prefix + name, **attributes))
            return prefix + name

        if kind != TensorProto.FLOAT:
            source = add("Cast", [source], "s", to=TensorProto.FLOAT)
            copy = add("Cast", [copy], "t", to=TensorProto.FLOAT)
        difference = add("Sub", [copy, source], "d")
        return [
            add("ReduceMax", [add("Abs", [difference], "abs_d")], "max_d", keepdims=0),
            add("ReduceMean", [add("Mul", [difference, difference], "sq_d")], "mean_d", keepdims=0),
            add("ReduceMax", [add("Abs", [source], "abs_s")], "max_s", keepdims=0),
            add("ReduceMean", [add("Mul", [source, source], "sq_s")], "mean_s", keepdims=0),
        ]

    def _model(self) -> onnx.ModelProto:
        inputs = {v: self.source.element_types[v] for v in self.source.inputs}
        inputs.update({TARGET + v: self.target.element_types[v] for v in self.target.inputs})
        outputs = [*self.source.outputs, *(self._names.get(v, v) for v in self.target.outputs)]
        outputs += [name for scalars in self._scalars for name in scalars]
        return assemble(self.source.proto, self._nodes, self._constants, inputs, outputs)

    def run(
        self, source_feed: Mapping[str, np.ndarray], target_feed: Mapping[str, np.ndarray]
    ) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Run one chunk of data.

        Returns:
            The source's and the target's outputs.

        Raises:
            RuntimeFailure: some region cannot be run on the source's activations (a shape does not fit).
        """
        feeds = {**source_feed, **{TARGET + k: v for k, v in target_feed.items()}}
        values = self.session.run(feeds)
        at = 0
        for k, scalars in enumerate(self._scalars):
            error = LocalError()
            for j in range(0, len(scalars), len(STATISTICS)):
                row = [float(values[n]) for n in self._statistics[at + j : at + j + len(STATISTICS)]]
                error = error.joined(_from_statistics(row))
            at += len(scalars)
            self._history[k].append(error)
        return [values[n] for n in self._source_outputs], [values[n] for n in self._target_outputs]

    def errors(self) -> list[LocalError]:
        """Each region's error over all chunks so far."""
        return [_over_chunks(history) for history in self._history]

    def telling_chunks(self, chosen: Sequence[int]) -> list[tuple[int, list[int]]]:
        """The fewest chunks on which every chosen region shows at least a third of its largest error, or is broken.

        Returns:
            (chunk, the regions it serves) pairs.
        """
        left = dict.fromkeys(chosen)
        found = []
        while left:
            serves = {c: [k for k in left if self._shows(k, c)] for c in range(len(self._history[next(iter(left))]))}
            best = max(serves, key=lambda c: len(serves[c]))
            found.append((best, serves[best]))
            for k in serves[best]:
                del left[k]
        return found

    def _shows(self, region: int, chunk: int) -> bool:
        history = self._history[region]
        if any(e.broken for e in history):
            return bool(history[chunk].broken)
        return history[chunk].max_difference >= max(e.max_difference for e in history) / 3


def _over_chunks(history: Sequence[LocalError]) -> LocalError:
    total = LocalError()
    for error in history:
        total = total.joined(error)
    scale = 1 / math.sqrt(max(len(history), 1))
    return replace(total, rms_difference=total.rms_difference * scale, rms_source=total.rms_source * scale)


def _from_statistics(row: Sequence[float]) -> LocalError:
    largest, mean_square, peak, power = row
    if not (math.isfinite(mean_square) and math.isfinite(power)):
        return LocalError(math.inf, math.inf, 1.0, 1.0)
    return LocalError(largest, math.sqrt(mean_square), peak, math.sqrt(power))


def _content_key(tensor: onnx.TensorProto) -> tuple[object, ...]:
    if mapped.is_external(tensor):
        sample = mapped.to_array(tensor).reshape(-1)[:_SAMPLE].tobytes()
        return (tensor.data_type, tuple(tensor.dims), hash(sample))
    unique = () if tensor.HasField("raw_data") else (tensor.name, id(tensor))
    return (tensor.data_type, tuple(tensor.dims), hash(tensor.raw_data), *unique)


def _same_content(first: onnx.TensorProto, second: onnx.TensorProto) -> bool:
    """Whether two tensors of one type and shape hold the same bytes."""
    if not mapped.is_external(first) and not mapped.is_external(second):
        return bool(first.raw_data == second.raw_data)
    pairs = zip(mapped.streamed(mapped.to_array(first)), mapped.streamed(mapped.to_array(second)), strict=True)
    return all(np.array_equal(one, two) for one, two in pairs)


def piece(view: GraphView, nodes: Sequence[str], feeds: Sequence[str], outputs: Sequence[str]) -> onnx.ModelProto:
    """Cut nodes out of a canonical graph as a model of their own.

    Args:
        view: The graph.
        nodes: The nodes, in topological order.
        feeds: The values they are fed with.
        outputs: The values wanted.
    """
    own = [view.nodes[n] for n in nodes]
    constants: dict[str, Constant] = dict(constants_read(view, own))
    constants.update({v: view.tensor(v) for v in outputs if view.is_constant(v)})
    return assemble(view.proto, own, constants, {v: view.element_types.get(v, 0) for v in feeds}, outputs)
