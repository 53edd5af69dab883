"""Push transposes towards the outputs, where they meet their inverses and cancel."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from onnxfix.canonical.permutation import (
    Perm,
    inverse,
    permute,
    plan_pull,
    rebuild,
    reshape,
    sink,
    transposed,
)
from onnxfix.canonical.reshaping import constant_target
from onnxfix.canonical.rewriting import (
    Editor,
    array,
    attribute,
    is_constant,
    is_op,
    live,
    producer,
    rank,
    sole_consumer,
)
from onnxfix.canonical.symbolic import sizes_of

Rule = Callable[[Editor, ir.Node, Perm], bool]


class PushTransposes(ir.passes.InPlacePass):
    """``op(T_p(x)) -> T_q(op'(x))`` for every op that knows how, and ``T_q(T_p(x)) -> T_{p[q]}(x)``.

    A Transpose that only moves dimensions of size one becomes a Reshape. Each step moves a Transpose nearer to the
    outputs or removes it, so the walk ends.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Push through the whole graph in one topological walk."""
        editor = Editor(model.graph)
        for node in live(model.graph):
            if node.domain not in ("", "ai.onnx"):
                continue
            if node.op_type == "Transpose" and (_only_ones_move(editor, node) or _pull_up(editor, node)):
                continue
            rule = RULES.get(node.op_type)
            if rule is None or belongs_to_window(node):
                continue
            for value in node.inputs:
                found = transposed(value)
                if found is not None and rule(editor, node, found[1]):
                    break
        return ir.passes.PassResult(model, editor.modified)


def _only_ones_move(editor: Editor, node: ir.Node) -> bool:
    """``T_p(x) -> Reshape(x)`` when the dimensions that are not one keep their order."""
    sizes, perm = sizes_of(node.inputs[0]), attribute(node, "perm")
    if perm is None and sizes is not None:
        perm = list(reversed(range(len(sizes))))
        node.attributes.add(ir.AttrInt64s("perm", perm))
        editor.modified = True
    source = node.inputs[0]
    if sizes is None or source is None or is_constant(source):
        return False
    moving = [k for k in perm if sizes[k].number != 1]
    wanted = [sizes[k] for k in perm]
    target = constant_target(sizes, wanted)
    if moving != sorted(moving) or target is None:
        return False
    editor.replace(node.outputs[0], reshape(editor, source, target, wanted, [node], node))
    editor.remove([node])
    return True


# Ops that see a window of the map, and so fix its layout.
_WINDOWED = ("Conv", "ConvTranspose", "MaxPool", "AveragePool")


def belongs_to_window(node: ir.Node) -> bool:
    """Whether a node only pads, scales or shifts by constants what a Conv or pool reads, and so stays next to it."""
    if not is_op(node, "Pad", "Mul", "Add") or not _only_constants_beside(node):
        return False
    after = sole_consumer(node.outputs[0])
    return after is not None and (is_op(after, *_WINDOWED) or belongs_to_window(after))


def _only_constants_beside(node: ir.Node) -> bool:
    return sum(1 for value in node.inputs if value is not None and not is_constant(value)) == 1


def _pull_up(editor: Editor, node: ir.Node) -> bool:
    """``T_p(Pad(x)) -> Pad'(T_p(x))`` in front of a Conv or pool, which can then take it in; also Mul and Add.

    The one case in which a Transpose moves towards the inputs; what it passes is never pushed through again.
    """
    after, inner = sole_consumer(node.outputs[0]), producer(node.inputs[0], "Pad", "Mul", "Add")
    if inner is None or sole_consumer(inner.outputs[0]) is not node or not _only_constants_beside(inner):
        return False
    if after is None or not (is_op(after, *_WINDOWED) or belongs_to_window(after)):
        return False
    perm = tuple(attribute(node, "perm") or ())
    value = next((v for v in inner.inputs if v is not None and not is_constant(v)), None)
    if value is None or rank(value) != len(perm) or (is_op(inner, "Pad") and value is not inner.inputs[0]):
        return False
    inputs = _carried(editor, inner, value, inverse(perm))
    if inputs is None:
        return False
    moved = permute(editor, value, perm, [node], node, like_shape=node.outputs[0])
    new = rebuild(editor, inner, [moved if v is value else v for v in inputs], before=node)
    editor.replace(node.outputs[0], new.outputs[0])
    editor.remove([node, inner])
    return True


def _carried(editor: Editor, inner: ir.Node, value: ir.Value, back: Perm) -> list[ir.Value | None] | None:
    """The operands of Pad, Mul or Add on the other side of a Transpose, ``value`` itself left for the caller."""
    if is_op(inner, "Pad"):
        pads = array(inner.inputs[1])
        if pads is None or len(pads) != 2 * len(back) or (len(inner.inputs) > 3 and inner.inputs[3] is not None):
            return None
        forth = inverse(back)
        moved = [int(pads[half + k]) for half in (0, len(back)) for k in forth]
        return [value, editor.literal(np.asarray(moved, dtype=np.int64), "pads"), *inner.inputs[2:3]]
    plans = [None if v is value else plan_pull(v, back, inner, broadcasts=True) for v in inner.inputs]
    if any(plan is None and v is not value for plan, v in zip(plans, inner.inputs, strict=True)):
        return None
    return [value if plan is None else plan.build(editor) for plan in plans]


def _compose(editor: Editor, node: ir.Node, perm: Perm) -> bool:
    """``T_q(T_p(x)) = T_{p[q]}(x)``."""
    found = transposed(node.inputs[0])
    outer = attribute(node, "perm")
    if found is None or outer is None:
        return False
    both = tuple(perm[k] for k in outer)
    source = found[0].inputs[0]
    if source is None:
        return False
    new = permute(editor, source, both, [node, found[0]], node, like_shape=node.outputs[0])
    editor.replace(node.outputs[0], new)
    editor.remove([node, found[0]])
    return True


def _unary(editor: Editor, node: ir.Node, perm: Perm) -> bool:
    """``f(T(x), scalars) = T(f(x, scalars))``."""
    if transposed(node.inputs[0]) is None:
        return False
    others = node.inputs[1:]
    if any(value is not None and rank(value) != 0 and _size(value) != 1 for value in others):
        return False
    return sink(editor, node, [_source(node.inputs[0]), *others], perm)


def _size(value: ir.Value | None) -> int | None:
    sizes = sizes_of(value)
    numbers = [None if sizes is None else size.number for size in sizes or ()]
    return None if sizes is None or None in numbers else int(np.prod([n for n in numbers if n is not None]))


def _source(value: ir.Value | None) -> ir.Value | None:
    found = transposed(value)
    return value if found is None else found[0].inputs[0]


def _broadcasting(editor: Editor, node: ir.Node, perm: Perm) -> bool:
    """``f(T_p(x), y, c) = T_p(f(x, z, T_p^-1(c)))`` with ``T_p(z) = y``, where z costs no Transpose."""
    if rank(node.outputs[0]) != len(perm):
        return False
    return _pull_all(editor, node, perm, broadcasts=True, attributes=None)


def _pull_all(
    editor: Editor, node: ir.Node, perm: Perm, *, broadcasts: bool, attributes: dict[str, object] | None
) -> bool:
    """Push through a node all of whose operands come along.

    An operand may use a Transpose that it has elsewhere only if the Transpose at hand goes away; otherwise the two
    spellings would be turned into each other for ever.
    """
    plans = [plan_pull(value, perm, node, broadcasts=broadcasts) for value in node.inputs]
    ready = [plan for plan in plans if plan is not None]
    if len(ready) != len(plans):
        return False
    movers = {v for v in node.inputs if (found := transposed(v)) is not None and found[1] == perm}
    borrowed = {plan.borrowed for plan in ready} - {None}
    if borrowed and (borrowed & movers or not all(v is not None and _read_only_by(v, node) for v in movers)):
        return False
    return sink(editor, node, [plan.build(editor) for plan in ready], perm, attributes)


def _read_only_by(value: ir.Value, node: ir.Node) -> bool:
    return not value.is_graph_output() and all(use.node is node for use in value.uses())


def _prelu(editor: Editor, node: ir.Node, perm: Perm) -> bool:
    return transposed(node.inputs[0]) is not None and _broadcasting(editor, node, perm)


def _along_axis(default: int) -> Rule:
    """``f(T_p(x), axis=a) = T_p(f(x, axis=p[a]))``."""

    def rule(editor: Editor, node: ir.Node, perm: Perm) -> bool:
        axis = attribute(node, "axis", default)
        if transposed(node.inputs[0]) is None or not -len(perm) <= axis < len(perm):
            return False
        return sink(editor, node, [_source(node.inputs[0]), *node.inputs[1:]], perm, {"axis": perm[axis]})

    return rule


def _concat(editor: Editor, node: ir.Node, perm: Perm) -> bool:
    axis = attribute(node, "axis")
    return _pull_all(editor, node, perm, broadcasts=False, attributes={"axis": perm[axis]})


def _arg(editor: Editor, node: ir.Node, perm: Perm) -> bool:
    """ArgMax and ArgMin keep the axis as one, or drop it."""
    if attribute(node, "keepdims", 1):
        return _along_axis(0)(editor, node, perm)
    axis = perm[attribute(node, "axis", 0)]
    return sink(editor, node, [_source(node.inputs[0])], _without(perm, {axis}), {"axis": axis})


def _without(perm: Perm, gone: set[int]) -> Perm:
    """The permutation of the axes of ``x`` that are left when some are reduced away."""
    left = [k for k in range(len(perm)) if k not in gone]
    return tuple(left.index(k) for k in perm if k not in gone)


def _reduce(editor: Editor, node: ir.Node, perm: Perm) -> bool:
    """``Reduce(T_p(x), axes) = T_q(Reduce(x, p[axes]))``; q loses the reduced axes when they are not kept."""
    operand = node.inputs[1] if len(node.inputs) > 1 else None
    axes = array(operand)
    if transposed(node.inputs[0]) is None or (operand is not None and axes is None):
        return False
    if axes is None or axes.size == 0:
        if attribute(node, "noop_with_empty_axes", 0):
            return False
        moved = set(range(len(perm)))
    else:
        moved = {perm[int(a)] for a in axes}
    after = perm if attribute(node, "keepdims", 1) else _without(perm, moved)
    if len(moved) == len(perm):
        after = tuple(range(len(after)))
    inputs = [_source(node.inputs[0]), editor.literal(np.asarray(sorted(moved), dtype=np.int64), "axes")]
    return sink(editor, node, inputs, after)


def _slice(editor: Editor, node: ir.Node, perm: Perm) -> bool:
    """``Slice(T_p(x), axes=a) = T_p(Slice(x, axes=p[a]))``."""
    if transposed(node.inputs[0]) is None or len(node.inputs) < 3:
        return False
    starts = array(node.inputs[1])
    operand = node.inputs[3] if len(node.inputs) > 3 else None
    axes = array(operand)
    if axes is None:
        if operand is not None or starts is None:
            return False
        axes = np.arange(len(starts))
    moved = editor.literal(np.asarray([perm[int(a)] for a in axes], dtype=np.int64), "axes")
    return sink(editor, node, [_source(node.inputs[0]), *node.inputs[1:3], moved, *node.inputs[4:]], perm)


def _pad(editor: Editor, node: ir.Node, perm: Perm) -> bool:
    """``Pad(T_p(x), pads) = T_p(Pad(x, p^-1(pads)))``."""
    pads, count = array(node.inputs[1]), len(perm)
    if transposed(node.inputs[0]) is None or pads is None or len(pads) != 2 * count:
        return False
    if len(node.inputs) > 3 and node.inputs[3] is not None:
        return False
    moved = [int(pads[half + k]) for half in (0, count) for k in inverse(perm)]
    fresh = editor.literal(np.asarray(moved, dtype=np.int64), "pads")
    return sink(editor, node, [_source(node.inputs[0]), fresh, *node.inputs[2:3]], perm)


def _permuted_operand(slot: int) -> Rule:
    """``f(T_p(x), v) = T_p(f(x, p^-1(v)))`` for an operand with one number for each axis (Tile, Expand)."""

    def rule(editor: Editor, node: ir.Node, perm: Perm) -> bool:
        numbers = array(node.inputs[slot])
        if transposed(node.inputs[0]) is None or numbers is None or len(numbers) != len(perm):
            return False
        inputs = [_source(node.inputs[0]), *node.inputs[1:]]
        inputs[slot] = editor.literal(numbers[list(inverse(perm))], "sizes")
        return sink(editor, node, inputs, perm)

    return rule


def _resize(editor: Editor, node: ir.Node, perm: Perm) -> bool:
    """Scales, sizes and axes follow their axes; a region of interest keeps the Transpose where it is."""
    inputs = [_source(node.inputs[0]), *node.inputs[1:]]
    if transposed(node.inputs[0]) is None or attribute(node, "coordinate_transformation_mode") == "tf_crop_and_resize":
        return False
    axes = attribute(node, "axes")
    if not _resizable(node, perm):
        return False
    if axes is not None:
        return sink(editor, node, inputs, perm, {"axes": [perm[a] for a in axes]})
    for slot in (2, 3):
        operand = node.inputs[slot] if len(node.inputs) > slot else None
        numbers = array(operand)
        if operand is None or (numbers is not None and numbers.size == 0):
            continue
        if numbers is None or len(numbers) != len(perm):
            return False
        inputs[slot] = editor.literal(numbers[list(inverse(perm))], "sizes")
    if len(inputs) > 1:
        inputs[1] = None
    return sink(editor, node, inputs, perm)


def _resizable(node: ir.Node, perm: Perm) -> bool:
    """Whether runtimes interpolate along the axes where the resized ones come to be: beside channels, either side."""
    mode, count, axes = attribute(node, "mode", "nearest"), len(perm), attribute(node, "axes")
    if mode == "nearest" or (mode == "linear" and count < 4 and not attribute(node, "antialias", 0)):
        return True
    if axes is None:
        scales, sizes = (array(node.inputs[k]) if len(node.inputs) > k else None for k in (2, 3))
        numbers = scales if scales is not None and scales.size else sizes
        if numbers is None or numbers.size != count:
            return False
        same = [1] * count if numbers is scales else [size.number for size in sizes_of(node.inputs[0]) or ()]
        axes = [k for k in range(count) if numbers[k] != same[k]]
    moved = {perm[axis % count] for axis in axes}
    if mode == "linear" and count < 6 and not attribute(node, "antialias", 0):
        return moved <= set(range(2, count)) or moved <= set(range(1, count - 1))
    return moved <= {count - 2, count - 1}


def _gather(editor: Editor, node: ir.Node, perm: Perm) -> bool:
    """``Gather(T_p(x), i, a) = T_q(Gather(x, i, p[a]))`` for indices of rank 0 or 1."""
    indices = rank(node.inputs[1])
    if transposed(node.inputs[0]) is None or transposed(node.inputs[1]) is not None or indices not in (0, 1):
        return False
    axis = perm[attribute(node, "axis", 0)]
    after = perm if indices == 1 else _without(perm, {axis})
    return sink(editor, node, [_source(node.inputs[0]), node.inputs[1]], after, {"axis": axis})


def _normalize_last(editor: Editor, node: ir.Node, perm: Perm) -> bool:
    """LayerNormalization over trailing axes that the Transpose leaves in place."""
    axis = attribute(node, "axis", -1) % len(perm)
    if transposed(node.inputs[0]) is None or any(perm[k] != k for k in range(axis, len(perm))):
        return False
    if len(node.outputs) > 1:
        return False
    return sink(editor, node, [_source(node.inputs[0]), *node.inputs[1:]], perm)


def _normalize_map(editor: Editor, node: ir.Node, perm: Perm) -> bool:
    """Norms over the whole map do not mind the order of its axes."""
    if transposed(node.inputs[0]) is None or perm[:2] != (0, 1):
        return False
    return sink(editor, node, [_source(node.inputs[0]), *node.inputs[1:]], perm)


def _matmul(editor: Editor, node: ir.Node, perm: Perm) -> bool:
    """``T_p(x) @ W = T_p(x @ W)`` for a constant matrix W and a p that keeps the last axis."""
    if transposed(node.inputs[0]) is None or perm[-1] != len(perm) - 1 or len(perm) < 3:
        return False
    if not is_constant(node.inputs[1]) or rank(node.inputs[1]) != 2:
        return False
    return sink(editor, node, [_source(node.inputs[0]), node.inputs[1]], perm)


def _quantize(editor: Editor, node: ir.Node, perm: Perm) -> bool:
    """Per-tensor scales ride along; per-axis ones follow their axis."""
    if rank(node.inputs[1]) == 0 or _size(node.inputs[1]) == 1:
        return _unary(editor, node, perm)
    return False if attribute(node, "block_size", 0) else _along_axis(1)(editor, node, perm)


_UNARY = (
    "Abs Acos Acosh Asin Asinh Atan Atanh BitwiseNot Cast Ceil Celu Clip Cos Cosh Elu Erf Exp Floor Gelu HardSigmoid "
    "HardSwish IsInf IsNaN LeakyRelu Log Mish Neg Not Reciprocal Relu Round Selu Shrink Sigmoid Sign Sin Sinh "
    "Softplus Softsign Sqrt Tan Tanh ThresholdedRelu"
)
_BROADCASTING = (
    "Add Sub Mul Div Pow Mod Max Min Mean Sum And Or Xor Equal Greater Less GreaterOrEqual LessOrEqual BitwiseAnd "
    "BitwiseOr BitwiseXor BitShift Where"
)
# Ops that work element by element, with numpy's broadcasting where they have several operands.
ELEMENTWISE = frozenset((*_UNARY.split(), *_BROADCASTING.split()))
RULES: dict[str, Rule] = {
    **dict.fromkeys(_UNARY.split(), _unary),
    **dict.fromkeys(_BROADCASTING.split(), _broadcasting),
    **{f"Reduce{name}": _reduce for name in
       ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare")},
    **dict.fromkeys(("Softmax", "LogSoftmax", "Hardmax", "TopK"), _along_axis(-1)),
    "Split": _along_axis(0),
    **dict.fromkeys(("QuantizeLinear", "DequantizeLinear"), _quantize),
    **dict.fromkeys(("ArgMax", "ArgMin"), _arg),
    "PRelu": _prelu,
    "Transpose": _compose,
    "Concat": _concat,
    "Slice": _slice,
    "Pad": _pad,
    "Tile": _permuted_operand(1),
    "Expand": _permuted_operand(1),
    "Resize": _resize,
    "Gather": _gather,
    "LayerNormalization": _normalize_last,
    **dict.fromkeys(("InstanceNormalization", "GroupNormalization"), _normalize_map),
    "MatMul": _matmul,
}
