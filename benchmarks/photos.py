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


def photos(size: int, count: int | None = None) -> np.ndarray:
    """RGB photos, ``[count, size, size, 3]`` float32 in 0..255: shorter side to ``size``, centre crop, bilinear."""
    from PIL import Image

    files = sorted((data_root() / "photos").glob("*.jpg"))[:count]
    batch = np.empty((len(files), size, size, 3), np.float32)
    for index, file in enumerate(files):
        with Image.open(file) as image:
            scale = size / min(image.size)
            width, height = (max(size, round(side * scale)) for side in image.size)
            left, top = (width - size) // 2, (height - size) // 2
            resized = image.convert("RGB").resize((width, height), Image.Resampling.BILINEAR)
            batch[index] = np.asarray(resized.crop((left, top, left + size, top + size)), np.float32)
    return batch


def labels(count: int | None = None) -> np.ndarray:
    """The ImageNet class (0..999) of each photo, in the order of :func:`photos`."""
    classes = json.loads((data_root() / "photos" / "labels.json").read_text())
    return np.array([classes[name] for name in sorted(classes)][:count], np.int64)


def signed_unit(images: np.ndarray) -> np.ndarray:
    """Scale 0..255 to [-1, 1], the range that the MobileNetV2 files take."""
    return (images / np.float32(127.5) - np.float32(1)).astype(np.float32)
