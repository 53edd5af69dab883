"""CastLike is Cast."""

from __future__ import annotations

import onnx_ir as ir

from onnxfix.canonical.queries import nodes_of
from onnxfix.canonical.rewriting import Editor


class SpellCasts(ir.passes.InPlacePass):
    """``CastLike(x, y) = Cast(x, to=dtype of y)`` where that dtype is known; PyTorch casts every bound so."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Respell."""
        editor = Editor(model.graph)
        for node in nodes_of(model.graph, "CastLike"):
            value, like = node.inputs
            if value is None or like is None or like.dtype is None:
                continue
            cast = editor.node(
                "Cast", [value], like=[node], before=node,
                attributes={"to": int(like.dtype), "saturate": node.attributes.get_int("saturate", 1)},
            )
            editor.replace(node.outputs[0], cast.outputs[0])
            editor.remove([node])
        return ir.passes.PassResult(model, editor.modified)
