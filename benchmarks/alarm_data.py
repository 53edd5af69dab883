"""The three sorts of data on which a clean conversion is diagnosed: its own, photos, random."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from clean_pairs import COUNT, CleanPair
from photos import photos, signed_unit

import onnxfix

SORTS = ("own", "photos", "random")
Feeds = dict[str, np.ndarray]
# Photos that a pair's own data do not hold.
START = 100


def data_for(sort: str, pair: CleanPair, source: onnxfix.Model) -> Any:
    """What to diagnose with; None where the pair takes no pictures."""
    own = pair.own(source)
    if sort == "own":
        return own
    first = _first(own, source)
    if sort == "random":
        random = np.random.default_rng(11)
        return [{name: _random(value, random, pair.quantized) for name, value in first.items()} for _ in range(COUNT)]
    pictured = [name for name, value in first.items() if _channels(value) is not None]
    if not pictured:
        return None
    feeds = [dict(first) for _ in range(COUNT)]
    for name in pictured:
        value = first[name]
        shown = _pictures(value, pair)
        rows = len(value)
        for number, feed in enumerate(feeds):
            feed[name] = shown[number * rows : (number + 1) * rows].astype(value.dtype)
    return feeds


def _first(own: Any, source: onnxfix.Model) -> Feeds:
    """One feed of the pair's own data, by input name."""
    if isinstance(own, Path):
        with np.load(own) as arrays:
            return {name: arrays[name] for name in arrays if not re.search(r"__\d+$", name)}
    if isinstance(own, Mapping):
        return {name: value[:1] for name, value in own.items()}
    return {source.inputs[0].name: own[:1]}


def _random(like: np.ndarray, random: np.random.Generator, quantized: bool) -> np.ndarray:
    """Normal values; integers and flags of the range that the own data have, and so what a quantized input holds."""
    if np.issubdtype(like.dtype, np.integer):
        return random.integers(min(0, int(like.min())), int(like.max()) + 1, like.shape).astype(like.dtype)
    if like.dtype == bool:
        return random.random(like.shape) < 0.5
    if quantized:
        return random.uniform(like.min(), like.max(), like.shape).astype(like.dtype)
    return random.normal(size=like.shape).astype(like.dtype)


def _channels(value: np.ndarray) -> int | None:
    """The axis of one or three channels of a batch of pictures."""
    if value.ndim != 4 or not np.issubdtype(value.dtype, np.floating):
        return None
    sides = {axis: min(np.delete(value.shape, [0, axis])) for axis in (3, 1)}
    return next((axis for axis, side in sides.items() if value.shape[axis] in (1, 3) and side > 5), None)


def _pictures(value: np.ndarray, pair: CleanPair) -> np.ndarray:
    """``COUNT`` batches of photos with the size, channels and layout of ``value``."""
    axis = _channels(value)
    high, wide = (side for place, side in enumerate(value.shape) if place not in (0, axis))
    shown = photos((high, wide), COUNT * len(value), START)
    shown = (pair.scale or signed_unit)(shown)
    if value.shape[axis] == 1:
        shown = shown.mean(axis=3, keepdims=True)
    return shown if axis == 3 else np.ascontiguousarray(np.moveaxis(shown, 3, 1))
