"""CastLike is Cast, and of two casts in a row only one counts where the first loses nothing."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxfix.canonical.queries import FLOATS, NUMBERS, nodes_of, producer
from onnxfix.canonical.rewriting import Editor

# Whole numbers of at most so many bits are exact in a float type.
_EXACT = {ir.DataType.FLOAT16: 8, ir.DataType.FLOAT: 16, ir.DataType.DOUBLE: 32}


class SpellCasts(ir.passes.InPlacePass):
    """One spelling for changes of type.

    - ``CastLike(x, y) = Cast(x, to=dtype of y)`` where that dtype is known; PyTorch casts every bound so
    - ``Cast(Cast(x, a), b) = Cast(x, b)`` where type a holds every value of x exactly; not from floats to whole
      numbers, which runtimes round off in their own ways where they do not fit
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Respell."""
        editor = Editor(model.graph)
        for node in nodes_of(model.graph, "CastLike"):
            value, like = node.inputs
            if value is None or like is None or like.dtype is None:
                continue
            _cast(editor, node, value, int(like.dtype), [node])
        for node in nodes_of(model.graph, "Cast"):
            inner = producer(node.inputs[0], "Cast")
            value = None if inner is None else inner.inputs[0]
            if inner is None or value is None or not _keeps(value.dtype, inner.outputs[0].dtype):
                continue
            target = ir.DataType(node.attributes.get_int("to", 0))
            if target not in NUMBERS or (value.dtype in FLOATS and target not in FLOATS):
                continue
            _cast(editor, node, value, int(target), [node, inner])
        return ir.passes.PassResult(model, editor.modified)


def _cast(editor: Editor, node: ir.Node, value: ir.Value, to: int, like: list[ir.Node]) -> None:
    cast = editor.node("Cast", [value], like=like, before=node,
                       attributes={"to": to, "saturate": node.attributes.get_int("saturate", 1)})
    editor.replace(node.outputs[0], cast.outputs[0])
    editor.remove(like)


def _keeps(kind: ir.DataType | None, through: ir.DataType | None) -> bool:
    """Whether a type holds every value of another one exactly."""
    if kind is None or through is None or kind not in NUMBERS or through not in NUMBERS:
        return False
    if through == ir.DataType.BOOL or kind == ir.DataType.BOOL:
        return kind == ir.DataType.BOOL
    if through in FLOATS and kind not in FLOATS:
        return kind.numpy().itemsize * 8 <= _EXACT.get(through, 0)
    return bool(np.can_cast(kind.numpy(), through.numpy(), "safe"))
