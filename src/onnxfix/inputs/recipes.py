"""Read a preparation off what comes with a model: TFLite metadata, torchvision transforms, Hugging Face processors."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from onnxfix.errors import InputError
from onnxfix.inputs.preparation import FILTERS, Preparation


def from_torchvision(given: Any) -> Preparation:
    """From torchvision's weights (``ResNet50_Weights.DEFAULT``) or their transforms.

    Raises:
        InputError: it is neither.
    """
    transforms = given.transforms() if hasattr(given, "transforms") else given
    if not all(hasattr(transforms, name) for name in ("mean", "std", "crop_size")):
        raise InputError(f"an object of type {type(given).__name__} says nothing about preparing pictures.")
    [height, width] = _pair(transforms.crop_size)
    resize = getattr(transforms, "resize_size", None)
    mode = getattr(getattr(transforms, "interpolation", None), "value", "bilinear")
    return Preparation(
        mean=tuple(map(float, transforms.mean)), std=tuple(map(float, transforms.std)),
        size=_size(resize) if resize else None, crop=(height, width), filter=str(mode),
    )  # fmt: skip


def from_huggingface_file(path: Path) -> Preparation:
    """From ``preprocessor_config.json``, or the directory that holds it.

    Raises:
        InputError: there is no such file, or it holds something else.
    """
    file = path / "preprocessor_config.json" if path.is_dir() else path
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{file} cannot be read as an image processor's configuration: {error}.") from error
    if not isinstance(content, dict):
        raise InputError(f"{file} is no image processor's configuration.")
    return from_huggingface(content)


def from_huggingface(content: Mapping[str, Any]) -> Preparation:
    """From the content of a ``preprocessor_config.json``; what is left out is done as ``transformers`` does it.

    Raises:
        InputError: it says nothing about pictures.
    """
    if not any(name in content for name in ("image_mean", "do_rescale", "do_normalize", "do_resize", "size")):
        raise InputError("the configuration says nothing about preparing pictures: give an image processor's.")
    normal = content.get("do_normalize", "image_mean" in content)
    number = content.get("resample", 2)
    crop = content.get("crop_size") if content.get("do_center_crop", False) else None
    return Preparation(
        scale=float(content.get("rescale_factor", 1 / 255)) if content.get("do_rescale", True) else 1.0,
        mean=_numbers(content.get("image_mean", 0.0)) if normal else (0.0,),
        std=_numbers(content.get("image_std", 1.0)) if normal else (1.0,),
        size=_size(content["size"]) if content.get("do_resize", True) and content.get("size") else None,
        crop=None if crop is None else _pair(crop),
        filter=FILTERS[number] if isinstance(number, int) and 0 <= number < len(FILTERS) else "bilinear",
    )


def _numbers(given: Any) -> tuple[float, ...]:
    return tuple(map(float, given)) if isinstance(given, list | tuple) else (float(given),)


def _size(given: Any) -> tuple[int, int] | int:
    """Height and width, or the shorter edge."""
    if isinstance(given, Mapping):
        return int(given["shortest_edge"]) if "shortest_edge" in given else (int(given["height"]), int(given["width"]))
    if isinstance(given, list | tuple):
        return int(given[0]) if len(given) == 1 else (int(given[0]), int(given[1]))
    return int(given)


def _pair(given: Any) -> tuple[int, int]:
    size = _size(given)
    return (size, size) if isinstance(size, int) else size


def from_tflite(path: Path) -> Preparation:
    """From the metadata in a TFLite file: ``NormalizationOptions`` of the first input, ``(pixel - mean) / std``.

    Raises:
        InputError: the file has no such metadata.
    """
    try:
        found = _normalization(path.read_bytes())
    except (OSError, struct.error, IndexError) as error:
        raise InputError(f"{path} cannot be read as a TFLite file with metadata: {error}.") from error
    if found is None:
        raise InputError(f"{path} has no metadata that say how its input is normalized: give a preparation yourself.")
    return Preparation(scale=1.0, mean=found[0], std=found[1])


class _Table:
    """A table of a flatbuffer (https://flatbuffers.dev/internals): fields by number."""

    def __init__(self, data: bytes, at: int) -> None:
        self._data, self._at = data, at

    @classmethod
    def root(cls, data: bytes) -> _Table:
        """The table that a buffer holds."""
        return cls(data, _uint(data, 0))

    def _field(self, number: int) -> int:
        """Where a field is, or 0."""
        table = self._at - struct.unpack_from("<i", self._data, self._at)[0]
        slot = 4 + 2 * number
        if slot >= struct.unpack_from("<H", self._data, table)[0]:
            return 0
        offset = struct.unpack_from("<H", self._data, table + slot)[0]
        return self._at + offset if offset else 0

    def number(self, number: int, form: str) -> int:
        """A scalar; 0 where it is left out."""
        at = self._field(number)
        return int(struct.unpack_from(form, self._data, at)[0]) if at else 0

    def table(self, number: int) -> _Table | None:
        """A table."""
        at = self._field(number)
        return _Table(self._data, at + _uint(self._data, at)) if at else None

    def _vector(self, number: int) -> tuple[int, int]:
        at = self._field(number)
        if not at:
            return 0, 0
        start = at + _uint(self._data, at)
        return start + 4, _uint(self._data, start)

    def tables(self, number: int) -> list[_Table]:
        """A vector of tables."""
        start, count = self._vector(number)
        places = range(start, start + 4 * count, 4)
        return [_Table(self._data, at + _uint(self._data, at)) for at in places]

    def content(self, number: int) -> bytes:
        """A vector of bytes, or a string."""
        start, count = self._vector(number)
        return self._data[start : start + count]

    def floats(self, number: int) -> tuple[float, ...]:
        """A vector of float32."""
        start, count = self._vector(number)
        return struct.unpack_from(f"<{count}f", self._data, start)


def _uint(data: bytes, at: int) -> int:
    return int(struct.unpack_from("<I", data, at)[0])


_MODEL_BUFFERS, _MODEL_METADATA = 4, 6  # tflite/schema.fbs
_SUBGRAPHS, _INPUTS, _UNITS = 3, 2, 4  # tflite_support/metadata_schema.fbs
_NORMALIZATION = 1


def _normalization(data: bytes) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    model = _Table.root(data)
    numbers = [m.number(1, "<I") for m in model.tables(_MODEL_METADATA) if m.content(0) == b"TFLITE_METADATA"]
    if not numbers:
        return None
    metadata = _Table.root(model.tables(_MODEL_BUFFERS)[numbers[0]].content(0))
    for subgraph in metadata.tables(_SUBGRAPHS)[:1]:
        for tensor in subgraph.tables(_INPUTS)[:1]:
            for unit in tensor.tables(_UNITS):
                options = unit.table(1)
                if unit.number(0, "<B") == _NORMALIZATION and options is not None:
                    return options.floats(0) or (0.0,), options.floats(1) or (1.0,)
    return None
