"""Take out what computes nothing: identities, inference dropout, no-ops, dead code."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from onnxfix.canonical.deferred import LARGE, sample
from onnxfix.canonical.queries import NUMBERS, nodes_of
from onnxfix.canonical.rewriting import Editor, array, attribute, dims, is_constant, is_op, live, producer, rank
from onnxfix.mapped import streamed

_FULL = 2**31 - 1


class RemoveNoOps(ir.passes.InPlacePass):
    """``op(x) -> x`` where the op provably returns its operand unchanged.

    Identity; Dropout outside training; Cast to the same type; Reshape, Expand, Tile, Slice, Pad, Transpose that change
    nothing; Concat, Sum, Max, Min, Mean of one; Mul and Div by a literal 1, Add and Sub of a literal 0 (only where no
    broadcast or promotion happens). ``0 + x`` is kept for float signed zeros only in theory: -0 + 0 = 0 compares equal.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Let readers of each no-op read its operand."""
        editor = Editor(model.graph)
        for node in live(model.graph):
            rule = _NO_OPS.get(node.op_type) if node.domain in ("", "ai.onnx") else None
            kept = None if rule is None else rule(node)
            if kept is None or (node.outputs[0].is_graph_output() and _only_copies(kept)):
                continue
            if any(o.uses() or o.is_graph_output() for o in node.outputs[1:]):
                continue
            if is_op(node, "Identity") and node.outputs[0].is_graph_output() and kept.producer() is None:
                continue
            editor.replace(node.outputs[0], kept)
            editor.remove([node])
        return ir.passes.PassResult(model, editor.modified)


def _only_copies(value: ir.Value) -> bool:
    """Whether a graph output can only be reached through an Identity: an input, a constant, another output."""
    return value.producer() is None or value.is_graph_output()


def _identity(node: ir.Node) -> ir.Value | None:
    return node.inputs[0]


def _dropout(node: ir.Node) -> ir.Value | None:
    mode = node.inputs[2] if len(node.inputs) > 2 else None
    training = array(mode)
    inert = mode is None or (training is not None and not bool(training))
    ratio = array(node.inputs[1]) if len(node.inputs) > 1 else None
    return node.inputs[0] if inert or (ratio is not None and float(ratio) == 0.0) else None


def _cast(node: ir.Node) -> ir.Value | None:
    x = node.inputs[0]
    return x if x is not None and x.dtype is not None and int(x.dtype) == attribute(node, "to") else None


def _transpose(node: ir.Node) -> ir.Value | None:
    perm = attribute(node, "perm")
    return node.inputs[0] if perm is not None and perm == sorted(perm) else None


def same_shape(a: ir.Value | None, b: ir.Value | None) -> bool:
    """Whether two values provably have the same shape."""
    first, second = dims(a), dims(b)
    return first is not None and first == second and None not in first


def _same_shape(node: ir.Node) -> ir.Value | None:
    return node.inputs[0] if same_shape(node.inputs[0], node.outputs[0]) else None


def _reshape(node: ir.Node) -> ir.Value | None:
    """Besides equal shapes: at most one unknown dimension, all others equal and in place."""
    if same_shape(node.inputs[0], node.outputs[0]):
        return node.inputs[0]
    target, shape = array(node.inputs[1]), dims(node.inputs[0])
    if target is None or shape is None or len(target) != len(shape) or attribute(node, "allowzero", 0):
        return None
    kept = [int(t) == 0 or int(t) == d for t, d in zip(target, shape, strict=True)]
    open_ended = [k for k, same in enumerate(kept) if not same]
    return node.inputs[0] if not open_ended or (len(open_ended) == 1 and int(target[open_ended[0]]) == -1) else None


def _expand(node: ir.Node) -> ir.Value | None:
    target, shape = array(node.inputs[1]), dims(node.inputs[0])
    if target is not None and shape is not None and len(target) <= len(shape):
        tail = shape[len(shape) - len(target):]
        if all(int(t) == 1 or int(t) == d for t, d in zip(target, tail, strict=True)):
            return node.inputs[0]
    return _same_shape(node)


def _tile(node: ir.Node) -> ir.Value | None:
    repeats = array(node.inputs[1])
    return node.inputs[0] if repeats is not None and bool(np.all(repeats == 1)) else None


def _slice(node: ir.Node) -> ir.Value | None:
    starts, ends = array(node.inputs[1]), array(node.inputs[2])
    axes = array(node.inputs[3]) if len(node.inputs) > 3 else None
    steps = array(node.inputs[4]) if len(node.inputs) > 4 else None
    if steps is not None and np.any(steps != 1):
        return None
    if starts is not None and ends is not None and bool(np.all(starts == 0)):
        shape = dims(node.inputs[0])
        places = range(len(starts)) if axes is None else [int(a) for a in axes]
        sizes = [shape[a] if shape is not None and -len(shape) <= a < len(shape) else None for a in places]
        if all(int(e) >= _FULL or (isinstance(d, int) and int(e) >= d) for e, d in zip(ends, sizes, strict=True)):
            return node.inputs[0]
    return None


def _pad(node: ir.Node) -> ir.Value | None:
    pads = array(node.inputs[1])
    return node.inputs[0] if pads is not None and bool(np.all(pads == 0)) else None


def _variadic(node: ir.Node) -> ir.Value | None:
    return node.inputs[0] if len(node.inputs) == 1 else None


def _neutral(element: float, sides: tuple[int, ...]) -> Callable[[ir.Node], ir.Value | None]:
    """``x * 1`` and the like, where the constant neither broadcasts ``x`` nor came from a parameter's fault."""

    def rule(node: ir.Node) -> ir.Value | None:
        for side in sides:
            constant, other = array(node.inputs[side]), node.inputs[1 - side]
            if constant is None or other is None or not np.all(constant == element):
                continue
            if constant.size > 1 and producer(other, "MatMul", "Gemm", "Conv", "ConvTranspose") is not None:
                continue  # the bias or scale of a layer: a zeroed one is a difference of values, not of structure
            place = rank(other)
            if constant.size == 1 and place is not None and constant.ndim <= place:
                return other
            if same_shape(other, node.outputs[0]):
                return other
        return None

    return rule


