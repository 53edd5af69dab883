"""What onnx and onnxruntime say of a graph: are its ops known, do attributes, shapes and types fit together?"""

from __future__ import annotations

from functools import cache

import onnx

from onnxfix import mapped
from onnxfix.errors import LoadError, RuntimeFailure

STANDARD = ("", "ai.onnx")


def called(node: onnx.NodeProto) -> str:
    """How messages call a node."""
    return f"{node.name} ({node.op_type})" if node.name else f"{node.op_type} that makes {', '.join(node.output)}"


def version_of(proto: onnx.ModelProto) -> int:
    """The version of the standard domain that a model imports."""
    return next((e.version for e in proto.opset_import if e.domain in STANDARD), 1)


def ask_checker(proto: onnx.ModelProto, what: str) -> None:
    """Let onnx check ops and attributes, on a copy with constants as inputs: their data were checked before."""
    copy = mapped.skeleton(proto, lambda tensor: True)
    known = {i.name for i in copy.graph.input}
    for tensor in copy.graph.initializer:
        if tensor.name not in known:
            copy.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    del copy.graph.initializer[:]
    try:
        onnx.checker.check_model(copy)
    except onnx.checker.ValidationError as error:
        sentence = f"{what} is not a valid ONNX model: {_reason(error)}: export it again."
        raise LoadError(_unknown_op(proto, what) or sentence) from error
    except (ValueError, RuntimeError) as error:  # what protobuf and the C++ side say of damaged text
        raise LoadError(f"{what} cannot be written as an ONNX model, {_reason(error)}: export it again.") from error


def _unknown_op(proto: onnx.ModelProto, what: str) -> str | None:
    """The sentence for an op that the standard domain does not have; None where there is none."""
    version = version_of(proto)
    own = {(f.domain, f.name) for f in proto.functions}
    for node in proto.graph.node:
        if node.domain in STANDARD and ("", node.op_type) not in own and not has_op(node.op_type, version):
            return (
                f"{what} is not a valid ONNX model: opset {version} has no op {node.op_type} (node {called(node)}): "
                "put custom ops in a domain of their own, or export with another opset."
            )
    return None


@cache
def has_op(op: str, version: int) -> bool:
    """Whether a version of the standard domain has an op that is not deprecated."""
    try:
        return not onnx.defs.get_schema(op, version).deprecated
    except onnx.defs.SchemaError:
        return False


def refuse_contradictions(proto: onnx.ModelProto, what: str) -> None:
    """Refuse a model whose attributes, shapes and types contradict each other.

    onnx's own inference finds them, but errs (it rounds the sizes of a Resize otherwise): onnxruntime has the last say.

    Raises:
        LoadError: neither takes the model.
    """
    from onnxfix.runtime.session import Session

    copy = mapped.skeleton(proto, _is_large)
    known = {i.name for i in copy.graph.input}
    stubs = [tensor for tensor in copy.graph.initializer if _is_large(tensor)]
    small = [tensor for tensor in copy.graph.initializer if not _is_large(tensor)]
    copy.graph.input.extend(
        onnx.helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in stubs if t.name not in known
    )
    del copy.graph.initializer[:]
    copy.graph.initializer.extend(small)
    try:
        onnx.shape_inference.infer_shapes(copy, check_type=True, strict_mode=True, data_prop=True)
        return
    except (onnx.shape_inference.InferenceError, onnx.checker.ValidationError, RuntimeError, ValueError):
        pass  # the oracle decides
    try:
        Session(proto)
    except RuntimeFailure as error:
        if any(sign in str(error) for sign in _CONTRADICTIONS):
            reason = str(error).rpartition("FAIL : ")[2].rstrip(".")
            raise LoadError(f"{what} contradicts itself, {reason}: export it again.") from error


# What onnxruntime says of a model whose parts do not fit together (as opposed to one with ops it does not run).
_CONTRADICTIONS = ("ShapeInferenceError", "TypeInferenceError", "Type Error", "INVALID_GRAPH")
# Constants up to this many bytes are shown to inference: targets, axes, pads.
_SHOWN = 1024


def _is_large(tensor: onnx.TensorProto) -> bool:
    return mapped.is_external(tensor) or mapped.byte_size(tensor) > _SHOWN


def _reason(error: Exception) -> str:
    """The checker's first sentence, without its C++ source context."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].partition(". ")[0].rstrip(".:") if lines else "the checker refuses it"
