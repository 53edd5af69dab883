"""PyTorch and Keras models as ONNX by their frameworks' own exporters, where the mended lowering does not do."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from onnxfix.errors import ExportError
from onnxfix.frameworks.quiet import quiet

if TYPE_CHECKING:
    from onnxfix.frameworks import Feeds
    from onnxfix.model import Model

_TORCHSCRIPT_OPSET = 18


def by_torch_export(model: Model, feeds: Feeds | None) -> onnx.ModelProto:
    """A PyTorch model through ``torch.export``, decomposed into core ops, then optimised by the exporter."""
    import torch

    examples = _examples(model, feeds)
    shapes = ({0: torch.export.Dim.AUTO} if spec.shape and not isinstance(spec.shape[0], int) else None
              for spec in model.inputs)

    def attempt(module: Any) -> onnx.ModelProto:
        program = torch.export.export(module, examples, dynamic_shapes=(tuple(shapes),), strict=False)
        program = program.run_decompositions()  # ops that the exporter gets wrong as a whole come apart
        proto: onnx.ModelProto = torch.onnx.export(program, dynamo=True, verbose=False, external_data=False).model_proto
        return proto

    return _exported(model, attempt)


def by_torchscript(model: Model, feeds: Feeds | None) -> onnx.ModelProto:
    """A PyTorch model by tracing it."""
    import torch

    examples = _examples(model, feeds)
    open_axes = {spec.name: {0: "batch"} for spec in model.inputs if spec.shape and not isinstance(spec.shape[0], int)}

    def attempt(module: Any) -> onnx.ModelProto:
        buffer = io.BytesIO()
        torch.onnx.export(
            module, examples, buffer, dynamo=False, verbose=False, input_names=[spec.name for spec in model.inputs],
            dynamic_axes=open_axes, opset_version=_TORCHSCRIPT_OPSET,
        )
        return onnx.load_model_from_string(buffer.getvalue())

    return _exported(model, attempt)


def by_keras(model: Model, feeds: Feeds | None) -> onnx.ModelProto:
    """A Keras model by ``Model.export(format="onnx")``.

    Raises:
        ExportError: it cannot.
    """
    with tempfile.TemporaryDirectory(prefix="onnxfix-") as folder:
        path = Path(folder) / "model.onnx"
        try:
            with quiet():
                model.native.export(str(path), format="onnx", verbose=False)
        except Exception as error:  # Keras and tf2onnx raise whatever they stumble over
            raise ExportError(f"Keras cannot export the model: {_first_line(error)}.") from error
        return onnx.load(path)


def _examples(model: Model, feeds: Feeds | None) -> tuple[Any, ...]:
    """Tensors of the inputs' sizes; torch.export takes a size of one for a constant, so open ones are two or more."""
    from onnxfix.frameworks.torch_call import to_tensor

    tensors = []
    for spec in model.inputs:
        given = np.shape((feeds or {}).get(spec.name, ()))
        sizes = [
            size if isinstance(size, int) else max(2, given[axis] if axis < len(given) else 2)
            for axis, size in enumerate(spec.shape or ())
        ]
        tensors.append(to_tensor(np.zeros(sizes, spec.dtype)))
    return tuple(tensors)


def _exported(model: Model, attempt: Any) -> onnx.ModelProto:
    """Run an exporter on the model's module, and give the graph the model's own names."""
    import torch

    from onnxfix.frameworks.pytorch import positional
    from onnxfix.frameworks.torch_lowering import quiet as quiet_torch
    from onnxfix.frameworks.torch_lowering import renamed

    try:
        with quiet_torch(), torch.no_grad():
            proto = attempt(positional(model))
    except Exception as error:  # torch's exporters raise everything from ValueError to AssertionError
        raise ExportError(f"torch.onnx cannot express the model: {_first_line(error)}.") from error
    return renamed(proto, [spec.name for spec in model.inputs])


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".:")[:300] if lines else type(error).__name__
