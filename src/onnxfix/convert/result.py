"""What a conversion says and holds."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxfix.compare import Comparison
from onnxfix.frameworks import Framework
from onnxfix.model import Model

if TYPE_CHECKING:
    from onnxfix.repair import Repair


class Outcome(StrEnum):
    """How an attempt ended."""

    CONVERTED = "converted"
    """The file agrees with the source as the converter wrote it."""
    REPAIRED = "repaired"
    """The converter wrote a file that disagreed; repaired, it agrees."""
    DIFFERENT = "different"
    """The file disagrees with the source and could not be repaired."""
    UNUSABLE = "unusable"
    """The converter wrote a file that does not load or does not run."""
    FAILED = "failed"
    """The converter refused the model or crashed."""


@dataclass(frozen=True, eq=False)
class Attempt:
    """One converter that was tried.

    Attributes:
        converter: Which tools, for people.
        outcome: How it ended.
        message: What happened, one sentence.
        comparison: The source against the file, each in its own runtime, on the data, before any repair; None where
            there was nothing to compare.
        repair: The repair of the file, where one was tried.
    """

    converter: str
    outcome: Outcome
    message: str
    comparison: Comparison | None = None
    repair: Repair | None = None

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON data."""
        return {
            "converter": self.converter,
            "outcome": str(self.outcome),
            "message": self.message,
            "comparison": None if self.comparison is None else self.comparison.to_dict(),
            "repair": None if self.repair is None else self.repair.to_dict(),
        }

    def __repr__(self) -> str:
        return f"Attempt({self.converter}: {self.outcome})"


@dataclass(frozen=True, eq=False)
class Conversion:
    """A converted model and the proof, or what was tried in vain.

    Attributes:
        source: The model that was converted.
        to: The framework it was converted to.
        model: The converted model, as read from the written file; None where no converter made one that agrees.
        path: The file or directory that was written, or None.
        attempts: The converters that were tried, in order; the last one is the one that succeeded, if any did.
        repair: The repair that made it agree, or None where the converter needed none.
        verified: The source against the written file, each in its own runtime: on the data, or where it was repaired
            on held-out data. None where nothing was written.
    """

    source: Model
    to: Framework
    model: Model | None
    path: Path | None
    attempts: tuple[Attempt, ...]
    repair: Repair | None = None
    verified: Comparison | None = None

    @property
    def success(self) -> bool:
        """A file was written, and it agrees with the source."""
        return self.verified is not None and self.verified.equivalent

    @property
    def verdict(self) -> str:
        """The outcome in one sentence."""
        if self.success:
            made = self.attempts[-1]
            return f"Converted to {self.to} by {made.converter}{self._repaired()}, and verified."
        if not self.attempts:
            return f"No converter is known from {self.source.framework} to {self.to}."
        return f"Not converted to {self.to}: none of {len(self.attempts)} converters gave a model that agrees."

    def _repaired(self) -> str:
        if self.repair is None:
            return ""
        count = len(self.repair.diagnosis.faults)
        return f", {count} {'fault' if count == 1 else 'faults'} repaired"

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON data."""
        return {
            "success": self.success,
            "from": str(self.source.framework),
            "to": str(self.to),
            "path": None if self.path is None else str(self.path),
            "attempts": [attempt.to_dict() for attempt in self.attempts],
            "repair": None if self.repair is None else self.repair.to_dict(),
            "verified": None if self.verified is None else self.verified.to_dict(),
        }

    def __repr__(self) -> str:
        proof = "nothing verified" if self.verified is None else repr(self.verified)
        return f"Conversion({self.verdict[:-1]}; {proof})"

    def _repr_html_(self) -> str:
        from onnxfix.report.html import conversion_html

        return conversion_html(self)
