"""Put a change of the boundary into the parameters that a model stores, where it was folded into them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from onnxfix.canonical.origins import evaluate, invert, parameters_of
from onnxfix.errors import CanonicalizationError
from onnxfix.model import Model
from onnxfix.surgeon.patch import SetParameter

if TYPE_CHECKING:
    from onnxfix.canonical.pipeline import NormalForm

_RTOL = 1e-5


def stored(model: Model, wanted: Mapping[str, np.ndarray]) -> tuple[SetParameter, ...] | None:
    """Patches of lowered parameters that give constants of the normal form other values; None where there are none.

    Args:
        model: The model.
        wanted: Canonical initializer -> the value that it should have.
    """
    form, found = model.normal_form, []
    for name, value in wanted.items():
        patch = _one(form, name, value, set(wanted))
        if patch is None:
            return None
        found.append(patch)
    return tuple(found) if len({patch.name for patch in found}) == len(found) else None


def _one(form: NormalForm, name: str, value: np.ndarray, changing: set[str]) -> SetParameter | None:
    origin = form.origins.get(name)
    if origin is None:
        return None
    behind = [p for p in parameters_of(origin) if p in form.parameters]
    elsewhere = {p for other, o in form.origins.items() if other not in changing for p in parameters_of(o)}
    for parameter in sorted(behind, key=lambda p: -form.parameters[p].size):
        if parameter in elsewhere:
            continue  # others would change, too
        try:
            solved = invert(origin, parameter, value, form.parameters)
            made = evaluate(origin, {**{p: form.parameters[p] for p in behind}, parameter: solved})
        except CanonicalizationError:
            continue
        if np.allclose(made, value, rtol=_RTOL, atol=_RTOL * float(np.abs(value).max(initial=0.0))):
            return SetParameter(parameter, solved, np.asarray(form.parameters[parameter]))
    return None
