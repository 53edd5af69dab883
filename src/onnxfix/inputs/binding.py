"""Tie data to one or two models: which array goes to which input, in chunks of which length."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from onnxfix.errors import InputError
from onnxfix.inputs.adapting import check_layout
from onnxfix.inputs.matching import assign, fitting_move, pair_inputs, plain_name
from onnxfix.inputs.stores import Block, FeedList, Pictures, Rows, Store, row_count

if TYPE_CHECKING:
    from onnxfix.model import Model, TensorSpec

Keys = Mapping[str, str]


@dataclass(frozen=True)
class Binding:
    """How blocks of data become feeds.

    Attributes:
        source: Source input name -> key in the data; None where preprocessing decides the names.
        target: The same for the target.
        chunk: Samples per feed that a fixed batch dimension dictates; None when both models take any number.
    """

    source: Keys | None
    target: Keys | None
    chunk: int | None


def bind(store: Store, source: Model, target: Model, *, reshaped: tuple[bool, bool]) -> tuple[Store, Binding]:
    """Match the data with the models' inputs and put it into rows or feeds that they can take.

    Args:
        store: The samples.
        source: The source model.
        target: The target model.
        reshaped: Whether a function preprocesses the source's (target's) data: then its result is matched, not this.

    Raises:
        InputError: the data do not have what the models take.
        AlignmentError: the models do not take the same inputs.
    """
    pairs = pair_inputs(source, target)
    fixed = [n for n in (_batch(source), _batch(target)) if n]
    chunk = min(fixed, default=None)
    if isinstance(store, Pictures):
        store = _sized(store, source.inputs, target.inputs)
    if all(reshaped):
        return store, Binding(None, None, chunk)
    own = {pair.source.name: pair.target.name for pair in pairs}
    to_source = match_keys(store.sample, source.inputs, own)
    to_target = {own[name]: key for name, key in to_source.items()}
    if not any(reshaped):
        store = _only(store, to_source.values())
        _check_lengths(store, (*source.inputs, *target.inputs))
    if not reshaped[0]:
        store = _with_batch_axis(store, source.inputs, to_source)
    elif not reshaped[1]:
        store = _with_batch_axis(store, target.inputs, to_target)
    binding = Binding(None if reshaped[0] else to_source, None if reshaped[1] else to_target, chunk)
    if not isinstance(store, Pictures):
        for keys, specs in ((binding.source or {}, source.inputs), (binding.target or {}, target.inputs)):
            for spec in specs:
                if spec.name in keys:
                    check_layout(store.sample[keys[spec.name]], spec)
    return store, binding


def fixed_batch(specs: Sequence[TensorSpec]) -> int | None:
    """The one number to which the inputs fix their leading dimension; None where they leave it free or disagree."""
    leading = {spec.shape[0] for spec in specs if spec.shape and isinstance(spec.shape[0], int)}
    only = leading.pop() if len(leading) == 1 else None
    return only if isinstance(only, int) else None


def _batch(model: Model) -> int | None:
    """How many samples the model takes at a time; None for any number.

    A graph can declare any number at its inputs and still reshape to a single one inside, as converters write it; its
    outputs then say so.
    """
    leading = {spec.shape[0] if spec.shape else None for spec in model.outputs}
    return fixed_batch(model.inputs) or (1 if leading == {1} else None)


def takes_whole(block: Block, keys: Keys, specs: Sequence[TensorSpec]) -> bool:
    """Whether a block fits the model exactly as it is, leading axes included."""
    for spec in specs:
        array = block[keys[spec.name]]
        if not spec.shape:
            continue
        if fitting_move(array.shape, spec.shape) is None:
            return False
        if isinstance(spec.shape[0], int) and array.shape[0] != spec.shape[0]:
            return False
    return True


def match_keys(sample: Block, specs: Sequence[TensorSpec], alias: Keys | None = None) -> dict[str, str]:
    """Find the key of the data that feeds each input: by name, by position, else by the only shapes that fit.

    Args:
        sample: The data.
        specs: The inputs.
        alias: Input name -> the other model's name for it, by which the data may be keyed as well.

    Raises:
        InputError: there is none; naming what was given and what is taken.
    """
    have = list(sample)
    names = [[spec.name for spec in specs], [(alias or {}).get(spec.name, spec.name) for spec in specs]]
    for rename in (str, plain_name):
        keyed = {rename(key): key for key in have}
        for side in names:
            if all(rename(name) in keyed for name in side):
                return {spec.name: keyed[rename(name)] for spec, name in zip(specs, side, strict=True)}
    if all(str(i) in sample for i in range(len(specs))):
        return {spec.name: str(i) for i, spec in enumerate(specs)}
    if len(specs) == len(have):
        order = _by_shape(list(sample.values()), specs)
        if order is not None:
            return {spec.name: have[i] for spec, i in zip(specs, order, strict=True)}
    given = "; ".join(f"{name}: {array.dtype}{list(array.shape)}" for name, array in sample.items())
    takes = "; ".join(map(str, specs))
    raise InputError(
        f"the data ({given}) do not have what the models take ({takes}): name the arrays after the inputs."
    )


def _by_shape(arrays: Sequence[np.ndarray], specs: Sequence[TensorSpec]) -> tuple[int, ...] | None:
    if len(specs) == 1:
        return (0,)
    table = [[spec.shape is None or fitting_move(a.shape, spec.shape) is not None for a in arrays] for spec in specs]
    if all(table[i][i] for i in range(len(specs))):
        return tuple(range(len(specs)))
    return assign(table)


def _only(store: Store, keys: Iterable[str]) -> Store:
    """Leave out what no input takes (labels, for example)."""
    wanted = list(dict.fromkeys(keys))
    if isinstance(store, Rows):
        return replace(store, arrays={key: store.arrays[key] for key in wanted})
    if isinstance(store, FeedList):
        for position, feed in enumerate(store.feeds):
            missing = [key for key in wanted if key not in feed]
            if missing:
                raise InputError(f"item {position} of the data has no {missing[0]}: every sample needs all inputs.")
        return replace(store, feeds=tuple({key: feed[key] for key in wanted} for feed in store.feeds))
    return store


def _with_batch_axis(store: Store, specs: Sequence[TensorSpec], keys: Keys) -> Store:
    """Add the batch axis that samples lack, and strip the one that an unbatched model does not have."""
    gap = _rank_gap(store.sample, specs, keys)
    if gap == 1 and isinstance(store, FeedList):
        feeds = [{key: array[np.newaxis] for key, array in feed.items()} for feed in store.feeds]
        if len({tuple((key, a.shape, a.dtype) for key, a in feed.items()) for feed in feeds}) == 1:
            return Rows.of({key: np.concatenate([feed[key] for feed in feeds]) for key in feeds[0]})
        return FeedList(tuple(feeds))
    if gap == 1 and isinstance(store, Rows) and store.units == len(next(iter(store.arrays.values()))):
        return Rows.of({key: array[np.newaxis] for key, array in store.arrays.items()})
    if gap == -1 and isinstance(store, Rows):
        rows = [{key: array[i] for key, array in store.arrays.items()} for i in store.index]
        return FeedList(tuple(rows), whole=True)
    return store


def _rank_gap(sample: Block, specs: Sequence[TensorSpec], keys: Keys) -> int:
    """By how many axes the data fall short of the model's inputs, where all inputs agree on it; else 0."""
    gaps = {len(spec.shape) - sample[keys[spec.name]].ndim for spec in specs if spec.shape is not None}
    return gaps.pop() if len(gaps) == 1 else 0


