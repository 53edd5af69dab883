"""What a report shows of a result, as plain text cells; every form of report is made from these."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxfix.report.names import compact
from onnxfix.surgeon.patch import SetAttribute, SetParameter

if TYPE_CHECKING:
    from onnxfix.compare import Comparison
    from onnxfix.convert import Conversion
    from onnxfix.diagnose import Fault
    from onnxfix.model import Model, TensorSpec
    from onnxfix.repair import Repair
    from onnxfix.trace import Hop

FAULT_HEADINGS = ("#", "kind", "where", "parameter", "error", "noise", "done")
ATTEMPT_HEADINGS = ("converter", "outcome", "")
COMPARISON_HEADINGS = ("", "agree", "max rel", "max abs", "labels differ", "rank corr.", "inputs")

HOP_HEADINGS = ("hop", "from", "to", "intact", "max rel", "max rel from the first", "")


@dataclass(frozen=True)
class FaultRow:
    """One fault, ready to print.

    Attributes:
        where: The target's own name of the place, and the source's.
        parameter: The guilty tensor or attribute, as the target's framework names it, and the source's.
        done: What the repair did about it; empty for a diagnosis.
    """

    kind: str
    where: tuple[str, str]
    parameter: tuple[str, str]
    error: str
    noise: str
    done: str
    message: str

    def cells(self, number: int, arrow: str = " <- ") -> tuple[str, ...]:
        """In the order of :data:`FAULT_HEADINGS`."""
        where, parameter = (
            arrow.join(dict.fromkeys(name for name in names if name)) or "-" for names in (self.where, self.parameter)
        )
        return str(number), self.kind, where, parameter, self.error, self.noise, self.done


def fault_row(fault: Fault, done: str = "") -> FaultRow:
    """The row of one fault. The framework's own names come last in a fault's lists of names, so those are shown."""
    return FaultRow(
        kind=str(fault.kind),
        where=(_place(fault.target_nodes), _place(fault.source_nodes)),
        parameter=(fault.native_parameter or fault.parameter or "", fault.source_parameter or ""),
        error=number(fault.local_error),
        noise=number(fault.noise),
        done=done,
        message=fault.message,
    )


def repair_rows(repair: Repair) -> list[FaultRow]:
    """The faults of a repair, each with what was done about it."""
    left = {id(u.fault): u.reason for u in repair.unrepaired}
    return [
        fault_row(fault, f"left: {left[id(fault)]}" if id(fault) in left else _done(fault, repair))
        for fault in repair.diagnosis.faults
    ]


def _done(fault: Fault, repair: Repair) -> str:
    """The patch of the fault's own parameter, where there is one; else just that it was repaired."""
    for patch in repair.patches:
        if isinstance(patch, SetParameter) and patch.name == fault.parameter:
            changed = int(np.count_nonzero(patch.value != patch.previous))
            return f"{changed} of {patch.value.size} values set"
        if isinstance(patch, SetAttribute) and (patch.attribute, patch.node) in _attributes(fault):
            return f"set to {patch.value}"
    return "repaired"


def _attributes(fault: Fault) -> list[tuple[str | None, str]]:
    return [(fault.parameter, node) for node in fault.target_nodes]


def comparison_cells(title: str, comparison: Comparison) -> tuple[str, ...]:
    """In the order of :data:`COMPARISON_HEADINGS`."""
    labels = "-" if comparison.label_discrepancy is None else f"{comparison.label_discrepancy:.2%}"
    rank = "-" if comparison.rank_correlation is None else f"{comparison.rank_correlation:.4f}"
    return (
        title,
        "\u2713" if comparison.equivalent else "\u2717",
        number(comparison.max_rel),
        number(comparison.max_abs),
        labels,
        rank,
        str(comparison.count),
    )


def repair_comparisons(repair: Repair) -> list[tuple[str, Comparison]]:
    """The comparisons that a repair holds, with their titles."""
    return [("before", repair.before), ("after", repair.after), ("held out", repair.verified)]


def conversion_comparisons(conversion: Conversion) -> list[tuple[str, Comparison]]:
    """The comparisons that a conversion holds, with their titles."""
    tried = [(a.converter, a.comparison) for a in conversion.attempts if a.comparison is not None]
    proof = [] if conversion.repair is None or conversion.verified is None else [("repaired", conversion.verified)]
    return [*tried, *proof]


def hop_cells(position: int, hop: Hop) -> tuple[str, ...]:
    """In the order of :data:`HOP_HEADINGS`."""
    errors = (number(c.max_rel) if c is not None else "-" for c in (hop.comparison, hop.from_first))
    why = hop.error or ("" if hop.comparison is None else hop.comparison.reason)
    return (str(position), hop.source, hop.target, "\u2717" if hop.broken else "\u2713", *errors, why)


def verdict(repair: Repair) -> str:
    """The outcome of a repair in one sentence."""
    if not repair.diagnosis.faults and repair.before.equivalent:
        return "The models agree: there is nothing to repair."
    found = _count(len(repair.diagnosis.faults), "fault")
    if repair.success:
        return f"{found} found, all repaired; verified on {_count(repair.verified.count, 'held-out input')}."
    if repair.unrepaired:
        return f"{found} found, {len(repair.unrepaired)} not repaired."
    return f"{found} found; the repaired model still differs: {repair.verified.reason or repair.after.reason}"


def model_facts(model: Model) -> dict[str, Any]:
    """What a model is, as plain JSON data."""
    from onnxfix.runtime.operators import unknown_ops

    graph = model.proto.graph
    counts = Counter(node.op_type for node in graph.node)
    return {
        "framework": str(model.framework),
        "inputs": [_spec(spec) for spec in model.inputs],
        "outputs": [_spec(spec) for spec in model.outputs],
        "nodes": len(graph.node),
        "ops": dict(sorted(counts.items(), key=lambda item: (-item[1], item[0]))),
        "unknown_ops": unknown_ops(model.proto),
        "constants": len(graph.initializer),
        "numbers": sum(math.prod(tensor.dims) for tensor in graph.initializer),
        "parameters": dict(model.parameters),
    }


def _spec(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "dtype": str(spec.dtype), "shape": None if spec.shape is None else list(spec.shape)}


def number(value: float) -> str:
    """A number in at most eight characters."""
    if value == 0:
        return "0"
    return f"{value:.1e}" if math.isfinite(value) else str(value)


def _count(many: int, thing: str) -> str:
    return f"{many} {thing}" if many == 1 else f"{many} {thing}s"


def _place(names: Sequence[str]) -> str:
    return names[-1] if names else ""


def compacted(rows: Sequence[FaultRow], width: int) -> list[FaultRow]:
    """The rows with names of at most ``width`` characters."""
    pairs = [(column, side) for column in ("where", "parameter") for side in (0, 1)]
    columns = [compact([getattr(row, column)[side] for row in rows], width) for column, side in pairs]
    return [replace(row, where=(a, b), parameter=(c, d)) for row, a, b, c, d in zip(rows, *columns, strict=True)]
