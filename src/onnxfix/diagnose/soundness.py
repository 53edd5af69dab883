"""Every normal form is checked before anything is concluded from it."""

from __future__ import annotations

from dataclasses import replace

from onnxfix.errors import CanonicalizationError, RuntimeFailure
from onnxfix.frameworks import Feeds
from onnxfix.model import Model
from onnxfix.runtime.probe import measure
from onnxfix.runtime.session import Session

# Folding reassociates float sums, which deep networks amplify; no wrong rewrite stays below this.
TOLERATED = 1e-3


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
    if not error.broken and error.relative <= TOLERATED:
        return model, ""
    why = error.broken or f"it differs by {error.relative:.2g}"
    return _plain(model), f"The {side} is compared as it was lowered: its normal form is not faithful ({why})."


def _plain(model: Model) -> Model:
    from onnxfix.canonical.pipeline import plain_form

    copy = replace(model)
    # A cached property of a frozen dataclass: this is where it keeps its value.
    copy.__dict__["normal_form"] = plain_form(model.proto)
    return copy
