"""How much of a local error is float noise, measured on the region itself.

The source's region is evaluated again with every float operand (its inputs and its constants) moved by a random unit
in the last place: Monte Carlo arithmetic (Parker, "Monte Carlo arithmetic", UCLA CSD-970002, 1997). What comes out is
what another order of evaluation may change, for this region, on these data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import numpy_helper

from onnxfix import mapped
from onnxfix.diagnose.differences import SETTINGS
from onnxfix.runtime.probe import LocalError, measure
from onnxfix.runtime.session import Session

TRIALS = 2

# Summation errs by a few times what one perturbation of each operand shows; below the floor nothing can be told.
MARGIN = 10.0
FLOOR = 1e-6


def noise_floor(region: onnx.ModelProto, feeds: Mapping[str, np.ndarray], outputs: Sequence[np.ndarray]) -> LocalError:
    """Measure the noise of a region.

    Args:
        region: The source's piece as a model of its own.
        feeds: Recorded values that enter it.
        outputs: Its outputs on them.
    """
    generator = np.random.default_rng(0)
    error = LocalError()
    settings = {
        value
        for node in region.graph.node
        for slot, value in enumerate(node.input)
        if slot in SETTINGS.get(node.op_type, ())
    }
    for _ in range(TRIALS):
        moved = onnx.ModelProto()
        moved.CopyFrom(region)
        for tensor in moved.graph.initializer:
            content = mapped.to_array(tensor)
            if content.dtype.kind == "f" and tensor.name not in settings:
                tensor.CopyFrom(numpy_helper.from_array(_moved(content, generator), tensor.name))
        values = Session(moved).run({name: _moved(value, generator) for name, value in feeds.items()})
        trial = measure(outputs, list(values.values()))
        # An output of another shape is no noise: an operand that says how the op works was moved across a step.
        error = error if trial.broken else error.joined(trial)
    return error


def _moved(value: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    if value.dtype.kind != "f":
        return value
    unit = float(np.finfo(value.dtype).eps)
    factors = 1 + generator.uniform(-unit, unit, value.shape)
    return np.asarray(value * factors, dtype=value.dtype)


def is_guilty(error: LocalError, noise: LocalError, excused: float = 0.0) -> bool:
    """Whether a local error is more than noise can explain, or the storage type excuses.

    The largest difference is judged against the largest noise. Where the region is discontinuous (a floor, an argmax)
    a few elements of noise are as large as any fault; then the root mean squares tell.
    """
    if error.broken:
        return True
    floor = max(FLOOR, excused)
    return error.relative > max(floor, MARGIN * noise.relative) or error.relative_rms > max(
        floor, MARGIN * noise.relative_rms
    )
