"""Patches of a lowered TensorFlow graph written into the graph that it came from.

Constants and attributes of the operators that the lowered nodes belong to are set where that does what a patch says.
Else the changed pieces are built of TensorFlow's operators and put between the graph's own; an operator that is
computed in another way keeps its name, so that all that reads it stays as it is.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from onnxfix.errors import ExportError, OnnxFixError
from onnxfix.frameworks import Feeds
from onnxfix.frameworks.agreement import agrees
from onnxfix.frameworks.example_inputs import accepted_feeds
from onnxfix.frameworks.pieces import Edits, Piece, edits, first_apart, matched, observed, renamed_as
from onnxfix.frameworks.quiet import quiet
from onnxfix.frameworks.tf_attributes import set_directly
from onnxfix.frameworks.tf_function import FlatGraph
from onnxfix.frameworks.writing import refusal
from onnxfix.surgeon.apply import apply
from onnxfix.surgeon.patch import Patch, SetParameter

_MOST_FORCED = 12

if TYPE_CHECKING:
    from onnxfix.frameworks.tensorflow import TensorFlowModel
    from onnxfix.model import Model


def edited(model: Model, patches: Sequence[Patch], values: Mapping[str, np.ndarray], others: Sequence[Patch]) -> Any:
    """A ``TensorFlowModel`` with patches in it.

    Args:
        model: The model.
        patches: All patches.
        values: New values of its parameters.
        others: The patches that are more.

    Raises:
        ExportError: there is no place for a patch, or a value does not fit its parameter.
    """
    native: TensorFlowModel = model.native
    flat = _copied(native.graph_def if native.graph_def is not None else native.graph.graph_def)
    set_values(flat, native.graph, values)
    outputs = native.graph.outputs
    if not others:
        return _made(native, flat, outputs, values, {}, False)
    patched = replace(model, proto=apply(model.proto, patches))
    try:
        feeds = accepted_feeds(patched, None, (2,))[0]
        direct = _copied(flat)
        changed = set_directly(direct, model, others)
        if changed:
            made = _made(native, direct, outputs, values, changed, False)
            if agrees(patched, made, feeds):
                return made
        forced: set[str] = set()
        while len(forced) < _MOST_FORCED:
            splice = _Splice(model, patched, _copied(flat), patches, others, forced)
            made = _made(native, splice.flat, splice.outputs, values, {}, True)
            if agrees(patched, made, feeds):
                return made
            wrong = splice.first_wrong(made)
            if wrong is None or wrong in forced:
                break
            forced.add(wrong)
        raise ExportError("the edited graph does not compute what the patches mean")
    except OnnxFixError as error:
        raise refusal(model, others[0], str(error).rstrip(".")) from error


def set_values(graph_def: Any, graph: FlatGraph, values: Mapping[str, np.ndarray]) -> None:
    """Set constants of a graph, in place.

    Raises:
        ExportError: there is no such constant, or a value does not fit it.
    """
    import tensorflow as tf

    nodes = {node.name: node for node in graph_def.node if node.op == "Const"}
    places = {name: node for node, (name, _) in graph.parameters.items()}
    for name, value in values.items():
        node = nodes.get(places.get(name, name))
        if node is None:
            raise ExportError(f"The graph has no constant {name}: save the repaired model as .onnx instead.")
        shape = tuple(d.size for d in node.attr["value"].tensor.tensor_shape.dim)
        dtype = tf.as_dtype(node.attr["dtype"].type).as_numpy_dtype
        if shape != value.shape or dtype != value.dtype:
            raise ExportError(
                f"The constant {name} is {np.dtype(dtype)}{list(shape)} and cannot take {value.dtype}"
                f"{list(value.shape)}: save the repaired model as .onnx instead."
            )
        node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(value))


def _made(
    native: TensorFlowModel, flat: Any, outputs: tuple[tuple[str, str], ...], values: Mapping[str, np.ndarray],
    nodes: Mapping[str, Any], rebuilt: bool,
) -> Any:
    """The edited graph as something to call."""
    from onnxfix.frameworks import tf_sources

    with quiet():
        if native.graph_def is not None:
            made = tf_sources.from_graph_def(flat)
            return replace(made, values=values, nodes=nodes, rebuilt=rebuilt)
        function = tf_sources.wrapped(flat, list(native.graph.inputs), [tensor for tensor, _ in outputs])
    graph = FlatGraph(flat, native.graph.inputs, outputs, native.graph.parameters)
    return replace(native, function=function, graph=graph, values=values, nodes=nodes, rebuilt=rebuilt)


def _copied(graph_def: Any) -> Any:
    copy = type(graph_def)()
    copy.CopyFrom(graph_def)
    return copy


class _Splice:
    """The graph with the changed pieces in it.

    Attributes:
        flat: The graph.
        outputs: Its outputs, tensor and name.
    """

    def __init__(
        self, model: Model, patched: Model, flat: Any, patches: Sequence[Patch], others: Sequence[Patch],
        forced: Collection[str],
    ) -> None:
        self.flat = flat
        feeds = accepted_feeds(model, None, (2,))[0]
        own = [p for p in patches if isinstance(p, SetParameter) and p.name in model.parameters and not p.readers]
        old = apply(model.proto, own)
        before, names = renamed_as(old, others)
        native = _native(model, flat, old, feeds)
        given = {name: native[name] for name in feeds}
        self._native = given | {names.get(value, value): tensor for value, tensor in native.items()}
        self._feeds, self._expected = feeds, observed(patched.proto, feeds)
        change = edits(before, patched.proto, self._native, model.parameters, self._expected, forced)
        self._put_together(change)
        wanted = [info.name for info in patched.proto.graph.output]
        final = {n: self._native[n] if n in change.replaced else self._places.get(n) or self._native[n] for n in wanted}
        self.outputs = tuple((tensor, name) for name, tensor in final.items())
        _drop_dead(flat, [tensor for tensor, _ in self.outputs], model.native.graph.graph_def)
        self._model = patched

    def _put_together(self, change: Edits) -> None:
        self._places: dict[str, str] = {}
        for index, piece in enumerate(change.pieces):
            inputs = [self._places.get(value) or self._native[value] for value in piece.inputs]
            self._places[piece.value] = _put_in(self.flat, piece, f"repaired_{index}", inputs)
        for value, was, now in change.rewired:
            _rewire(self.flat, self._native[value], self._native[was], self._places.get(now) or self._native[now])
        for value, now in change.replaced.items():
            _take_over(self.flat, self._native[value], self._places[now], set(self._places.values()))

    def first_wrong(self, made: Any) -> str | None:
        """The first value of the patched lowered graph that the edited graph computes in another way."""
        theirs = replace(self._model, native=made).activations(self._feeds)
        actual = {name: theirs[tensor] for name, tensor in self._native.items() if tensor in theirs}
        return first_apart({n: v for n, v in self._expected.items() if n not in self._feeds}, actual)


def _native(model: Model, flat: Any, old: onnx.ModelProto, feeds: Feeds) -> dict[str, str]:
    """Lowered value -> the tensor of the graph that is the same."""
    made = _made(model.native, flat, model.native.graph.outputs, {}, {}, False)
    theirs = replace(model, native=made).activations(feeds)
    tensors = {name: value for name, value in theirs.items() if ":" in name}
    known = {name: tensor for tensor, name in (*made.graph.inputs.items(), *made.graph.outputs)}
    return matched(observed(old, feeds), tensors) | {n: t for n, t in known.items() if n in feeds or t in tensors}


def _put_in(flat: Any, piece: Piece, prefix: str, inputs: Sequence[str]) -> str:
    """Add a piece's operators to a graph; the tensor that it makes."""
    from onnxfix.frameworks.export_keras import to_function
    from onnxfix.model import Model

    proto = _plainly_named(piece.proto)
    function = to_function(Model(proto, native=proto), None)
    arguments = [tensor.op.name for tensor in function.inputs]
    by_name = {info.name: tensor for info, tensor in zip(proto.graph.input, inputs, strict=True)}
    given = {name: by_name[name] if name in by_name else inputs[k] for k, name in enumerate(arguments)}
    taken = {node.name for node in flat.node}
    while any(name.startswith(f"{prefix}/") for name in taken):
        prefix += "_"
    inner = function.graph.as_graph_def()
    for node in inner.node:
        if node.name in given:
            continue
        copy = flat.node.add()
        copy.CopyFrom(node)
        copy.name = f"{prefix}/{node.name}"
        copy.input[:] = [_inside(name, given, prefix) for name in node.input]
    flat.library.MergeFrom(inner.library)
    return _inside(function.outputs[0].name, given, prefix)


