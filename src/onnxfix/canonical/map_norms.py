"""Norms of each channel, or group of channels, over the whole map: one op each, with scale and shift inside."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxfix.canonical.channels import channel_vector, is_made_up_zero
from onnxfix.canonical.origins import Literal
from onnxfix.canonical.permutation import inverse, permute
from onnxfix.canonical.queries import dims, finite, nodes_of, operands, producer, rank, used_once
from onnxfix.canonical.rewriting import Editor, array, is_constant, origin_of
from onnxfix.canonical.sinking import shape_before
from onnxfix.canonical.symbolic import sizes_of

NORMS = ("InstanceNormalization", "GroupNormalization")


def channel_of(value: ir.Value, axes: tuple[int, ...]) -> int | None:
    """The channel axis where ``axes`` are all others but the first, and at least two: what makes an instance norm.

    Over one axis it is a layer norm, of which there are more; runtimes know instance norms of float32 only.
    """
    size, shape = rank(value), dims(value)
    if size is None or shape is None or value.dtype != ir.DataType.FLOAT or len(axes) < 2 or len(axes) != size - 2:
        return None
    left = [k for k in range(1, size) if k not in axes]
    return left[0] if len(left) == 1 and shape[left[0]] else None


def instance_norm(
    editor: Editor, value: ir.Value, axes: tuple[int, ...], epsilon: float, like: list[ir.Node], node: ir.Node
) -> ir.Value | None:
    """``(x - mean) / Sqrt(variance + epsilon)`` over axes, as InstanceNormalization between Transposes if need be."""
    channel = channel_of(value, axes)
    if channel is None:
        return None
    perm = (0, channel, *axes)
    ones = np.ones((dims(value) or ())[channel] or 0, np.float32)
    made = editor.node(
        "InstanceNormalization",
        [permute(editor, value, perm, like, node, like_shape=value),
         editor.literal(ones, "scale"), editor.literal(0 * ones, "bias")],
        like=like, before=node, attributes={"epsilon": epsilon},
    )
    return permute(editor, made.outputs[0], inverse(perm), like, node, like_shape=node.outputs[0])


class SpellMapNorms(ir.passes.InPlacePass):
    """One spelling for norms over the map.

    - ``InstanceNorm(x, g, b) * s + t = InstanceNorm(x, g * s, b * s + t)`` for s, t per channel; GroupNorm likewise
    - ``LayerNorm(x[N, C, H, W], g[H, W], b, axis=2) = InstanceNorm(x, 1, 0) * g + b``
    - ``Reshape(InstanceNorm(Reshape(x, [N, groups, ...]), g, b), x's shape) = GroupNorm(x, g, b, groups)``, also with
      a scale and shift in front of the second Reshape
    - a GroupNorm with one channel in each group is an InstanceNorm
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Respell."""
        editor = Editor(model.graph)
        for node in nodes_of(model.graph, "LayerNormalization"):
            _over_map(editor, node)
        for node in nodes_of(model.graph, "Mul", "Add"):
            pair = operands(node)
            norm = producer(pair[0], *NORMS) if pair else None
            if pair is not None and norm is not None and used_once(norm.outputs[0]) and finite(pair[1]):
                _fold(editor, node, norm, pair[1])
        for node in nodes_of(model.graph, "Reshape"):
            _grouped(editor, node)
        for node in nodes_of(model.graph, "GroupNormalization"):
            _single_channels(editor, node)
        return ir.passes.PassResult(model, editor.modified)


def _over_map(editor: Editor, node: ir.Node) -> None:
    value, size = node.inputs[0], rank(node.inputs[0])
    if value is None or size is None or node.attributes.get_int("axis", -1) % size != 2:
        return
    if any(o.uses() or o.is_graph_output() for o in node.outputs[1:]):
        return
    epsilon = node.attributes.get_float("epsilon", 1e-5)
    plain = instance_norm(editor, value, tuple(range(2, size)), epsilon, [node], node)
    if plain is None:
        return
    for op, operand in zip(("Mul", "Add"), node.inputs[1:], strict=False):
        if operand is not None and not (_made_up(operand, 1) if op == "Mul" else is_made_up_zero(operand)):
            plain = editor.node(op, [plain, operand], like=[node], before=node).outputs[0]
    editor.replace(node.outputs[0], plain)
    editor.remove([node])


def _fold(editor: Editor, node: ir.Node, norm: ir.Node, constant: ir.Value) -> None:
    scale, bias = norm.inputs[1], norm.inputs[2]
    size, channels = rank(norm.inputs[0]), dims(scale)
    if scale is None or bias is None or not is_constant(scale) or not is_constant(bias) or size is None or size < 3:
        return
    if channels is None or dims(bias) != channels or (dims(norm.inputs[0]) or ())[1:2] != channels:
        return
    vector = channel_vector(editor, constant, rank=size, axis=1, channels=channels[0] or 0)
    if vector is None:
        return
    if node.op_type == "Mul":
        scale = vector if _made_up(scale, 1) else editor.constant("Mul", scale, vector)
    if not (node.op_type == "Mul" and is_made_up_zero(bias)):
        bias = vector if is_made_up_zero(bias) else editor.constant(node.op_type, bias, vector)
    _replace(editor, [node, norm], norm.op_type, [norm.inputs[0], scale, bias], dict(norm.attributes))


def _replace(editor: Editor, nodes: list[ir.Node], op: str, inputs: list[ir.Value | None], attributes: object) -> None:
    """Replace nodes, the first of which has the result, by a norm; the norm among them, the last, is to blame first."""
    made = editor.node(op, inputs, like=nodes[::-1], before=nodes[0], attributes=attributes)  # type: ignore[arg-type]
    editor.replace(nodes[0].outputs[0], made.outputs[0])
    editor.remove(nodes)


def _grouped(editor: Editor, node: ir.Node) -> None:
    """A Reshape behind a norm of reshaped values that gives them back the shape that they had."""
    affine: list[tuple[ir.Node, ir.Value]] = []
    value = node.inputs[0]
    norm = producer(value, "InstanceNormalization")
    while value is not None and norm is None and len(affine) < 2:
        step = producer(value, "Mul", "Add")
        pair = operands(step) if step is not None else None
        if step is None or pair is None or not used_once(step.outputs[0]):
            return
        affine.append((step, pair[1]))
        value = pair[0]
        norm = producer(value, "InstanceNormalization")
    apart = None if norm is None else producer(norm.inputs[0], "Reshape")
    if norm is None or apart is None or not used_once(norm.outputs[0]):
        return
    before, inside, after = (sizes_of(v) for v in (apart.inputs[0], apart.outputs[0], node.outputs[0]))
    if before is None or inside is None or before != after or len(before) < 3 or inside[0] != before[0]:
        return
    groups, channels, source = inside[1].number, before[1].number, apart.inputs[0]
    constants = [shape_before(constant, before, inside) for _, constant in affine]
    if not groups or not channels or channels % groups or None in constants or source is None:
        return
    if not all(is_constant(v) and dims(v) == (groups,) for v in norm.inputs[1:3]):
        return
    scale, bias = (_repeated(editor, v, groups, channels // groups) for v in norm.inputs[1:3] if v is not None)
    made = editor.node("GroupNormalization", [source, scale, bias], like=[norm, node, apart], before=node, attributes={
        "epsilon": norm.attributes.get_float("epsilon", 1e-5), "num_groups": groups, "stash_type": 1})
    result = made.outputs[0]
    for (step, constant), shape in zip(affine[::-1], constants[::-1], strict=True):
        moved = editor.constant("Reshape", constant, editor.literal(np.array(shape, np.int64)))
        result = editor.node(step.op_type, [result, moved], like=[step], before=node).outputs[0]
    editor.replace(node.outputs[0], result)
    editor.remove([node, *(step for step, _ in affine), norm, apart])


def _repeated(editor: Editor, vector: ir.Value, groups: int, times: int) -> ir.Value:
    """A number for each group, for each of its channels; what a pass made stays made up."""
    if isinstance(origin_of(vector), Literal):
        return editor.literal(np.repeat(np.asarray(array(vector)), times))
    shapes = [editor.literal(np.array(s, np.int64)) for s in ((groups, 1), (groups, times), (groups * times,))]
    spread = editor.constant("Expand", editor.constant("Reshape", vector, shapes[0]), shapes[1])
    return editor.constant("Reshape", spread, shapes[2])


def _single_channels(editor: Editor, node: ir.Node) -> None:
    shape, value, groups = dims(node.inputs[0]), node.inputs[0], node.attributes.get_int("num_groups", 0)
    if value is None or value.dtype != ir.DataType.FLOAT or shape is None or len(shape) < 3:
        return
    if shape[1] == groups and dims(node.inputs[1]) == (groups,):
        _replace(editor, [node], "InstanceNormalization", list(node.inputs),
                 {"epsilon": node.attributes.get_float("epsilon", 1e-5)})


def _made_up(value: ir.Value, number: float) -> bool:
    """Whether a constant is a single number repeated by a pass."""
    return isinstance(origin_of(value), Literal) and bool(np.all(array(value) == number))
