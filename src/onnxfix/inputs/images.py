"""Pictures from a directory, and the usual ways to scale them for a network."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from onnxfix.errors import InputError, MissingDependencyError
from onnxfix.inputs.preparation import Preparation

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".ppm", ".tif", ".tiff"})
PREPROCESSING = ("unit", "tf", "torch", "caffe", "raw")

# ImageNet statistics as published with torchvision (RGB, pixels in 0..1) and with Caffe's models (BGR, 0..255).
_TORCH_MEAN = np.array([0.485, 0.456, 0.406], np.float32)
_TORCH_STD = np.array([0.229, 0.224, 0.225], np.float32)
_CAFFE_MEAN = np.array([103.939, 116.779, 123.68], np.float32)


def find(folder: Path) -> tuple[str, ...]:
    """The image files directly in ``folder``, sorted by name.

    Raises:
        InputError: there are none.
    """
    files = sorted(p for p in folder.iterdir() if p.is_file() and p.suffix.lower() in SUFFIXES)
    if not files:
        raise InputError(
            f"{folder} contains no pictures ({', '.join(sorted(SUFFIXES))}): give another directory or an .npz file."
        )
    return tuple(map(str, files))


def decode(name: str, size: tuple[int, int], channels: int) -> np.ndarray:
    """Read a picture as uint8 ``[height, width, channels]``, scaled bilinearly to ``size`` = (height, width).

    Raises:
        InputError: the file is not a picture.
        MissingDependencyError: Pillow is not installed.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingDependencyError("Pillow", "images", "reading a directory of images") from error
    try:
        with Image.open(name) as picture:
            mode = picture.convert("L" if channels == 1 else "RGB")
            scaled = mode.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    except OSError as error:
        raise InputError(f"{name} cannot be read as a picture: remove it or replace it.") from error
    return np.asarray(scaled, np.uint8).reshape(*size, channels)


def decode_as(name: str, size: tuple[int, int], channels: int, how: Preparation) -> np.ndarray:
    """Read a picture, scaled and cut as a preparation says; ``size`` counts where that says nothing.

    Returns:
        uint8 ``[height, width, channels]``.

    Raises:
        InputError: the file is not a picture.
        MissingDependencyError: Pillow is not installed.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingDependencyError("Pillow", "images", "reading a directory of images") from error
    resampling = Image.Resampling[how.filter.upper()]
    try:
        with Image.open(name) as picture:
            pixels = picture.convert("L" if channels == 1 else "RGB")
            width, height = pixels.size
            wanted = how.size if how.size is not None else (how.crop or size)
            if isinstance(wanted, int):  # the shorter edge, the other in proportion, as torchvision rounds it
                short = min(width, height)
                wanted = (int(wanted * height / short), int(wanted * width / short))
            scaled = np.asarray(pixels.resize((wanted[1], wanted[0]), resampling), np.uint8)
    except OSError as error:
        raise InputError(f"{name} cannot be read as a picture: remove it or replace it.") from error
    return _centre(scaled.reshape(*wanted, channels), how.crop or (size if how.size is not None else wanted))


def _centre(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The middle of a picture, with black around it where it is smaller."""
    missing = [max(0, want - have) for want, have in zip(size, pixels.shape, strict=False)]
    padded = np.pad(pixels, [*((m // 2, m - m // 2) for m in missing), (0, 0)])
    top, left = (round((have - want) / 2) for have, want in zip(padded.shape, size, strict=False))
    return padded[top : top + size[0], left : left + size[1]]


def preprocess(pixels: np.ndarray, how: str) -> np.ndarray:
    """Scale uint8 pixels ``[batch, height, width, channels]`` in one of the usual ways.

    Args:
        pixels: RGB or grey, 0..255.
        how: ``unit`` (0..1), ``tf`` (-1..1), ``torch`` (0..1, then ImageNet mean and std), ``caffe`` (BGR minus the
            ImageNet mean) or ``raw`` (0..255 as they are).

    Raises:
        InputError: ``how`` is none of these.
    """
    if how == "raw":
        return pixels
    if how in ("torch", "caffe") and pixels.shape[-1] != 3:
        raise InputError(f"preprocessing {how} is for colour pictures, but the model takes {pixels.shape[-1]} channel.")
    values = pixels.astype(np.float32)
    if how == "unit":
        return values / 255
    if how == "tf":
        return values / np.float32(127.5) - 1
    if how == "torch":
        return (values / 255 - _TORCH_MEAN) / _TORCH_STD
    if how == "caffe":
        return values[..., ::-1] - _CAFFE_MEAN
    raise InputError(f"there is no preprocessing named {how}: choose one of {', '.join(PREPROCESSING)}.")
