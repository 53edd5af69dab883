"""Any model as a PyTorch module: legalised, converted by onnx2torch, checked."""

from __future__ import annotations

import keyword
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from onnxfix.errors import ExportError, MissingDependencyError
from onnxfix.frameworks.agreement import disagreement
from onnxfix.frameworks.example_inputs import accepted_feeds, random_feeds
from onnxfix.frameworks.torch_call import outputs_of, to_array, to_tensor
from onnxfix.frameworks.torch_lowering import quiet
from onnxfix.frameworks.torch_static import make_static
from onnxfix.frameworks.torchvision_ops import ensure_torchvision_importable

if TYPE_CHECKING:
    from onnxfix.frameworks import Feeds
    from onnxfix.model import Model


def by_onnx2torch(model: Model, feeds: Feeds | None) -> Any:
    """The legalised graph as a ``torch.fx.GraphModule`` in inference mode.

    Its graph inputs become positional arguments, under their own names where Python allows it; one output is a tensor,
    several a list in the model's order.
    """
    return converted(model.proto)


def by_onnx2torch_canonical(model: Model, feeds: Feeds | None) -> Any:
    """The same from the normal form, which has fewer ops, spelled in another way."""
    return converted(model.canonical)


def converted(proto: onnx.ModelProto, for_: str = "onnx2torch") -> Any:
    """Legalise a graph for a converter and convert it to a module, unchecked."""
    from onnxfix.canonical.legalization import legalize

    try:
        import torch  # noqa: F401

        ensure_torchvision_importable()
        import onnx2torch
    except ImportError as error:
        raise MissingDependencyError("onnx2torch", "pytorch", "writing a PyTorch model") from error
    legal = legalize(proto, for_)
    named = [i.name for i in legal.graph.input if i.name.isidentifier() and not keyword.iskeyword(i.name)]
    try:
        with quiet(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module = onnx2torch.convert(legal, save_input_names=len(named) == len(legal.graph.input))
    except NotImplementedError as error:
        raise ExportError(f"onnx2torch cannot express the model: {first_line(error)}.") from error
    except Exception as error:  # onnx2torch raises KeyError, ValueError, RuntimeError as it comes
        raise ExportError(
            f"onnx2torch fails on the model ({type(error).__name__}: {first_line(error)}): export it to onnx instead."
        ) from error
    return make_static(module).eval()


def check_module(model: Model, module: Any, inputs: Feeds | None = None) -> None:
    """Refuse a module that does not answer as the model does.

    Raises:
        ExportError: it fails, or answers differently.
    """
    for feeds in accepted_feeds(model, inputs):
        expected = model.run(feeds)
        actual = run_module(model, module, feeds)
        problem = disagreement(expected, dict(zip(expected, actual, strict=False)))
        if len(actual) != len(expected) or problem:
            raise ExportError(
                f"the PyTorch module answers differently from the model ({problem or 'number of outputs'}): "
                "export it to onnx instead."
            )


def run_module(model: Model, module: Any, feeds: Feeds) -> list[np.ndarray]:
    """What the module answers, in order."""
    import torch

    try:
        with torch.no_grad(), quiet():
            answer = module(*(to_tensor(feeds[spec.name]) for spec in model.inputs))
    except Exception as error:  # whatever a converted module raises
        raise ExportError(f"the PyTorch module fails on a random input: {first_line(error)}.") from error
    return [to_array(value) for value in outputs_of(answer)]


def save_module(model: Model, module: Any, path: Path) -> None:
    """Write the module: ``.pt2`` as an exported program, ``.onnx`` and others are refused.

    Raises:
        ExportError: another suffix, or torch.export cannot trace the module.
    """
    import torch

    if path.suffix.lower() != ".pt2":
        raise ExportError(f"a PyTorch model is exported as .pt2, not as {path.suffix or 'a file without suffix'}.")
    with quiet():
        torch.export.save(traced(model, module), str(path))


def traced(model: Model, module: Any) -> Any:
    """The module as an exported program, its first dimensions open where the model leaves them and the module can.

    Raises:
        ExportError: torch.export cannot trace the module.
    """
    import torch

    specs = model.inputs
    dynamic = tuple({0: torch.export.Dim.AUTO} if s.shape and not isinstance(s.shape[0], int) else None for s in specs)
    failure: Exception | None = None
    for batch, shapes in ((2, dynamic), (1, None)) if any(dynamic) else ((1, None),):
        arguments = tuple(to_tensor(value) for value in random_feeds(model, batch=batch).values())
        try:
            with quiet(), torch.no_grad():
                return torch.export.export(module, arguments, dynamic_shapes=shapes and (*shapes,), strict=False)
        except Exception as error:  # torch.export raises everything from ValueError to AssertionError
            failure = error
    raise ExportError(f"torch.export cannot trace the PyTorch module: {first_line(failure)}.") from failure


def first_line(error: Exception | None) -> str:
    """The first line of an error's text."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".:")[:300] if lines else type(error).__name__
