"""Which output of the target is which output of the source, and what lies between them."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from onnxfix.diagnose.boundary.labels import LastLayer, label_maps
from onnxfix.diagnose.boundary.samples import distance
from onnxfix.diagnose.boundary.tails import Tail
from onnxfix.diagnose.boundary.ways import Arrays, Way, fits

# Another reading of an output must bring it this much nearer than the plain one.
NEARER = 0.5
# So near, it is the same numbers up to what faults inside may do.
NEAR = 0.5
# More assignments than this are not gone through one by one.
_EXHAUSTIVE = 5040


@dataclass(frozen=True, eq=False)
class Output:
    """An output of one model.

    Attributes:
        name: Its name.
        arrays: Its values, feed by feed.
        core: The values before its last activations.
        tail: Its last nodes.
        layer: The layer that makes its numbers, where there is one nearby.
        movers: Ops between that and the output that move classes or axes about.
        scale: Scale and zero point, where whole numbers stand for real ones.
    """

    name: str
    arrays: Arrays
    core: Arrays
    tail: Tail
    layer: LastLayer | None
    movers: Counter[str]
    scale: tuple[np.ndarray, np.ndarray] | None = None


@dataclass(frozen=True, eq=False)
class Match:
    """A reading of a target's output as one of the source's.

    Attributes:
        way: What turns it into that.
        apart: How far it is then from it (0 equal, about 1.4 unrelated).
        plain: How far it is as it is.
    """

    way: Way
    apart: float
    plain: float


def match(ours: Output, theirs: Output, apply: Callable[[Way, Arrays], Arrays]) -> Match:
    """The best reading of one output as another.

    Args:
        ours: The source's output.
        theirs: The target's output.
        apply: Carries out a way on arrays, activations included.
    """
    plain = distance(ours.arrays, theirs.arrays)
    best = Match(Way(), plain, plain)
    if plain == 0:
        return best
    for way in _ways(ours, theirs):
        given = theirs.arrays if way.kept is None else theirs.core
        apart = distance(ours.arrays, apply(way, given))
        if apart < NEARER * best.apart:
            best = Match(way, apart, plain)
    return best


def _ways(ours: Output, theirs: Output) -> Iterator[Way]:
    """All readings for which there is evidence, the plainest first."""
    swapped = _activations(ours, theirs)
    dtype = _dtype(ours.arrays[0], theirs.arrays[0]) if theirs.scale is None else None
    base = Way(scale=theirs.scale, dtype=dtype)
    if not base.is_identity():
        yield base
    moved = ours.movers != theirs.movers
    for way in fits(ours.core[0], theirs.core[0]):
        if way.perm is not None and not moved and ours.core[0].shape == theirs.core[0].shape:
            continue  # numbers of a square that are wrong can look transposed
        maps: list[Way] = [way]
        cores = [way.shaped(a) for a in theirs.core]
        same = cores[0].shape == ours.core[0].shape
        if cores[0].ndim == 2 or not same:
            found = label_maps(ours.core, cores, 1, (ours.layer, theirs.layer), moved=moved)
            everything = np.arange(cores[0].shape[1])
            picked = [replace(way, index=k, axis=1) for k in found if not np.array_equal(k, everything)]
            maps = [*([way] if same else []), *picked]
        for found_way in maps:
            whole = replace(found_way, scale=base.scale, dtype=base.dtype)
            shrunk = found_way.index is not None and len(found_way.index) < cores[0].shape[1]
            if not whole.is_identity() and not (shrunk and _normalised(theirs)):
                yield whole
            if swapped is not None:
                yield replace(found_way, kept=swapped.kept, activations=swapped.activations)
            elif shrunk and _normalised(theirs) and theirs.tail.free:
                yield replace(found_way, kept=0, activations=ours.tail.activations)


def _normalised(output: Output) -> bool:
    return any(op in ("Softmax", "LogSoftmax") for op in output.tail.ops)


def _activations(ours: Output, theirs: Output) -> Way | None:
    """Take the target's last activations out and put the source's on, where both are not the same."""
    mine, yours = ours.tail, theirs.tail
    if mine.ops == yours.ops or (yours.activations and not yours.free):
        return None
    if not mine.ops and is_distribution(ours.arrays):
        return None  # the source has a softmax that is spelled in another way
    kept = 0 if yours.activations else None
    return Way(kept=kept, activations=mine.activations)


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

    def half_exchanged(order: list[int | None]) -> bool:
        """Whether last layers hold each other's weights and keep their own biases: no output has changed places."""
        pairs = [(ours[i].layer, theirs[j].layer, theirs[i].layer) for i, j in enumerate(order)
                 if j is not None and j != i and i < len(theirs)]  # fmt: skip
        return any(
            a is not None and b is not None and own is not None
            and _same(a.bias, own.bias) and not _same(a.bias, b.bias)
            for a, b, own in pairs
        )

    count, others = len(table), len(table[0]) if table else 0
    plain: list[int | None] = [k if k < others else None for k in range(count)]
    best = min(_assignments(count, others), key=lambda a: _cost(table, a), default=plain)
    better = _cost(table, best) < NEARER * _cost(table, plain) and not half_exchanged(best)
    chosen = best if better else plain
    return [
        j if j is not None and (math.isfinite(table[i][j].apart) or count == others) else None
        for i, j in enumerate(chosen)
    ]


def _assignments(count: int, others: int) -> Iterator[list[int | None]]:
    places: list[int | None] = [*range(others), *([None] * max(0, count - others))]
    if math.perm(len(places), count) <= _EXHAUSTIVE:
        yield from (list(p) for p in itertools.permutations(places, count))


def _cost(table: Sequence[Sequence[Match]], chosen: Sequence[int | None]) -> float:
    """What an assignment leaves; an output of another shape counts as worse than unrelated."""
    return sum(min(table[i][j].apart, 2.0) for i, j in enumerate(chosen) if j is not None)


def _same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and bool(np.allclose(a, b, rtol=1e-3, atol=1e-6))
