"""An assertion for test suites: two models agree, or the failure says which conversion faults make them differ."""

from __future__ import annotations

from typing import Any

from onnxfix.compare import compare
from onnxfix.errors import OnnxFixError
from onnxfix.inputs import Inputs
from onnxfix.model import load


def assert_equivalent(
    source: Any,
    target: Any,
    data: Any,
    *,
    rtol: float = 1e-3,
    atol: float = 0.0,
    comparator: str = "auto",
    limit: int | None = None,
) -> None:
    """Assert that two models agree on the data; for tests.

    Args:
        source: The original model; anything :func:`onnxfix.load` takes.
        target: The converted model; anything :func:`onnxfix.load` takes.
        data: Anything :class:`onnxfix.Inputs` takes.
        rtol: Relative tolerance; see :func:`onnxfix.compare`.
        atol: Absolute tolerance.
        comparator: See :func:`onnxfix.compare`.
        limit: Use only that many samples.

    Raises:
        AssertionError: they differ; the text says how, and which faults a diagnosis found.
        OnnxFixError: a model or the data cannot be used.

    Example:
        >>> def test_conversion():                                              # doctest: +SKIP
        ...     onnxfix.assert_equivalent("net.keras", "net.tflite", "digits.npz")
    """
    ours, theirs = load(source), load(target)
    inputs = Inputs.of(data, limit=limit).bind(ours, theirs)
    comparison = compare(ours, theirs, inputs, comparator, rtol=rtol, atol=atol)
    if comparison.equivalent:
        return
    raise AssertionError("\n".join([comparison.reason, *_explanation(ours, theirs, inputs, rtol, atol)]))


def _explanation(source: Any, target: Any, inputs: Inputs, rtol: float, atol: float) -> list[str]:
    """What a diagnosis says; when it fails the comparison still stands, so its failure is only mentioned."""
    from onnxfix.diagnose import diagnose

    try:
        diagnosis = diagnose(source, target, inputs, rtol=rtol, atol=atol)
    except OnnxFixError as error:
        return [f"No diagnosis: {error}"]
    return [f"- {fault.kind}: {fault.message}" for fault in diagnosis.faults] or ["No single fault was found."]
