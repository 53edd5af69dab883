"""Follow a model through a chain of conversions and find the hop that broke it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnxfix.compare import Comparison, compare
from onnxfix.diagnose import Diagnosis, diagnose
from onnxfix.errors import InputError, OnnxFixError
from onnxfix.inputs import Inputs
from onnxfix.model import Model, load
from onnxfix.repair.repairing import Tolerances
from onnxfix.trace.result import Hop, Trace

Progress = Callable[[str, float], None]


def trace(
    models: Sequence[Any],
    data: Any,
    *,
    rtol: float = 1e-3,
    atol: float = 0.0,
    limit: int | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Trace:
    """Say which hop of a chain of conversions broke the model, and how.

    Each model is compared with the one before it and with the first, and the first hop that is broken is diagnosed. A
    model that does not load or run breaks its hop; the next one is then compared with the last model that does.

    Args:
        models: The chain, at least two: the original, what was made of it, what was made of that, ... Anything
            :func:`onnxfix.load` takes.
        data: Inputs of the first model; anything :class:`onnxfix.Inputs` takes.
        rtol: Relative tolerance.
        atol: Absolute tolerance.
        limit: Use only that many samples.
        batch_size: Samples per run.
        seed: Accepted so that all verbs take the same options.
        progress: Called with a stage and the fraction done, 0..1.

    Returns:
        The trace.

    Raises:
        LoadError: the first model cannot be read.
        InputError: there are fewer than two models, or the data cannot be fed to the first.

    Example:
        >>> hops = onnxfix.trace(["net.pt2", "net.onnx", "net.tflite"], "digits.npz")        # doctest: +SKIP
        >>> hops.first_broken, hops.diagnosis.faults                                         # doctest: +SKIP
    """
    if len(models) < 2:
        raise InputError(f"a chain has at least two models, but {len(models)} is given: give the original first.")
    inputs = Inputs.of(data, limit=limit, batch_size=batch_size)
    names = _names(models)
    first = load(models[0])
    first.run(next(inputs.bind(first).feeds(first)))
    chain = _Chain(first, inputs, {"rtol": rtol, "atol": atol})
    hops: list[Hop] = []
    diagnosis: Diagnosis | None = None
    broken: int | None = None
    before, before_name = first, names[0]
    for index, (obj, name) in enumerate(zip(models[1:], names[1:], strict=True)):
        if progress is not None:
            progress(f"hop {index + 1}", 0.0)
        hop, after = chain.hop(before, before_name, obj, name)
        hops.append(hop)
        if hop.broken and broken is None:
            broken = index
            if after is not None:
                diagnosis = diagnose(before, after, chain.feeds(before), **chain.tolerances)
        if after is not None:
            before, before_name = after, name
        if progress is not None:
            progress(f"hop {index + 1}", 1.0)
    return Trace(names, tuple(hops), broken, diagnosis)


@dataclass(frozen=True)
class _Chain:
    first: Model
    data: Inputs
    tolerances: Tolerances

    def hop(self, before: Model, name: str, obj: Any, target: str) -> tuple[Hop, Model | None]:
        """Compare a model with the one before it and with the first; None for one that does not load or run."""
        try:
            after = load(obj)
            overall = self._compared(self.first, after)
            comparison = overall if before is self.first else self._compared(before, after)
        except OnnxFixError as error:
            return Hop(name, target, None, None, str(error)), None
        return Hop(name, target, comparison, overall), after

    def _compared(self, source: Model, target: Model) -> Comparison:
        return compare(source, target, self.feeds(source), **self.tolerances)

    def feeds(self, model: Model) -> Inputs:
        """The data under a model's own names and in its layout; the data that were given, for the first."""
        if model is self.first:
            return self.data
        feeds = [
            {name: array[: chunk.count] if array.ndim else array for name, array in chunk.target.items()}
            for chunk in self.data.chunks(self.first, model)
        ]
        return Inputs(feeds, batch_size=self.data.batch_size)


def _names(models: Sequence[Any]) -> tuple[str, ...]:
    """Paths; for objects their place and type."""
    return tuple(
        str(obj) if isinstance(obj, str | Path)
        else str(obj.path) if isinstance(obj, Model) and obj.path is not None
        else f"model {index} ({obj.framework if isinstance(obj, Model) else type(obj).__name__})"
        for index, obj in enumerate(models)
    )
