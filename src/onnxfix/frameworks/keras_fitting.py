"""Which configuration of a Keras layer computes what some nodes do, found by trying."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from onnxfix.errors import OnnxFixError
from onnxfix.frameworks.agreement import distance
from onnxfix.frameworks.graph_matching import GraphIndex
from onnxfix.frameworks.keras_proposals import Facts, proposals
from onnxfix.frameworks.quiet import quiet
from onnxfix.runtime.session import Session

# Relative to the largest value: two runtimes' float32 sums of a few thousand terms in different orders.
_NOISE = 1e-5
# Of the normal numbers that layers are tried on: the second reaches bounds such as relu's at six.
_SCALES = (1.0, 8.0)
_BATCH, _OPEN = 2, 16  # stand for open sizes


@dataclass(frozen=True)
class Piece:
    """Some nodes of a graph that a layer is to stand for.

    Attributes:
        proto: They as a model of their own: inputs of fixed size, outputs are all float values inside.
        inputs: What they begin with.
        value: What they end with.
        values: All values that they make, the last first.
    """

    proto: onnx.ModelProto
    inputs: tuple[str, ...]
    value: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class Fitted:
    """A layer that computes a value of a piece.

    Attributes:
        layer: The layer, not built yet.
        before: A layer that pads what it takes, not built yet; None where nothing is padded.
        inputs: The piece's inputs in the order of the layer's symbolic arguments.
        value: What it computes: the piece's last value, or one before it.
    """

    layer: Any
    before: Any
    inputs: tuple[str, ...]
    value: str


def piece_of(
    graph: GraphIndex, value: str, nodes: Sequence[onnx.NodeProto], inputs: Mapping[str, tuple[Sequence[Any], str]]
) -> Piece:
    """Cut nodes out of a graph.

    Args:
        graph: The graph.
        value: What they end with.
        nodes: In order.
        inputs: What they begin with -> (shape with None for open sizes, dtype).
    """
    made = [output for node in nodes for output in node.output if output]
    infos = [
        onnx.helper.make_tensor_value_info(
            name, onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype)),
            [_open(axis) if n is None else n for axis, n in enumerate(shape)],
        )
        for name, (shape, dtype) in inputs.items()
    ]
    model = cut(graph, nodes, infos, made)
    return Piece(model, tuple(inputs), value, (value, *(name for name in reversed(made) if name != value)))


def _open(axis: int) -> int:
    return _OPEN if axis else _BATCH


def cut(
    graph: GraphIndex, nodes: Sequence[onnx.NodeProto], inputs: Sequence[onnx.ValueInfoProto], outputs: Sequence[str]
) -> onnx.ModelProto:
    """Nodes of a graph as a model of their own."""
    from onnxfix.align.graph import captured

    read = {name for node in nodes for name in (*node.input, *captured(node))} - {info.name for info in inputs}
    tensors = [t for t in graph.proto.graph.initializer if t.name in read]
    model = onnx.ModelProto()
    model.ir_version = graph.proto.ir_version
    model.opset_import.extend(graph.proto.opset_import)
    model.functions.extend(graph.proto.functions)
    model.graph.name = "piece"
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(tensors)
    model.graph.input.extend(inputs)
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs)
    return model


def fitted(node: Any, weights: Sequence[np.ndarray], piece: Piece, *, whole: bool) -> Fitted | None:
    """A layer with another configuration that computes what a piece does; None where none is found.

    Args:
        node: The layer's call in its model.
        weights: Those that it shall have.
        piece: What it shall stand for.
        whole: Only the piece's last value will do; else also one before it, from which the rest is to be built.
    """
    try:
        trials = [_Trial(piece, scale) for scale in _SCALES]
    except OnnxFixError:
        return None
    symbols, layer = node.input_tensors, node.operation
    for change, before in _candidates(layer, piece, trials[0]):
        try:
            with quiet():
                own = type(layer).from_config({**layer.get_config(), **change})
                front = None if before is None else before()
        except Exception:  # constructors check their arguments each in its own way
            continue
        for order in _orders(piece.inputs, len(symbols)):
            value = _computed(own, front, weights, node, order, trials, whole)
            if value is not None:
                return Fitted(_unbuilt(own), None if front is None else _unbuilt(front), order, value)
    return None


def _unbuilt(layer: Any) -> Any:
    """The same layer before it saw any tensor: files say what a layer was built for."""
    return type(layer).from_config(layer.get_config())


class _Trial:
    """Inputs of a piece, and all values that it then has."""

    def __init__(self, piece: Piece, scale: float) -> None:
        generator = np.random.default_rng(0)
        self.piece = piece
        self.feeds = {
            info.name: _drawn(info, generator, scale) for info in piece.proto.graph.input
        }
        self.values = Session(piece.proto).run(self.feeds)


def _drawn(info: onnx.ValueInfoProto, generator: np.random.Generator, scale: float) -> np.ndarray:
    tensor = info.type.tensor_type
    shape = [dim.dim_value for dim in tensor.shape.dim]
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
    if dtype.kind == "f":
        return (generator.standard_normal(shape) * scale).astype(dtype)
    return generator.integers(0, 2, shape).astype(dtype)


def _candidates(layer: Any, piece: Piece, trial: _Trial) -> Iterator[tuple[dict[str, Any], Any]]:
    """Changes of the layer's configuration, with what makes a layer to put before it."""
    nodes = piece.proto.graph.node
    constants = [onnx.numpy_helper.to_array(t) for t in piece.proto.graph.initializer]
    constants += [onnx.numpy_helper.to_array(a.t) for n in nodes for a in n.attribute if a.HasField("t")]
    first, last = trial.feeds[piece.inputs[0]], trial.values[piece.value]
    facts = Facts.of(nodes, constants, max(first.ndim, 1))
    config = layer.get_config()
    space = slice(2, None) if config.get("data_format") == "channels_first" else slice(1, -1)
    sizes = list(zip(first.shape[space], last.shape[space], strict=True)) if first.ndim == last.ndim else []
    yield {}, None
    for change in proposals(config, facts, sizes):
        yield change, None
    for pads in _explicit_pads(nodes, constants, first.ndim):
        def front(pads: Any = pads) -> Any:
            return _zero_padding(layer, pads)

        yield {"padding": "valid"}, front
        for change in proposals(config, facts, sizes):
            if "padding" not in change and {*change} <= {"strides", "dilation_rate"}:
                yield {**change, "padding": "valid"}, front
    if config.get("activation") not in (None, "linear"):
        for change in proposals(config, facts, sizes):
            if {*change} <= {"strides", "dilation_rate", "padding"}:
                yield {**change, "activation": "linear"}, None


