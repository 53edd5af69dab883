"""Put nodes and constants together into a runnable model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import onnx
from onnx import numpy_helper

from onnxfix.align.graph import GraphView

Constant = onnx.TensorProto | np.ndarray


def assemble(
    like: onnx.ModelProto,
    nodes: Iterable[onnx.NodeProto],
    constants: Mapping[str, Constant],
    inputs: Mapping[str, int],
    outputs: Iterable[str],
) -> onnx.ModelProto:
    """Build a model.

    Args:
        like: Where opset imports, IR version and functions come from.
        nodes: In topological order.
        constants: Name -> content.
        inputs: Name -> ONNX element type; shapes are left open.
        outputs: Names, kept in order; those that no node makes, and repeats, leave under a name of their own.
    """
    model = onnx.ModelProto()
    model.ir_version = like.ir_version
    model.opset_import.extend(like.opset_import)
    model.functions.extend(like.functions)
    graph = model.graph
    graph.name = "assembled"
    graph.node.extend(nodes)
    graph.initializer.extend(_tensor(name, content) for name, content in constants.items())
    graph.input.extend(_open_value(name, kind) for name, kind in inputs.items())
    made = {o for node in graph.node for o in node.output}
    for k, name in enumerate(outputs):
        exposed = name
        if name not in made:
            exposed = f"{name}/out{k}"
            graph.node.append(onnx.helper.make_node("Identity", [name], [exposed]))
        made.discard(exposed)
        graph.output.append(_open_value(exposed, None))
    return model


def _tensor(name: str, content: Constant) -> onnx.TensorProto:
    if isinstance(content, np.ndarray):
        return numpy_helper.from_array(np.asarray(content, order="C"), name)
    if content.name == name:
        return content
    copy = onnx.TensorProto()
    copy.CopyFrom(content)
    copy.name = name
    return copy


def _open_value(name: str, kind: int | None) -> onnx.ValueInfoProto:
    info = onnx.ValueInfoProto()
    info.name = name
    if kind:
        info.type.tensor_type.elem_type = kind
    return info


def constants_read(view: GraphView, nodes: Iterable[onnx.NodeProto]) -> dict[str, onnx.TensorProto]:
    """The initializers of ``view`` that nodes read, values captured by subgraphs included."""
    from onnxfix.align.graph import captured

    return {
        value: view.tensor(value)
        for node in nodes
        for value in (*node.input, *captured(node))
        if value and view.is_constant(value)
    }
