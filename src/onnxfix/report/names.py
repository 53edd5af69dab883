"""Long names of tensors and layers, made short enough for a column without losing what tells them apart."""

from __future__ import annotations

from collections.abc import Sequence

_GAP = "\u2026"


def compact(names: Sequence[str], width: int) -> list[str]:
    """Names in at most ``width`` characters each, where they are longer.

    What stands in parentheses goes first, then the path segments that all long names share at their beginning and end,
    then the middle.
    """
    bare = [name.partition(" (")[0] if len(name) > width else name for name in names]
    long = list(dict.fromkeys(name for name in bare if len(name) > width))
    head, tail = _shared(long) if len(long) > 1 else (0, 0)
    return [_middle(_cut(name, head, tail) if len(name) > width else name, width) for name in bare]


def _shared(names: Sequence[str]) -> tuple[int, int]:
    """How many leading and trailing path segments all names have in common, leaving one at least."""
    paths = [name.split("/") for name in names]
    shortest = min(map(len, paths))
    head = next((i for i in range(shortest) if len({path[i] for path in paths}) > 1), shortest - 1)
    room = shortest - head - 1
    tail = next((i for i in range(room) if len({path[-1 - i] for path in paths}) > 1), room)
    return head, tail


def _cut(name: str, head: int, tail: int) -> str:
    segments = name.split("/")
    kept = "/".join(segments[head : len(segments) - tail])
    return f"{f'{_GAP}/' if head else ''}{kept}{f'/{_GAP}' if tail else ''}"


def _middle(name: str, width: int) -> str:
    if len(name) <= width:
        return name
    tail = (width - 1) * 2 // 3
    return f"{name[: width - 1 - tail]}{_GAP}{name[-tail:]}"
