"""How a weight differs from what it should be, in words and as a kind."""

from __future__ import annotations

from itertools import permutations

import ml_dtypes
import numpy as np

from onnxfix.diagnose.fault import FaultKind

# Dense kernels with more rows than this are not searched for a layout permutation factor by factor.
LARGEST_FACTOR = 4096


def has_name(phrase: str) -> bool:
    """Whether a phrase of :func:`explain` says what was done to a weight, rather than only by how much it differs."""
    return not phrase.startswith(("differs in", "is scaled by"))


def has_form(phrase: str) -> bool:
    """Whether a phrase of :func:`explain` tells one thing that happened to all of a weight."""
    return not phrase.startswith("differs in")


def explain(expected: np.ndarray | None, actual: np.ndarray | None) -> tuple[FaultKind, str]:
    """Say how ``actual`` came from ``expected``.

    Returns:
        The kind (``weights``, or ``tensor_layout`` where the content is right but in another order), and a phrase that
        continues a sentence on the weight.
    """
    if actual is None or not np.any(actual):
        return FaultKind.WEIGHTS, "was dropped (all zero)"
    if expected is None or not np.any(expected):
        return FaultKind.WEIGHTS, "should be absent (all zero)"
    if expected.shape != actual.shape:
        return FaultKind.WEIGHTS, f"has shape {list(actual.shape)} instead of {list(expected.shape)}"
    if expected.dtype.kind != "f":
        return FaultKind.WEIGHTS, f"differs in {_count(expected, actual)}"
    return _reordered(expected, actual) or (FaultKind.WEIGHTS, _changed(expected, actual))


def _count(expected: np.ndarray, actual: np.ndarray) -> str:
    return f"{int(np.count_nonzero(expected != actual))} of {expected.size} values"


def _changed(expected: np.ndarray, actual: np.ndarray) -> str:
    peak = float(np.abs(expected).max())
    tolerance = 1e-6 * peak
    for name, dtype in (("float16", np.float16), ("bfloat16", ml_dtypes.bfloat16)):
        with np.errstate(over="ignore"):
            rounded = expected.astype(dtype).astype(expected.dtype)
        if np.allclose(rounded, actual, rtol=1e-6, atol=1e-3 * tolerance):
            return f"was rounded to {name}"
    if np.allclose(-expected, actual, rtol=1e-5, atol=tolerance):
        return "has the opposite sign"
    factor = factor_between(expected, actual)
    if factor is not None:
        return f"is scaled by {factor:.6g}"
    lost = int(np.count_nonzero(np.isfinite(expected) & ~np.isfinite(actual)))
    if lost:
        return f"is not finite in {lost} of {expected.size} values"
    wrong = int(np.count_nonzero(~np.isclose(expected, actual, rtol=1e-5, atol=tolerance)))
    largest = float(np.abs(expected - actual).max())
    return f"differs in {wrong} of {expected.size} values by up to {largest:.3g}"


def factor_between(expected: np.ndarray, actual: np.ndarray) -> float | None:
    """The number by which all of an array is multiplied to be another one of its shape; None where there is none."""
    if expected.shape != actual.shape or expected.dtype.kind != "f" or not np.any(expected):
        return None
    with np.errstate(all="ignore"):
        ratio = float(np.vdot(expected, actual) / np.vdot(expected, expected))
        close = np.allclose(expected * ratio, actual, rtol=1e-4, atol=1e-5 * float(np.abs(expected).max()))
    return ratio if close else None


def _reordered(expected: np.ndarray, actual: np.ndarray) -> tuple[FaultKind, str] | None:
    with np.errstate(over="ignore"):
        norms = np.linalg.norm(expected), np.linalg.norm(actual)
    if not np.isfinite(norms[0]) or not np.isclose(*norms, rtol=1e-5):
        return None
    for axes in permutations(range(expected.ndim)):
        if axes == tuple(range(expected.ndim)) or tuple(expected.shape[k] for k in axes) != actual.shape:
            continue
        if np.allclose(np.transpose(expected, axes), actual, rtol=1e-6, atol=0):
            spatial = axes[:2] == (0, 1) and expected.ndim > 2
            kind = FaultKind.WEIGHTS if spatial else FaultKind.TENSOR_LAYOUT
            return kind, f"is {'spatially ' if spatial else ''}transposed (axes {list(axes)})"
    for k in range(expected.ndim):
        if np.allclose(np.flip(expected, k), actual, rtol=1e-6, atol=0):
            return FaultKind.WEIGHTS, f"is flipped along axis {k}"
    for k in range(min(expected.ndim, 2)):
        order = _permuted(np.moveaxis(expected, k, 0), np.moveaxis(actual, k, 0))
        if order is not None:
            flattened = expected.ndim == 2 and _is_layout(order)
            kind = FaultKind.TENSOR_LAYOUT if flattened else FaultKind.WEIGHTS
            how = "as if flattened in another order" if flattened else "permuted"
            return kind, f"has its axis {k} {how}"
    return None


def _permuted(expected: np.ndarray, actual: np.ndarray) -> np.ndarray | None:
    """The order in which the slices of ``expected`` stand in ``actual``, or None."""
    ours, theirs = expected.reshape(len(expected), -1), actual.reshape(len(actual), -1)
    generator = np.random.default_rng(0)
    probe = generator.normal(size=ours.shape[1])
    a, b = ours.astype(np.float64) @ probe, theirs.astype(np.float64) @ probe
    order = np.empty(len(a), dtype=np.int64)
    order[np.argsort(b, kind="stable")] = np.argsort(a, kind="stable")
    if np.array_equal(order, np.arange(len(order))):
        return None
    return order if np.allclose(ours[order], theirs, rtol=1e-6, atol=0) else None


def _is_layout(order: np.ndarray) -> bool:
    """Whether an order is what transposing a factorisation [a, b] or [a, b, c] of the axis gives."""
    count = len(order)
    if count > LARGEST_FACTOR:
        return False
    index = np.arange(count)
    for a in _divisors(count):
        if np.array_equal(index.reshape(a, -1).T.reshape(-1), order):
            return True
        for b in _divisors(count // a):
            cube = index.reshape(a, b, -1)
            if any(np.array_equal(cube.transpose(p).reshape(-1), order) for p in permutations(range(3))):
                return True
    return False


def _divisors(count: int) -> list[int]:
    return [d for d in range(2, count) if count % d == 0]
