"""Ops whose definition in the ONNX standard is a graph of simpler ops become that graph."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import onnx
import onnx.inliner

from onnxfix.errors import CanonicalizationError


def inlined(proto: onnx.ModelProto, ops: Collection[str]) -> onnx.ModelProto:
    """The model with the ops of these types written out, or itself where it has none."""
    version = next((entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")), 1)
    used = {node.op_type for node in proto.graph.node if node.domain in ("", "ai.onnx")} & set(ops)
    written_out = [("", op) for op in sorted(used) if _is_defined(op, version)]
    if not written_out:
        return proto
    try:
        return onnx.inliner.inline_selected_functions(proto, written_out, inline_schema_functions=True)
    except RuntimeError as error:  # the inliner asserts that it knows all types
        ops_named = ", ".join(op for _, op in written_out)
        raise CanonicalizationError(f"{ops_named} cannot be written out as simpler ops: {error}") from error


def _is_defined(op: str, version: int) -> bool:
    try:
        schema: Any = onnx.defs.get_schema(op, version)  # its stubs leave the two properties out
    except onnx.defs.SchemaError:
        return False
    return bool(schema.has_function or schema.has_context_dependent_function)
