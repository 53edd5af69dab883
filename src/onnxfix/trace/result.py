"""What the trace of a chain of conversions says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from onnxfix.compare import Comparison
from onnxfix.diagnose import Diagnosis


@dataclass(frozen=True, eq=False)
class Hop:
    """One conversion of the chain.

    Attributes:
        source: The model before it, as named in :attr:`Trace.names`.
        target: The model after it.
        comparison: The two compared; None where the target does not load or run.
        from_first: The first model of the chain against the target; None likewise.
        error: Why the target does not load or run; empty where it does.
    """

    source: str
    target: str
    comparison: Comparison | None
    from_first: Comparison | None
    error: str = ""

    @property
    def broken(self) -> bool:
        """The models before and after it do not agree."""
        return self.comparison is None or not self.comparison.equivalent

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON data."""
        return {
            "source": self.source,
            "target": self.target,
            "broken": self.broken,
            "comparison": None if self.comparison is None else self.comparison.to_dict(),
            "from_first": None if self.from_first is None else self.from_first.to_dict(),
            "error": self.error,
        }

    def __repr__(self) -> str:
        state = self.error or ("broken" if self.broken else "intact")
        return f"Hop({self.source} -> {self.target}: {state})"


@dataclass(frozen=True, eq=False)
class Trace:
    """A chain of conversions, hop by hop.

    Attributes:
        names: What the models are called, in order: their paths, or their positions and frameworks.
        hops: One for each model after the first.
        first_broken: Index of the first hop whose two models do not agree, or None.
        diagnosis: Which faults that hop has; None where no hop is broken, or its target does not load or run.
    """

    names: tuple[str, ...]
    hops: tuple[Hop, ...]
    first_broken: int | None
    diagnosis: Diagnosis | None

    @property
    def equivalent(self) -> bool:
        """No hop is broken, and the last model agrees with the first."""
        last = self.hops[-1].from_first
        return self.first_broken is None and last is not None and last.equivalent

    @property
    def verdict(self) -> str:
        """The outcome in one sentence."""
        if self.first_broken is not None:
            hop = self.hops[self.first_broken]
            why = hop.error or (hop.comparison.reason if hop.comparison is not None else "")
            return f"Hop {self.first_broken + 1} of {len(self.hops)} broke it, {hop.source} -> {hop.target}: {why}"
        if not self.equivalent:
            return "No hop is broken by itself, but they add up: the last model does not agree with the first."
        return f"All {len(self.hops)} hops are intact." if len(self.hops) > 1 else "The hop is intact."

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON data."""
        return {
            "equivalent": self.equivalent,
            "names": list(self.names),
            "hops": [hop.to_dict() for hop in self.hops],
            "first_broken": self.first_broken,
            "diagnosis": None if self.diagnosis is None else self.diagnosis.to_dict(),
        }

    def __repr__(self) -> str:
        found = "" if self.diagnosis is None else f" {len(self.diagnosis.faults)} faults."
        return f"Trace({self.verdict}{found})"

    def _repr_html_(self) -> str:
        from onnxfix.report.html import trace_html

        return trace_html(self)
