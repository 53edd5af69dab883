"""Inputs that the target prepares in another way than the source: scale, mean, channel order, moved axes.

What both graphs do to an input before their first layers is read off them (:mod:`fronts`); what was folded into the
first layers is read off their weights (:mod:`folded`). Together they give the map ``x_t = A(x_s)`` in closed form.
A map is only believed where, fed through it, the first layers answer as the source's do, which faults further on
cannot hide.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import onnx

from onnxfix.align import GraphView
from onnxfix.diagnose.boundary.change import Change, boundary_fault, boundary_patch, listed, named, view_of
from onnxfix.diagnose.boundary.first_layers import FirstLayer, LayerRun, pairs
from onnxfix.diagnose.boundary.folded import relation
from onnxfix.diagnose.boundary.fronts import Front, front
from onnxfix.diagnose.boundary.maps import InputMap
from onnxfix.diagnose.boundary.samples import Samples, distance
from onnxfix.diagnose.boundary.stored import stored
from onnxfix.diagnose.fault import FaultKind
from onnxfix.errors import CanonicalizationError, RuntimeFailure
from onnxfix.inputs import InputPair, pair_inputs
from onnxfix.inputs.catalogue import relation as known
from onnxfix.model import Model
from onnxfix.surgeon.patch import ChangeBoundary, SetParameter

# A map must bring the first layers this much nearer, or all the way.
NEARER = 0.5
REACHED = 1e-3


@dataclass(frozen=True, eq=False)
class _Side:
    """One model's way with an input.

    Attributes:
        model: The model.
        lowered: Its lowered graph.
        canonical: Its normal form.
        name: The input.
        shape: Its shape on the data.
    """

    model: Model
    lowered: GraphView
    canonical: GraphView
    name: str
    shape: tuple[int, ...]

    def front(self) -> Front:
        """What the lowered graph does to the input."""
        return front(self.lowered, self.name, self.shape)

    def reach(self) -> Front:
        """The same as far as it goes, whoever asks for sizes on the way."""
        return front(self.lowered, self.name, self.shape, past_sizes=True)

    def canonical_front(self) -> Front:
        """What its normal form does."""
        return front(self.canonical, self.name, self.shape)


def preparations(source: Model, target: Model, samples: Samples) -> list[Change]:
    """One change for each input that the target prepares in another way."""
    try:
        ours = view_of(source), GraphView(source.canonical)
        theirs = view_of(target), GraphView(target.canonical)
    except CanonicalizationError:
        return []
    found: list[Change] = []
    for pair in pair_inputs(source, target):
        mine, yours = samples.source[0][pair.source.name], samples.target[0][pair.target.name]
        if mine.ndim != yours.ndim or mine.ndim < 2 or yours.dtype.kind != "f":
            continue
        a = _Side(source, *ours, pair.source.name, mine.shape)
        b = _Side(target, *theirs, pair.target.name, yours.shape)
        try:
            found.extend(_prepared(a, b, pair, samples))
        except RuntimeFailure:
            continue  # a first layer that does not run is no matter of the input
    return found


def _prepared(ours: _Side, theirs: _Side, pair: InputPair, samples: Samples) -> Iterator[Change]:
    layers = pairs(ours.canonical, ours.name, theirs.canonical, theirs.name)
    if not layers:
        return
    apart = _judge(ours, theirs, layers, samples)
    unprepared = apart(InputMap.identity(len(theirs.shape)))
    if unprepared <= REACHED:
        yield from _moved_on(ours, theirs, pair, samples)
        return
    best: tuple[float, InputMap] | None = None
    for way, evident in _candidates(ours, theirs, pair, layers[0]):
        left = apart(way)
        if (left <= REACHED or (evident and left < NEARER * unprepared)) and (best is None or left < NEARER * best[0]):
            best = left, way
    if best is not None:
        yield from _changes(ours, theirs, best[1], unprepared, layers[0] if len(layers) == 1 else None)


def _judge(
    ours: _Side, theirs: _Side, layers: list[tuple[FirstLayer, FirstLayer]], samples: Samples
) -> Callable[[InputMap], float]:
    """How far the first layers are apart when the target is fed through a map."""
    mine = LayerRun(ours.canonical, ours.name, [layer for layer, _ in layers])
    yours = LayerRun(theirs.canonical, theirs.name, [layer for _, layer in layers])
    wanted = [y for feed in samples.source for y in mine(feed[ours.name])]

    def apart(way: InputMap) -> float:
        if not way.fits(theirs.shape):
            return float("inf")
        try:
            return distance(wanted, [y for feed in samples.target for y in yours(way(feed[theirs.name]))])
        except RuntimeFailure:
            return float("inf")  # the target's first layer does not take such an input

    return apart


def nearest(source: Model, target: Model, samples: Samples) -> float:
    """How near the first layers come when the target is fed through the best map that can be found, or through none.

    Returns:
        As :func:`distance`, the worst of all inputs; infinite where there are no first layers to tell by.
    """
    apart = 0.0
    views = view_of(source), GraphView(source.canonical), view_of(target), GraphView(target.canonical)
    for pair in pair_inputs(source, target):
        mine, yours = samples.source[0][pair.source.name], samples.target[0][pair.target.name]
        a = _Side(source, *views[:2], pair.source.name, mine.shape)
        b = _Side(target, *views[2:], pair.target.name, yours.shape)
        layers = pairs(a.canonical, a.name, b.canonical, b.name)
        if not layers:
            return float("inf")
        judge = _judge(a, b, layers, samples)
        ways = [InputMap.identity(len(b.shape)), *(way for way, _ in _candidates(a, b, pair, layers[0]))]
        apart = max(apart, min(map(judge, ways)))
    return apart


def _moved_on(ours: _Side, theirs: _Side, pair: InputPair, samples: Samples) -> Iterator[Change]:
    """Axes that are moved before a layer that does not care: what follows tells."""
    structural = next((way for way in _structural(ours, theirs, pair) if not way.moves_nothing()), None)
    if structural is None or not structural.fits(theirs.shape):
        return

    def apart(way: InputMap) -> float:
        feeds = ({**feed, theirs.name: way(feed[theirs.name])} for feed in samples.target)
        try:
            runs = [[*theirs.model.run(feed).values()] for feed in feeds]
        except RuntimeFailure:
            return float("inf")
        answers = [list(column) for column in zip(*runs, strict=True)]
        return sum(min(distance(a, b), 2.0) for a, b in zip(wanted, answers, strict=False))

    wanted = samples.run(ours.model, "source")
    unmoved = apart(InputMap.identity(len(theirs.shape)))
    if apart(structural) < NEARER * unmoved:
        yield from _changes(ours, theirs, structural, unmoved)


def _structural(ours: _Side, theirs: _Side, pair: InputPair) -> Iterator[InputMap]:
    """The maps that make what both lowered graphs do to the input the same: first without moved axes.

    One graph may move axes before its first layer that the other moves later on.
    """
    a, b = ours.reach(), theirs.reach()
    given = _given(pair, theirs)
    for one, other in ((a.map.after(given).unmoved(), b.map.unmoved()), (a.map.after(given), b.map)):
        back = other.inverse()
        if back is not None and one.rank == other.rank:
            way = back.after(one)
            if not way.is_identity() and not _same_steps(a, b, way):
                yield way


def _given(pair: InputPair, theirs: _Side) -> InputMap:
    """From the target's feed to the source's: each model is fed in its own layout, which is no fault."""
    identity = InputMap.identity(len(theirs.shape))
    return identity if pair.permutation is None else InputMap.moving(_inverse(pair.permutation))


def _candidates(
    ours: _Side, theirs: _Side, pair: InputPair, layers: tuple[FirstLayer, FirstLayer]
) -> Iterator[tuple[InputMap, bool]]:
    """Maps, the plainest first, and whether the graphs give evidence of them."""
    yield from ((way, True) for way in _structural(ours, theirs, pair))
    yield from ((way, True) for way in _folded(ours, theirs, _given(pair, theirs), layers))
    if len(set(theirs.shape[1:])) < len(theirs.shape[1:]) and len(theirs.shape) in (3, 4, 5):
        yield from ((way, False) for way in _turns(theirs.shape))


def _turns(shape: tuple[int, ...]) -> Iterator[InputMap]:
    """Two axes of the same size, exchanged."""
    axes = list(range(len(shape)))
    for i in range(1, len(shape)):
        for j in range(i + 1, len(shape)):
            if shape[i] == shape[j]:
                perm = axes.copy()
                perm[i], perm[j] = j, i
                yield InputMap.moving(tuple(perm))


def _folded(
    ours: _Side, theirs: _Side, given: InputMap, layers: tuple[FirstLayer, FirstLayer]
) -> Iterator[InputMap]:
    """The map that the first layers' weights tell, where it is a known one or looks like nothing else."""
    related = relation(*layers)
    a, b = ours.canonical_front(), theirs.canonical_front()
    back = b.map.inverse()
    if related is None or related.is_identity() or back is None or a.map.rank != b.map.rank:
        return
    axis = 1
    if a.map.rank != layers[0].weight.ndim and layers[0].op == "Conv":
        return
    wide = [-1 if k == axis else 1 for k in range(a.map.rank)]
    step = InputMap.identity(a.map.rank).taken(axis, related.order)
    step = step.affine(related.scale.reshape(wide), related.shift.reshape(wide))
    way = back.after(step.after(a.map.after(given)))
    if related.is_telling() or known(related.scale, related.shift, related.order) is not None:
        yield way


