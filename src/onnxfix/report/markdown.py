"""A repair as Markdown, ready to paste into an issue."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from onnxfix.report.rows import (
    COMPARISON_HEADINGS,
    FAULT_HEADINGS,
    comparison_cells,
    repair_comparisons,
    repair_rows,
    verdict,
)

if TYPE_CHECKING:
    from onnxfix.repair import Repair


def repair_markdown(repair: Repair) -> str:
    """The report of a repair."""
    rows = repair_rows(repair)
    parts = [f"# onnxfix repair\n\n{verdict(repair)}"]
    if rows:
        parts.append(_table(FAULT_HEADINGS, [row.cells(i) for i, row in enumerate(rows, 1)]))
        parts.append("\n".join(f"{i}. {row.message}" for i, row in enumerate(rows, 1)))
    cells = [comparison_cells(title, comparison) for title, comparison in repair_comparisons(repair)]
    parts.append(_table(COMPARISON_HEADINGS, cells))
    notes = [note for note in (repair.holdout_note, *repair.diagnosis.remarks) if note]
    if notes:
        parts.append("\n".join(f"- {note}" for note in notes))
    return "\n\n".join(parts) + "\n"


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
