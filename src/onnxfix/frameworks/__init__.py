"""One file per framework: recognise a model, lower it to ONNX, run it natively, write patches back.

A framework is added by one file with one class that satisfies :class:`FrameworkAdapter`, announced under the entry
point group ``onnxfix.frameworks``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    from onnxfix.surgeon.patch import Patch

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

    def edited(self, model: Model, patches: Sequence[Patch]) -> Any:
        """The native model with all patches in it, everything else as it was; ``model.native`` stays as it is.

        Args:
            model: The model as it was loaded.
            patches: Patches of the lowered graph (``patch.lowered``), in the order in which they apply.

        Returns:
            The same kind of object or file content as ``model.native``, which :meth:`run` and :meth:`write` take.

        Raises:
            ExportError: which patch the framework cannot express in place, and why (see
                :func:`onnxfix.frameworks.writing.refusal`).
        """
        ...

    def write(self, model: Model, native: Any, path: Path) -> None:
        """Write a native object as a file, in the format that the suffix of ``path`` chooses.

        Args:
            model: The model as it was loaded; what its file holds beside ``native`` (metadata, signatures, assets,
                external data) is taken over where the format is the same.
            native: ``model.native``, or what :meth:`edited` made of it.
            path: A temporary path, which the caller renames when the file is complete and proved.

        Raises:
            ExportError: the suffix is none of the framework's, or the format cannot hold the object.
        """
        ...

    def read(self, path: Path) -> Any:
        """The native object of a file, not lowered, as :meth:`run` takes it.

        Raises:
            LoadError: the file cannot be read.
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
