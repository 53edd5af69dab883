"""Differences that the data at hand hide: a bound that no value reaches, a row of a table that no index names.

A region that differs in what it says, but not on the data, is fed with values beyond them. If it then differs, it is a
risk: no fault of the answers that were compared, but one of those to come.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from onnxfix.align import Alignment, Region
from onnxfix.align.graph import attributes
from onnxfix.diagnose.differences import Difference
from onnxfix.diagnose.finding import Finding, Recording
from onnxfix.diagnose.judging import Suspect, entering_source, evaluate_target, record
from onnxfix.diagnose.noise import is_guilty, noise_floor
from onnxfix.diagnose.storage import is_as_stored
from onnxfix.errors import RuntimeFailure
from onnxfix.model import Model
from onnxfix.runtime.probe import LocalError, piece
from onnxfix.runtime.session import Session

# Suspects that are fed with other values; a model that differs in more is another model.
LIMIT = 64
# How far beyond the data the values go.
_BEYOND = 4.0
# Constants that differ by less than this share of their largest element differ by rounding.
_TELLING = 1e-3
# Bounds larger than this are none.
_BOUND = 1e6


def hidden_findings(
    alignment: Alignment,
    target: Model,
    suspects: Sequence[Suspect],
    errors: Sequence[LocalError],
    feed_of: Callable[[int], Mapping[str, np.ndarray]],
) -> tuple[Finding, ...]:
    """The regions that differ only beyond the data.

    Args:
        alignment: The alignment.
        target: The target.
        suspects: Regions that differ statically.
        errors: The error of each over the data; what differs there is no hidden one.
        feed_of: Gives the source's feed of a chunk of the data.
    """
    quiet = [
        (suspect, telling)
        for suspect, error in zip(suspects, errors, strict=True)
        if not is_guilty(error, LocalError()) and (telling := _telling(alignment, target, suspect)) is not None
    ][:LIMIT]
    if not quiet:
        return ()
    found = []
    for (suspect, telling), recording in zip(
        quiet, record(alignment, [suspect.region for suspect, _ in quiet], feed_of(0)), strict=True
    ):
        finding = _finding(alignment, suspect.region, telling, recording)
        if finding is not None:
            found.append(finding)
    return tuple(found)


def _telling(alignment: Alignment, target: Model, suspect: Suspect) -> tuple[Difference, ...] | None:
    """The differences that may matter on other data; None where there are none."""
    if not suspect.differences:
        # Between several inputs of a gap there are relations that made-up values do not keep.
        return () if len(suspect.region.feeds) == 1 and suspect.region.source_nodes else None
    node = alignment.target.nodes[suspect.region.target_nodes[0]]

    def matters(difference: Difference) -> bool:
        if isinstance(difference.expected, np.ndarray) and isinstance(difference.actual, np.ndarray):
            name = node.input[difference.slot] if difference.slot < len(node.input) else ""
            return _differ(difference.expected, difference.actual) and not is_as_stored(
                target, name, difference.expected, difference.actual
            )
        return True

    return tuple(d for d in suspect.differences if matters(d)) or None


def _differ(expected: np.ndarray, actual: np.ndarray) -> bool:
    if expected.shape != actual.shape or expected.dtype.kind != "f":
        return True
    with np.errstate(all="ignore"):
        apart = np.abs(expected.astype(np.float64) - actual)
    return bool(np.max(apart, initial=0.0) > _TELLING * np.max(np.abs(expected), initial=0.0))


def _finding(
    alignment: Alignment, region: Region, telling: tuple[Difference, ...], recording: Recording
) -> Finding | None:
    source = alignment.source
    own = entering_source(alignment, region)
    try:
        model = piece(source, region.source_nodes, own, [s for s, _ in region.outputs])
        feeds = _beyond(alignment, region, recording)
        outputs = tuple(Session(model).run({v: feeds[v] for v in own}).values())
        stressed = Recording(feeds, outputs)
        noise = noise_floor(model, {v: feeds[v] for v in own}, outputs)
    except RuntimeFailure:
        return None
    if not all(np.isfinite(o).all() for o in outputs if o.dtype.kind == "f"):
        return None
    error = evaluate_target(alignment, region, stressed)
    if error.broken or not np.isfinite(error.relative) or not is_guilty(error, noise):
        return None
    return Finding(region, telling, error, noise, stressed, 0, alignment)


def _beyond(alignment: Alignment, region: Region, recording: Recording) -> dict[str, np.ndarray]:
    """Values beyond those recorded: floats four times as large or past every bound, indices over the whole table."""
    generator = np.random.default_rng(0)
    bound = max((abs(b) for b in _bounds(alignment, region) if abs(b) < _BOUND), default=0.0)
    rows = _rows(alignment, region)
    made = {}
    for name, values in recording.feeds.items():
        if values.dtype.kind == "f":
            peak = float(np.max(np.abs(values), initial=0.0, where=np.isfinite(values))) or 1.0
            factor = max(_BEYOND, 2 * bound / peak)
            made[name] = (values * factor * generator.choice((-1.0, 1.0), values.shape)).astype(values.dtype)
            if len(recording.feeds) == 1 and not region.matched:
                made[name] = (values * factor).astype(values.dtype)
        elif rows and values.dtype.kind in "iu" and name in rows:
            made[name] = generator.integers(0, rows[name], values.shape).astype(values.dtype)
        else:
            made[name] = values
    return made


def _bounds(alignment: Alignment, region: Region) -> list[float]:
    """Numbers at which a region may change its course: its scalars."""
    sides = ((alignment.source, region.source_nodes), (alignment.target, region.target_nodes))
    found = []
    for view, names in sides:
        for name in names:
            node = view.nodes[name]
            found += [v for v in attributes(node).values() if isinstance(v, float)]
            for value in node.input:
                if value and view.is_constant(value) and view.constant(value).size == 1:
                    found.append(float(view.constant(value).reshape(-1)[0]))
    return [b for b in found if np.isfinite(b)]


def _rows(alignment: Alignment, region: Region) -> dict[str, int]:
    """How many rows the tables of a region have, by the indices that choose them."""
    found = {}
    for name in region.source_nodes:
        node = alignment.source.nodes[name]
        if node.op_type == "Gather" and alignment.source.is_constant(node.input[0]):
            axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
            found[node.input[1]] = int(alignment.source.constant(node.input[0]).shape[axis])
    return found
