"""One spelling for Flatten, Squeeze, Unsqueeze and Reshape: Reshape with a constant target, chains merged."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onnxfix.canonical.inference import infer_behind
from onnxfix.canonical.rewriting import Editor, array, attribute, is_op, live, producer
from onnxfix.canonical.symbolic import ShapeReader, Size, dims_from, product, sizes_of

_FAMILY = ("Reshape", "Flatten", "Squeeze", "Unsqueeze")


class SpellReshapes(ir.passes.InPlacePass):
    """``Flatten | Squeeze | Unsqueeze | Reshape(... Reshape(x)) -> Reshape(x, constant)``.

    The target holds a 0 where a dimension is kept in place and has a symbol (or is the first one), numbers where they
    are known, and at most one -1 for a size that is neither. What cannot be said so stays as it is.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Respell in topological order, so that chains merge in one walk."""
        editor = Editor(model.graph)
        for node in live(model.graph):
            if is_op(node, *_FAMILY):
                _respell(editor, node)
        return ir.passes.PassResult(model, editor.modified)


def _respell(editor: Editor, node: ir.Node) -> None:
    sizes = reshaped_sizes(node)
    if sizes is None:
        return
    _record(node.outputs[0], sizes)
    chain, source = [node], node.inputs[0]
    while (before := producer(source, *_FAMILY)) is not None and _can_skip(before, sizes):
        chain.append(before)
        source = before.inputs[0]
    shape = sizes_of(source)
    target = None if shape is None else constant_target(shape, sizes)
    if target is None or source is None:
        return
    old = array(node.inputs[1]) if node.op_type == "Reshape" else None
    if len(chain) == 1 and old is not None and old.dtype == np.int64 and list(old) == target:
        if attribute(node, "allowzero", 0):
            del node.attributes["allowzero"]
            editor.modified = True
        return
    new = editor.node(
        "Reshape", [source, editor.literal(np.asarray(target, dtype=np.int64), "shape")], like=chain, before=node
    )
    new.outputs[0].shape = node.outputs[0].shape
    editor.replace(node.outputs[0], new.outputs[0])
    editor.remove(chain)


def _can_skip(before: ir.Node, sizes: Sequence[Size]) -> bool:
    inner = sizes_of(before.inputs[0])
    return inner is not None and constant_target(inner, sizes) is not None


def _record(value: ir.Value, sizes: Sequence[Size]) -> None:
    """Remember what is known of the shape, where that is more than was known."""
    if value.is_graph_output() and value.shape is not None:
        return
    found = dims_from(sizes)
    if value.shape is None or len(value.shape) != len(found):
        value.shape = found
        return
    merged = [new if isinstance(new, int) or new.value is not None else old
              for new, old in zip(found, value.shape, strict=True)]
    thawed = any(isinstance(old, int) and new != old for new, old in zip(merged, value.shape, strict=True))
    value.shape = ir.Shape(merged)
    if thawed:
        infer_behind(value)


def reshaped_sizes(node: ir.Node, reader: ShapeReader | None = None) -> list[Size] | None:
    """The shape that a node of the reshape family gives, or None."""
    shape = sizes_of(node.inputs[0])
    if shape is None:
        return None
    if node.op_type == "Flatten":
        axis = attribute(node, "axis", 1)
        axis = axis + len(shape) if axis < 0 else axis
        return [product(shape[:axis]), product(shape[axis:])]
    operand = node.inputs[1] if len(node.inputs) > 1 else None
    if node.op_type == "Reshape":
        content = (reader or ShapeReader()).read(operand)
        if content is None or None in content.sizes:
            return None
        return _resolved(shape, [s for s in content.sizes if s is not None], bool(attribute(node, "allowzero", 0)),
                         f"{node.outputs[0].name}")
    axes = array(operand)
    if node.op_type == "Squeeze":
        return _squeezed(shape, axes if operand is not None else None, known=operand is None or axes is not None)
    return None if axes is None else _unsqueezed(shape, [int(a) for a in np.atleast_1d(axes)])


def _squeezed(shape: list[Size], axes: np.ndarray | None, known: bool) -> list[Size] | None:
    if not known:
        return None
    if axes is None:
        if any(size.number is None for size in shape):
            return None
        return [size for size in shape if size.number != 1]
    gone = {int(a) % len(shape) for a in np.atleast_1d(axes)}
    return [size for k, size in enumerate(shape) if k not in gone]


def _unsqueezed(shape: list[Size], axes: list[int]) -> list[Size]:
    count = len(shape) + len(axes)
    new = {a % count for a in axes}
    rest = iter(shape)
    return [Size(1) if k in new else next(rest) for k in range(count)]


def _resolved(shape: list[Size], target: list[Size], allowzero: bool, name: str) -> list[Size] | None:
    """Resolve the zeros and the -1 of a Reshape target."""
    sizes: list[Size] = []
    for k, size in enumerate(target):
        if size.number == 0 and not allowzero:
            if k >= len(shape):
                return None
            sizes.append(shape[k])
        else:
            sizes.append(size)
    inferred = [k for k, size in enumerate(sizes) if size.number == -1]
    if len(inferred) > 1:
        return None
    if inferred:
        rest = product([size for k, size in enumerate(sizes) if k not in inferred])
        quotient = product(shape).over(rest) if rest.number != 0 else _opposite(shape, sizes, inferred[0])
        sizes[inferred[0]] = Size(1, (f"{name}#{inferred[0]}",)) if quotient is None else quotient
    return _thawed(shape, sizes)


def _opposite(shape: list[Size], sizes: list[Size], place: int) -> Size | None:
    """What a -1 stands for where nothing is left to divide: the size that the axes around it leave over.

    Runtimes refuse such a target, so that it can only come from axes that were added or taken out.
    """
    old = [size for size in shape if size.number != 1]
    new = [k for k, size in enumerate(sizes) if size.number != 1]
    return old[new.index(place)] if len(old) == len(new) else None


def _thawed(shape: list[Size], sizes: list[Size]) -> list[Size]:
    """Undo a batch frozen into a target: ``[N, 7] -> [1, 7]`` only works where N is 1, and there it is ``[N, 7]``."""
    if not shape or not sizes or len(shape[0].symbols) != 1 or sizes[0].number is None:
        return sizes
    rest, others = product(shape[1:]), product(sizes[1:])
    return [shape[0], *sizes[1:]] if rest == others and rest.factor else sizes


def constant_target(shape: Sequence[Size], sizes: Sequence[Size]) -> list[int] | None:
    """The Reshape target that turns ``shape`` into ``sizes`` for every value of the symbols, or None."""
    target: list[int] = []
    for k, size in enumerate(sizes):
        kept = k < len(shape) and shape[k] == size
        if kept and (size.number is None or k == 0):
            target.append(0)
        elif size.number is not None and size.number > 0:
            target.append(size.number)
        elif size.number is None:
            target.append(-1)
        else:
            return None
    if target.count(-1) > 1:
        return None
    if -1 in target:
        # The -1 must come out as the size meant: that needs no proof, since element counts agree by construction.
        fixed = product([s for t, s in zip(target, sizes, strict=True) if t != -1])
        if fixed.number == 0:
            return None
    return target