_NO_OPS: dict[str, Callable[[ir.Node], ir.Value | None]] = {
    "Identity": _identity,
    "Dropout": _dropout,
    "Cast": _cast,
    "Transpose": _transpose,
    "Reshape": _reshape,
    "Expand": _expand,
    "Tile": _tile,
    "Slice": _slice,
    "Pad": _pad,
    **dict.fromkeys(("Concat", "Sum", "Max", "Min", "Mean"), _variadic),
    "Mul": _neutral(1.0, (0, 1)),
    "Div": _neutral(1.0, (1,)),
    "Add": _neutral(0.0, (0, 1)),
    "Sub": _neutral(0.0, (1,)),
    "Pow": _neutral(1.0, (1,)),
}


class RemoveDeadCode(ir.passes.InPlacePass):
    """Remove nodes and constants that no output depends on; optional outputs that nobody reads are dropped."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Walk the nodes backwards once."""
        editor = Editor(model.graph)
        for node in reversed(list(model.graph)):
            editor.remove([node])
            if node.graph is not None and len(node.outputs) > 1:
                _drop_outputs(editor, node)
        for name, value in list(model.graph.initializers.items()):
            if not value.uses() and not value.is_graph_output():
                del model.graph.initializers[name]
                editor.modified = True
        return ir.passes.PassResult(model, editor.modified)


# Outputs past the first that a node may simply not have.
_OPTIONAL_OUTPUTS = frozenset(
    {"MaxPool", "Dropout", "BatchNormalization", "LayerNormalization", "LSTM", "GRU", "RNN"}
)


def _drop_outputs(editor: Editor, node: ir.Node) -> None:
    if not is_op(node, *_OPTIONAL_OUTPUTS):
        return
    count = len(node.outputs)
    while count > 1 and not node.outputs[count - 1].uses() and not node.outputs[count - 1].is_graph_output():
        count -= 1
    if count < len(node.outputs):
        node.resize_outputs(count)
        editor.modified = True


