"""Which input of one model plays the role of which input of the other, and with which axes moved."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from onnxfix.errors import AlignmentError

if TYPE_CHECKING:
    from onnxfix.model import Model, TensorSpec

Dim = int | str | None
Shape = tuple[Dim, ...]


@dataclass(frozen=True)
class InputPair:
    """Two specs that hold the same logical tensor.

    Attributes:
        source: The source model's spec.
        target: The target model's spec.
        permutation: ``target_array = source_array.transpose(permutation)``; None when the axes agree.
    """

    source: TensorSpec
    target: TensorSpec
    permutation: tuple[int, ...] | None = None


def pair_inputs(source: Model, target: Model) -> tuple[InputPair, ...]:
    """Pair the inputs of two models: by name, else by order, else by the only assignment that fits.

    Names are tried verbatim and then without what converters wrap around them (``serving_default_x:0`` is ``x``).
    Shapes fit when they agree except for the leading (batch) axis and for symbolic dimensions, at once or after the
    channel axis is moved (NCHW and NHWC).

    Returns:
        One pair for each input, in the source's order.

    Raises:
        AlignmentError: no such pairing; the text names the inputs of both models.
    """
    ours, theirs = source.inputs, target.inputs
    if len(ours) == len(theirs):
        for order in _assignments(ours, theirs):
            pairs = [_pair(a, theirs[j]) for a, j in zip(ours, order, strict=True)]
            if all(pair is not None for pair in pairs):
                return tuple(pair for pair in pairs if pair is not None)
    raise AlignmentError(
        f"the inputs of source ({_names(ours)}) and target ({_names(theirs)}) cannot be matched: give two models that "
        "take the same inputs, up to names, batch size and channel order."
    )


def pair_outputs(source: Model, target: Model) -> tuple[InputPair, ...]:
    """Pair the outputs of two models by position; surplus outputs of either are left out.

    An output whose shapes do not fit is paired all the same (without a permutation): comparing says how they differ.
    """
    return tuple(
        _pair(a, b) or InputPair(a, b) for a, b in zip(source.outputs, target.outputs, strict=False)
    )


def axis_moves(rank: int) -> tuple[tuple[int, ...], ...]:
    """The permutations that carry channels-first to channels-last and back, for tensors of ``rank`` axes."""
    if rank < 3:
        return ()
    axes = tuple(range(rank))
    last = (0, *axes[2:], 1)
    first = (0, rank - 1, *axes[1 : rank - 1])
    return (last,) if last == first else (last, first)


def fitting_move(shape: Shape, wanted: Shape) -> tuple[int, ...] | None:
    """The permutation after which ``shape`` fits ``wanted`` (the leading axis is free), identity first.

    Returns:
        The permutation, or None when none fits.
    """
    if len(shape) != len(wanted):
        return None
    for move in (tuple(range(len(shape))), *axis_moves(len(shape))):
        if _fits([shape[axis] for axis in move], wanted):
            return move
    return None


def plain_name(name: str) -> str:
    """An input's name without what converters wrap around it."""
    bare = re.sub(r":\d+$", "", name)
    bare = re.sub(r"^(serving_default_|[a-z_]*signature_[a-z]+_)", "", bare)
    return bare.lower()


def assign(compatible: Sequence[Sequence[bool]]) -> tuple[int, ...] | None:
    """The one assignment of rows to columns that ``compatible`` admits; None when there is none, or more than one."""
    found = []
    for solution in _solutions(compatible, ()):
        found.append(solution)
        if len(found) > 1:
            return None
    return found[0] if found else None


def _solutions(compatible: Sequence[Sequence[bool]], chosen: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    if len(chosen) == len(compatible):
        yield chosen
        return
    for column, allowed in enumerate(compatible[len(chosen)]):
        if allowed and column not in chosen:
            yield from _solutions(compatible, (*chosen, column))


def _assignments(ours: Sequence[TensorSpec], theirs: Sequence[TensorSpec]) -> Iterator[tuple[int, ...]]:
    """Candidate assignments, the most telling first."""
    for rename in (str, plain_name):
        by_name = _by_name([rename(s.name) for s in ours], [rename(s.name) for s in theirs])
        if by_name is not None:
            yield by_name
    for same_kind in (True, False):
        table = [[_compatible(a, b, same_kind) for b in theirs] for a in ours]
        if all(table[i][i] for i in range(len(ours))):
            yield tuple(range(len(ours)))
        only = assign(table)
        if only is not None:
            yield only


def _by_name(ours: list[str], theirs: list[str]) -> tuple[int, ...] | None:
    if len(set(ours)) != len(ours) or set(ours) != set(theirs):
        return None
    return tuple(theirs.index(name) for name in ours)


def _compatible(a: TensorSpec, b: TensorSpec, same_kind: bool) -> bool:
    return _pair(a, b) is not None and (not same_kind or kind(a) == kind(b))


def kind(spec: TensorSpec) -> str:
    """``f`` for floats (bfloat16 included), ``i`` for integers of any width and sign, numpy's letter for the rest."""
    letter = spec.dtype.kind
    return {"u": "i", "V": "f"}.get(letter, letter)


def _pair(a: TensorSpec, b: TensorSpec) -> InputPair | None:
    if a.shape is None or b.shape is None:
        return InputPair(a, b)
    move = fitting_move(a.shape, b.shape)
    if move is None or (len(a.shape) == 1 and not _fits_dim(a.shape[0], b.shape[0])):
        return None
    return InputPair(a, b, None if move == tuple(range(len(move))) else move)


def _fits(shape: Sequence[Dim], wanted: Sequence[Dim]) -> bool:
    return all(_fits_dim(a, b) for a, b in list(zip(shape, wanted, strict=True))[1:])


def _fits_dim(a: Dim, b: Dim) -> bool:
    return not isinstance(a, int) or not isinstance(b, int) or a == b


def _names(specs: Sequence[TensorSpec]) -> str:
    return "; ".join(map(str, specs)) or "none"
