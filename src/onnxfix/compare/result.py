"""What a comparison of two models says."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class OutputComparison:
    """How one output of the target differs from the source's.

    Attributes:
        source: The source's name of the output; empty when it has none.
        target: The target's name of the output; empty when it has none.
        equivalent: Same shape and dtype kind, within tolerance on every sample, no label differs.
        max_abs: Largest absolute difference.
        max_rel: Largest absolute difference divided by the source's largest magnitude over all samples; infinite when
            shapes differ, or NaN and infinity are in other places.
        same_shape: Shapes agree (a move of the channel axis aside where the inputs have one).
        same_dtype: Dtypes are of the same kind (float, integer, boolean, text).
        permutation: The source's axes in the target's order, where the target has them in another one.
        comparator: Name of the comparator used.
        label_discrepancy: Fraction of samples whose top-1 label differs, 0..1; None without labels.
        rank_correlation: Kendall's tau-b, mean over the samples, -1..1; None without labels.
        reason: Why not equivalent, a part of a sentence; empty when equivalent.
    """

    source: str
    target: str
    equivalent: bool
    max_abs: float
    max_rel: float
    same_shape: bool
    same_dtype: bool
    permutation: tuple[int, ...] | None
    comparator: str
    label_discrepancy: float | None
    rank_correlation: float | None
    reason: str

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON data; numbers that are not finite are None."""
        return {
            "source": self.source,
            "target": self.target,
            "equivalent": self.equivalent,
            "max_abs": finite(self.max_abs),
            "max_rel": finite(self.max_rel),
            "same_shape": self.same_shape,
            "same_dtype": self.same_dtype,
            "permutation": None if self.permutation is None else list(self.permutation),
            "comparator": self.comparator,
            "label_discrepancy": self.label_discrepancy,
            "rank_correlation": self.rank_correlation,
            "reason": self.reason,
        }


@dataclass(frozen=True)
class Comparison:
    """Whether two models agree on the data, and how far they differ.

    Attributes:
        equivalent: Same number, order, shape and dtype kind of outputs, every output of every sample within
            :attr:`rtol`, and no label differs.
        label_discrepancy: Fraction of samples whose top-1 label differs, 0..1 (the largest over the outputs); None
            where no output has labels. Ties of the source, margins at the level of float rounding, do not count.
        max_abs: Largest absolute difference over all outputs and samples.
        max_rel: Largest over the outputs of: max|difference| / max|source|.
        rank_correlation: Kendall's tau-b, mean over the samples (the lowest over the outputs); None without labels.
        per_output: One result per output, in order.
        worst: Indices of the samples that differ most, the worst first.
        count: Number of samples compared.
        rtol: The relative tolerance applied: what was asked for, or ten times :attr:`noise` where that is larger.
        atol: The absolute tolerance that was added to it.
        noise: The source's own noise floor, relative, where it was measured; else None.
        reason: Why not equivalent, one sentence; empty when equivalent.
        explained: Of a quantized target, the share of :attr:`max_rel` that a correct quantization with the file's own
            scales explains, 0..1; else None.
    """

    equivalent: bool
    label_discrepancy: float | None
    max_abs: float
    max_rel: float
    rank_correlation: float | None
    per_output: tuple[OutputComparison, ...]
    worst: tuple[int, ...]
    count: int
    rtol: float
    atol: float
    noise: float | None
    reason: str
    explained: float | None = None

    @property
    def holds(self) -> bool:
        """Equivalent, or no further apart than a correct quantization makes them."""
        return self.equivalent or self.explained == 1.0

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON data; numbers that are not finite are None."""
        return {
            "equivalent": self.equivalent,
            "label_discrepancy": self.label_discrepancy,
            "max_abs": finite(self.max_abs),
            "max_rel": finite(self.max_rel),
            "rank_correlation": self.rank_correlation,
            "per_output": [output.to_dict() for output in self.per_output],
            "worst": list(self.worst),
            "count": self.count,
            "rtol": self.rtol,
            "atol": self.atol,
            "noise": self.noise,
            "reason": self.reason,
            "explained": self.explained,
        }

    def __repr__(self) -> str:
        state = "equivalent" if self.equivalent else "different"
        labels = "" if self.label_discrepancy is None else f", label_discrepancy={self.label_discrepancy:.4g}"
        labels += "" if self.explained is None else f", explained={self.explained:.0%}"
        return f"Comparison({state}, max_rel={self.max_rel:.2g}, rtol={self.rtol:.2g}{labels}, count={self.count})"

    def _repr_html_(self) -> str:
        from onnxfix.report.html import comparison_html

        return comparison_html(self)


def finite(value: float) -> float | None:
    """``value``, or None for infinity and NaN, which JSON does not have."""
    return value if math.isfinite(value) else None
