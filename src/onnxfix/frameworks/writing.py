"""What the frameworks' write-back shares: patches sorted by what they change, and refusals that all read alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from onnxfix.errors import ExportError
from onnxfix.surgeon.patch import Patch, SetParameter

if TYPE_CHECKING:
    from onnxfix.model import Model


def refusal(model: Model, patch: Patch, why: str) -> ExportError:
    """The error that says which patch a framework cannot express in place, and why (a clause, no full stop)."""
    return ExportError(f"'{patch.describe()}' cannot be written into the {model.framework} model in place: {why}.")


def sorted_patches(model: Model, patches: Sequence[Patch]) -> tuple[dict[str, np.ndarray], list[Patch]]:
    """New values of native parameters by native name, and the patches that change something else.

    A parameter that only some of its readers shall see changed is not among the values.
    """
    values: dict[str, np.ndarray] = {}
    others: list[Patch] = []
    for patch in patches:
        if isinstance(patch, SetParameter) and patch.name in model.parameters and not patch.readers:
            values[model.parameters[patch.name]] = patch.value
        else:
            others.append(patch)
    return values, others


def only_parameters(model: Model, patches: Sequence[Patch], why: str) -> dict[str, np.ndarray]:
    """New values of native parameters by native name, for formats that hold nothing else that can be changed.

    Args:
        model: The model.
        patches: The patches.
        why: Why anything else is refused.

    Raises:
        ExportError: a patch changes something else.
    """
    values, others = sorted_patches(model, patches)
    if others:
        raise refusal(model, others[0], why)
    return values