def _explicit_pads(
    nodes: Sequence[onnx.NodeProto], constants: Sequence[np.ndarray], rank: int
) -> list[list[tuple[int, int]]]:
    found = []
    for node in nodes:
        pads = next((list(a.ints) for a in node.attribute if a.name == "pads"), [])
        if any(pads) and len(pads) == 2 * (rank - 2):
            found.append(list(zip(pads[: rank - 2], pads[rank - 2 :], strict=True)))
    for array in constants:
        if array.dtype.kind == "i" and array.size == 2 * rank and array.any():
            pairs = list(zip(array[:rank].tolist(), array[rank:].tolist(), strict=True))
            found.append([pair for pair in pairs[1:] if pair != (0, 0)] or pairs[1:-1])
    return [pairs for pairs in found if len(pairs) == rank - 2 and min(min(p) for p in pairs) >= 0]


def _zero_padding(layer: Any, pads: Sequence[tuple[int, int]]) -> Any:
    from keras import layers

    kind = (layers.ZeroPadding1D, layers.ZeroPadding2D, layers.ZeroPadding3D)[len(pads) - 1]
    options = {} if len(pads) == 1 else {"data_format": layer.get_config().get("data_format")}
    return kind(tuple(pads[0]) if len(pads) == 1 else [tuple(p) for p in pads], name=f"{layer.name}_pad", **options)


def _orders(inputs: tuple[str, ...], count: int) -> Iterator[tuple[str, ...]]:
    """Ways to give a piece's inputs to a layer that takes so many."""
    if len(inputs) == 1:
        yield inputs * count
    elif len(inputs) == count <= 3:
        yield from itertools.permutations(inputs)


def _computed(
    layer: Any, front: Any, weights: Sequence[np.ndarray], node: Any, order: Sequence[str], trials: Sequence[_Trial],
    whole: bool,
) -> str | None:
    """The value of the piece that the layer computes in every trial, the last one that it does."""
    left = [*trials[0].piece.values[: 1 if whole else None]]
    for trial in trials:
        try:
            with quiet():
                answer = _called(layer, front, weights, node, [trial.feeds[name] for name in order])
        except Exception:  # a layer may refuse a shape in any way
            return None
        left = [name for name in left if _alike(trial.values[name], answer)]
        if not left:
            return None
    return left[0]


def _called(layer: Any, front: Any, weights: Sequence[np.ndarray], node: Any, arrays: Sequence[np.ndarray]) -> Any:
    import keras

    given = [front(array) if front is not None else keras.ops.convert_to_tensor(array) for array in arrays]
    if not layer.built and weights:
        args, kwargs = node.arguments.fill_in({id(k): v for k, v in zip(node.input_tensors, given, strict=True)})
        layer(*args, **kwargs)
        layer.set_weights(list(weights))
    args, kwargs = node.arguments.fill_in({id(k): v for k, v in zip(node.input_tensors, given, strict=True)})
    answer = keras.tree.flatten(layer(*args, **kwargs))
    return np.asarray(answer[0]) if len(answer) == 1 else None


def _alike(value: np.ndarray, answer: np.ndarray | None) -> bool:
    if answer is None or value.shape != answer.shape or value.dtype != answer.dtype:
        return False
    return distance(value, answer) <= _NOISE
