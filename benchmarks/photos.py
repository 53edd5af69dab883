"""The photos that the benchmarks run on: ``$ONNXFIX_DATA/photos``, by default ``../shared/data/photos``."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]


def data_root() -> Path:
    """Where the shared models and photos are."""
    root = Path(os.environ.get("ONNXFIX_DATA", ROOT.parent / "shared" / "data"))
    if not root.is_dir():
        raise SystemExit(f"{root} is not there: set ONNXFIX_DATA to the directory that holds models/ and photos/.")
    return root


def photos(size: int | tuple[int, int], count: int | None = None, start: int = 0) -> np.ndarray:
    """RGB photos, ``[count, height, width, 3]`` float32 in 0..255: resized to cover ``size``, centre crop, bilinear.

    Args:
        size: Both sides, or height and width.
        count: How many; all when None.
        start: How many to leave out before them.
    """
    from PIL import Image

    high, wide = size if isinstance(size, tuple) else (size, size)
    files = sorted((data_root() / "photos").glob("*.jpg"))[start : None if count is None else start + count]
    batch = np.empty((len(files), high, wide, 3), np.float32)
    for index, file in enumerate(files):
        with Image.open(file) as image:
            scale = max(wide / image.width, high / image.height)
            width, height = max(wide, round(image.width * scale)), max(high, round(image.height * scale))
            left, top = (width - wide) // 2, (height - high) // 2
            resized = image.convert("RGB").resize((width, height), Image.Resampling.BILINEAR)
            batch[index] = np.asarray(resized.crop((left, top, left + wide, top + high)), np.float32)
    return batch


def labels(count: int | None = None) -> np.ndarray:
    """The ImageNet class (0..999) of each photo, in the order of :func:`photos`."""
    classes = json.loads((data_root() / "photos" / "labels.json").read_text())
    return np.array([classes[name] for name in sorted(classes)][:count], np.int64)


def signed_unit(images: np.ndarray) -> np.ndarray:
    """Scale 0..255 to [-1, 1], the range that the MobileNetV2 files take."""
    return (images / np.float32(127.5) - np.float32(1)).astype(np.float32)
