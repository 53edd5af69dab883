"""ONNX models in memory: ``onnx.ModelProto`` and ``onnx_ir.Model``, checked; external data stay in their files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import onnx

from onnxfix import mapped
from onnxfix.errors import LoadError
from onnxfix.frameworks.onnx_tensors import check_tensor, external_file, tensors_of
from onnxfix.frameworks.onnx_validity import sound

if TYPE_CHECKING:
    import onnx_ir as ir


def from_proto(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Check a proto, which is left unchanged.

    Returns:
        The proto itself, or a copy where something had to be put right.

    Raises:
        LoadError: it is no valid model, or its external data were not loaded.
    """
    if not proto.HasField("graph"):
        raise LoadError("the ModelProto holds no graph: load it from a file, or build it with onnx.helper.make_model.")
    for tensor in tensors_of(proto):
        if mapped.is_reference(tensor):
            continue
        if mapped.is_external(tensor):
            raise LoadError(
                f"tensor {tensor.name} of the ModelProto lies in an external file that was not loaded: "
                "give the path of the .onnx file, or load the proto with its external data."
            )
        check_tensor(tensor, "the ModelProto")
    return sound(proto, "the ModelProto")


def from_ir(model: ir.Model) -> onnx.ModelProto:
    """Write an ``onnx_ir.Model`` as a proto and check it; large external tensors become references to their files.

    Raises:
        LoadError: it cannot be written as a proto, or is no valid model.
    """
    import onnx_ir

    constants = model.graph.initializers.values()
    outside = {v.name: v.const_value for v in constants if isinstance(v.const_value, onnx_ir.ExternalTensor)}
    try:
        if sum(tensor.nbytes for tensor in outside.values()) <= mapped.MAPPED_FROM:
            proto: onnx.ModelProto = onnx_ir.to_proto(onnx_ir.external_data.load_to_model(model.clone()))
            return sound(proto, "the onnx_ir.Model")
        proto = onnx_ir.to_proto(model)
    except (OSError, ValueError, TypeError, onnx_ir.serde.SerdeError) as error:
        raise LoadError(f"the onnx_ir.Model cannot be written as a ModelProto: {_innermost(error)}.") from error
    for tensor in proto.graph.initializer:
        source = outside.get(tensor.name)
        if source is not None:
            path = Path(source.base_dir or ".") / "model.onnx"
            file, offset = external_file(tensor, path) if source.base_dir else (Path(source.path), source.offset or 0)
            mapped.refer(tensor, mapped.opened(file), offset, mapped.byte_size(tensor))
    return sound(proto, "the onnx_ir.Model")


def _innermost(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
