"""Inputs to try a model on when the user gave none."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from onnxfix.errors import ExportError, OnnxFixError

if TYPE_CHECKING:
    from onnxfix.frameworks import Feeds
    from onnxfix.model import Model, TensorSpec

# (size of open dimensions, bound of integers) to try: small integers are indices into nearly everything.
_ATTEMPTS = ((8, 4), (8, 2), (16, 4), (32, 2), (1, 1))


def random_feeds(
    model: Model, seed: int = 0, batch: int = 1, size: int = 8, integers: int = 4
) -> dict[str, np.ndarray]:
    """Random inputs of a model by name.

    Args:
        model: The model.
        seed: Of the random numbers.
        batch: The size of an open first dimension.
        size: The size of every other open dimension.
        integers: Whole numbers are below this.

    Returns:
        Normal numbers for floats, small whole ones for integers.
    """
    generator = np.random.default_rng(seed)
    return {spec.name: _random(spec, generator, batch, size, integers) for spec in model.inputs}


def accepted_feeds(
    model: Model, inputs: Feeds | None = None, batches: tuple[int, ...] = (1, 2)
) -> list[dict[str, np.ndarray]]:
    """Inputs on which to check what was made of a model.

    Args:
        model: The model.
        inputs: The caller's; random ones when None.
        batches: Sizes of an open first dimension to try.

    Raises:
        ExportError: the model runs on no random input.
    """
    if inputs is not None:
        return [dict(inputs)]
    found = []
    for batch in batches:
        for size, integers in _ATTEMPTS:
            feeds = random_feeds(model, batch, batch, size, integers)
            try:
                model.run(feeds)
            except OnnxFixError:
                continue
            found.append(feeds)
            break
    if not found:
        raise ExportError("the model runs on no random input, so an export cannot be checked: give inputs.")
    return found


def _random(
    spec: TensorSpec, generator: np.random.Generator, batch: int, size: int, integers: int
) -> np.ndarray:
    shape = tuple(
        dim if isinstance(dim, int) and dim > 0 else (size if axis else batch)
        for axis, dim in enumerate(spec.shape or ())
    )
    if spec.dtype.kind == "b":
        return generator.integers(0, 2, shape).astype(bool)
    if spec.dtype.kind in "iu":
        return generator.integers(0, integers, shape).astype(spec.dtype)
    return generator.standard_normal(shape).astype(spec.dtype)
