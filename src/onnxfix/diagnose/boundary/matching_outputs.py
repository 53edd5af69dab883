"""Which output of the target is which output of the source, and what lies between them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from onnxfix.diagnose.boundary.labels import LastLayer, kinship, label_maps
from onnxfix.diagnose.boundary.samples import distance
from onnxfix.diagnose.boundary.tails import Tail
from onnxfix.diagnose.boundary.ways import Arrays, Way, fits

# Another reading of an output must bring it this much nearer than the plain one.
NEARER = 0.5
# What the graphs themselves tell is only not believed where it makes the answers this much worse.
MUCH_WORSE = 10.0
# Classes are dropped for what they answer only where the rest is right.
EXACT = 0.05
# Share of equal weights from which on two layers are the same.
KIN = 0.5
# An assignment must cost this much less than leaving all outputs in their places.
MUCH_BETTER = 0.6
# More assignments than this are not gone through one by one.
_EXHAUSTIVE = 5040


@dataclass(frozen=True, eq=False)
class Output:
    """An output of one model.

    Attributes:
        name: Its name.
        arrays: Its values, feed by feed.
        core: The same without its activations.
        tail: Its last nodes.
        layer: The layer that makes its numbers, where there is one nearby.
        order: Which class of that layer each of its classes is, where that can be told.
        scale: Scale and zero point, where whole numbers stand for real ones.
    """

    name: str
    arrays: Arrays
    core: Arrays
    tail: Tail
    layer: LastLayer | None
    order: np.ndarray | None
    scale: tuple[np.ndarray, np.ndarray] | None = None


@dataclass(frozen=True, eq=False)
class Match:
    """A reading of a target's output as one of the source's.

    Attributes:
        way: What turns it into that.
        apart: How far it is then from it (0 equal, about 1.4 unrelated).
        plain: How far it is as it is.
        kin: Share of the last layers' weights that are the same, where both have one.
    """

    way: Way
    apart: float
    plain: float
    kin: float | None = None

    @property
    def cost(self) -> float:
        """How little speaks for it: weights first, which faults further up do not change, then the answers."""
        answers = min(self.apart, 2.0) / 2
        changes = 0.0 if self.way.is_identity() else 0.2
        if self.kin is None or not math.isfinite(self.apart):
            return answers + changes
        return (0.0 if self.kin >= KIN else 1.0) + changes + 0.1 * answers


def match(ours: Output, theirs: Output, apply: Callable[[Way, Arrays], Arrays]) -> Match:
    """The best reading of one output as another.

    Args:
        ours: The source's output.
        theirs: The target's output.
        apply: Carries out a way on arrays, activations included.
    """
    plain = distance(ours.arrays, theirs.arrays)
    kin = kinship(ours.layer, theirs.layer)
    best = Match(Way(), plain, plain, kin)
    if plain == 0:
        return best
    surely = False
    for way, evident in _ways(ours, theirs):
        evident = evident and (kin is None or kin >= KIN)
        given = theirs.arrays if way.kept is None else theirs.core
        apart = distance(ours.arrays, apply(way, given))
        limit = MUCH_WORSE * plain if evident and not surely else NEARER * best.apart
        if not evident and way.index is not None and len(way.index) != given[0].shape[1]:
            limit = min(limit, EXACT)
        if apart < limit:
            best, surely = Match(way, apart, plain, kin), surely or evident
    return best


def _ways(ours: Output, theirs: Output) -> Iterator[tuple[Way, bool]]:
    """All readings, the plainest first, and whether the graphs themselves tell so."""
    swapped = _activations(ours, theirs)
    dtype = _dtype(ours.arrays[0], theirs.arrays[0]) if theirs.scale is None else None
    base = Way(scale=theirs.scale, dtype=dtype)
    if not base.is_identity():
        yield base, True
    for way in fits(ours.core[0], theirs.core[0]):
        turned = _turned(ours, theirs, way)
        if turned is None:
            continue
        cores = [way.shaped(a) for a in theirs.core]
        same = cores[0].shape == ours.core[0].shape
        for found, evident in _picked(ours, theirs, way, cores):
            whole = replace(found, scale=base.scale, dtype=base.dtype)
            shrunk = found.index is not None and len(found.index) < cores[0].shape[1]
            renormal = shrunk and _normalised(theirs)
            if swapped is not None:
                yield replace(found, kept=swapped.kept, activations=swapped.activations), turned and evident
            elif renormal and theirs.tail.free:
                yield replace(found, kept=0, activations=ours.tail.activations), turned and evident
            if not whole.is_identity() and (same or found.index is not None):
                yield whole, turned and evident and swapped is None and not renormal


def _picked(ours: Output, theirs: Output, way: Way, cores: Arrays) -> Iterator[tuple[Way, bool]]:
    """A way with each choice of classes that there is evidence for."""
    same, count = cores[0].shape == ours.core[0].shape, cores[0].shape[1] if cores[0].ndim > 1 else 0
    sure = False
    if count and (cores[0].ndim == 2 or not same):
        layers, orders = (ours.layer, theirs.layer), (ours.order, theirs.order)
        for index, evident in label_maps(ours.core, cores, layers, orders):
            sure = sure or evident
            if len(index) != count or not np.array_equal(index, np.arange(count)):
                yield replace(way, index=index, axis=1), evident
                if evident:
                    return
    if same:
        yield way, sure or cores[0].ndim != 2 or way.perm is None


def _turned(ours: Output, theirs: Output, way: Way) -> bool | None:
    """Whether both graphs' last transposes tell that axes are moved so; None where that must not be believed."""
    mine, yours = ours.tail.perm(), theirs.tail.perm()
    rank = theirs.core[0].ndim
    plain = tuple(range(rank))
    a, b = mine or plain, yours or plain
    told = tuple(b.index(axis) for axis in a) if len(a) == len(b) == rank else plain
    if way.perm is not None and told != way.perm and ours.core[0].shape == theirs.core[0].shape:
        return None  # numbers of a square that are wrong can look transposed
    return (way.perm or plain) == told and not way.unit


