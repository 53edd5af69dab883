"""Large tensors stay in their files: memory-mapped arrays, and the references that stand for them in a proto.

A ``ModelProto`` cannot hold more than 2 GB when written, and a model's weights should not be held twice. So the tensors
of a large model are *references* in :attr:`onnxfix.Model.proto`: external tensors whose location is an absolute path,
with a checksum entry that says which state of the file is meant. :func:`to_array` maps them; :func:`release` gives the
pages that were read back to the system.
"""

from __future__ import annotations

import math
import mmap
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from onnxfix.errors import LoadError

# A model whose external data are larger than this stays in its files (bytes); smaller ones are read into the proto.
MAPPED_FROM = 2**29
# Constants smaller than this are kept in the proto itself, even of a large model (bytes).
SMALL = 2**16
# Pages are released after this many bytes while a tensor is streamed.
CHUNK = 2**24
# Offsets in files that are to be mapped (bytes).
_ALIGNMENT = max(4096, mmap.ALLOCATIONGRANULARITY)


class MappedFile(mmap.mmap):
    """A file, or what was appended to one, mapped read-only; the arrays made from it keep it open.

    Attributes:
        path: The file.
        state: Which state of the file it is (see :func:`_state`).
        start: Where in the file the mapping begins, in bytes.
    """

    path: str
    state: str
    start: int

    @classmethod
    def of(cls, path: str, start: int = 0, length: int = 0) -> MappedFile:
        """Map a file from ``start`` on; ``length`` 0 means up to its end."""
        with Path(path).open("rb") as file:
            found = cls(file.fileno(), length, access=mmap.ACCESS_READ, offset=start)
            found.path, found.start, found.state = path, start, _state(os.fstat(file.fileno()))
        return found

    def array(self, offset: int, dtype: np.dtype[Any], shape: tuple[int, ...]) -> np.ndarray:
        """A view of the mapping, ``offset`` bytes into the file."""
        count = math.prod(shape)
        raw = np.frombuffer(self, np.uint8, count * dtype.itemsize, offset - self.start)
        return raw.view(dtype).reshape(shape) if count else np.empty(shape, dtype)


# Files mapped now, by path and state. An overwritten file lives on for those who hold its mapping.
_open: WeakValueDictionary[tuple[str, str], MappedFile] = WeakValueDictionary()


def _state(found: os.stat_result) -> str:
    return f"{found.st_dev}-{found.st_ino}-{found.st_size}-{found.st_mtime_ns}"


def opened(path: str | Path) -> MappedFile:
    """The mapping of a whole file as it is now, shared by all who ask for it.

    Raises:
        LoadError: the file cannot be read.
    """
    name = os.path.abspath(path)  # noqa: PTH100 - Path.absolute keeps "..", by which one file would be mapped twice
    try:
        state = _state(Path(name).stat())
        found = _open.get((name, state))
        if found is None:
            found = MappedFile.of(name)
            _open[name, found.state] = found
    except (OSError, ValueError) as error:
        raise LoadError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}.") from error
    return found


def is_external(tensor: TensorProto) -> bool:
    """Whether a tensor's data are kept outside the proto."""
    return bool(tensor.data_location == TensorProto.EXTERNAL)


def is_reference(tensor: TensorProto) -> bool:
    """Whether a tensor is a reference made by :func:`refer`, which :func:`to_array` resolves."""
    entries = {entry.key: entry.value for entry in tensor.external_data} if is_external(tensor) else {}
    return entries.get("checksum", "") in _issued and Path(entries.get("location", "")).is_absolute()


# The states of files that references were made to: a proto that comes from elsewhere cannot name any other file.
_issued: set[str] = set()


def refer(tensor: TensorProto, file: MappedFile, offset: int, length: int) -> None:
    """Make a tensor a reference to ``length`` bytes of a file, in place."""
    tensor.ClearField("raw_data")
    del tensor.external_data[:]
    tensor.data_location = TensorProto.EXTERNAL
    entries = {"location": file.path, "offset": offset, "length": length, "checksum": file.state}
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=str(value))
    _issued.add(file.state)


def to_array(tensor: TensorProto) -> np.ndarray:
    """The content of a tensor; of a reference a read-only, memory-mapped view.

    Raises:
        LoadError: the file that a reference names is gone or was changed since.
    """
    if not is_external(tensor):
        return numpy_helper.to_array(tensor)
    entries = {entry.key: entry.value for entry in tensor.external_data}
    path, state = entries["location"], entries.get("checksum", "")
    offset, spill = int(entries.get("offset", "0")), _spills.get(path)
    file = _open.get((path, state)) or (opened(path) if spill is None else spill.mapped(offset, byte_size(tensor)))
    if file.state != state:
        raise LoadError(f"{path} was changed since the model with tensor {tensor.name} was loaded: load it again.")
    return file.array(offset, onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type), tuple(tensor.dims))


def is_mappable(tensor: TensorProto) -> bool:
    """Whether an external tensor's elements lie in its file as numpy would hold them: at least a byte for each."""
    kind = tensor.data_type
    if not is_external(tensor) or kind in _PACKED or sys.byteorder != "little":
        return False
    return byte_size(tensor) >= SMALL


_PACKED = frozenset(
    getattr(TensorProto, name, -1) for name in ("INT4", "UINT4", "FLOAT4E2M1", "INT2", "UINT2", "STRING", "UNDEFINED")
)


def byte_size(tensor: TensorProto) -> int:
    """How many bytes a tensor's elements take as an array, by its type and shape, wherever they are kept."""
    count: int = math.prod(tensor.dims)
    return count * item_size(tensor)


