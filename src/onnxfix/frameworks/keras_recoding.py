"""Weights that a lowering stores in another order (recurrent layers), taken back to the layer's own.

Where each number of a lowered constant comes from is found by lowering the layer once more with weights that count
their own places.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from onnxfix.errors import OnnxFixError
from onnxfix.frameworks.graph_matching import GraphIndex, found_at

# Beyond this, float32 does not count.
_MOST = 2**24


def recoded(
    node: Any, old: GraphIndex, ends: Sequence[str], stops: set[str], wanted: Mapping[str, np.ndarray]
) -> list[np.ndarray] | None:
    """The weights of a layer for which its piece of the lowered graph holds other constants; None where there are none.

    Args:
        node: The layer's call.
        old: The lowered graph.
        ends: The lowered values that the call makes.
        stops: Those that it takes.
        wanted: Initializer of the piece -> what it is to hold.
    """
    layer = node.operation
    sizes = [int(np.prod(weight.shape)) for weight in layer.weights]
    if sum(sizes) >= _MOST or any(str(weight.dtype) != "float32" for weight in layer.weights):
        return None
    starts = np.cumsum([1, *sizes])
    codes = [
        np.arange(start, start + size, dtype=np.float32).reshape(weight.shape)
        for weight, start, size in zip(layer.weights, starts, sizes, strict=False)
    ]
    coded = _lowered(node, codes)
    if coded is None or len(coded.proto.graph.output) != len(ends):
        return None
    pairs = zip(ends, (_source(coded, info.name) for info in coded.proto.graph.output), strict=True)
    match = found_at(old, coded, pairs, stops, wanted.keys())
    if match is None:
        return None
    flat = np.concatenate([np.asarray(weight).reshape(-1) for weight in layer.weights])
    for name, places in match.parameters.items():
        before, after = old.constant(name), wanted[name]
        if before is None or not _placed(flat, places, before, after):
            return None
    return [part.reshape(weight.shape) for part, weight in
            zip(np.split(flat, np.cumsum(sizes)[:-1]), layer.weights, strict=True)]


def _placed(flat: np.ndarray, places: np.ndarray, before: np.ndarray, after: np.ndarray) -> bool:
    """Put the numbers of a constant where its places say; False where it holds more than the layer's weights."""
    index = np.rint(np.abs(places)).astype(np.int64)
    own = index > 0
    if np.any(index != np.abs(places)) or np.any(index > flat.size) or not np.array_equal(before[~own], after[~own]):
        return False
    numbers = after[own] * np.sign(places[own])
    flat[index[own] - 1] = numbers
    return bool(np.array_equal(flat[index[own] - 1], numbers))


def _lowered(node: Any, weights: Sequence[np.ndarray]) -> GraphIndex | None:
    """The layer alone, lowered with other weights."""
    import keras

    from onnxfix.model import load

    inputs = [keras.Input(batch_shape=symbol.shape, dtype=symbol.dtype) for symbol in node.input_tensors]
    twin = type(node.operation).from_config(node.operation.get_config())
    args, kwargs = node.arguments.fill_in({id(s): i for s, i in zip(node.input_tensors, inputs, strict=True)})
    outputs = twin(*args, **kwargs)
    twin.set_weights(list(weights))
    try:
        return GraphIndex(load(keras.Model(inputs, outputs)).proto)
    except OnnxFixError:
        return None


def _source(graph: GraphIndex, value: str) -> str:
    while (maker := graph.makers.get(value)) is not None and maker.op_type == "Identity":
        value = maker.input[0]
    return value