def _sized(store: Pictures, *sides: Sequence[TensorSpec]) -> Pictures:
    """Scale pictures to the height and width that the models take.

    Raises:
        InputError: the models do not take pictures, or no height and width.
    """
    for specs in sides:
        if len(specs) != 1 or specs[0].shape is None or len(specs[0].shape) != 4:
            raise InputError(
                "a directory of images feeds models with one 4-D input, but this one takes "
                f"{'; '.join(map(str, specs))}: give an .npz file."
            )
    for specs in sides:
        _, a, b, c = specs[0].shape or ()
        last = c in (1, 3) and a not in (1, 3)
        channels, height, width = (c, a, b) if last else (a, b, c)
        if isinstance(height, int) and isinstance(width, int):
            return replace(store, size=(height, width), channels=1 if channels == 1 else 3)
    raise InputError(f"input {sides[0][0]} fixes no height and width to scale pictures to: give an .npz file.")


def _check_lengths(store: Store, specs: Sequence[TensorSpec]) -> None:
    """Refuse arrays of different lengths where they cannot be one feed.

    Raises:
        InputError: naming the lengths.
    """
    if not isinstance(store, FeedList) or store.units != 1 or row_count(store.sample) is not None:
        return
    if all(spec.shape and not isinstance(spec.shape[0], int) for spec in specs):
        lengths = ", ".join(f"{key}: {array.shape[0] if array.ndim else 0}" for key, array in store.sample.items())
        raise InputError(f"the inputs have different numbers of samples ({lengths}): give as many of each.")
