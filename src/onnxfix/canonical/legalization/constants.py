"""Constants as plain Python numbers."""

from __future__ import annotations

import onnx_ir as ir

from onnxfix.canonical.rewriting import array
from onnxfix.errors import CanonicalizationError


def ints_of(value: ir.Value | None) -> list[int] | None:
    """The integers in a constant, or None if it is not one."""
    content = array(value)
    return None if content is None else [int(n) for n in content.reshape(-1)]


def require_ints(node: ir.Node, slot: int) -> list[int] | None:
    """The integers in a constant operand; None if the node does without it.

    Raises:
        CanonicalizationError: the operand is computed.
    """
    value = node.inputs[slot] if len(node.inputs) > slot else None
    if value is None:
        return None
    found = ints_of(value)
    if found is None:
        raise CanonicalizationError(f"{node.name}: {node.op_type} takes a computed {value.name}, which must be fixed.")
    return found
