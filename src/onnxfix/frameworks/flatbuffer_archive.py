"""The archive that TFLite metadata tools append to a file (labels, vocabularies), kept readable when it moves."""

from __future__ import annotations

import struct

_END = b"PK\x05\x06"
_ENTRY = b"PK\x01\x02"
_END_SIZE, _ENTRY_SIZE = 22, 46
_LONGEST_COMMENT = 0xFFFF


def moved_archive(data: bytes, shift: int) -> bytes:
    """A file's bytes for a place that lies ``shift`` bytes further on in another file.

    An archive at the end counts its offsets from the beginning of the file; they grow by ``shift``. Nothing else
    changes, and a file without an archive is returned as it is.
    """
    end = data.rfind(_END, max(0, len(data) - _END_SIZE - _LONGEST_COMMENT))
    if end < 0 or len(data) < end + _END_SIZE:
        return data
    count, size, start = struct.unpack_from("<HII", data, end + 10)
    # Some writers count from where the archive begins: their offsets are right wherever it lies.
    if start + size != end:
        return data
    entries = _entries(data, start, end, count)
    if entries is None:
        return data
    moved = bytearray(data)
    for position in entries:
        (offset,) = struct.unpack_from("<I", data, position + 42)
        struct.pack_into("<I", moved, position + 42, offset + shift)
    struct.pack_into("<I", moved, end + 16, start + shift)
    return bytes(moved)


def _entries(data: bytes, start: int, end: int, count: int) -> list[int] | None:
    """Where the entries of the central directory begin; None if it is none."""
    found = []
    position = start
    while position + _ENTRY_SIZE <= end and data[position : position + 4] == _ENTRY:
        found.append(position)
        position += _ENTRY_SIZE + sum(struct.unpack_from("<HHH", data, position + 28))
    return found if position == end and len(found) == count else None
