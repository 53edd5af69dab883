"""Which lowered value each tensor of a functional Keras model is."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from onnxfix.errors import ExportError
from onnxfix.frameworks.agreement import TOLERANCE, distance
from onnxfix.frameworks.example_inputs import accepted_feeds
from onnxfix.frameworks.keras_graph import Frame, functional, recording
from onnxfix.frameworks.lowering_tf2onnx import strip_counter
from onnxfix.runtime.session import Session

if TYPE_CHECKING:
    from onnxfix.model import Model


def lowered_names(model: Model, copy: Any) -> tuple[Frame, dict[int, str]]:
    """Run a copy of a model as lowering does, and find the lowered value of each of its symbolic tensors.

    tf2onnx keeps TensorFlow's names, but not always for the same thing (a convolution's may stand for its result before
    it is transposed back), so each is checked by its numbers.

    Args:
        model: The model.
        copy: A copy of ``model.native``.

    Returns:
        The copy's run, and id of a symbolic tensor -> lowered value, where there is one.

    Raises:
        ExportError: the model does not run by its graph.
    """
    from onnxfix.frameworks.keras import traced

    with recording(copy) as first:
        traced(copy)
    frame = first()
    feeds = accepted_feeds(model, batches=(2,))[0]
    with recording(copy) as first:
        _run(copy, [feeds[spec.name] for spec in model.inputs])
    numbers = first()
    if frame is None or numbers is None:
        raise ExportError("the model does not run by its graph")
    values = _values(model.proto, feeds)
    given = {
        frame.tensors[id(symbol)].name: spec.name for symbol, spec in zip(frame.graph.inputs, model.inputs, strict=True)
    }
    found: dict[int, str] = {}
    similar: dict[str, list[str]] = {}
    for value in values:
        for name in (*_like(value), value.partition("/")[0]):
            similar.setdefault(name, []).append(value)
    arrays = _tensors(numbers)
    for symbol, tensor in _tensors(frame).items():
        if tensor.name in given:
            found[symbol] = given[tensor.name]
        if symbol in found or symbol not in arrays:
            continue
        scope = tensor.name.partition("/")[0]
        names = [tensor.name, *similar.get(strip_counter(tensor.name), ()), *reversed(similar.get(scope, ()))]
        same = (name for name in names if name in values and _alike(values[name], np.asarray(arrays[symbol])))
        found.update((symbol, name) for name in itertools.islice(same, 1))
    return frame, found


def _like(value: str) -> Iterator[str]:
    """TensorFlow names that a value may go by; one Gemm is made of a matrix product and the bias after it."""
    name = strip_counter(value)
    yield name
    scope, gemm, _ = name.rpartition("/MatMul_Gemm")
    if gemm:
        yield f"{scope}/BiasAdd"


def _tensors(frame: Frame) -> dict[int, Any]:
    return {symbol: tensor for part in frame.frames() for symbol, tensor in part.tensors.items()}


def _run(copy: Any, arrays: list[np.ndarray]) -> None:
    import keras

    tensors = [keras.ops.convert_to_tensor(array) for array in arrays]
    copy(keras.tree.pack_sequence_as(functional(copy)._inputs_struct, tensors), training=False)


def _values(proto: onnx.ModelProto, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Every value of a graph by name, in graph order."""
    model = onnx.ModelProto()
    model.CopyFrom(proto)
    del model.graph.output[:]
    made = [output for node in proto.graph.node for output in node.output if output]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in made)
    return {**feeds, **Session(model).run(feeds)}


def _alike(value: np.ndarray, tensor: np.ndarray) -> bool:
    return value.shape == tensor.shape and distance(value, tensor) <= TOLERANCE
