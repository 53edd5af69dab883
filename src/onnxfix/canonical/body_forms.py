"""The insides of If, Loop and Scan in normal form: each body is brought into it as a graph of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count

import onnx_ir as ir

from onnxfix.canonical.inference import infer_graph, is_open
from onnxfix.canonical.ingest import detached
from onnxfix.canonical.invariants import move_constant
from onnxfix.canonical.ordering import CAPTURED, structural_keys
from onnxfix.canonical.rewriting import ORIGIN, SPILL, is_constant, is_op, origin_of
from onnxfix.errors import CanonicalizationError

# Brings a model into normal form in place; whether that changed anything.
Settle = Callable[[ir.Model], bool]
# Numbers the values of bodies, whose names must be apart from those around them.
_SERIAL = count()


def canonicalize_bodies(model: ir.Model, settle: Settle) -> bool:
    """Bring the bodies of the main graph's nodes into normal form; those inside them are left to ``settle``.

    A body is worked on as a copy in which the constants around it are constants and all else that it reads from there
    is an input. A copy that does not settle is dropped, and the body stays as it is.

    Returns:
        Whether a body changed.
    """
    changed, keys = False, dict[ir.Value, str]()
    for node in tuple(model.graph):
        for name, attr in tuple(node.attributes.items()):
            if attr.type == ir.AttributeType.GRAPH:
                keys = keys or structural_keys(model.graph)
                form = _form(model, node, attr.as_graph(), keys, settle)
                if form is not None:
                    _empty(attr.as_graph())
                    node.attributes[name] = ir.AttrGraph(name, form)
                    changed = True
    if changed:
        _reopen(model.graph)
    return changed


@dataclass(frozen=True)
class _Copy:
    """A body on its own.

    Attributes:
        graph: The copy.
        shapes: The shapes of its own inputs as the body declares them.
        captured: Each value that stands for one from around the body -> that one.
    """

    graph: ir.Graph
    shapes: tuple[ir.Shape | None, ...]
    captured: dict[ir.Value, ir.Value]


def _form(
    model: ir.Model, node: ir.Node, body: ir.Graph, keys: dict[ir.Value, str], settle: Settle
) -> ir.Graph | None:
    """The normal form of a body; None if it is in normal form or cannot be brought into it."""
    copy = _copied(model, node, body)
    if copy is None:
        return None
    for stand_in, value in copy.captured.items():
        stand_in.meta[CAPTURED] = keys.get(value, "")
    alone = ir.Model(copy.graph, ir_version=model.ir_version or 10)
    infer_graph(alone, trust=False)
    try:
        modified = settle(alone)
    except CanonicalizationError:
        modified = False  # the body means the same as it is
    copy.graph.meta.pop(SPILL, None)
    if not modified:
        _empty(copy.graph)
        return None
    _put_back(model.graph, copy)
    return copy.graph


def _copied(model: ir.Model, node: ir.Node, body: ir.Graph) -> _Copy | None:
    try:
        graph = body.clone(allow_outer_scope_values=True)
    except RuntimeError:  # its nodes are out of order, or it returns a value that is not its own
        return None
    shapes = tuple(value.shape for value in graph.inputs)
    _doubt_shapes(node, graph)
    graph.opset_imports.update(model.opset_imports)
    if SPILL in model.graph.meta:
        graph.meta[SPILL] = model.graph.meta[SPILL]
    own = set(_defined(graph))
    captured: dict[ir.Value, ir.Value] = {}
    stand_ins: dict[ir.Value, ir.Value] = {}
    for inner in graph.all_nodes():
        for slot, value in enumerate(inner.inputs):
            if value is None or value in own:
                continue
            if value not in stand_ins:
                stand_ins[value] = _stand_in(graph, value)
                captured[stand_ins[value]] = value
            inner.replace_input_with(slot, stand_ins[value])
    return _Copy(graph, shapes, captured)


def _stand_in(graph: ir.Graph, value: ir.Value) -> ir.Value:
    """A constant of the graph for one around it, an input for anything else."""
    name = f"captured{next(_SERIAL)}@body"
    if is_constant(value) and value.const_value is not None:
        constant = ir.val(name, const_value=detached(value.const_value, name))
        constant.meta[ORIGIN] = origin_of(value)
        graph.register_initializer(constant)
        return constant
    made = ir.Value(name=name, shape=_certain(value.shape), type=value.type)
    graph.inputs.append(made)
    return made


def _defined(graph: ir.Graph) -> Iterator[ir.Value]:
    """All values of a graph and of the bodies in it."""
    for inner in (graph, *graph.subgraphs()):
        yield from inner.inputs
        yield from inner.initializers.values()
        for node in inner:
            yield from node.outputs


def _doubt_shapes(node: ir.Node, graph: ir.Graph) -> None:
    """Forget shapes that need not be the same in every run of the body, and symbols that inference made up."""
    repeated = is_op(node, "Loop", "Scan")
    results = set(graph.outputs)
    for inner in graph:
        for output in inner.outputs:
            if output not in results:
                output.shape = None if repeated else _certain(output.shape)
    for value in graph.inputs:
        value.shape = _certain(value.shape)
    _reopen(graph)
    if is_op(node, "Loop"):
        for before, after in zip(graph.inputs[2:], graph.outputs[1:], strict=False):
            before.shape = _invariant(before.shape, after.shape)


def _reopen(graph: ir.Graph) -> None:
    """Let inference find the sizes of results anew that it could only number: it keeps the numbers otherwise."""
    for value in graph.outputs:
        if not value.is_graph_input():
            value.shape = _certain(value.shape)


def _certain(shape: ir.Shape | None) -> ir.Shape | None:
    return None if shape is None else ir.Shape([None if is_open(dim) else dim for dim in shape])


def _invariant(before: ir.Shape | None, after: ir.Shape | None) -> ir.Shape | None:
    """The sizes of a carried value that a step leaves as they are."""
    if before is None or after is None or len(before) != len(after):
        return None
    return ir.Shape([old if isinstance(old, int) and old == new else None
                     for old, new in zip(before, after, strict=True)])


def _put_back(graph: ir.Graph, copy: _Copy) -> None:
    """Let a copy read from around it again, where its constants go, too."""
    inner = copy.graph
    for value, outer in copy.captured.items():
        if value.is_graph_output():
            continue  # a constant that is a result as it is stays the body's own
        value.replace_all_uses_with(outer)
        if value.is_graph_input():
            inner.inputs.remove(value)
        elif value.name is not None and value.is_initializer():
            inner.initializers.pop(value.name)
    for value in tuple(inner.initializers.values()):
        if value.const_value is not None and value.name is not None and not value.is_graph_output():
            move_constant(graph, value, detached(value.const_value, value.name))
            inner.initializers.pop(value.name)
    for value, shape in zip(inner.inputs, copy.shapes, strict=True):
        value.shape = shape
    for value in tuple(_defined(inner)):
        if value.name != "":
            value.name = f"inner{next(_SERIAL)}@body"
        if value.shape is not None and not value.is_graph_input():
            value.shape = _certain(value.shape)


def _empty(graph: ir.Graph) -> None:
    """Let a graph that is gone read nothing any more."""
    for node in graph.all_nodes():
        for slot in range(len(node.inputs)):
            node.replace_input_with(slot, None)
