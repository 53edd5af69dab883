"""Faults of the runtime, not of the model: what onnxruntime's own graph optimisations change."""

from __future__ import annotations

from itertools import islice

from onnxfix.errors import RuntimeFailure
from onnxfix.frameworks import Framework
from onnxfix.inputs import Inputs
from onnxfix.model import Model
from onnxfix.runtime.probe import measure
from onnxfix.runtime.session import Session

# Optimisation reorders float arithmetic; what it changes beyond this is no reordering.
TOLERATED = 1e-3
CHUNKS = 2


def runtime_notes(target: Model, data: Inputs) -> tuple[str, ...]:
    """Say where onnxruntime at its default optimisation level answers otherwise than the graph it was given.

    Known case: a zero Pad folded into MaxPool, which pads with -inf (microsoft/onnxruntime#18136; onnxruntime 1.31.1).

    Args:
        target: The model as it will be deployed; only ONNX models are deployed in onnxruntime.
        data: Inputs; the first few feeds are used.
    """
    if target.framework != Framework.ONNX:
        return ()
    try:
        optimized = Session(target.proto, optimize=True)
        worst = 0.0
        for feed in islice(Inputs.of(data, batch_size=min(8, data.batch_size)).feeds(target, "target"), CHUNKS):
            error = measure(list(target.run(feed).values()), list(optimized.run(feed).values()))
            worst = max(worst, error.relative)
    except RuntimeFailure as failure:
        return (f"At onnxruntime's default optimisation level the target does not run: {failure}",)
    if worst <= TOLERATED:
        return ()
    return (
        f"This is the runtime's fault, not the model's: onnxruntime's default graph optimisations change the target's "
        f"answers by {worst:.2%} of their range; with them off the graph computes what it says. Run it with "
        "SessionOptions.graph_optimization_level = ORT_DISABLE_ALL.",
    )
