"""What a diagnosis says: faults and the result that holds them."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np

from onnxfix.compare import Comparison
from onnxfix.diagnose.evidence import Evidence


class FaultKind(StrEnum):
    """The kinds of conversion fault (``docs/faults.md`` explains each)."""

    PREPROCESSING = "preprocessing"
    INPUT_DIMENSIONS = "input_dimensions"
    TENSOR_LAYOUT = "tensor_layout"
    WEIGHTS = "weights"
    HYPERPARAMETERS = "hyperparameters"
    GRAPH = "graph"
    PRECISION = "precision"
    OUTPUT = "output"
    MODE = "mode"
    CONVERSION = "conversion"


@dataclass(frozen=True, eq=False)
class Fault:
    """One conversion fault.

    Attributes:
        kind: Which kind.
        target_nodes: Guilty nodes of the target: names in its lowered ONNX, then native layer paths where known. For
            a missing node, the node after which it is missing.
        source_nodes: The source's counterparts, named the same way.
        parameter: The guilty tensor (lowered name) or attribute, or None.
        source_parameter: The source's counterpart of ``parameter``, or None.
        native_parameter: The target framework's own name of ``parameter``, where it has one.
        expected: The value that the source has (an array, an attribute value, or op names).
        actual: The value that the target has.
        local_error: max|d| / max|source| of the region alone, fed with the source's activations.
        noise: The same number for float noise alone.
        message: One plain sentence.
        evidence: What shows it; see :meth:`reproducer`.
    """

    kind: FaultKind
    target_nodes: tuple[str, ...]
    source_nodes: tuple[str, ...]
    parameter: str | None
    expected: Any
    actual: Any
    local_error: float
    message: str
    source_parameter: str | None = None
    native_parameter: str | None = None
    noise: float = 0.0
    evidence: Evidence = field(default_factory=Evidence, repr=False)

    def reproducer(self, folder: str | Path) -> Path:
        """Write a folder that shows the fault by itself, ready for a converter's issue tracker.

        It holds the smallest ONNX that shows it (``model.onnx``; ``reference.onnx`` is what the source has there),
        ``inputs.npz``, ``expected.npz``, ``reproduce.py``, which needs numpy and onnxruntime only and exits 1 while the
        fault is there, and ``README.md``, the text of an issue.

        Args:
            folder: Where to write; it is made, and must be empty.

        Returns:
            The folder.

        Raises:
            ExportError: the folder is not empty or cannot be written.
            OnnxFixError: the fault was not found by a diagnosis.
        """
        from onnxfix.diagnose.reproducer import write_reproducer

        return write_reproducer(self, Path(folder))

    def to_dict(self) -> dict[str, Any]:
        """The fault as plain JSON data; arrays are summarised."""
        return {
            "kind": str(self.kind),
            "target_nodes": list(self.target_nodes),
            "source_nodes": list(self.source_nodes),
            "parameter": self.parameter,
            "source_parameter": self.source_parameter,
            "native_parameter": self.native_parameter,
            "expected": plain(self.expected),
            "actual": plain(self.actual),
            "local_error": self.local_error,
            "noise": self.noise,
            "message": self.message,
        }

    def __repr__(self) -> str:
        return f"Fault({self.kind}: {self.message})"


@dataclass(frozen=True, eq=False)
class Diagnosis:
    """Which conversion faults make the target differ from the source.

    Attributes:
        faults: Ranked, the largest local error first.
        aligned: Fraction of the target's canonical nodes that have a counterpart in the source, 0..1.
        comparison: The whole models, compared on the data.
        notes: Findings that are no fault of the target, one sentence each (a runtime's own fault, for example).
        risks: Differences that these data hide and others would show, such as a bound that no value reached; their
            ``local_error`` is what values beyond the data show.
    """

    faults: tuple[Fault, ...]
    aligned: float
    comparison: Comparison
    notes: tuple[str, ...] = field(default=())
    risks: tuple[Fault, ...] = field(default=())

    @property
    def remarks(self) -> tuple[str, ...]:
        """What is no fault and still worth a sentence: the notes, then the risks."""
        return (*self.notes, *(f"Risk: {risk.message}" for risk in self.risks))

    def to_dict(self) -> dict[str, Any]:
        """The diagnosis as plain JSON data."""
        return {
            "faults": [fault.to_dict() for fault in self.faults],
            "aligned": self.aligned,
            "comparison": self.comparison.to_dict(),
            "notes": list(self.notes),
            "risks": [risk.to_dict() for risk in self.risks],
        }

    def __repr__(self) -> str:
        found = "no faults" if not self.faults else f"{len(self.faults)} faults, first: {self.faults[0].message}"
        return f"Diagnosis({found}; {self.comparison!r})"

    def _repr_html_(self) -> str:
        from onnxfix.report.html import diagnosis_html

        return diagnosis_html(self)


def plain(value: Any) -> Any:
    """JSON-ready form of an expected/actual value; arrays are summarised by shape, dtype and range."""
    if isinstance(value, np.ndarray):
        if value.size <= 16:
            return value.tolist()
        return {
            "shape": list(value.shape),
            "dtype": str(value.dtype),
            "min": float(value.min()),
            "max": float(value.max()),
            "mean": float(value.mean()),
        }
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return value
