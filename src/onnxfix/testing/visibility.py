"""Whether a planted fault can be seen: random inputs through both models, graph optimisation off."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import onnx

from onnxfix.errors import InputError, OnnxFixError
from onnxfix.model import Model, TensorSpec
from onnxfix.runtime.session import Session

_BATCHES = 3
_SYMBOLIC_SIZES = (16, 8, 32, 224)

Feeds = Mapping[str, np.ndarray]
Outputs = dict[str, np.ndarray]


def random_batches(proto: onnx.ModelProto, rng: np.random.Generator) -> list[dict[str, np.ndarray]]:
    """A few random feeds that the model accepts: normal floats, small integers; symbolic batches are one.

    Raises:
        InputError: no size tried for the model's symbolic dimensions runs.
    """
    session, inputs = Session(proto), Model(proto).inputs
    problem: OnnxFixError | None = None
    for size in _SYMBOLIC_SIZES:
        batches = [{spec.name: _random(spec, size, rng) for spec in inputs} for _ in range(_BATCHES)]
        try:
            session.run(batches[0])
        except OnnxFixError as error:
            problem = error
            continue
        return batches
    raise InputError(f"no random input found that the model accepts ({problem}): give data that it runs on.")


def doubled(proto: onnx.ModelProto, batches: list[dict[str, np.ndarray]]) -> list[dict[str, np.ndarray]]:
    """The feeds with every sample twice, where the model takes them: one alone does not show a frozen batch."""
    twice = [{name: np.concatenate([a, a]) if a.ndim else a for name, a in batch.items()} for batch in batches]
    try:
        Session(proto).run(twice[0])
    except OnnxFixError:
        return batches
    return twice


def _random(spec: TensorSpec, size: int, rng: np.random.Generator) -> np.ndarray:
    dims = spec.shape or ()
    shape = tuple(dim if isinstance(dim, int) and dim > 0 else (size if axis else 1) for axis, dim in enumerate(dims))
    if spec.dtype.kind == "b":
        return rng.integers(0, 2, shape).astype(bool)
    if spec.dtype.kind in "iu":
        return rng.integers(0, 4, shape).astype(spec.dtype)
    return rng.standard_normal(shape).astype(spec.dtype)


def run_all(proto: onnx.ModelProto, batches: list[dict[str, np.ndarray]]) -> list[Outputs]:
    """The outputs of each batch."""
    session = Session(proto)
    return [session.run(batch) for batch in batches]


def difference(expected: list[Outputs], actual: list[Outputs]) -> float:
    """The largest difference of any output, relative to the largest value of that output.

    Infinite where shapes or dtypes differ, or where the second has values that are not finite and the first has not.
    """
    return max(_differences(expected, actual), default=0.0)


def same_form(expected: list[Outputs], actual: list[Outputs]) -> bool:
    """Whether all outputs have the same shape and dtype."""
    pairs = [(a, b) for one, other in zip(expected, actual, strict=True) for a, b in zip(
        one.values(), other.values(), strict=True)]
    return all(a.shape == b.shape and a.dtype == b.dtype for a, b in pairs)


def _differences(expected: list[Outputs], actual: list[Outputs]) -> Iterator[float]:
    for one, other in zip(expected, actual, strict=True):
        for (_, left), (_, right) in zip(one.items(), other.items(), strict=True):
            if left.shape != right.shape or left.dtype != right.dtype:
                yield float("inf")
            elif left.dtype.kind == "f":
                changed = left != right
                changed &= ~(np.isnan(left) & np.isnan(right))
                gap = np.abs(left.astype(np.float64) - right)[changed]
                scale = float(np.max(np.abs(left), initial=0.0, where=np.isfinite(left))) or 1.0
                yield float(gap.max()) / scale if gap.size and np.isfinite(gap).all() else (np.inf if gap.size else 0.0)
            else:
                yield float(np.any(left != right))
