"""One logical input set, fed to each model in its own name, layout and dtype."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from onnxfix.errors import InputError
from onnxfix.inputs import images
from onnxfix.inputs.adapting import adapt, check_finite
from onnxfix.inputs.binding import Binding, bind, fixed_batch, match_keys, takes_whole
from onnxfix.inputs.preparation import Preparation
from onnxfix.inputs.reading import is_array, read, to_array
from onnxfix.inputs.stores import Block, FeedList, Pictures, Rows, Store, row_count

if TYPE_CHECKING:
    from onnxfix.model import Model, TensorSpec

Feed = dict[str, np.ndarray]
# Blocks that are looked at for the shapes that the data have.
_LOOKED_AT = 64
Side = Literal["source", "target"]
Preprocess = str | Callable[[Any], Any] | None


@dataclass(frozen=True)
class Chunk:
    """The same samples, ready for both models.

    Attributes:
        source: Source input name -> array.
        target: Target input name -> array.
        start: Index of the first sample among all samples.
        count: How many samples; the feeds can hold more rows where a fixed batch was filled up by repetition.
    """

    source: dict[str, np.ndarray]
    target: dict[str, np.ndarray]
    start: int
    count: int


class Inputs:
    """One logical input set for two models, with preprocessing for each side where they need it.

    Args:
        data: A dict of arrays with a leading batch axis; an array (single-input models); a path to ``.npz`` or
            ``.npy``; a directory of images; an iterable of dicts, arrays or ``(x, y)`` tuples (a torch ``DataLoader``,
            a ``tf.data.Dataset``: labels are dropped); or an ``Inputs``. Arrays are keyed by the input names of either
            model, or by position (``"0"``). In an ``.npz``, ``x`` beside ``x__1``, ``x__2`` are whole feeds.
        preprocess: For both sides: a callable (it gets what was given: dict or array; pictures as uint8
            ``[batch, height, width, channels]``), or for pictures one of ``unit`` (0..1, the default), ``tf`` (-1..1),
            ``torch`` (ImageNet mean and std), ``caffe`` (BGR minus mean), ``raw`` (0..255); or a
            :class:`~onnxfix.inputs.Preparation`, which also says how pictures are scaled and cut and can be read off
            TFLite metadata, torchvision weights and Hugging Face image processors.
        source_preprocess: The same for the source only, instead of ``preprocess``.
        target_preprocess: The same for the target only, instead of ``preprocess``.
        limit: Use only that many samples.
        batch_size: Samples per feed, where the models leave it free.

    Raises:
        InputError: the data are missing, empty or no data at all.

    Example:
        >>> data = Inputs({"x": np.zeros((10, 4), np.float32)}, limit=8)
        >>> data.count
        8
    """

    def __init__(
        self,
        data: Any,
        *,
        preprocess: Preprocess = None,
        source_preprocess: Preprocess = None,
        target_preprocess: Preprocess = None,
        limit: int | None = None,
        batch_size: int = 32,
    ) -> None:
        _check_numbers(limit, batch_size)
        self.note = ""
        self._steps: dict[Side, Preprocess] = {
            "source": source_preprocess or preprocess,
            "target": target_preprocess or preprocess,
        }
        self._binding: Binding | None = None
        self._store: Store | None = None
        self._data = data
        self._limit = limit
        self._batch_size = batch_size
        self._bare = not isinstance(data, Mapping)
        if isinstance(data, Inputs):
            self._inherit(data)
        elif isinstance(data, str) or is_array(data) or isinstance(data, Mapping) or hasattr(data, "__fspath__"):
            self._store = read(data)
        for step in self._steps.values():
            self._check_step(step)

    def _inherit(self, other: Inputs) -> None:
        self._data, self._store, self._bare, self.note = other._data, other._store, other._bare, other.note
        self._binding = other._binding
        self._steps = {side: self._steps[side] or step for side, step in other._steps.items()}
        limits = [n for n in (self._limit, other._limit) if n is not None]
        self._limit = min(limits, default=None)

    def _check_step(self, step: Preprocess) -> None:
        if not isinstance(step, str):
            return
        if not isinstance(self._store, Pictures):
            raise InputError(f"preprocessing {step} is for a directory of images: give a function for other data.")
        if step not in images.PREPROCESSING:
            choices = ", ".join(images.PREPROCESSING)
            raise InputError(f"there is no preprocessing named {step}: choose one of {choices}.")

    @classmethod
    def of(cls, data: Any, *, limit: int | None = None, batch_size: int | None = None) -> Inputs:
        """``data`` as ``Inputs``; one that is given is kept, with a further limit or another batch size."""
        if isinstance(data, Inputs):
            if limit is None and batch_size in (None, data._batch_size):
                return data
            return cls(data, limit=limit, batch_size=batch_size or data._batch_size)
        return cls(data, limit=limit, batch_size=batch_size or 32)

    @property
    def count(self) -> int:
        """Number of samples."""
        return self._samples().count

    @property
    def batch_size(self) -> int:
        """Samples per feed, where the models leave it free."""
        return self._batch_size

    def sizes(self, model: Model) -> list[Feed]:
        """One feed of each shape that the data have, as they were given, whether the model takes it or not.

        Raises:
            InputError: the data do not have what the model takes.
        """
        found: dict[object, Feed] = {}
        for block in islice(self._samples().blocks(2), _LOOKED_AT):
            keys = match_keys(block, model.inputs)
            feed = {name: block[key] for name, key in keys.items()}
            found.setdefault(tuple(array.shape[1:] for array in feed.values()), feed)
        return list(found.values())

    @property
    def differs(self) -> bool:
        """Whether source and target are fed in ways of their own."""
        return self._steps["source"] != self._steps["target"]

    def alike(self) -> Inputs:
        """The same samples with both sides prepared as the source's are; not bound to models any more."""
        return self._prepared({"source": self._steps["source"], "target": self._steps["source"]})

    def prepared_as(self, other: Inputs) -> Inputs:
        """The same samples with each side prepared as in ``other``; not bound to models any more."""
        return self._prepared(other._steps)

    def _prepared(self, steps: Mapping[Side, Preprocess]) -> Inputs:
        copy = self._with(self._samples(), None)
        copy._steps = dict(steps)
        return copy

    def bind(self, source: Model, target: Model | None = None) -> Inputs:
        """Tie the data to the models: their names, batch axis and chunk length.

        The other methods do it when they are handed models; do it first where :meth:`split` or :meth:`take` come
        before, so that samples without a batch axis are told from batches.

        Raises:
            InputError: the data do not have what the models take, or contain NaN or infinity.
            AlignmentError: the models do not take the same inputs.
        """
        target = source if target is None else target
        if self._store is None:
            ranks = frozenset(len(spec.shape) for spec in source.inputs if spec.shape is not None)
            self._store = read(self._data, self._limit, ranks)
        reshaped = (callable(self._steps["source"]), callable(self._steps["target"]))
        store, binding = bind(self._store, source, target, reshaped=reshaped)
        if self._binding is None and not isinstance(store, Pictures):
            for feed in store.feeds if isinstance(store, FeedList) else [store.sample]:
                check_finite(feed)
        if isinstance(store, Pictures):
            store = replace(store, shaped=self._shaped())
        return self._with(store if self._limit is None else store.take(self._limit), binding)

    def _shaped(self) -> tuple[tuple[str, Preparation], ...]:
        """The sides whose preparation says how pictures are scaled and cut."""
        steps = ((side, step) for side, step in self._steps.items() if isinstance(step, Preparation))
        return tuple((side, step) for side, step in steps if step.shapes)

    def chunks(self, source: Model, target: Model) -> Iterator[Chunk]:
        """The same samples for both models, chunk by chunk, in order.

        Raises:
            InputError: data do not fit a model; naming what it expects and what it got.
            AlignmentError: the models do not take the same inputs.
        """
        bound = self.bind(source, target)
        start = 0
        for block, count in bound._blocks(source=source.inputs, target=target.inputs):
            feeds = bound._feed(block, source.inputs, "source"), bound._feed(block, target.inputs, "target")
            yield Chunk(*feeds, start, count)
            start += count

    def paired_feeds(self, source: Model, target: Model) -> Iterator[tuple[Feed, Feed]]:
        """``(source_feed, target_feed)`` pairs that hold the same samples; see :meth:`chunks`."""
        for chunk in self.chunks(source, target):
            yield chunk.source, chunk.target

    def feeds(self, model: Model, side: Side = "source") -> Iterator[dict[str, np.ndarray]]:
        """Feeds for one model under its own input names, in its layout and dtype.

        Data that are bound to two models keep the names and the chunk length that both need.

        Args:
            model: The model to feed.
            side: Whose preprocessing to apply.

        Raises:
            InputError: the data do not fit the model.
        """
        bound = self if self._is_bound_to(model, side) else self.bind(model)
        for block, _ in bound._blocks(**{side: model.inputs}):
            yield bound._feed(block, model.inputs, side)

    def examples(self) -> dict[str, np.ndarray]:
        """Up to two samples, as given: what a model that must be traced to be read can be traced on.

        Returns:
            Key -> array with a leading batch axis; data without names are keyed by position (``"0"``).

        Raises:
            InputError: the data are pictures, whose size only a model can tell.
        """
        store = self._samples()
        if isinstance(store, Pictures):
            raise InputError("pictures do not say what size a model takes: load the model with example inputs.")
        rows = row_count(store.sample)
        return {name: array if rows is None else array[:2] for name, array in store.sample.items()}

    def split(self, fraction: float = 0.2, seed: int = 0) -> tuple[Inputs, Inputs]:
        """Split into work data and held-out data, at least one sample each, chosen at random.

        Feeds that stay together are split feed by feed. Data of a single sample cannot be split: both parts are
        then the same data, and :attr:`note` of the second says so.

        Args:
            fraction: Share of the samples to hold out, between 0 and 1.
            seed: Seed of the choice.
        """
        if not 0 < fraction < 1:
            raise InputError(f"the fraction to hold out is {fraction}, but must lie between 0 and 1.")
        store = self._samples()
        if isinstance(store, FeedList) and store.units == 1 and (row_count(store.sample) or 1) > 1 and not store.whole:
            store = Rows.of(store.sample)
        total = store.units
        if total < 2:
            both = self._with(store, self._binding)
            both.note = "the data hold a single sample, so the held-out data are the same data"
            return both, both
        held = min(max(1, round(total * fraction)), total - 1)
        order = np.random.default_rng(seed).permutation(total)
        work = self._with(store.select(np.sort(order[held:])), self._binding)
        holdout = self._with(store.select(np.sort(order[:held])), self._binding)
        kind = "feeds" if isinstance(store, FeedList) else "samples"
        holdout.note = f"{held} of the {total} {kind} given were held out at random (seed {seed})"
        return work, holdout

    def take(self, n: int) -> Inputs:
        """The first ``n`` samples."""
        _check_numbers(n, self._batch_size)
        return self._with(self._samples().take(n), self._binding)

    def _samples(self) -> Store:
        if self._store is None:
            self._store = read(self._data, self._limit)
        return self._store if self._limit is None else self._store.take(self._limit)

    def _with(self, store: Store, binding: Binding | None) -> Inputs:
        copy = object.__new__(Inputs)
        copy.__dict__.update(self.__dict__, _store=store, _binding=binding, _limit=None)
        return copy

    def _is_bound_to(self, model: Model, side: Side) -> bool:
        if self._binding is None:
            return False
        keys = getattr(self._binding, side)
        return keys is None or all(spec.name in keys for spec in model.inputs)

    def _bound(self) -> tuple[Store, Binding]:
        if self._store is None or self._binding is None:
            raise InputError("the data are not bound to models yet: call bind first.")
        return self._store, self._binding

    def _blocks(self, **sides: tuple[TensorSpec, ...]) -> Iterator[tuple[Block, int]]:
        """Blocks of samples, and how many samples each holds; ``sides`` gives the inputs of each side."""
        store, binding = self._bound()
        known = [(getattr(binding, side), specs) for side, specs in sides.items() if getattr(binding, side) is not None]
        for block in store.blocks(binding.chunk or self._batch_size):
            rows = row_count(block)
            chunk = binding.chunk or rows
            together = isinstance(store, FeedList) and store.whole and bool(known)
            whole = together and all(takes_whole(block, keys, specs) for keys, specs in known)
            if whole or rows is None or chunk is None or rows <= chunk:
                yield block, rows or 1
                continue
            for start in range(0, rows, chunk):
                part = {key: array[start : start + chunk] for key, array in block.items()}
                yield part, min(chunk, rows - start)

    def _feed(self, block: Block, specs: tuple[TensorSpec, ...], side: Side) -> dict[str, np.ndarray]:
        _, binding = self._bound()
        keys = getattr(binding, side)
        block = self._preprocess(block, side, specs)
        if keys is None:
            keys = match_keys(block, specs)
        fixed, rows = fixed_batch(specs), row_count(block)
        feed = {}
        for spec in specs:
            array = block[keys[spec.name]]
            if fixed is not None and rows is not None and rows < fixed:
                array = array[np.minimum(np.arange(fixed), rows - 1)]
            feed[spec.name] = adapt(array, spec)
        return feed

    def _preprocess(self, block: Block, side: Side, specs: tuple[TensorSpec, ...]) -> Block:
        step = self._steps[side]
        if isinstance(self._store, Pictures):
            block = {"0": block[side] if side in block else block["0"]}
        if isinstance(self._store, Pictures) and not callable(step):
            default = "unit" if specs[0].dtype.kind in "fV" else "raw"
            return {"0": images.preprocess(block["0"], step or default)}
        if not callable(step):
            return block
        result = step(block["0"] if self._bare and list(block) == ["0"] else dict(block))
        if not isinstance(result, Mapping):
            result = {"0": result}
        done = {str(name): to_array(value) for name, value in result.items()}
        check_finite(done, f" after the {side} preprocessing")
        return done

    def __repr__(self) -> str:
        if self._store is None:
            return f"Inputs({type(self._data).__name__}, not read yet)"
        shapes = "; ".join(f"{name}: {a.dtype}{list(a.shape[1:])}" for name, a in self._store.sample.items())
        return f"Inputs({self.count} samples of {shapes})"


def _check_numbers(limit: int | None, batch_size: int) -> None:
    if limit is not None and limit < 1:
        raise InputError(f"the limit is {limit}, but at least one sample is needed.")
    if batch_size < 1:
        raise InputError(f"the batch size is {batch_size}, but must be at least 1.")
