"""Where samples come from: rows of arrays, whole feeds, or pictures in a directory.

A store is a fixed, ordered set of *units* that can be selected: a row, a feed, a picture. It hands out *blocks*:
key -> array with a leading batch axis.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np

from onnxfix.inputs.preparation import Preparation

Block = Mapping[str, np.ndarray]


class Store(Protocol):
    """A fixed, ordered set of samples."""

    @property
    def units(self) -> int:
        """How many things :meth:`select` chooses among."""
        ...

    @property
    def count(self) -> int:
        """How many samples there are."""
        ...

    def select(self, units: np.ndarray) -> Store:
        """The same store with only the given units, in the given order."""
        ...

    def take(self, samples: int) -> Store:
        """The first ``samples`` samples (feeds that must stay whole are never cut)."""
        ...

    def blocks(self, rows: int) -> Iterator[Block]:
        """All samples in order, ``rows`` at a time where the store can cut."""
        ...

    @property
    def sample(self) -> Block:
        """A first block, for names, ranks and shapes; its batch axis has any length."""
        ...


@dataclass(frozen=True)
class Rows:
    """Arrays that share their leading axis; a unit is a row."""

    arrays: Block
    index: np.ndarray

    @classmethod
    def of(cls, arrays: Block) -> Rows:
        """All rows of ``arrays``."""
        length = next(iter(arrays.values())).shape[0]
        return cls(arrays, np.arange(length))

    @property
    def units(self) -> int:
        """Number of rows."""
        return len(self.index)

    @property
    def count(self) -> int:
        """Number of rows."""
        return len(self.index)

    @property
    def sample(self) -> Block:
        """The arrays themselves, uncut."""
        return self.arrays

    def select(self, units: np.ndarray) -> Rows:
        """Only the given rows."""
        return replace(self, index=self.index[units])

    def take(self, samples: int) -> Rows:
        """The first rows."""
        return replace(self, index=self.index[:samples])

    def blocks(self, rows: int) -> Iterator[Block]:
        """``rows`` rows at a time; the last block may be shorter."""
        for start in range(0, len(self.index), rows):
            index = self.index[start : start + rows]
            yield {name: array[index] for name, array in self.arrays.items()}


@dataclass(frozen=True)
class FeedList:
    """Feeds that stay together as they were given; a unit is a feed.

    Attributes:
        feeds: The feeds; shapes may differ from one to the next.
        whole: A feed may not be cut when only some of its rows are asked for.
    """

    feeds: tuple[Block, ...]
    whole: bool = False

    @property
    def units(self) -> int:
        """Number of feeds."""
        return len(self.feeds)

    @property
    def count(self) -> int:
        """Number of rows of all feeds."""
        return sum(row_count(feed) or 1 for feed in self.feeds)

    @property
    def sample(self) -> Block:
        """The first feed."""
        return self.feeds[0]

    def select(self, units: np.ndarray) -> FeedList:
        """Only the given feeds."""
        return replace(self, feeds=tuple(self.feeds[int(unit)] for unit in units))

    def take(self, samples: int) -> FeedList:
        """Feeds until there are ``samples`` rows; the last one is cut unless feeds stay whole."""
        kept: list[Block] = []
        left = samples
        for feed in self.feeds:
            if left <= 0:
                break
            rows = row_count(feed)
            if rows is not None and rows > left and not self.whole:
                feed = {name: array[:left] for name, array in feed.items()}
            kept.append(feed)
            left -= rows or 1
        return replace(self, feeds=tuple(kept))

    def blocks(self, rows: int) -> Iterator[Block]:
        """One feed at a time, whatever ``rows``."""
        yield from self.feeds


@dataclass(frozen=True)
class Pictures:
    """Image files, decoded when they are asked for; a unit is a file.

    Attributes:
        files: The paths, in order.
        size: Height and width that every picture is scaled to.
        channels: 3 (RGB) or 1 (grey).
        shaped: Whose preparation scales and cuts pictures in another way: side -> how.
        cache: Decoded pictures, kept while they fit in :data:`CACHE_BYTES`.
    """

    files: tuple[str, ...]
    size: tuple[int, int] = (224, 224)
    channels: int = 3
    shaped: tuple[tuple[str, Preparation], ...] = ()
    cache: dict[tuple[object, ...], np.ndarray] = field(default_factory=dict, compare=False, repr=False)

    @property
    def units(self) -> int:
        """Number of files."""
        return len(self.files)

    @property
    def count(self) -> int:
        """Number of files."""
        return len(self.files)

    @property
    def sample(self) -> Block:
        """The first picture."""
        return {"0": self._decode(self.files[0])[np.newaxis]}

    def select(self, units: np.ndarray) -> Pictures:
        """Only the given files."""
        return replace(self, files=tuple(self.files[int(unit)] for unit in units))

    def take(self, samples: int) -> Pictures:
        """The first files."""
        return replace(self, files=self.files[:samples])

    def blocks(self, rows: int) -> Iterator[Block]:
        """``rows`` pictures at a time, uint8 ``[rows, height, width, channels]``."""
        for start in range(0, len(self.files), rows):
            names = self.files[start : start + rows]
            block = {side: np.stack([self._decode(name, how) for name in names]) for side, how in self.shaped}
            if len(block) < 2:  # both sides have their own otherwise
                block["0"] = np.stack([self._decode(name) for name in names])
            yield block

    def _decode(self, name: str, how: Preparation | None = None) -> np.ndarray:
        key = (name, *self.size, self.channels, how)
        if key in self.cache:
            return self.cache[key]
        from onnxfix.inputs.images import decode, decode_as

        size, channels = self.size, self.channels
        picture = decode(name, size, channels) if how is None else decode_as(name, size, channels, how)
        if (len(self.cache) + 1) * picture.nbytes <= CACHE_BYTES:
            self.cache[key] = picture
        return picture


CACHE_BYTES = 256 * 2**20


def row_count(block: Block) -> int | None:
    """The common length of the leading axis; None when the arrays have no common one."""
    lengths = {array.shape[0] if array.ndim else None for array in block.values()}
    return lengths.pop() if len(lengths) == 1 else None
