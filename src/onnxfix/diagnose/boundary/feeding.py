"""Data that the caller prepares for the target otherwise than for the source, although the target wants the source's.

``Inputs`` can prepare each side in its own way: the Keras way for a Keras model, torchvision's for a PyTorch model. A
conversion mostly wants its data as the source does, and not as its framework usually does. Where the two preparations
are one affine map of the channels apart, ``x_s[c] = x_t[order[c]] * scale[c] + shift[c]``, that map is read off the
data in closed form. Everything else is then found and repaired on the source's preparation, and the map comes last.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from onnxfix.diagnose.boundary.change import boundary_fault, boundary_patch, changed, listed, named
from onnxfix.diagnose.boundary.dimensions import dimension_changes
from onnxfix.diagnose.boundary.maps import InputMap
from onnxfix.diagnose.boundary.preparation import NEARER, REACHED, known_map, nearest
from onnxfix.diagnose.boundary.samples import Samples
from onnxfix.diagnose.fault import Fault, FaultKind
from onnxfix.errors import AlignmentError, CanonicalizationError, InputError, RuntimeFailure
from onnxfix.inputs import Inputs, pair_inputs
from onnxfix.model import Model
from onnxfix.surgeon.patch import ChangeBoundary

# Samples by which the map is fitted, and what is left of it at most, as a share of the values' spread: float32.
_SAMPLES = 8
_EXACT = 1e-5
# More entries along an axis than this are no channels.
_CHANNELS = 16


@dataclass(frozen=True, eq=False)
class Misfed:
    """Inputs that the target is fed in a way that it was not made for.

    Attributes:
        source: The source.
        maps: Source input name -> from what the target is fed to what the source is fed, in the source's layout.
        error: How far the first layers are apart as fed.
    """

    source: Model
    maps: dict[str, InputMap]
    error: float

    def faults(self, target: Model) -> tuple[Fault, ...]:
        """One fault for each input."""
        return tuple(self._fault(target, ours, theirs) for ours, theirs in self._names(target))

    def repaired(self, model: Model) -> tuple[Model, tuple[ChangeBoundary, ...]]:
        """A model that prepares what it is fed, and the patches that make it do so.

        Args:
            model: The target, right in every other way.
        """
        patches = []
        for pair in pair_inputs(self.source, model):
            if pair.source.name not in self.maps:
                continue
            way = _in_layout(self.maps[pair.source.name], pair.permutation)
            name = pair.target.name
            between = f"{name}/fed"
            nodes, constants = way.nodes(name, between, pair.target.dtype)
            patch = boundary_patch(
                model, f"prepare {name} as the source does", added=tuple(nodes), constants=constants,
                renamed={name: between},
            )  # fmt: skip
            patches.append(replace(patch, last=True))
        return changed(model, patches), tuple(patches)

    def _names(self, target: Model) -> list[tuple[str, str]]:
        """Names of the inputs in source and target; by their order where sizes keep them from being paired."""
        try:
            both = [(pair.source.name, pair.target.name) for pair in pair_inputs(self.source, target)]
        except AlignmentError:
            both = [(a.name, b.name) for a, b in zip(self.source.inputs, target.inputs, strict=False)]
        return [(ours, theirs) for ours, theirs in both if ours in self.maps]

    def _fault(self, target: Model, ours: str, theirs: str) -> Fault:
        way = self.maps[ours]
        lead = known_map(way)
        fed = "in another way than the source's" if lead is None else f"as {lead[0]}"
        wanted = "what the source is fed" if lead is None else f"what the source is fed, {lead[1]}"
        if lead is None:
            wanted += f": multiplied by {listed(way.scale)}, shifted by {listed(way.shift)}"
        return boundary_fault(
            FaultKind.PREPROCESSING,
            named(target, (n for n in target.proto.graph.node if theirs in n.input)),
            named(self.source, (n for n in self.source.proto.graph.node if ours in n.input)),
            theirs,
            f"The data of input {theirs} are prepared {fed}; the target wants {wanted}.",
            expected={"scale": listed(way.scale), "shift": listed(way.shift), "order": _order(way)},
            actual={"scale": 1.0, "shift": 0.0, "order": None},
            error=self.error,
        )  # fmt: skip


def misfed(source: Model, target: Model, data: Inputs) -> Misfed | None:
    """Whether the target wants its data prepared as the source's are, though it is fed others.

    Args:
        source: The model that is right.
        target: The conversion of it.
        data: The data, with a preparation for each side; where these are one and the same nothing is looked for.

    Returns:
        The inputs concerned; None where the target is right to be fed as it is, or no map of the channels leads from
        one preparation to the other.
    """
    if not data.differs:
        return None
    try:
        maps = _maps(source, data)
        if not maps:
            return None
        alike = data.alike()
        free = target
        for change in dimension_changes(source, target, alike):
            free = changed(free, change.patches) if change.patches else free
        as_fed = nearest(source, free, Samples.of(source, free, data))
        if as_fed <= REACHED:
            return None
        as_source = nearest(source, free, Samples.of(source, free, alike))
    except (InputError, AlignmentError, RuntimeFailure, CanonicalizationError):
        return None
    return Misfed(source, maps, as_fed) if as_source < NEARER * as_fed else None


def _maps(source: Model, data: Inputs) -> dict[str, InputMap]:
    """The map of every input; none at all where one is in question."""
    sides = []
    for side in ("source", "target"):
        taken = Inputs.of(data, limit=_SAMPLES).bind(source)
        feeds = list(taken.feeds(source, side))
        sides.append({spec.name: np.concatenate([feed[spec.name] for feed in feeds]) for spec in source.inputs})
    wanted, fed = sides
    found: dict[str, InputMap] = {}
    for name, array in wanted.items():
        if array.dtype.kind != "f":
            if not np.array_equal(array, fed[name]):
                return {}
            continue
        way = fitted(fed[name], array)
        if way is None:
            return {}
        if not way.is_identity():
            found[name] = way
    return found


def fitted(given: np.ndarray, wanted: np.ndarray) -> InputMap | None:
    """The plainest map of channels that makes one array out of another: one factor for all, else one per channel.

    Args:
        given: What comes, ``[samples, ...]``.
        wanted: What is to be made of it, of the same shape.

    Returns:
        None where there is none.
    """
    if given.shape != wanted.shape or given.ndim < 2:
        return None
    x, y = given.astype(np.float64), wanted.astype(np.float64)
    identity = InputMap.identity(given.ndim)
    line = _line(x, y)
    if line is not None:
        return identity.affine(np.asarray(line[0]), np.asarray(line[1]))
    for axis in (1, given.ndim - 1):
        channels = given.shape[axis]
        if 1 < channels <= _CHANNELS:
            way = _by_channel(np.moveaxis(x, axis, 0), np.moveaxis(y, axis, 0))
            if way is not None:
                order, scale, shift = way
                wide = [channels if k == axis else 1 for k in range(given.ndim)]
                return identity.taken(axis, order).affine(scale.reshape(wide), shift.reshape(wide))
    return None


def _by_channel(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Order, scale and shift of channels in front; a channel stays where it is if it can."""
    order, scale, shift = [], [], []
    for c, channel in enumerate(y):
        choices = [c, *(p for p in range(len(x)) if p != c)]
        found = next(((p, line) for p in choices if (line := _line(x[p], channel)) is not None), None)
        if found is None or found[0] in order:
            return None
        order.append(found[0])
        scale.append(found[1][0])
        shift.append(found[1][1])
    return np.asarray(order, np.int64), np.asarray(scale), np.asarray(shift)


def _line(x: np.ndarray, y: np.ndarray) -> tuple[float, float] | None:
    """``y = scale * x + shift`` to the precision of float32, or None."""
    spread = float(np.std(x))
    if spread == 0 or float(np.std(y)) == 0:
        return None
    scale = float(np.mean((x - x.mean()) * (y - y.mean()))) / spread**2
    shift = float(y.mean() - scale * x.mean())
    left = np.abs(scale * x + shift - y).max()
    return (scale, shift) if scale and left <= _EXACT * np.abs(y).max() else None


def _in_layout(way: InputMap, permutation: Sequence[int] | None) -> InputMap:
    """A map of the source's layout in the target's."""
    if permutation is None:
        return way
    there = InputMap.moving(tuple(permutation))
    back = InputMap.moving(tuple(int(axis) for axis in np.argsort(permutation)))
    return there.after(way.after(back))


def _order(way: InputMap) -> list[int] | None:
    return next((index.tolist() for index in way.takes.values()), None)
