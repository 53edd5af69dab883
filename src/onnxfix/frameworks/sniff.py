"""What a file really is, by its first bytes: a suffix is only a claim.

No framework is imported and the file is never read whole: magic bytes, a zip directory, or one walk over the
outermost fields of a protobuf message.
"""

from __future__ import annotations

import zipfile
from collections.abc import Collection, Iterator
from enum import StrEnum
from pathlib import Path
from typing import BinaryIO

from onnxfix.errors import LoadError

_HDF5 = b"\x89HDF\r\n\x1a\n"
_TFLITE = b"TFL3"
_ZIP = b"PK\x03\x04"
_LEGACY_TORCH = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # the pickled magic number of torch.save before 1.6
_MAX_FIELDS = 200_000
_FIXED = {1: 8, 5: 4}  # protobuf wire type -> size of its payload


class Content(StrEnum):
    """The kinds of file that can be told apart; the value reads after "it is"."""

    ONNX = "an ONNX model"
    TORCH_ZIP = "a PyTorch archive"
    TORCH_LEGACY = "a PyTorch pickle of before version 1.6"
    KERAS_ZIP = "a Keras archive"
    HDF5 = "an HDF5 file"
    SAVED_MODEL_PB = "the saved_model.pb of a SavedModel"
    GRAPH_DEF = "a TensorFlow GraphDef"
    TFLITE = "a TFLite file"
    SAVED_MODEL = "a SavedModel directory"
    DIRECTORY = "a directory"
    ZIP = "a zip archive"
    PICKLE = "a Python pickle"
    TEXT = "a text file"
    EMPTY = "an empty file"
    UNKNOWN = "a file of no known model format"


SUFFIXES: dict[Content, tuple[str, ...]] = {
    Content.ONNX: (".onnx",),
    Content.TORCH_ZIP: (".pt2", ".pt", ".pth"),
    Content.TORCH_LEGACY: (".pt", ".pth"),
    Content.KERAS_ZIP: (".keras",),
    Content.HDF5: (".h5", ".hdf5"),
    Content.GRAPH_DEF: (".pb",),
    Content.TFLITE: (".tflite",),
}
"""The usual suffixes of each kind of model file, the first one preferred."""

_KNOWN = frozenset(suffix for suffixes in SUFFIXES.values() for suffix in suffixes)


def sniff(path: Path) -> Content:
    """Say what ``path`` really is, from its content.

    Raises:
        LoadError: the file cannot be read.
    """
    if path.is_dir():
        return Content.SAVED_MODEL if (path / "saved_model.pb").is_file() else Content.DIRECTORY
    try:
        with path.open("rb") as file:
            return _of_file(file)
    except OSError as error:
        raise LoadError(f"{path} cannot be read: {error.strerror or error}.") from error


def describe(path: Path) -> str:
    """What ``path`` really is, in words that read after "it is": "an HDF5 file", "a text file"."""
    return str(sniff(path))


def claims(path: Path, contents: Collection[Content]) -> bool:
    """Whether an adapter that reads ``contents`` is the one to ask about ``path``.

    A suffix that belongs to some format decides, even if the content is another (the adapter then refuses it with
    :func:`expect`); a file with any other suffix goes by its content.
    """
    suffix = path.suffix.lower()
    if not path.is_dir() and suffix in _KNOWN:
        return any(suffix in SUFFIXES.get(content, ()) for content in contents)
    return sniff(path) in contents


def expect(path: Path, contents: Collection[Content], what: str) -> Content:
    """Check that ``path`` is one of ``contents``.

    Args:
        path: The file.
        contents: The acceptable kinds.
        what: What the file should be, for the message: "a TFLite file".

    Raises:
        LoadError: it is something else; the message says what, and which suffix it should have.
    """
    found = sniff(path)
    if found in contents:
        return found
    if found in SUFFIXES:
        advice = f"; rename it to {' or '.join(SUFFIXES[found])}"
    elif found is Content.SAVED_MODEL_PB:
        advice = "; give the SavedModel directory"
    else:
        advice = "; give another file, or download or convert this one again"
    raise LoadError(f"{path} is not {what}: it is {found}{advice}.")


def _of_file(file: BinaryIO) -> Content:
    head = file.read(512)
    if not head:
        return Content.EMPTY
    if head[4:8] == _TFLITE:
        return Content.TFLITE
    if head.startswith(_HDF5):
        return Content.HDF5
    if head.startswith(_LEGACY_TORCH):
        return Content.TORCH_LEGACY
    if head.startswith(_ZIP):
        return _of_zip(file)
    if head[0] == 0x80 and 2 <= head[1] <= 5:
        return Content.PICKLE
    if _is_text(head):  # before protobuf, whose messages always hold control characters
        return Content.TEXT
    return _of_protobuf(file) or Content.UNKNOWN


def _of_zip(file: BinaryIO) -> Content:
    try:
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError):
        return Content.ZIP
    if "config.json" in names and any(n.endswith((".weights.h5", "metadata.json")) for n in names):
        return Content.KERAS_ZIP
    leaves = {name.rsplit("/", 1)[-1] for name in names}
    if leaves & {"data.pkl", "archive_format", "serialized_exported_program.json", "constants.pkl"}:
        return Content.TORCH_ZIP
    return Content.ZIP


def _of_protobuf(file: BinaryIO) -> Content | None:
    """Tell the three protobuf messages apart by the numbers and wire types of their outermost fields."""
    seen = set()
    for field in _fields(file):
        if field is None:
            return None
        seen.add(field)
    if not seen:
        return None
    varint, blob = 0, 2
    onnx = {(1, varint), (5, varint), *((n, blob) for n in (2, 3, 4, 6, 7, 8, 14, 20, 25, 26))}
    if seen <= onnx and (7, blob) in seen:
        return Content.ONNX
    if seen == {(1, varint), (2, blob)} or seen == {(2, blob)}:
        return Content.SAVED_MODEL_PB
    if (1, blob) in seen and seen <= {(1, blob), (2, blob), (3, varint), (4, blob), (5, blob)}:
        return Content.GRAPH_DEF
    return None


def _fields(file: BinaryIO) -> Iterator[tuple[int, int] | None]:
    """Outermost (field number, wire type) pairs of a protobuf message; None as soon as it is none."""
    end = file.seek(0, 2)
    file.seek(0)
    for _ in range(_MAX_FIELDS):
        if file.tell() == end:
            return
        tag = _varint(file)
        if tag is None or not tag >> 3:
            yield None
            return
        wire = tag & 7
        size = _FIXED.get(wire) or (_varint(file) if wire in (0, 2) else None)
        if size is None or (wire and file.tell() + size > end):
            yield None
            return
        if wire:
            file.seek(size, 1)
        yield tag >> 3, wire


def _varint(file: BinaryIO) -> int | None:
    value = 0
    for shift in range(0, 70, 7):
        byte = file.read(1)
        if not byte:
            return None
        value |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            return value
    return None


def _is_text(head: bytes) -> bool:
    try:
        text = head[: 512 - 4].decode("utf-8")  # up to three bytes of a last character may be cut off
    except UnicodeDecodeError:
        return False
    return all(c.isprintable() or c.isspace() for c in text)
