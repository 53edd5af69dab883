"""Which operators of a model onnxruntime does not know."""

from __future__ import annotations

from functools import cache

import onnx

_STANDARD = ("", "ai.onnx")


def unknown_ops(proto: onnx.ModelProto) -> dict[str, str]:
    """Operators that onnxruntime has no definition of, so that no graph with them runs.

    Canonicalization and fingerprints leave such nodes as they are.

    Returns:
        ``domain:Op`` -> name of the first node of it, in the order of the graph.
    """
    own = {(function.domain, function.name) for function in proto.functions}
    found: dict[str, str] = {}
    nodes = [*proto.graph.node, *(node for function in proto.functions for node in function.node)]
    for node in nodes:  # grows by the nodes of bodies
        domain = "" if node.domain in _STANDARD else node.domain
        if (domain, node.op_type) not in own and (domain, node.op_type) not in _known():
            found.setdefault(f"{domain or 'ai.onnx'}:{node.op_type}", node.name)
        for attribute in node.attribute:
            for body in (attribute.g, *attribute.graphs):
                nodes.extend(body.node)
    return found


@cache
def _known() -> frozenset[tuple[str, str]]:
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    schemas = (*state.get_all_operator_schema(), *onnx.defs.get_all_schemas())
    return frozenset(("" if schema.domain in _STANDARD else schema.domain, schema.name) for schema in schemas)
