"""Adding nodes to tf2onnx's graphs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np


def const(graph: Any, value: Any) -> str:
    """Add a constant; its name."""
    from tf2onnx import utils

    array = np.asarray(value)
    name: str = graph.make_const(utils.make_name("const"), array).output[0]
    return name


def make(graph: Any, node: Any, op_type: str, inputs: Iterable[str], **attributes: Any) -> str:
    """Add a node with one output; the output's name."""
    name: str = graph.make_node(op_type, list(inputs), attr=attributes, op_name_scope=node.name).output[0]
    return name


def replace(graph: Any, node: Any, op_type: str, inputs: Iterable[str], **attributes: Any) -> None:
    """Put a node in the place, and under the name, of one that is lowered."""
    shapes, dtypes, outputs = node.output_shapes, node.output_dtypes, node.output
    graph.remove_node(node.name)
    graph.make_node(
        op_type, list(inputs), attr=attributes, name=node.name, outputs=outputs, shapes=shapes, dtypes=dtypes
    )
