"""The usual ways to prepare pictures for a network, as affine maps of raw RGB pixels, and names for maps between them.

Sources: torchvision (``torchvision.transforms._presets``: mean and std of ImageNet for pixels in 0..1), Keras
(``keras.applications.imagenet_utils.preprocess_input``: modes ``tf``, ``torch``, ``caffe``), TFLite (signed bytes are
``pixel - 128``).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

TORCH_MEAN, TORCH_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CAFFE_MEAN = (103.939, 116.779, 123.68)  # BGR
# Published constants have three to six digits.
RTOL = 1e-4


@dataclass(frozen=True)
class Affine:
    """``prepared[c] = raw[order[c]] * scale[c] + shift[c]`` with raw RGB pixels, 0..255.

    Attributes:
        name: What people call it.
        scale: One number for all channels, or one per channel.
        shift: Likewise.
        reverse: Whether the channels come as BGR.
    """

    name: str
    scale: tuple[float, ...]
    shift: tuple[float, ...]
    reverse: bool = False

    @property
    def coloured(self) -> bool:
        """Whether it is for three channels only."""
        return len(self.scale) > 1 or self.reverse


CATALOGUE: tuple[Affine, ...] = (
    Affine("unit (0..1)", (1 / 255,), (0.0,)),
    Affine("tf (-1..1)", (1 / 127.5,), (-1.0,)),
    Affine(
        "torch (ImageNet mean and std)",
        tuple(1 / 255 / s for s in TORCH_STD),
        tuple(-m / s for m, s in zip(TORCH_MEAN, TORCH_STD, strict=True)),
    ),
    Affine("caffe (BGR minus the ImageNet mean)", (1.0,) * 3, tuple(-m for m in CAFFE_MEAN), reverse=True),
    Affine("raw (0..255)", (1.0,), (0.0,)),
    Affine("signed bytes (-128..127)", (1.0,), (-128.0,)),
    Affine("raw BGR (0..255)", (1.0,) * 3, (0.0,) * 3, reverse=True),
)


def relation(scale: np.ndarray, shift: np.ndarray, order: np.ndarray) -> tuple[str, str] | None:
    """Name the two preparations between which a map leads.

    Args:
        scale: ``to[c] = from[order[c]] * scale[c] + shift[c]``, one entry per channel.
        shift: Likewise.
        order: Channel order.

    Returns:
        (what it takes, what it gives), or None where it is no map between two known preparations.
    """
    reverse = len(order) == 3 and order.tolist() == [2, 1, 0]
    if not reverse and order.tolist() != list(range(len(order))):
        return None
    if reverse and np.allclose(scale, 1) and np.allclose(shift, 0):
        return "RGB", "BGR"
    for before, after in _pairs(len(order)):
        if (before.reverse != after.reverse) != reverse:
            continue
        wanted_scale, wanted_shift = _between(before, after, len(order))
        size = max(1.0, float(np.abs(wanted_shift).max()))
        if np.allclose(scale, wanted_scale, rtol=RTOL, atol=0) and np.allclose(
            shift, wanted_shift, rtol=RTOL, atol=RTOL * size
        ):
            return before.name, after.name
    return None


def _pairs(channels: int) -> Iterator[tuple[Affine, Affine]]:
    fitting = [p for p in CATALOGUE if channels == 3 or not p.coloured]
    yield from ((a, b) for a in fitting for b in fitting if a is not b)


def _between(before: Affine, after: Affine, channels: int) -> tuple[np.ndarray, np.ndarray]:
    def wide(values: tuple[float, ...], reverse: bool) -> np.ndarray:
        """One number per channel, in RGB order."""
        array = np.resize(np.asarray(values, np.float64), channels)
        return array[::-1] if reverse else array

    a, c = wide(before.scale, before.reverse), wide(before.shift, before.reverse)
    b, d = wide(after.scale, after.reverse), wide(after.shift, after.reverse)
    scale, shift = b / a, d - c * b / a
    return (scale[::-1], shift[::-1]) if after.reverse else (scale, shift)
