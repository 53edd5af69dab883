"""Every normal form is checked before anything is concluded from it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from onnxfix.errors import CanonicalizationError, RuntimeFailure
from onnxfix.frameworks import Feeds
from onnxfix.model import Model
from onnxfix.runtime.probe import measure
from onnxfix.runtime.session import Session

# Folding reassociates float sums, which deep networks amplify; no wrong rewrite stays below this.
TOLERATED = 1e-3
# A model that rounds or chooses by itself turns a float's last bits into whole steps. How large these come out depends
# on which elements happen to lie at an edge, so inputs moved by about as much as folding moves values are run a few
# times, and this many times the largest change is tolerated.
_MOVED = 1e-6
_RUNS = 3
_TIMES = 5.0


def sound(model: Model, feed: Feeds, side: str) -> tuple[Model, str]:
    """The model, with a normal form that computes what its lowered graph computes.

    Where the normal form does not, or cannot be reached, a copy of the model is returned whose normal form is its
    lowered graph as it is: less comes into line with the other model, but nothing wrong is concluded.

    Args:
        model: The model.
        feed: Inputs to run both graphs on.
        side: What to call the model in the note: ``source`` or ``target``.

    Returns:
        The model, and a note where its normal form could not be used.
    """
    wanted = list(model.run(feed).values())
    try:
        found = list(Session(model.canonical).run(feed).values())
    except (CanonicalizationError, RuntimeFailure) as failure:
        return _plain(model), f"The {side} is compared as it was lowered: {failure}"
    error = measure(wanted, found)
    if not error.broken and (error.relative <= TOLERATED or error.relative <= _TIMES * _jumps(model, feed, wanted)):
        return model, ""
    why = error.broken or f"it differs by {error.relative:.2g}"
    return _plain(model), f"The {side} is compared as it was lowered: its normal form is not faithful ({why})."


def _jumps(model: Model, feed: Feeds, wanted: list[np.ndarray]) -> float:
    """Relative change of a model's outputs where its inputs move by float noise."""
    random = np.random.default_rng(0)
    largest = 0.0
    for _ in range(_RUNS):
        moved = {
            name: np.asarray(array * (1 + random.uniform(-_MOVED, _MOVED, array.shape)), array.dtype)
            if array.dtype.kind == "f" else array
            for name, array in feed.items()
        }  # fmt: skip
        error = measure(wanted, list(model.run(moved).values()))
        largest = max(largest, 0.0 if error.broken else error.relative)
    return largest


def _plain(model: Model) -> Model:
    from onnxfix.canonical.pipeline import plain_form

    copy = replace(model)
    # A cached property of a frozen dataclass: this is where it keeps its value.
    copy.__dict__["normal_form"] = plain_form(model.proto)
    return copy