class MergeEqualNodes(ir.passes.InPlacePass):
    """Common subexpressions: nodes with the same op, attributes and operands become one.

    Constants count as equal when their content is equal or when they are the same value. Random ops and control flow
    are left alone.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Merge in topological order, so that equal chains merge in one walk."""
        editor = Editor(model.graph)
        seen = _Seen()
        for node in live(model.graph):
            if is_op(node, "Identity"):
                continue  # what is left of them are graph outputs that copy something
            first = seen.first(node)
            if first is None or not _same_constants(first, node):
                continue
            for old, new in zip(node.outputs, first.outputs, strict=True):
                _earlier_first(editor, new, old)
                editor.replace(old, new)
            editor.remove([node])
        for node in nodes_of(model.graph, "Identity"):
            if node.inputs[0] is not None and node.inputs[0].producer() is not None:
                _earlier_first(editor, node.inputs[0], node.outputs[0])
        return ir.passes.PassResult(model, editor.modified)


def _earlier_first(editor: Editor, original: ir.Value, copy: ir.Value) -> None:
    """Of two graph outputs that are equal, the earlier one is the original, whichever way they were written."""
    if not (original.is_graph_output() and copy.is_graph_output()):
        return
    outputs = editor.graph.outputs
    places = [next(k for k, output in enumerate(outputs) if output is value) for value in (original, copy)]
    if places[0] < places[1]:
        return
    names = original.name, copy.name
    original.name = copy.name = None
    copy.name, original.name = names
    outputs[places[0]], outputs[places[1]] = copy, original
    editor.modified = True


_NEVER_MERGED = ("RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Bernoulli", "Multinomial")


class _Seen:
    """The nodes met so far. Large constants are looked into only where all else about two nodes is equal."""

    def __init__(self) -> None:
        self._alone: dict[object, ir.Node] = {}
        self._met: dict[object, ir.Node] = {}

    def first(self, node: ir.Node) -> ir.Node | None:
        """The first node that is like this one, as far as samples of their constants tell."""
        key = _key(node)
        if key is None:
            return None
        other = self._alone.setdefault(key, node)
        if other is node:
            return None
        if (key,) not in self._met:
            self._met[key,] = self._met[key, _samples(other)] = other
        found = self._met.setdefault((key, _samples(node)), node)
        return None if found is node else found


def _key(node: ir.Node) -> object | None:
    if is_op(node, *_NEVER_MERGED):
        return None
    attributes = []
    for name, attr in sorted(node.attributes.items()):
        if attr.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS, ir.AttributeType.TENSOR):
            return None
        attributes.append((name, repr(attr.value)))
    operands = tuple(_operand_key(value) for value in node.inputs)
    return node.domain, node.op_type, len(node.outputs), tuple(attributes), operands


def _operand_key(value: ir.Value | None) -> object:
    tensor = None if value is None or not is_constant(value) else value.const_value
    if tensor is None or tensor.dtype not in NUMBERS:
        return id(value)
    shape = tuple(tensor.shape.numpy())
    return tensor.dtype, shape, None if tensor.size >= LARGE else tensor.numpy().tobytes()


def _samples(node: ir.Node) -> tuple[bytes, ...]:
    tensors = [value.const_value for value in node.inputs if value is not None and is_constant(value)]
    return tuple(sample(tensor) for tensor in tensors if tensor is not None and tensor.size >= LARGE)


def _same_constants(first: ir.Node, second: ir.Node) -> bool:
    """Whether large constants of two nodes whose keys are equal have the same content."""
    for one, two in zip(first.inputs, second.inputs, strict=True):
        if one is two or one is None or one.const_value is None or one.const_value.size < LARGE:
            continue
        a, b = array(one), array(two)
        if a is None or b is None:
            continue
        if not all(np.array_equal(p, q) for p, q in zip(streamed(a), streamed(b), strict=True)):
            return False
    return True
