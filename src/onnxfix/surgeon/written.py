"""What writing a repaired model says: how it was done, what is in the file, and what is not."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onnxfix.compare import Comparison


class How(StrEnum):
    """How a repaired model came into its file."""

    IN_PLACE = "in place"
    """The patches were written into the target's own file or object; everything else in it is as it was."""
    RE_EXPORTED = "re-exported"
    """The repaired graph was converted to the target's framework anew."""


@dataclass(frozen=True)
class Written:
    """A repaired model that was written and proved.

    Attributes:
        path: The file or directory.
        how: In place, or re-exported.
        changed: What was changed, one line for each patch.
        lost: What of the target's own file could not be kept, one clause each.
        reason: Why it was not done in place, one sentence; "" where it was.
        tool: What re-exported it; "" where nothing did.
        proof: The source against the written file, run in its own runtime, on the held-out data.
        note: What else there is to know about the proof; "" where it was run in a fresh process.
    """

    path: Path
    how: How
    changed: tuple[str, ...]
    lost: tuple[str, ...]
    reason: str
    tool: str
    proof: Comparison
    note: str = ""

    def sentences(self) -> tuple[str, ...]:
        """For people: how it was written, why not otherwise, what was lost."""
        way = f" by {self.tool}" if self.tool else ""
        told = [f"{self.path.name} was written {self.how}{way}, and agrees with the source in its own runtime "
                f"(max_rel {self.proof.max_rel:.2g} on held-out data)."]
        if self.reason:
            told.append(f"Not in place: {self.reason}")
        if self.lost:
            told.append(f"Not kept: {'; '.join(self.lost)}.")
        if self.note:
            told.append(self.note)
        return tuple(told)

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON data."""
        return {
            "path": str(self.path),
            "how": str(self.how),
            "changed": list(self.changed),
            "lost": list(self.lost),
            "reason": self.reason,
            "tool": self.tool,
            "proof": self.proof.to_dict(),
            "note": self.note,
        }

    def __repr__(self) -> str:
        return f"Written({self.path.name}, {self.how}, max_rel {self.proof.max_rel:.2g})"
