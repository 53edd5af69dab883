"""One spelling for pools over the whole map, and for pool attributes that make no difference."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxfix.canonical.queries import dims, integers, is_float, nodes_of, rank, set_attribute
from onnxfix.canonical.rewriting import Editor, array

_GLOBAL = {"ReduceMean": "GlobalAveragePool", "AveragePool": "GlobalAveragePool",
           "ReduceMax": "GlobalMaxPool", "MaxPool": "GlobalMaxPool"}


class SpellPools(ir.passes.InPlacePass):
    """Pools over the whole map become GlobalAveragePool and GlobalMaxPool.

    - ``ReduceMean(x, axes=[2, 3]) = GlobalAveragePool(x)`` where at least two axes are longer than one; over a
      sequence it is the other way round, since reductions are written as such there
    - ``AveragePool(x, kernel=map) = GlobalAveragePool(x)`` where nothing pads
    - ceil_mode=0 where rounding up or down gives the same size, count_include_pad=0 where nothing pads
    - ``Pool(x, ceil_mode=1) = Pool(x, pads)`` where onnx counts a window that starts behind the map and runtimes do not
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Respell."""
        editor = Editor(model.graph)
        for node in nodes_of(model.graph, "ReduceMean", "ReduceMax"):
            _reduction(editor, node)
        for node in nodes_of(model.graph, "AveragePool", "MaxPool"):
            editor.modified |= _plain_attributes(node)
            if _covers(node):
                _replace(editor, node, _GLOBAL[node.op_type])
        for node in nodes_of(model.graph, "GlobalAveragePool", "GlobalMaxPool"):
            _sequence(editor, node)
        return ir.passes.PassResult(model, editor.modified)


def _replace(editor: Editor, node: ir.Node, op: str) -> ir.Value:
    pooled = editor.node(op, node.inputs[:1], like=[node], before=node).outputs[0]
    editor.replace(node.outputs[0], pooled)
    editor.remove([node])
    return pooled


def _reduction(editor: Editor, node: ir.Node) -> None:
    size = rank(node.inputs[0])
    axes = array(node.inputs[1]) if len(node.inputs) > 1 else None
    if size not in (4, 5) or axes is None or sorted(int(a) % size for a in axes) != list(range(2, size)):
        return
    keepdims = node.attributes.get_int("keepdims", 1)
    value = node.inputs[0]
    if value is None or 0 in (dims(value) or ()) or value.dtype == ir.DataType.DOUBLE:
        return  # runtimes pool neither nothing nor doubles
    if keepdims and is_float(value):
        _replace(editor, node, _GLOBAL[node.op_type])


def _sequence(editor: Editor, node: ir.Node) -> None:
    """A pool over at most one axis that is longer than one."""
    axes = [k for k, size in enumerate(dims(node.inputs[0]) or ()) if k >= 2 and size != 1]
    size = rank(node.inputs[0])
    if size is None or len(axes) > 1:
        return
    op = "ReduceMean" if node.op_type == "GlobalAveragePool" else "ReduceMax"
    operand = editor.literal(np.array(axes or range(2, size), np.int64))
    reduced = editor.node(op, [node.inputs[0], operand], like=[node], before=node,
                          attributes={"keepdims": 1, "noop_with_empty_axes": 0})
    editor.replace(node.outputs[0], reduced.outputs[0])
    editor.remove([node])


def _covers(node: ir.Node) -> bool:
    """Whether a pool's only window is the whole map."""
    shape, window = dims(node.inputs[0]), node.attributes.get_ints("kernel_shape")
    if shape is None or window is None or len(shape) < 4 or tuple(window) != shape[2:]:
        return False
    if node.attributes.get_string("auto_pad", "NOTSET") not in ("NOTSET", "VALID") or any(integers(node, "pads", ())):
        return False
    if any(d != 1 for d in integers(node, "dilations", ())):
        return False
    return not any(output.uses() or output.is_graph_output() for output in node.outputs[1:])


def _plain_attributes(node: ir.Node) -> bool:
    window = node.attributes.get_ints("kernel_shape") or ()
    pads = integers(node, "pads", [0] * (2 * len(window)))
    modified = False
    if node.op_type == "AveragePool" and node.attributes.get_string("auto_pad", "NOTSET") == "NOTSET" and not any(pads):
        modified |= node.attributes.get_int("ceil_mode", 0) == 0 and set_attribute(node, "count_include_pad", 0)
    shape = dims(node.inputs[0])
    if node.attributes.get_int("ceil_mode", 0) and shape is not None:
        reached = [_reach(node, k, size) for k, size in enumerate(shape[2:])]
        known = [found for found in reached if found is not None]
        over = [reach for reach, _ in known]
        if len(known) == len(reached) and not any(over):
            modified |= set_attribute(node, "ceil_mode", 0)
        elif len(known) == len(reached) and any(dropped for _, dropped in known):
            modified |= _pad_last_windows(node, over)
    return modified


def _reach(node: ir.Node, axis: int, size: int | None) -> tuple[int, bool] | None:
    """What rounding up does along an axis, None if that is not known.

    Returns:
        How far the last window reaches over the padded map, and whether a window more starts behind the map, which
        runtimes do not count.
    """
    window = node.attributes.get_ints("kernel_shape") or ()
    pads = integers(node, "pads", [0] * (2 * len(window)))
    stride = integers(node, "strides", [1] * len(window))[axis]
    dilation = integers(node, "dilations", [1] * len(window))[axis]
    if stride == 1:
        return 0, False
    if size is None:
        return None
    spare = size + pads[axis] + pads[len(window) + axis] - (window[axis] - 1) * dilation - 1
    start = -(-spare // stride) * stride
    if spare % stride == 0:
        return 0, False
    return (0, True) if start >= size + pads[axis] else (start - spare, False)


def _pad_last_windows(node: ir.Node, extra: list[int]) -> bool:
    """``Pool(x, ceil_mode=1) = Pool(x, pads)`` with what the last windows reach over the map as padding behind it."""
    window = node.attributes.get_ints("kernel_shape") or ()
    pads = integers(node, "pads", [0] * (2 * len(window)))
    counted = node.attributes.get_int("count_include_pad", 0)
    ends = [pads[len(window) + k] + more for k, more in enumerate(extra)]
    if node.attributes.get_string("auto_pad", "NOTSET") != "NOTSET" or (counted and any(pads)):
        return False
    if any(end >= size for end, size in zip(ends, window, strict=True)):
        return False  # more padding than runtimes take
    set_attribute(node, "pads", [*pads[: len(window)], *ends])
    if counted:
        set_attribute(node, "count_include_pad", 0)
    return set_attribute(node, "ceil_mode", 0)
