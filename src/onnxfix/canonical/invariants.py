"""What is the same in every run of a control-flow body belongs outside it."""

from __future__ import annotations

import onnx_ir as ir

from onnxfix.canonical.folding import FoldConstants
from onnxfix.canonical.ingest import constant_value
from onnxfix.canonical.origins import Literal
from onnxfix.canonical.rewriting import ORIGIN, Editor, is_constant, is_op

_IR_VERSION = 10


class LiftInvariants(ir.passes.InPlacePass):
    """Bodies of If, Loop and Scan read constants from around them.

    - initializers and Constant nodes of a body are constants of the graph; an op over constants is one, too
    - a value that a Loop carries unchanged from step to step is read from outside, and so is its last value
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Lift, from the outermost body inwards."""
        graph = model.graph
        modified = False
        for body in tuple(graph.subgraphs()):
            modified |= _lift(graph, body)
        for node in tuple(graph.all_nodes()):
            if is_op(node, "Loop") and node.graph is not None:
                modified |= _carried(node)
        for body in tuple(graph.subgraphs()):
            if FoldConstants().call(ir.Model(body, ir_version=_IR_VERSION)).modified:
                modified |= _lift(graph, body)
        return ir.passes.PassResult(model, modified)


def _lift(graph: ir.Graph, body: ir.Graph) -> bool:
    results = set(body.outputs)
    found = [(value, value.const_value) for value in body.initializers.values() if value not in results]
    lifted = False
    for value, tensor in found:
        if tensor is None or value.name is None:
            continue
        move_constant(graph, value, ir.Tensor(tensor.numpy(), dtype=tensor.dtype))
        body.initializers.pop(value.name)
        lifted = True
    for node in tuple(body):
        content = constant_value(node) if is_op(node, "Constant") and node.outputs[0] not in results else None
        if content is not None:
            move_constant(graph, node.outputs[0], ir.Tensor(content))
            body.remove(node, safe=True)
            lifted = True
    return lifted


def move_constant(graph: ir.Graph, value: ir.Value, tensor: ir.TensorProtocol) -> None:
    """Let the readers of a body's constant read the same constant of the graph."""
    taken = graph.initializers.keys() | {v.name for v in graph.inputs}
    stem = value.name or "constant"
    name = next(n for n in (stem, *(f"{stem}@{k}" for k in range(len(taken) + 1))) if n not in taken)
    tensor.name = name
    outer = ir.val(name, const_value=tensor)
    outer.meta[ORIGIN] = value.meta[ORIGIN] if ORIGIN in value.meta else Literal(tensor.numpy())
    graph.register_initializer(outer)
    value.replace_all_uses_with(outer)


def _carried(loop: ir.Node) -> bool:
    """``Loop(..., v)`` whose body hands v on as it is."""
    body = loop.attributes["body"].as_graph()
    count = len(loop.inputs) - 2
    fixed = []
    for k in range(count):
        inner, outer = body.inputs[k + 2], loop.inputs[k + 2]
        same_kind = outer is not None and (is_constant(outer) or outer.graph is not None)
        if same_kind and _unwrapped(body.outputs[k + 1]) is inner:
            fixed.append(k)
    if not fixed or loop.graph is None:
        return False
    editor = Editor(loop.graph)
    for k in fixed:
        outer = loop.inputs[k + 2]
        assert outer is not None  # checked above
        for user, slot in tuple(body.inputs[k + 2].uses()):
            user.replace_input_with(slot, outer)
        if loop.outputs[k].uses() or loop.outputs[k].is_graph_output():
            editor.replace(loop.outputs[k], outer)
    _without(loop, body, fixed)
    return True


def _unwrapped(value: ir.Value | None) -> ir.Value | None:
    """What an Identity is of."""
    while value is not None and is_op(value.producer(), "Identity"):
        value = value.producer().inputs[0]  # type: ignore[union-attr]
    return value


def _without(loop: ir.Node, body: ir.Graph, places: list[int]) -> None:
    """Take carried values that nothing reads any more out of a Loop."""
    for k in reversed(places):
        body.inputs.pop(k + 2)
        body.outputs.pop(k + 1)
    inputs = [v for k, v in enumerate(loop.inputs) if k - 2 not in places]
    kept = [output for k, output in enumerate(loop.outputs) if k not in places]
    new = ir.Node("", "Loop", inputs, loop.attributes.values(), num_outputs=len(kept))
    new.meta.update(loop.meta)
    graph = loop.graph
    assert graph is not None  # it is a node of a graph
    graph.insert_before(loop, new)
    editor = Editor(graph)
    for old, output in zip(kept, new.outputs, strict=True):
        output.shape, output.type = old.shape, old.type
        editor.replace(old, output)
    graph.remove(loop, safe=True)