def _same_steps(a: Front, b: Front, way: InputMap) -> bool:
    """Whether both graphs take the same steps with other numbers: then a constant is wrong, not the preparation."""
    alike = [n.op_type for n in a.nodes] == [n.op_type for n in b.nodes]
    return alike and known_map(way) is None


def known_map(way: InputMap) -> tuple[str, str] | None:
    """The two known preparations between which a map leads."""
    axis = next(iter(way.takes), None)
    sizes = [(k, n) for k, n in enumerate(way.scale.shape) if n > 1]
    if axis is None:
        axis = sizes[0][0] if sizes else 1
    if any(k != axis for k, _ in sizes) or set(way.takes) - {axis}:
        return None
    channels = len(way.takes[axis]) if axis in way.takes else (sizes[0][1] if sizes else 1)
    scale, shift = (np.broadcast_to(v.reshape(-1), (channels,)) for v in (way.scale, way.shift))
    return known(scale, shift, way.takes.get(axis, np.arange(channels)))


def _inverse(perm: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(int(axis) for axis in np.argsort(perm))


def _changes(
    ours: _Side, theirs: _Side, way: InputMap, error: float, layers: tuple[FirstLayer, FirstLayer] | None = None
) -> Iterator[Change]:
    """The fault of the preparation, and that of the layout where axes are moved, too; one patch for both."""
    inside = None if layers is None else _in_weights(ours, theirs, way, layers)
    if inside is not None:
        yield _folded_change(ours, theirs, way, error, inside)
        return
    patch = _patch(ours, theirs, way)
    guilty = _nodes(theirs) if theirs.front().nodes else ()
    beside = named(theirs.model, _readers(theirs))
    where = guilty or beside
    there = _nodes(ours) or named(ours.model, _readers(ours))
    if not way.moves_nothing():
        yield Change(
            boundary_fault(
                FaultKind.TENSOR_LAYOUT, where, there, theirs.name,
                f"Input {theirs.name} is taken with its axes in another order: the target wants what the source is "
                f"fed, transposed by {list(way.perm)}.",
                expected=list(range(way.rank)), actual=[int(a) for a in np.argsort(way.perm)], error=error,
            ),
            (patch,),
        )  # fmt: skip
    if way.rescales_nothing() and way.picks_nothing():
        return
    yield Change(
        boundary_fault(
            FaultKind.PREPROCESSING, where, there, theirs.name, _sentence(theirs.name, way),
            expected=_described(ours.front().map), actual=_described(theirs.front().map), error=error,
        ),
        (patch,) if way.moves_nothing() else (),
    )  # fmt: skip


def _in_weights(
    ours: _Side, theirs: _Side, way: InputMap, layers: tuple[FirstLayer, FirstLayer]
) -> tuple[SetParameter, ...] | None:
    """The first layer's parameters with the preparation taken out, where it is in them and in nothing else."""
    a, b = ours.front(), theirs.front()
    found, layer = relation(*layers), layers[1]
    if found is None or found.is_identity() or any(n.op_type not in _INERT for n in (*a.nodes, *b.nodes)):
        return None
    if not way.moves_nothing():
        return None
    wide = [1, -1, *[1] * (layer.weight.ndim - 2)] if layer.op == "Conv" else [-1, 1]
    axis = 1 if layer.op == "Conv" else 0
    scaled = layer.weight * found.scale.reshape(wide)
    wanted = {layer.constants[0]: scaled.take(np.argsort(found.order), axis).astype(layer.weight.dtype)}
    if not np.allclose(found.shift, 0):
        if layer.bias is None:
            return None
        added = np.tensordot(np.moveaxis(layer.weight, axis, 0).reshape(len(found.shift), -1), found.shift, (0, 0))
        outputs = layer.weight.shape[1 - axis]
        wanted[layer.constants[1]] = layer.bias + added.reshape(outputs, -1).sum(axis=1).astype(layer.bias.dtype)
    return stored(theirs.model, wanted)


# What may stand before a first layer into which a preparation was folded.
_INERT = frozenset({"Transpose", "Identity", "Cast"})


def _folded_change(
    ours: _Side, theirs: _Side, way: InputMap, error: float, inside: tuple[SetParameter, ...]
) -> Change:
    names = {patch.name for patch in inside}
    readers = [n for n in theirs.model.proto.graph.node if names.intersection(n.input)]
    fault = boundary_fault(
        FaultKind.PREPROCESSING, named(theirs.model, readers), named(ours.model, _readers(ours)), inside[0].name,
        _sentence(theirs.name, way), expected=_described(ours.front().map), actual=_described(way), error=error,
    )  # fmt: skip
    return Change(fault, inside)


def _sentence(name: str, way: InputMap) -> str:
    lead = known_map(way)
    if lead is not None:
        return f"Input {name} is prepared in another way: the target wants {lead[1]} where the source is fed {lead[0]}."
    parts = [f"the channels in the order {i.tolist()}" for i in way.takes.values() if len(i) <= 16]
    if not np.allclose(way.scale, 1, rtol=1e-5):
        parts.append(f"multiplied by {listed(way.scale)}")
    if not np.allclose(way.shift, 0, atol=1e-5):
        parts.append(f"shifted by {listed(way.shift)}")
    return f"Input {name} is prepared in another way: the target wants what the source is fed, {', '.join(parts)}."


def _described(way: InputMap) -> dict[str, object]:
    order = next((i.tolist() for i in way.takes.values()), None)
    return {"scale": listed(way.scale), "shift": listed(way.shift), "order": order, "axes": list(way.perm)}


def _nodes(side: _Side) -> tuple[str, ...]:
    return named(side.model, side.front().nodes)


def _readers(side: _Side) -> list[onnx.NodeProto]:
    return [side.lowered.nodes[n] for n, _ in side.lowered.consumers.get(side.name, ())]


def _patch(ours: _Side, theirs: _Side, way: InputMap) -> ChangeBoundary:
    """Nodes between the input and what read it; in place of the target's own where that takes no more of them."""
    own = theirs.front()
    dtype = next(spec.dtype for spec in theirs.model.inputs if spec.name == theirs.name)
    between = f"{theirs.name}/prepared"
    nodes, constants = way.nodes(theirs.name, between, dtype)
    infos = {} if way.moves_nothing() else {theirs.name: _info(theirs, way)}
    whole = own.map.after(way)
    instead, brought = whole.nodes(theirs.name, own.value, dtype)
    replaceable = own.nodes and not any(n.op_type in ("Cast", "DequantizeLinear") for n in own.nodes)
    if replaceable and len(instead) <= len(nodes):
        if whole.is_identity():
            return boundary_patch(
                theirs.model, f"feed {theirs.name} as it is", inputs=infos, removed=own.nodes,
                renamed={own.value: theirs.name},
            )  # fmt: skip
        return boundary_patch(
            theirs.model, f"prepare {theirs.name} as the source does", inputs=infos, removed=own.nodes,
            added=tuple(instead), constants=brought,
        )  # fmt: skip
    return boundary_patch(
        theirs.model, f"prepare {theirs.name} as the target wants it", inputs=infos, added=tuple(nodes),
        constants=constants, renamed={theirs.name: between},
    )  # fmt: skip


def _info(side: _Side, way: InputMap) -> onnx.ValueInfoProto:
    """The input as it is declared once its axes are moved."""
    info = onnx.ValueInfoProto()
    info.CopyFrom(next(i for i in side.model.proto.graph.input if i.name == side.name))
    dims = list(info.type.tensor_type.shape.dim)
    if len(dims) == way.rank:
        del info.type.tensor_type.shape.dim[:]
        info.type.tensor_type.shape.dim.extend(dims[way.perm.index(axis)] for axis in range(way.rank))
    return info
