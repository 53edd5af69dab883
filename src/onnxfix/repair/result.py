"""What a repair says and holds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxfix.compare import Comparison
from onnxfix.diagnose.fault import Diagnosis, Fault
from onnxfix.inputs import Inputs
from onnxfix.model import Model
from onnxfix.surgeon.patch import Patch

if TYPE_CHECKING:
    from onnxfix.surgeon.written import Written


@dataclass(frozen=True, eq=False)
class Unrepaired:
    """A fault that is left, and why."""

    fault: Fault
    reason: str

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON data."""
        return {"fault": self.fault.to_dict(), "reason": self.reason}


@dataclass(frozen=True, eq=False)
class Repair:
    """A repaired target and the proof.

    Attributes:
        model: The repaired target. Its ``framework`` is the target's own where every patch could be written back into
            the native model, else ONNX.
        diagnosis: The faults that were found.
        patches: What was changed, in order.
        before: Source against the unrepaired target, on the data.
        after: Source against the repaired target, on the data used for the repair.
        verified: Source against the repaired target on held-out data.
        unrepaired: Faults that are left, each with why.
        holdout: The held-out data, bound to both models.
        holdout_note: Where the held-out data came from, one sentence.
    """

    model: Model
    source: Model
    target: Model
    diagnosis: Diagnosis
    patches: tuple[Patch, ...]
    before: Comparison
    after: Comparison
    verified: Comparison
    unrepaired: tuple[Unrepaired, ...]
    holdout: Inputs
    holdout_note: str

    @property
    def success(self) -> bool:
        """Nothing is left to repair, and the held-out data prove it.

        A quantized target counts as proved where it is no further off than a correct quantization.
        """
        return not self.unrepaired and self.after.holds and self.verified.holds

    def save(self, path: str | Path) -> Written:
        """Write the repaired model: ``.onnx``, or the target's own format (chosen by suffix).

        The patches are written into the target's own file or object where its format can express them; else the
        repaired graph is converted to the target's framework anew. Either way the file is written beside ``path``,
        loaded again and run by its own runtime in a fresh process, compared with the source on held-out data, and only
        then renamed to ``path``.

        Returns:
            How it was written, why not in place where it was not, and what could not be kept.

        Raises:
            ExportError: no way leads into that format (the repaired ONNX is available), or the written file does not
                reproduce the source, or the place cannot be written to.
        """
        from onnxfix.surgeon.giveback import give_back

        return give_back(self, Path(path))

    def revert(self, *patches: Patch) -> Model:
        """The target with some patches taken back: all others are made again on the untouched target.

        Args:
            patches: Of :attr:`patches`, those to take back; all of them when none is given.

        Returns:
            An ONNX model; the untouched target itself where all are taken back.

        Raises:
            PatchError: another patch needs one of those that are taken back, or one of them is not of this repair.
        """
        from onnxfix.frameworks import Framework
        from onnxfix.surgeon.apply import PatchError, replayed

        if any(patch not in self.patches for patch in patches):
            raise PatchError("a patch that is to be taken back is not one of this repair.")
        kept = [patch for patch in self.patches if patches and patch not in patches]
        if not kept:
            return self.target
        proto = replayed(self.target.proto, kept)
        return Model(proto, Framework.ONNX, proto, layers=self.target.layers)

    def report(self, path: str | Path) -> None:
        """Write a report; the suffix (``.html``, ``.json``, ``.md``) chooses the form."""
        from onnxfix.report.files import write_report

        write_report(self, Path(path))

    def to_dict(self) -> dict[str, Any]:
        """The repair as plain JSON data."""
        return {
            "success": self.success,
            "diagnosis": self.diagnosis.to_dict(),
            "patches": [patch.describe() for patch in self.patches],
            "before": self.before.to_dict(),
            "after": self.after.to_dict(),
            "verified": self.verified.to_dict(),
            "unrepaired": [u.to_dict() for u in self.unrepaired],
            "holdout": self.holdout_note,
        }

    def __repr__(self) -> str:
        state = "repaired and verified" if self.success else f"{len(self.unrepaired)} faults left"
        return f"Repair({state}; {len(self.patches)} patches; before {self.before!r}; verified {self.verified!r})"

    def _repr_html_(self) -> str:
        from onnxfix.report.html import repair_html

        return repair_html(self)