def item_size(tensor: TensorProto) -> int:
    """How many bytes an element takes as an array; 0 where that cannot be said."""
    if tensor.data_type in (TensorProto.UNDEFINED, TensorProto.STRING):
        return 0
    return int(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)


def mapping_of(value: np.ndarray) -> tuple[MappedFile, int] | None:
    """The mapped file that a contiguous array is a view of, and its offset in the file; None for any other array."""
    file = _owner(value)
    if file is None or not value.flags.c_contiguous:
        return None
    return file, file.start + _address(value) - _address(np.frombuffer(file, np.uint8))


def _owner(value: np.ndarray) -> MappedFile | None:
    base: Any = value
    while isinstance(base, np.ndarray):
        base = base.base
    if isinstance(base, memoryview):
        base = base.obj
    return base if isinstance(base, MappedFile) else None


def _address(value: np.ndarray) -> int:
    address: int = value.ctypes.data
    return address


def release(value: np.ndarray | None) -> None:
    """Give the pages of a memory-mapped array back to the system; they are read again when needed.

    Arrays of any other kind are left alone.
    """
    file = None if value is None else _owner(value)
    if value is None or file is None or not hasattr(mmap, "MADV_DONTNEED"):
        return
    begin, end = np.lib.array_utils.byte_bounds(value)
    origin = _address(np.frombuffer(file, np.uint8))
    first = (begin - origin) // mmap.PAGESIZE * mmap.PAGESIZE
    if end > begin:
        file.madvise(mmap.MADV_DONTNEED, first, min(end - origin, len(file)) - first)


def streamed(value: np.ndarray) -> Iterator[np.ndarray]:
    """The bytes of an array in C order, piece by piece; mapped pages are released behind the reader."""
    flat = np.ascontiguousarray(value).reshape(-1).view(np.uint8)
    for begin in range(0, flat.size, CHUNK):
        piece = flat[begin : begin + CHUNK]
        yield piece
        release(piece)


class Spill:
    """A temporary file for constants that were computed, so that they need not stay in memory.

    It is removed when nobody holds the spill any more, or when Python ends.

    Args:
        sources: The files that the constants are computed from.
    """

    def __init__(self, sources: Iterable[MappedFile] = ()) -> None:
        self._sources = tuple(sources)
        self._folder = tempfile.TemporaryDirectory(prefix="onnxfix-", ignore_cleanup_errors=True)
        folder = Path(self._folder.name).resolve()
        self._path, self._state, self._end = str(folder / "constants.bin"), folder.name, 0
        _spills[self._path] = self

    def keep(self, value: np.ndarray) -> np.ndarray:
        """Move an array into the file; small ones, and those that lie in a file already, stay as they are.

        Returns:
            The same content, memory-mapped.
        """
        if value.nbytes < SMALL or value.dtype.hasobject or _owner(value) is not None:
            return value
        begin = self._end
        with Path(self._path).open("ab") as file:
            for piece in streamed(value):
                file.write(piece.data)
            file.write(bytes(-file.tell() % _ALIGNMENT))
            self._end = file.tell()
        return self.mapped(begin, value.nbytes).array(begin, value.dtype, value.shape)

    def mapped(self, begin: int, length: int) -> MappedFile:
        """What was written from byte ``begin`` on."""
        found = MappedFile.of(self._path, begin, length)
        found.state = self._state  # the file grows, but what was written stays
        return found

    def release(self) -> None:
        """Give the pages of all sources back to the system."""
        for source in self._sources:
            if hasattr(mmap, "MADV_DONTNEED"):
                source.madvise(mmap.MADV_DONTNEED)

    def pin(self) -> None:
        """Keep the file until Python ends: a proto that refers to it leaves our hands."""
        _pinned.add(self)


_spills: WeakValueDictionary[str, Spill] = WeakValueDictionary()
_pinned: set[Spill] = set()


def skeleton(proto: onnx.ModelProto, without: Callable[[TensorProto], bool]) -> onnx.ModelProto:
    """A copy of a model in which some initializers have no data, only name, type and shape."""
    copy = onnx.ModelProto()
    _copy_fields(proto, copy, "graph")
    _copy_fields(proto.graph, copy.graph, "initializer")
    for tensor in proto.graph.initializer:
        if without(tensor):
            copy.graph.initializer.add(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
        else:
            copy.graph.initializer.add().CopyFrom(tensor)
    return copy


def _copy_fields(source: Any, copy: Any, left_out: str) -> None:
    for field, value in source.ListFields():
        if field.name == left_out:
            continue
        if hasattr(value, "MergeFrom"):
            getattr(copy, field.name).MergeFrom(value)
        else:
            setattr(copy, field.name, value)


def references(proto: onnx.ModelProto) -> Iterator[TensorProto]:
    """The initializers of the main graph that are kept outside the proto."""
    return (tensor for tensor in proto.graph.initializer if is_external(tensor))


def files(values: Iterable[np.ndarray]) -> tuple[MappedFile, ...]:
    """The mapped files that arrays are views of."""
    found = {id(file): file for file in map(_owner, values) if file is not None}
    return tuple(found.values())


def holders(proto: onnx.ModelProto) -> tuple[object, ...]:
    """What must be held for a model's references to stay good, even if the files are overwritten."""
    found: dict[int, object] = {}
    for tensor in references(proto):
        file = _owner(to_array(tensor))
        held = None if file is None else _spills.get(file.path, file)
        found[id(held)] = held
    return tuple(found.values())
