"""Run two models over the same data and compare their outputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from onnxfix.compare.accumulator import Accumulator
from onnxfix.compare.noise import noise_floor
from onnxfix.compare.result import Comparison
from onnxfix.compare.telling import refuse_blank
from onnxfix.inputs import Inputs
from onnxfix.model import load

_WITHIN_REACH = 0.1
"""A relative difference beyond this is never taken for noise, so the noise floor is not measured for it."""


def compare(
    source: Any,
    target: Any,
    data: Any,
    comparator: str = "auto",
    *,
    rtol: float = 1e-3,
    atol: float = 0.0,
    limit: int | None = None,
    batch_size: int | None = None,
    noise: float | None = None,
    progress: Callable[[str, float], None] | None = None,
) -> Comparison:
    """Say whether two models agree on the data.

    Both run as lowered ONNX in onnxruntime with graph optimisation off. They are equivalent when they have the same
    number, order, shape and dtype kind of outputs; when on every output of every sample the largest difference is at
    most ``rtol`` times the source's largest magnitude; and when no label differs.

    Args:
        source: The original model; anything :func:`onnxfix.load` takes.
        target: The converted model; anything :func:`onnxfix.load` takes.
        data: Anything :class:`onnxfix.Inputs` takes.
        comparator: ``auto`` (class scores are recognised), ``classification`` or ``regression``.
        rtol: Relative tolerance. Where two outputs differ by more, and ten times the source's own noise floor is
            larger, that is used instead and the result says so.
        atol: Absolute tolerance, added.
        limit: Compare only that many samples.
        batch_size: Samples per run, where the models leave it free (default 32, or what ``data`` says).
        noise: The source's relative noise floor, where the caller has measured it.
        progress: Called with a stage and the fraction done, 0..1.

    Returns:
        The comparison.

    Raises:
        LoadError: a model cannot be read.
        InputError: the data cannot be fed to the models, or can show nothing: both answer the same to all of them.
        AlignmentError: the models do not take the same inputs.
        RuntimeFailure: a model cannot be run.

    Example:
        >>> onnxfix.compare("net.h5", "net.tflite", "digits.npz").equivalent        # doctest: +SKIP
        True
    """
    ours, theirs = load(source), load(target)
    inputs = Inputs.of(data, limit=limit, batch_size=batch_size).bind(ours, theirs)
    refuse_blank(ours, theirs, inputs)
    accumulator = Accumulator.for_models(ours, theirs, comparator, rtol=rtol, atol=atol)
    total = inputs.count
    first: dict[str, np.ndarray] = {}
    for chunk in inputs.chunks(ours, theirs):
        first = first or chunk.source
        accumulator.add([*ours.run(chunk.source).values()], [*theirs.run(chunk.target).values()], chunk.count)
        if progress is not None:
            progress("comparing", min(1.0, accumulator.count / total))
    result = accumulator.result(noise)
    if noise is None and not result.equivalent and 0 < result.max_rel < _WITHIN_REACH:
        measured = noise_floor(ours, first)
        if 10 * measured > rtol:
            return accumulator.result(measured)
    return result
