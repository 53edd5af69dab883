"""Overwrite numbers of a flatbuffer table where they stand.

The generated schema module reads and builds tables, but does not say where a field lies. That is found by building a
table with this one field set: the only slot of its vtable that is taken is the field's.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np

from onnxfix.errors import OnnxFixError


class NotInPlaceError(OnnxFixError):
    """A change needs more room than the table has, or is none of numbers."""


def same(one: Any, two: Any) -> bool:
    """Whether two objects of the object API hold the same."""
    if one is two:
        return True
    if isinstance(one, np.ndarray | list | tuple) or isinstance(two, np.ndarray | list | tuple):
        return _same_lists(one, two)
    if hasattr(one, "__dict__") and hasattr(two, "__dict__"):
        first, second = vars(one), vars(two)
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    return bool(_plain(one) == _plain(two))


def _same_lists(one: Any, two: Any) -> bool:
    # The builder writes an absent list and an empty one alike in some versions of the schema.
    first, second = ([] if v is None else v for v in (one, two))
    if np.isscalar(first) or np.isscalar(second) or len(first) != len(second):
        return False
    if isinstance(first, np.ndarray) and isinstance(second, np.ndarray):
        return bool(np.array_equal(first, second, equal_nan=first.dtype.kind == "f"))
    return all(same(a, b) for a, b in zip(first, second, strict=True))


def _plain(value: Any) -> Any:
    return value.encode() if isinstance(value, str) else value


def writes(reader: Any, before: Any, after: Any) -> Iterator[tuple[int, bytes]]:
    """What to write where, so that a table reads as ``after`` instead of ``before``.

    Args:
        reader: The table in the file, as the generated module reads it.
        before: What it holds (object API).
        after: What it is to hold.

    Raises:
        NotInPlaceError: a number has no place because it had its default value, a list has another length, or
            something other than numbers changes.
    """
    old, new = vars(before), vars(after)
    for name in old:
        if same(old[name], new[name]):
            continue
        yield from _field(reader, type(before), name, old[name], new[name])


def _field(reader: Any, kind: type, name: str, old: Any, new: Any) -> Iterator[tuple[int, bytes]]:
    method = name[0].upper() + name[1:]
    if isinstance(old, bool | int | float) and isinstance(new, bool | int | float | np.number):
        slot, width = _slot(kind, name)
        offset = reader._tab.Offset(slot)
        if not offset:
            raise NotInPlaceError(f"{name} has no place in its table.")
        number = float(new) if isinstance(old, float) else int(new)
        yield reader._tab.Pos + offset, _packed(number, width)
    elif isinstance(old, np.ndarray) and len(old) == len(new) > 0 and hasattr(reader, f"{method}AsNumpy"):
        view = getattr(reader, f"{method}AsNumpy")()
        start = view.__array_interface__["data"][0] - _base(reader._tab.Bytes)
        yield start, np.asarray(new, view.dtype).tobytes()
    elif old is not None and type(old) is type(new) and hasattr(old, "__dict__"):
        yield from writes(_typed(getattr(reader, method)(), type(old)), old, new)
    else:
        raise NotInPlaceError(f"{name} changes its size.")


def _typed(table: Any, kind: type) -> Any:
    """A table under the reader of its type: what a union gives is untyped."""
    place = getattr(table, "_tab", table)
    reader = getattr(sys.modules[kind.__module__], kind.__name__.removesuffix("T"))()
    reader.Init(place.Bytes, place.Pos)
    return reader


def _base(content: Any) -> int:
    return int(np.frombuffer(content, np.uint8).__array_interface__["data"][0])


@cache
def _slot(kind: type, name: str) -> tuple[int, int]:
    """Slot of a number in its table's vtable, and its width in bytes."""
    import flatbuffers

    default = getattr(kind(), name)
    item = kind()
    setattr(item, name, not default if isinstance(default, bool) else type(default)(1) if default != 1 else 2)
    builder = flatbuffers.Builder(64)
    root = item.Pack(builder)
    builder.Finish(root)
    data = bytes(builder.Output())
    (table,) = struct.unpack_from("<I", data)
    vtable = table - struct.unpack_from("<i", data, table)[0]
    size, room = struct.unpack_from("<HH", data, vtable)
    taken = [slot for slot in range(4, size, 2) if struct.unpack_from("<H", data, vtable + slot)[0]]
    if len(taken) != 1:
        raise NotInPlaceError(f"{name} is not one number.")
    (offset,) = struct.unpack_from("<H", data, vtable + taken[0])
    width = room - offset
    if width not in (1, 2, 4, 8):
        raise NotInPlaceError(f"{name} has an unknown width.")
    return taken[0], width


def _packed(value: float, width: int) -> bytes:
    if isinstance(value, float):
        return struct.pack("<f" if width == 4 else "<d", value)
    return (value % (1 << 8 * width)).to_bytes(width, "little")
