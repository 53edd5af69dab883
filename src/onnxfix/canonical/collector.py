"""Python's cyclic garbage collector rests while a graph is rewritten."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def paused() -> Iterator[None]:
    """Switch the cyclic collector off for a while.

    Rewriting makes hundreds of thousands of small objects that live to the end; walking them over and over takes a
    quarter of the time. Memory that no cycle holds, weights above all, is freed as ever.
    """
    running = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if running:
            gc.enable()
