"""Padding is explicit, and part of the Conv or pool that it is for."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onnxfix.canonical.queries import dims, integers, is_float, nodes_of, producer, set_attribute
from onnxfix.canonical.rewriting import Editor, array

_WINDOWED = ("Conv", "ConvTranspose", "MaxPool", "AveragePool")
# What these make is never negative, whatever they are given.
_NONNEGATIVE = frozenset({"Relu", "Sigmoid", "HardSigmoid", "Softmax", "Abs", "Sqrt", "Exp", "Softplus"})
# What these make is not negative where none of their operands is.
_KEEPING_SIGN = frozenset(
    {"MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "Transpose", "Reshape", "Concat", "Add", "Mul",
     "Max", "Identity", "ReduceMean", "ReduceMax", "Slice", "Flatten", "Squeeze", "Unsqueeze"}
)
# Of which only the first operand is data.
_FIRST_OPERAND = frozenset({"Reshape", "Slice", "Squeeze", "Unsqueeze", "ReduceMean", "ReduceMax"})
_DEPTH = 12


class ResolveAutoPad(ir.passes.InPlacePass):
    """``Conv(auto_pad=SAME_UPPER) = Conv(pads=p)`` with ``p = max((ceil(in/s) - 1) * s + (k - 1) * d + 1 - in, 0)``.

    The odd one of p goes to the end for SAME_UPPER, to the begin for SAME_LOWER. The size must be static unless the
    stride is one, where p does not depend on it. For ConvTranspose ``p = (k - 1) * d + 1 - s + output_padding``.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Resolve."""
        modified = False
        for node in nodes_of(model.graph, *_WINDOWED):
            mode = node.attributes.get_string("auto_pad", "NOTSET")
            window = node.attributes.get_ints("kernel_shape")
            if window is None or (mode == "NOTSET" and "output_shape" not in node.attributes):
                continue
            totals = [0] * len(window) if mode == "VALID" else _totals(node, tuple(window))
            if totals is None or ("output_shape" in node.attributes and node.op_type != "ConvTranspose"):
                continue
            set_attribute(node, "pads", _shared_out(totals, upper=mode == "SAME_UPPER"))
            set_attribute(node, "auto_pad", "NOTSET")
            node.attributes.pop("output_shape", None)
            modified = True
        return ir.passes.PassResult(model, modified)


def _totals(node: ir.Node, window: tuple[int, ...]) -> list[int] | None:
    """Padding of both ends together per spatial axis."""
    count = len(window)
    strides = integers(node, "strides", [1] * count)
    dilations = integers(node, "dilations", [1] * count)
    reach = [(k - 1) * d + 1 for k, d in zip(window, dilations, strict=True)]
    shape = dims(node.inputs[0])
    sizes = (None,) * count if shape is None else shape[2:]
    if node.op_type == "ConvTranspose":
        return _transposed_totals(node, reach, strides, sizes)
    totals = []
    for size, stride, extent in zip(sizes, strides, reach, strict=True):
        if stride == 1:
            totals.append(extent - 1)
        elif size is None:
            return None
        else:
            totals.append(max((-(-size // stride) - 1) * stride + extent - size, 0))
    return totals


def _transposed_totals(
    node: ir.Node, reach: Sequence[int], strides: Sequence[int], sizes: Sequence[int | None]
) -> list[int] | None:
    extra = integers(node, "output_padding", [0] * len(reach))
    wanted = node.attributes.get_ints("output_shape")
    if wanted is None:
        totals = [e - s + o for e, s, o in zip(reach, strides, extra, strict=True)]
    elif any(size is None for size in sizes):
        return None
    else:
        totals = [
            s * ((size or 0) - 1) + o + e - w
            for s, size, o, e, w in zip(strides, sizes, extra, reach, wanted[-len(reach) :], strict=True)
        ]
    return None if min(totals) < 0 else totals


def _shared_out(totals: Sequence[int], *, upper: bool) -> list[int]:
    """Pads per end; the odd one goes to the end for SAME_UPPER. An output_shape without SAME_UPPER puts it first."""
    small, large = [t // 2 for t in totals], [t - t // 2 for t in totals]
    return [*small, *large] if upper else [*large, *small]


class FoldPads(ir.passes.InPlacePass):
    """``Conv(Pad(x, p), pads=q) = Conv(x, pads=p + q)``, likewise pools where the padded value is what they pad with.

    - Conv pads with 0.
    - MaxPool pads with -inf, so a Pad with 0 is only folded where x cannot be negative and no window is all padding.
      (Counter-example otherwise: x = [-1], Pad to [0, -1, 0], MaxPool(3) = 0, but MaxPool(3, pads=[1, 1]) = -1.)
    - AveragePool counts the zeros of a Pad, which is count_include_pad=1.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Fold."""
        editor = Editor(model.graph)
        for node in nodes_of(model.graph, "Conv", "MaxPool", "AveragePool"):
            pad = producer(node.inputs[0], "Pad")
            amounts = None if pad is None else spatial_pads(pad)
            if pad is None or amounts is None or node.attributes.get_string("auto_pad", "NOTSET") != "NOTSET":
                continue
            count = len(amounts) // 2
            own = integers(node, "pads", [0] * len(amounts))
            if len(own) != len(amounts) or not _absorbs(node, pad, amounts, own):
                continue
            attributes = dict(node.attributes)
            attributes["pads"] = ir.AttrInt64s("pads", [a + b for a, b in zip(amounts, own, strict=True)])
            if node.op_type == "AveragePool" and any(amounts):
                attributes["count_include_pad"] = ir.AttrInt64("count_include_pad", 1)
            if not _fits(node, attributes["pads"].as_ints(), count):
                continue
            folded = editor.node(
                node.op_type, [pad.inputs[0], *node.inputs[1:]], like=[node, pad], before=node,
                attributes=attributes, outputs=len(node.outputs),
            )
            for old, new in zip(node.outputs, folded.outputs, strict=True):
                editor.replace(old, new)
            editor.remove([node, pad])
        return ir.passes.PassResult(model, editor.modified)


def spatial_pads(pad: ir.Node) -> list[int] | None:
    """What a constant Pad adds to the spatial axes, begins then ends; None if it does anything else."""
    shape = dims(pad.inputs[0]) or dims(pad.outputs[0])
    amounts = array(pad.inputs[1]) if len(pad.inputs) > 1 else None
    if shape is None or len(shape) < 3 or amounts is None:
        return None
    if pad.attributes.get_string("mode", "constant") != "constant":
        return None
    axes = list(range(len(shape)))
    if len(pad.inputs) > 3 and pad.inputs[3] is not None:
        given = array(pad.inputs[3])
        if given is None:
            return None
        axes = [int(a) % len(shape) for a in given.reshape(-1)]
    half = len(axes)
    if amounts.size != 2 * half:
        return None  # a model that contradicts itself stays as it is
    begins, ends = [0] * len(shape), [0] * len(shape)
    for k, axis in enumerate(axes):
        begins[axis], ends[axis] = int(amounts[k]), int(amounts[half + k])
    if min(begins + ends) < 0 or any(begins[:2] + ends[:2]):
        return None
    return begins[2:] + ends[2:]


def _padded_with(pad: ir.Node) -> float | None:
    if len(pad.inputs) < 3 or pad.inputs[2] is None:
        return 0.0
    content = array(pad.inputs[2])
    return None if content is None or content.size != 1 else float(content.reshape(-1)[0])


def _absorbs(node: ir.Node, pad: ir.Node, amounts: Sequence[int], own: Sequence[int]) -> bool:
    """Whether padding of this value is the padding that the node does itself."""
    value = _padded_with(pad)
    if value is None or not is_float(pad.inputs[0]):
        return False
    if node.op_type == "Conv":
        return value == 0
    if node.attributes.get_int("ceil_mode", 0):
        return False
    if node.op_type == "AveragePool":
        return value == 0 and (not any(own) or bool(node.attributes.get_int("count_include_pad", 0)))
    if any(output.uses() or output.is_graph_output() for output in node.outputs[1:]):
        return False  # indices count positions of the padded map
    dtype = np.asarray(array(pad.inputs[2])).dtype if len(pad.inputs) > 2 and pad.inputs[2] is not None else None
    if value == -np.inf or (dtype is not None and dtype.kind == "f" and value == float(np.finfo(dtype).min)):
        return True
    dilated = any(d != 1 for d in integers(node, "dilations", ()))
    return value == 0 and not dilated and not any(own) and nonnegative(pad.inputs[0])


def _fits(node: ir.Node, pads: Sequence[int], count: int) -> bool:
    """Whether the pads are ones that a pool may have: every window sees at least one real element."""
    if node.op_type == "Conv":
        return True
    window = integers(node, "kernel_shape", ())
    return all(p < k for p, k in zip(pads, [*window, *window], strict=True)) and count == len(window)


def nonnegative(value: ir.Value | None, depth: int = _DEPTH) -> bool:
    """Whether a value is provably never negative (NaN aside)."""
    content = array(value)
    if content is not None:
        return bool((content >= 0).all())
    node = None if value is None else value.producer()
    if node is None or node.domain != "" or depth == 0:
        return False
    if node.op_type in _NONNEGATIVE:
        return True
    if node.op_type == "Clip":
        lower = array(node.inputs[1]) if len(node.inputs) > 1 else None
        return lower is not None and bool((lower >= 0).all())
    if node.op_type == "Mul" and node.inputs[0] is node.inputs[1]:
        return True
    data = node.inputs[:1] if node.op_type in _FIRST_OPERAND else node.inputs
    return node.op_type in _KEEPING_SIGN and all(nonnegative(v, depth - 1) for v in data if v is not None)


class MergePads(ir.passes.InPlacePass):
    """``Pad(Pad(x, p), q) = Pad(x, p + q)`` for constant padding with one value on spatial axes."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Merge."""
        editor = Editor(model.graph)
        for node in nodes_of(model.graph, "Pad"):
            inner = producer(node.inputs[0], "Pad")
            if inner is None or len(inner.outputs[0].uses()) != 1 or inner.outputs[0].is_graph_output():
                continue
            first, second = spatial_pads(inner), spatial_pads(node)
            if first is None or second is None or _padded_with(inner) != _padded_with(node):
                continue
            half = len(first) // 2
            total = [a + b for a, b in zip(first, second, strict=True)]
            amounts = editor.literal(np.array([0, 0, *total[:half], 0, 0, *total[half:]], np.int64))
            pad = editor.node("Pad", [inner.inputs[0], amounts, *node.inputs[2:3]], like=[node, inner], before=node,
                              attributes={"mode": "constant"})
            editor.replace(node.outputs[0], pad.outputs[0])
            editor.remove([node, inner])
        return ir.passes.PassResult(model, editor.modified)