def _inside(name: str, given: Mapping[str, str], prefix: str) -> str:
    """A tensor or control input of a piece as it is called in the graph that the piece is in."""
    control, plain = ("^", name[1:]) if name.startswith("^") else ("", name)
    operator, _, port = plain.partition(":")
    if operator in given:
        return f"^{given[operator].split(':')[0]}" if control else given[operator]
    return f"{control}{prefix}/{operator}" + (f":{port}" if port else "")


def _plainly_named(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Inputs and the output under names that Keras takes."""
    from onnxfix.frameworks.lowering_tf2onnx import rename_values

    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    names = {info.name: f"piece_input_{k}" for k, info in enumerate(copy.graph.input)}
    rename_values(copy.graph, names | {copy.graph.output[0].name: "piece_output"})
    return copy


def _same(name: str, tensor: str) -> bool:
    return (name if ":" in name else f"{name}:0") == tensor


def _rewire(flat: Any, end: str, was: str, now: str) -> None:
    """Let the operators on the way to a tensor read another one."""
    nodes = {node.name: node for node in flat.node}
    queue, seen = [end.split(":")[0]], {end.split(":")[0]}
    while queue:
        node = nodes.get(queue.pop())
        if node is None:
            continue
        for index, name in enumerate(node.input):
            if _same(name, was):
                node.input[index] = now
                continue
            operator = name.lstrip("^").split(":")[0]
            if operator not in seen and not operator.startswith("repaired_"):
                seen.add(operator)
                queue.append(operator)


def _take_over(flat: Any, tensor: str, now: str, pieces: set[str]) -> None:
    """An operator's name goes to what is computed in its place; pieces may read what it computed before."""
    name = tensor.split(":")[0]
    node = next(node for node in flat.node if node.name == name)
    if node.op == "Placeholder":  # the input stays; all that read it read what is made of it
        inside = now.split("/")[0] + "/"
        for other in flat.node:
            if not other.name.startswith(inside):
                other.input[:] = [now if _same(v, tensor) else v for v in other.input]
        return
    if not tensor.endswith(":0"):
        raise ExportError(f"{tensor} is not the only result of its operator")
    aside = f"{name}/before"
    roots = {piece.split("/")[0] + "/" for piece in pieces}
    for other in flat.node:
        if any(other.name.startswith(root) for root in roots):
            other.input[:] = [f"{aside}:0" if _same(v, tensor) else v for v in other.input]
    kind = int(node.attr["T"].type or node.attr["dtype"].type)
    node.name = aside
    copy = flat.node.add()
    copy.name, copy.op = name, "Identity"
    copy.input.append(now)
    copy.attr["T"].type = kind or 1


def _drop_dead(flat: Any, outputs: Iterable[str], before: Any) -> None:
    """Take out what was read before and is not read any more."""
    read_before = set(_read(before.node))
    kept = {tensor.split(":")[0] for tensor in outputs}
    while True:
        read = set(_read(flat.node)) | kept
        dead = [n for n in flat.node if n.name not in read and n.op != "Placeholder"
                and (n.name in read_before or n.name.endswith("/before"))]
        if not dead:
            return
        gone = {n.name for n in dead}
        stay = [n for n in flat.node if n.name not in gone]
        copies = [type(n).FromString(n.SerializeToString()) for n in stay]
        del flat.node[:]
        flat.node.extend(copies)


def _read(nodes: Iterable[Any]) -> Iterator[str]:
    for node in nodes:
        yield from (name.lstrip("^").split(":")[0] for name in node.input)
