"""Whether a target is a conversion of its source at all: a network of its own cannot be repaired, only replaced."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import numpy as np
import onnx

from onnxfix import mapped
from onnxfix.model import Model

# Arrays of fewer elements are settings and shapes, or say nothing about whose they are.
_SMALLEST = 8
# A conversion has at least this share of its weights in arrays of sizes that the source has, or in the same numbers.
_SHARE = 0.5


def another_network(source: Model, target: Model) -> str:
    """Why the target is no conversion of the source; "" where it may be one.

    Replacing what differs would replace all of it: most weights have sizes that the source has not, and their numbers
    are not the source's either. Wrong numbers in arrays of the right size are faults of a conversion.

    Args:
        source: The source.
        target: The target.
    """
    ours, theirs = list(_weights(source.canonical)), list(_weights(target.canonical))
    total = sum(array.size for array in theirs)
    if not ours or not total:
        return ""
    common = Counter(array.size for array in ours) & Counter(array.size for array in theirs)
    if sum(size * count for size, count in common.items()) >= _SHARE * total:
        return ""
    own = [np.unique(array) for array in _weights(source.proto)]
    stored = [array for array in _weights(target.proto)]
    known = np.unique(np.concatenate(own)) if own else np.empty(0)
    same = sum(int(np.isin(array, known).sum()) for array in stored)
    if stored and same >= _SHARE * sum(array.size for array in stored):
        return ""
    return "the target is another network than the source: its weights have other sizes, so there is nothing to repair"


def _weights(model: onnx.ModelProto) -> Iterable[np.ndarray]:
    for tensor in model.graph.initializer:
        array = mapped.to_array(tensor)
        if array.dtype.kind == "f" and array.size >= _SMALLEST:
            yield array