def _normalised(output: Output) -> bool:
    return any(op in ("Softmax", "LogSoftmax") for op in output.tail.ops)


def _activations(ours: Output, theirs: Output) -> Way | None:
    """Take the target's last activations out and put the source's on, where both are not the same."""
    mine, yours = ours.tail, theirs.tail
    if mine.ops == yours.ops or (yours.activations and not yours.free):
        return None
    # A softmax may be spelled out in one of them.
    if len(mine.ops) < len(yours.ops) and not mine.ops and is_distribution(ours.arrays):
        return None
    if len(yours.ops) < len(mine.ops) and is_distribution(theirs.arrays):
        return None
    return Way(kept=0 if yours.activations else None, activations=mine.activations)


def is_distribution(arrays: Arrays) -> bool:
    """Whether values along the classes are probabilities: none negative, one in all."""
    for array in arrays:
        if array.ndim < 2 or array.dtype.kind != "f" or array.min(initial=0.0) < 0:
            return False
        if not any(np.allclose(array.sum(axis=axis), 1, atol=1e-3) for axis in {1, array.ndim - 1}):
            return False
    return True


def _dtype(ours: np.ndarray, theirs: np.ndarray) -> np.dtype[np.generic] | None:
    """What to cast to where the kinds of numbers differ."""
    kinds = {"u": "i", "V": "f"}
    mine, yours = (kinds.get(a.dtype.kind, a.dtype.kind) for a in (ours, theirs))
    return ours.dtype if mine != yours else None


def assigned(
    ours: Sequence[Output], theirs: Sequence[Output], table: Sequence[Sequence[Match]]
) -> list[int | None]:
    """For each output of the source, the target's that is it; None where none is.

    Outputs keep their places unless others fit much better.

    Args:
        ours: The source's outputs.
        theirs: The target's outputs.
        table: Source output x target output.
    """

    def half_exchanged(order: Sequence[int | None]) -> bool:
        """Whether last layers hold each other's weights and keep their own biases: no output has changed places."""
        pairs = [(ours[i].layer, theirs[j].layer, theirs[i].layer) for i, j in enumerate(order)
                 if j is not None and j != i and i < len(theirs)]  # fmt: skip
        return any(
            a is not None and b is not None and own is not None
            and _same(a.bias, own.bias) and not _same(a.bias, b.bias)
            for a, b, own in pairs
        )

    def cost(order: Sequence[int | None]) -> float:
        return sum(table[i][j].cost for i, j in enumerate(order) if j is not None)

    count, others = len(ours), len(theirs)
    plain: list[int | None] = [k if k < others else None for k in range(count)]
    best = min(_assignments(count, others), key=cost, default=plain)
    chosen = best if cost(best) < MUCH_BETTER * cost(plain) and not half_exchanged(best) else plain
    return [
        j if j is not None and (math.isfinite(table[i][j].apart) or count == others) else None
        for i, j in enumerate(chosen)
    ]


def _assignments(count: int, others: int) -> Iterator[list[int | None]]:
    places: list[int | None] = [*range(others), *([None] * max(0, count - others))]
    if math.perm(len(places), count) <= _EXHAUSTIVE:
        yield from (list(p) for p in itertools.permutations(places, count))


def _same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and bool(np.allclose(a, b, rtol=1e-3, atol=1e-6))
