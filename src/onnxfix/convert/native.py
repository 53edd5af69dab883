"""Two models compared in their own runtimes."""

from __future__ import annotations

import numpy as np

from onnxfix.compare import Accumulator, Comparison
from onnxfix.compare.noise import noise_floor
from onnxfix.inputs import Inputs
from onnxfix.model import Model

# A relative difference beyond this is never taken for noise.
_WITHIN_REACH = 0.1


def compared_natively(
    source: Model, target: Model, data: Inputs, *, rtol: float = 1e-3, atol: float = 0.0
) -> Comparison:
    """Compare what the two frameworks' own runtimes answer.

    Args:
        source: The original.
        target: What was made of it.
        data: The inputs.
        rtol: Relative tolerance; ten times the source's noise floor where that is larger and it matters.
        atol: Absolute tolerance.

    Raises:
        RuntimeFailure: a runtime fails on the data.
        InputError: the data cannot be fed to the models.
        AlignmentError: the models do not take the same inputs.
    """
    accumulator = Accumulator.for_models(source, target, rtol=rtol, atol=atol)
    first: dict[str, np.ndarray] = {}
    for chunk in data.chunks(source, target):
        first = first or chunk.source
        expected, actual = source.run_native(chunk.source), target.run_native(chunk.target)
        accumulator.add([*expected.values()], [*actual.values()], chunk.count)
    result = accumulator.result()
    if not result.equivalent and 0 < result.max_rel < _WITHIN_REACH:
        measured = noise_floor(source, first)
        if 10 * measured > rtol:
            return accumulator.result(measured)
    return result
