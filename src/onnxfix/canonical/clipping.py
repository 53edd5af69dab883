"""Relu, Relu6, Min, Max and Clip: one Clip with scalar bounds, Relu where the bounds are 0 and none."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxfix.canonical.queries import is_float, nodes_of, producer, used_once
from onnxfix.canonical.rewriting import Editor, array, is_constant

_OPS = ("Clip", "Relu", "Min", "Max")


class SpellClips(ir.passes.InPlacePass):
    """Everything that keeps a float between two constants is one Clip.

    - ``Max(x, a) = Clip(x, a, none)``, ``Min(x, b) = Clip(x, none, b)`` for single numbers a, b
    - ``Clip(Clip(x, a, b), c, d) = Clip(x, clip(a, c, d), clip(b, c, d))``; Relu counts as ``Clip(x, 0, none)``
    - ``Clip(x, 0, none) = Relu(x)``; a bound that no finite number of the type exceeds is none
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Respell."""
        editor = Editor(model.graph)
        for node in nodes_of(model.graph, *_OPS):
            interval = _interval(node)
            inner = None if interval is None else producer(interval.value, *_OPS)
            below = _interval(inner) if inner is not None and used_once(inner.outputs[0]) else None
            if interval is None or (interval.low is None and interval.high is None):
                continue
            if inner is not None and below is not None:
                _write(editor, [inner, node], _intersection(below, interval))
            elif not _spelled(node, interval):
                _write(editor, [node], interval)
        return ir.passes.PassResult(model, editor.modified)


@dataclass(frozen=True)
class _Interval:
    """A value and the constants it is kept between; a bound that is a plain 0.0 is one that no constant stands for."""

    value: ir.Value
    low: ir.Value | float | None
    high: ir.Value | float | None


def _interval(node: ir.Node) -> _Interval | None:
    """What a node clips, or None if it does not clip a float with single numbers."""
    value = node.inputs[0]
    if value is None or not is_float(value):
        return None
    if node.op_type == "Relu":
        return _Interval(value, 0.0, None)
    if node.op_type == "Clip":
        low, high = (node.inputs[k] if len(node.inputs) > k else None for k in (1, 2))
        if is_constant(value) or any(b is not None and not _is_number(b) for b in (low, high)):
            return None
        return _Interval(value, _meant(low), _meant(high))
    if len(node.inputs) != 2:
        return None
    numbers = [v for v in node.inputs if v is not None and _is_number(v)]
    variables = [v for v in node.inputs if v is not None and not is_constant(v)]
    if len(numbers) != 1 or len(variables) != 1 or variables[0].shape is None:
        return None
    if len(numbers[0].shape or ()) > len(variables[0].shape):
        return None
    bound = _meant(numbers[0])
    return _Interval(variables[0], bound, None) if node.op_type == "Max" else _Interval(variables[0], None, bound)


def _is_number(value: ir.Value) -> bool:
    content = array(value)
    return content is not None and content.size == 1 and not np.isnan(content).any()


def _meant(bound: ir.Value | None) -> ir.Value | None:
    """A bound, or None if every finite number is within it."""
    content = array(bound)
    if content is None or np.abs(content.astype(np.float64)).item() >= float(np.finfo(content.dtype).max):
        return None
    return bound


def _number(bound: ir.Value | float | None, missing: float) -> float:
    if isinstance(bound, ir.Value):
        content = array(bound)
        return missing if content is None else float(content.reshape(-1)[0])
    return missing if bound is None else bound


def _spelled(node: ir.Node, interval: _Interval) -> bool:
    """Whether a node is already the form wanted."""
    if node.op_type == "Relu":
        return True
    if node.op_type != "Clip" or (interval.high is None and _number(interval.low, 1.0) == 0):
        return False
    given = [v for v in node.inputs[1:] if v is not None]
    kept = [b for b in (interval.low, interval.high) if b is not None]
    return bool(kept) and len(given) == len(kept) and all(len(v.shape or ()) == 0 for v in given)


def _intersection(below: _Interval, above: _Interval) -> _Interval:
    """One interval that does what two in a row do: the later one has the last word."""
    low = _clipped(below.low, -np.inf, above)
    high = _clipped(below.high, np.inf, above)
    return _Interval(below.value, low, high)


def _clipped(
    bound: ir.Value | float | None, missing: float, above: _Interval
) -> ir.Value | float | None:
    number = _number(bound, missing)
    if number > _number(above.high, np.inf):
        return above.high
    if number < _number(above.low, -np.inf):
        return above.low
    return bound


def _write(editor: Editor, nodes: list[ir.Node], interval: _Interval) -> None:
    """Replace nodes, the last of which is the result, by one that keeps a value in an interval."""
    last = nodes[-1]
    if interval.low is None and interval.high is None:
        editor.replace(last.outputs[0], interval.value)
    elif interval.high is None and _number(interval.low, 1.0) == 0:
        editor.replace(last.outputs[0], editor.node("Relu", [interval.value], like=nodes, before=last).outputs[0])
    else:
        bounds = [_constant(editor, b, interval.value) for b in (interval.low, interval.high)]
        clip = editor.node("Clip", [interval.value, *(bounds if bounds[1] else bounds[:1])], like=nodes, before=last)
        editor.replace(last.outputs[0], clip.outputs[0])
    editor.remove(reversed(nodes))


def _constant(editor: Editor, bound: ir.Value | float | None, like: ir.Value) -> ir.Value | None:
    if bound is None or like.dtype is None:
        return None
    if not isinstance(bound, ir.Value):
        return editor.literal(np.asarray(bound, like.dtype.numpy()))
    if len(bound.shape or ()) == 0:
        return bound
    return editor.constant("Reshape", bound, editor.literal(np.array([], np.int64)))
