"""One file per framework: recognise a model, lower it to ONNX, run it natively, write parameters back.

A framework is added by one file with one class that satisfies :class:`FrameworkAdapter`, announced under the entry
point group ``onnxfix.frameworks``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    import onnx

    from onnxfix.model import Model

Feeds = Mapping[str, np.ndarray]


class Framework(StrEnum):
    """The frameworks whose models onnxfix reads."""

    ONNX = "onnx"
    PYTORCH = "pytorch"
    KERAS = "keras"
    TENSORFLOW = "tensorflow"
    TFLITE = "tflite"


@dataclass(frozen=True)
class Lowered:
    """What an adapter makes of a native model.

    Attributes:
        proto: The raw ONNX graph, no optimiser run on it. Its graph inputs and outputs carry the native names, so the
            same feeds go to :meth:`FrameworkAdapter.run`. Native parameters are initializers.
        native: The framework's own object (``keras.Model``, ``nn.Module``, bytes of a ``.tflite``, ...).
        parameters: Lowered initializer name -> native parameter name, for every initializer that *is* a native
            parameter, verbatim (same shape and content), and so can be written back.
        layers: Lowered node name -> native layer path or operator name, where known.
        path: The file or directory the model was read from, or None for an in-memory object.
        held: Opened files that the proto's large tensors are kept in (see :mod:`onnxfix.mapped`).
    """

    proto: onnx.ModelProto
    native: Any
    parameters: Mapping[str, str] = field(default_factory=dict)
    layers: Mapping[str, str] = field(default_factory=dict)
    path: Path | None = None
    held: tuple[object, ...] = ()


class FrameworkAdapter(Protocol):
    """What onnxfix asks of a framework."""

    framework: Framework

    def recognises(self, obj: object) -> bool:
        """Say whether ``obj`` (a path or an in-memory object) is this framework's, without importing the framework."""
        ...

    def lower(self, obj: Any, inputs: Any = None) -> Lowered:
        """Lower ``obj`` to raw ONNX.

        Raises:
            LoadError: the object or file cannot be read.
            LoweringError: it was read but has no ONNX form.
            MissingDependencyError: the framework is not installed.
        """
        ...

    def run(self, model: Model, feeds: Feeds) -> dict[str, np.ndarray]:
        """Run the native model on ``feeds`` (by ``model.inputs`` names); answer by ``model.outputs`` names."""
        ...

    def activations(self, model: Model, feeds: Feeds) -> dict[str, np.ndarray]:
        """Native intermediate values by native name (the final outputs included)."""
        ...

    def with_parameters(self, model: Model, parameters: Mapping[str, np.ndarray]) -> Any:
        """Return a copy of ``model.native`` in which the named native parameters have the given values."""
        ...

    def save(self, model: Model, parameters: Mapping[str, np.ndarray], path: Path) -> None:
        """Write ``model`` to ``path`` in its native format (by suffix) with the named native parameters replaced.

        Everything else of the original file stays as it was. The caller hands a temporary path and renames it.

        Raises:
            ExportError: the format cannot express it.
        """
        ...


@cache
def adapters() -> tuple[FrameworkAdapter, ...]:
    """All installed adapters, in the order in which they are asked whether they recognise an object."""
    found: list[FrameworkAdapter] = [point.load()() for point in entry_points(group="onnxfix.frameworks")]
    order = list(Framework)
    return tuple(sorted(found, key=lambda a: order.index(a.framework)))


def adapter(framework: Framework) -> FrameworkAdapter:
    """The adapter of one framework."""
    return next(a for a in adapters() if a.framework == framework)
