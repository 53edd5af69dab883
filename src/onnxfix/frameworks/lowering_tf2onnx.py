"""Driving tf2onnx without any of its optimisers, with its known wrong lowerings mended.

tf2onnx is used for what it is good at, the mapping of single operators. Its optimiser is never run: it takes 95 % of
the time and folds the native parameters away.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import onnx

from onnxfix.errors import LoweringError, MissingDependencyError
from onnxfix.frameworks.quiet import muted, quiet

OPSET = 18


def require(extra: str, purpose: str) -> None:
    """Import TensorFlow and tf2onnx, quietly.

    Raises:
        MissingDependencyError: one of them is not installed.
    """
    for module in ("tensorflow", "tf2onnx"):
        if sys.modules.get(module) is not None:
            continue
        try:
            with quiet(), muted():
                importlib.import_module(module)
        except ImportError as error:
            raise MissingDependencyError(module, extra, purpose) from error


def to_onnx(main: Any, subgraphs: Iterable[Any], *, tflite: bool, what: str) -> onnx.ModelProto:
    """Map the operators of tf2onnx graphs to ONNX and return the model as it comes.

    Args:
        main: The ``tf2onnx.graph.Graph`` of the model.
        subgraphs: Those of its control-flow bodies.
        tflite: The operators are TFLite's, not TensorFlow's.
        what: The model, for messages.

    Raises:
        LoweringError: an operator has no ONNX form.
    """
    from tf2onnx import tfonnx, utils

    from onnxfix.frameworks.mended_ops import claim, handlers

    subgraphs = list(subgraphs)
    for graph in (main, *subgraphs):
        graph.set_config(None, OPSET, None)
        claim(graph)
    try:
        graph = tfonnx.process_graphs(
            main, subgraphs, custom_op_handlers=handlers(), inputs_as_nchw=[], outputs_as_nchw=[],
            continue_on_error=False, custom_rewriter=None, initialized_tables={}, tensors_to_rename=None,
            is_tflite=tflite,
        )
        proto: onnx.ModelProto = graph.make_model(what)
    except Exception as error:  # tf2onnx raises whatever its handlers stumble over
        raise LoweringError(f"{what} has no ONNX form: {first_line(error)}.") from error
    _check_operators(proto, what)
    _drop_unused_opsets(proto)
    _standard_resize(proto)
    _plain_identities(proto)
    _name_batch(proto)
    utils.INTERNAL_NAME = 1  # so that the names of the next model do not depend on this one
    return proto


def first_line(error: BaseException) -> str:
    """The first line of an exception's text, or its type where it has none."""
    text = str(error).strip()
    return text.splitlines()[0].rstrip(".") if text else type(error).__name__


def owners(
    proto: onnx.ModelProto, native_values: Mapping[str, str], by_name: Callable[[str], str | None] | None = None
) -> dict[str, str]:
    """Say which native operator each lowered node belongs to.

    A node belongs to the operator that computes the first native value at or after it: a lowering turns one operator
    into a small tree of nodes whose last one carries the operator's output name.

    Args:
        proto: The lowered model.
        native_values: Value name -> native operator that computes it.
        by_name: Optional rule that recognises a node's operator from the node's own name; asked first.

    Returns:
        Node name -> native operator, for the nodes where it is known.
    """
    found: dict[str, str] = {}
    wanted: dict[str, str] = {}
    for node in reversed(proto.graph.node):
        owner = next((native_values[o] for o in node.output if o in native_values), None)
        owner = owner or (by_name(node.name) if by_name else None) or native_values.get(strip_counter(node.name))
        owner = owner or next((wanted[o] for o in node.output if o in wanted), None)
        if owner is None:
            continue
        found[node.name] = owner
        for name in node.input:
            wanted.setdefault(name, owner)
    makers = {output: found[node.name] for node in proto.graph.node if node.name in found for output in node.output}
    for node in proto.graph.node:  # what hangs behind the last native value, such as an Identity for an output
        owner = next((makers[name] for name in node.input if name in makers), None)
        if node.name not in found and owner is not None:
            found[node.name] = owner
            makers.update(dict.fromkeys(node.output, owner))
    return found


def strip_counter(name: str) -> str:
    """A tf2onnx node or value name without the ``__12`` counters and ``:0`` ports that tf2onnx appends."""
    return re.sub(r"(__\d+|:\d+)+$", "", name)


def operator_of(name: str, operators: Container[str]) -> str | None:
    """The native operator that a lowered node's name begins with: ``dense/MatMul_Gemm__6`` is ``dense/MatMul``."""
    name = strip_counter(name)
    while name and name not in operators:
        name = name.rpartition("_")[0] if "_" in name.rpartition("/")[2] else ""
    return name or None


def same_content(tensor: onnx.TensorProto, value: np.ndarray) -> bool:
    """Whether an initializer holds exactly ``value`` (shape, dtype and bytes)."""
    array = onnx.numpy_helper.to_array(tensor)
    return array.shape == value.shape and array.dtype == value.dtype and array.tobytes() == value.tobytes()


def subgraphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """A graph and all graphs inside its nodes."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from subgraphs(attribute.g)


def rename_values(graph: onnx.GraphProto, renames: Mapping[str, str]) -> None:
    """Rename values wherever they are written or read, in place."""
    for part in subgraphs(graph):
        for node in part.node:
            for values in (node.input, node.output):
                for index, name in enumerate(values):
                    values[index] = renames.get(name, name)
        for value in (*part.input, *part.output, *part.initializer, *part.value_info):
            value.name = renames.get(value.name, value.name)


def _check_operators(proto: onnx.ModelProto, what: str) -> None:
    """With an operator it does not know, tf2onnx only logs an error and leaves the native operator in the graph."""
    unknown = sorted({
        node.op_type for graph in subgraphs(proto.graph) for node in graph.node
        if not node.domain and not onnx.defs.has(node.op_type)
    })
    if unknown:
        raise LoweringError(f"{what} has no ONNX form: tf2onnx cannot lower the operator {', '.join(unknown)}.")


def _standard_resize(proto: onnx.ModelProto) -> None:
    """Spell TensorFlow's nearest-neighbour rule without the mode that ONNX deprecated in opset 13.

    ``floor((i + 0.5) / scale)`` is ``half_pixel`` rounded with ties upwards.
    """
    for graph in subgraphs(proto.graph):
        for node in graph.node:
            for attribute in node.attribute:
                if node.op_type == "Resize" and attribute.s == b"tf_half_pixel_for_nn":
                    attribute.s = b"half_pixel"
                    mode = next(a for a in node.attribute if a.name == "nearest_mode")
                    mode.s = b"round_prefer_ceil"


def _plain_identities(proto: onnx.ModelProto) -> None:
    """Take the second operand off Identity nodes; tf2onnx leaves a shape there for its optimiser to sweep up."""
    for graph in subgraphs(proto.graph):
        for node in graph.node:
            if node.op_type == "Identity":
                del node.input[1:]


def _drop_unused_opsets(proto: onnx.ModelProto) -> None:
    used = {node.domain for graph in subgraphs(proto.graph) for node in graph.node} | {""}
    kept = [opset for opset in proto.opset_import if opset.domain in used]
    del proto.opset_import[:]
    proto.opset_import.extend(kept)


def _name_batch(proto: onnx.ModelProto) -> None:
    """Call the unknown leading dimension of the inputs ``batch`` instead of tf2onnx's ``unk__17``."""
    for info in proto.graph.input:
        dims = info.type.tensor_type.shape.dim
        if dims and not dims[0].HasField("dim_value"):
            dims[0].dim_param = "batch"
