"""From whatever the caller has to a store of samples."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from onnxfix.errors import InputError
from onnxfix.inputs import images
from onnxfix.inputs.stores import FeedList, Pictures, Rows, Store, row_count

_FURTHER = re.compile(r"^(?P<base>.+)__(?P<number>\d+)$")
_POSITIONAL = re.compile(r"^arr_(\d+)$")


def read(data: Any, limit: int | None = None, ranks: frozenset[int] = frozenset()) -> Store:
    """Make a store of ``data``.

    Args:
        data: What :class:`onnxfix.Inputs` takes.
        limit: Stop reading an iterable after that many samples.
        ranks: Ranks of the models' inputs, where known: an item of an iterable that has one axis less is one sample.

    Raises:
        InputError: there is nothing there, or nothing that can be fed.
    """
    if isinstance(data, str | Path):
        store = _read_path(Path(data))
    elif isinstance(data, Mapping):
        store = _from_arrays({str(name): to_array(value) for name, value in data.items()})
    elif is_array(data):
        store = _from_arrays({"0": to_array(data)})
    else:
        store = _from_iterable(data, limit, ranks)
    _refuse_empty(store)
    return store


def is_array(value: Any) -> bool:
    """Whether ``value`` is an array or tensor of some framework, or nested lists of plain numbers."""
    if hasattr(value, "shape") and (hasattr(value, "dtype") or hasattr(value, "__array__")):
        return True
    return isinstance(value, list) and bool(value) and _is_numbers(value)


def to_array(value: Any) -> np.ndarray:
    """A numpy array of a number, list, array or tensor; no framework is imported for it.

    Raises:
        InputError: ``value`` has no array form.
    """
    if hasattr(value, "detach"):
        value = value.detach().cpu()
    try:
        array = value.numpy() if hasattr(value, "numpy") else np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"data of type {type(value).__name__} cannot be turned into an array: {error}.") from error
    array = np.asarray(array)
    if array.dtype == object and not all(isinstance(item, str | bytes) for item in array.flat):
        raise InputError(
            f"data of type {type(value).__name__} are no rectangular array of numbers: give arrays of one shape."
        )
    return array


def _is_numbers(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(_is_numbers(item) for item in value)
    return isinstance(value, int | float) and not hasattr(value, "dtype")


def _read_path(path: Path) -> Store:
    if not path.exists():
        raise InputError(f"{path} does not exist: give an .npz or .npy file or a directory of images.")
    if path.is_dir():
        return Pictures(images.find(path))
    if path.suffix.lower() not in (".npz", ".npy"):
        raise InputError(f"{path} is no data that onnxfix reads: give an .npz or .npy file or a directory of images.")
    try:
        content = np.load(path, allow_pickle=False)
        if isinstance(content, np.ndarray):
            return _from_arrays({"0": content})
        with content:
            return _from_npz({name: content[name] for name in content.files}, path)
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(
            f"{path} cannot be read as {path.suffix}: the file is damaged or holds pickled objects."
        ) from error


def _from_npz(arrays: dict[str, np.ndarray], path: Path) -> Store:
    """Rows, or whole feeds where the file has ``name`` beside ``name__1``, ``name__2``, ..."""
    arrays = {_unnumbered(name): array for name, array in arrays.items()}
    further: dict[int, dict[str, np.ndarray]] = {}
    first: dict[str, np.ndarray] = {}
    for name, array in arrays.items():
        match = _FURTHER.match(name)
        if match and match["base"] in arrays:
            further.setdefault(int(match["number"]), {})[match["base"]] = array
        else:
            first[name] = array
    if not further:
        return _from_arrays(first)
    feeds = [first]
    for number in sorted(further):
        missing = first.keys() - further[number].keys()
        if missing:
            raise InputError(f"{path} has no {sorted(missing)[0]}__{number}: every sample needs all inputs.")
        feeds.append(further[number])
    return FeedList(tuple(feeds), whole=True)


def _unnumbered(name: str) -> str:
    """``np.savez(path, a, b)`` names its arrays ``arr_0``, ``arr_1``: positions."""
    match = _POSITIONAL.match(name)
    return match[1] if match else name


def _from_arrays(arrays: dict[str, np.ndarray]) -> Store:
    if not arrays:
        raise InputError("the data are empty: give at least one array.")
    if row_count(arrays) is None:
        return FeedList((arrays,), whole=True)
    return Rows.of(arrays)


def _from_iterable(data: Any, limit: int | None, ranks: frozenset[int]) -> Store:
    try:
        items: Iterable[Any] = iter(data)
    except TypeError as error:
        raise InputError(
            f"data of type {type(data).__name__} cannot be read: give arrays, a dict of arrays, an .npz path, a "
            "directory of images, or an iterable of them."
        ) from error
    feeds: list[Mapping[str, np.ndarray]] = []
    left = limit if limit is not None else -1
    for item in items:
        if left == 0:
            break
        feed = _as_feed(item)
        rows = row_count(feed)
        rank = next(iter(feed.values())).ndim if feed else 0
        lone = rank + 1 in ranks and rank not in ranks
        feeds.append(feed)
        if limit is not None:
            left = max(0, left - (1 if lone else rows or 1))
    return FeedList(tuple(feeds))


def _as_feed(item: Any) -> Mapping[str, np.ndarray]:
    """One item of an iterable: a dict, an array, or a tuple whose first parts are inputs and whose last is a label."""
    if isinstance(item, Mapping):
        return {str(name): to_array(value) for name, value in item.items()}
    if isinstance(item, list | tuple) and item and not is_array(item):
        if isinstance(item[0], Mapping):
            return _as_feed(item[0])
        parts = item[0] if isinstance(item[0], list | tuple) and not is_array(item[0]) else item
        return {str(position): to_array(part) for position, part in enumerate(parts)}
    return {"0": to_array(item)}


def _refuse_empty(store: Store) -> None:
    if isinstance(store, FeedList) and not store.feeds:
        raise InputError("the data are empty: give at least one sample.")
    for feed in store.feeds if isinstance(store, FeedList) else [store.sample]:
        for name, array in feed.items():
            if array.size == 0:
                shape = list(array.shape)
                raise InputError(f"the data for input {name} are empty (shape {shape}): give at least one sample.")
