"""Results as small, self-contained, escaped HTML: for notebooks and for files."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING

from onnxfix.report.rows import (
    ATTEMPT_HEADINGS,
    COMPARISON_HEADINGS,
    FAULT_HEADINGS,
    HOP_HEADINGS,
    comparison_cells,
    conversion_comparisons,
    fault_row,
    hop_cells,
    repair_comparisons,
    repair_rows,
    verdict,
)

if TYPE_CHECKING:
    from onnxfix.compare import Comparison
    from onnxfix.convert import Conversion
    from onnxfix.diagnose import Diagnosis
    from onnxfix.repair import Repair
    from onnxfix.trace import Trace

_STYLE = (
    "<style>.onnxfix table{border-collapse:collapse;margin:.6em 0}.onnxfix th,.onnxfix td{padding:.2em .7em;"
    "border-bottom:1px solid #ccc;text-align:left;vertical-align:top}.onnxfix .good{color:#187a2f}"
    ".onnxfix .bad{color:#b3261e}.onnxfix{font-family:sans-serif;font-size:14px}</style>"
)


def comparison_html(comparison: Comparison) -> str:
    """A comparison as an HTML fragment."""
    sentence = "The models agree." if comparison.equivalent else comparison.reason
    outputs = [
        (output.source, output.target, f"{output.max_rel:.2e}", f"{output.max_abs:.2e}", output.reason or "agrees")
        for output in comparison.per_output
    ]
    return _fragment(
        _headline(comparison.equivalent, sentence),
        _comparisons([("", comparison)]),
        _table(("source output", "target output", "max rel", "max abs", ""), outputs),
    )


def diagnosis_html(diagnosis: Diagnosis) -> str:
    """A diagnosis as an HTML fragment."""
    found = len(diagnosis.faults)
    sentence = f"{found} {'fault' if found == 1 else 'faults'} found." if found else "No faults found."
    rows = [fault_row(fault) for fault in diagnosis.faults]
    return _fragment(
        _headline(not found and diagnosis.comparison.equivalent, sentence),
        _table(FAULT_HEADINGS[:-1], [row.cells(i)[:-1] for i, row in enumerate(rows, 1)]) if rows else "",
        _list(row.message for row in rows),
        _comparisons([("", diagnosis.comparison)]),
        _list(diagnosis.remarks),
    )


def repair_html(repair: Repair) -> str:
    """A repair as an HTML fragment."""
    rows = repair_rows(repair)
    return _fragment(
        _headline(repair.success, verdict(repair)),
        _table(FAULT_HEADINGS, [row.cells(i) for i, row in enumerate(rows, 1)]) if rows else "",
        _list(row.message for row in rows),
        _comparisons(repair_comparisons(repair)),
        _list([repair.holdout_note, *repair.diagnosis.remarks]),
    )


def conversion_html(conversion: Conversion) -> str:
    """A conversion as an HTML fragment."""
    attempts = [(a.converter, str(a.outcome), a.message) for a in conversion.attempts]
    return _fragment(
        _headline(conversion.success, conversion.verdict),
        _table(ATTEMPT_HEADINGS, attempts),
        _comparisons(conversion_comparisons(conversion)),
    )


def trace_html(trace: Trace) -> str:
    """A trace as an HTML fragment."""
    faults = () if trace.diagnosis is None else trace.diagnosis.faults
    return _fragment(
        _headline(trace.equivalent, trace.verdict),
        _table(HOP_HEADINGS, [hop_cells(number, hop) for number, hop in enumerate(trace.hops, 1)]),
        _list(fault.message for fault in faults),
    )


def page(title: str, fragment: str) -> str:
    """A whole HTML document around a fragment."""
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title></head>'
        f"<body><h1>{escape(title)}</h1>{fragment}</body></html>\n"
    )


def _fragment(*parts: str) -> str:
    return f'<div class="onnxfix">{_STYLE}{"".join(parts)}</div>'


def _headline(good: bool, sentence: str) -> str:
    mark, colour = ("\u2713", "good") if good else ("\u2717", "bad")
    return f'<p class="{colour}"><b>{mark} {escape(sentence)}</b></p>'


def _comparisons(comparisons: Sequence[tuple[str, Comparison]]) -> str:
    return _table(COMPARISON_HEADINGS, [comparison_cells(title, comparison) for title, comparison in comparisons])


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(heading)}</th>" for heading in headings)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"


def _list(sentences: Iterable[str]) -> str:
    items = "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences if sentence)
    return f"<ul>{items}</ul>" if items else ""
