"""Results on the terminal: tables where a person reads, plain lines where a program does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from onnxfix.report.rows import (
    COMPARISON_HEADINGS,
    FAULT_HEADINGS,
    FaultRow,
    compacted,
    comparison_cells,
    conversion_comparisons,
    fault_row,
    hop_cells,
    model_facts,
    repair_comparisons,
    repair_rows,
    verdict,
)

if TYPE_CHECKING:
    from onnxfix.compare import Comparison
    from onnxfix.convert import Conversion
    from onnxfix.diagnose import Diagnosis
    from onnxfix.model import Model
    from onnxfix.repair import Repair
    from onnxfix.trace import Trace

# What the columns of the fault table take, gaps included; the two columns of names share the rest.
_WIDTHS = {"#": 5, "kind": 18, "where": 3, "parameter": 3, "error": 10, "noise": 10, "done": 16}
_MARKS = {"\u2713": "bold green", "\u2717": "bold red"}


def show_comparison(console: Console, comparison: Comparison) -> None:
    """Print a comparison: a verdict, and a line per output."""
    _verdict(console, comparison.equivalent, "The models agree." if comparison.equivalent else comparison.reason)
    _comparisons(console, [("", comparison)])
    for output in comparison.per_output if len(comparison.per_output) > 1 else ():
        state = "agrees" if output.equivalent else "differs"
        name = " / ".join(dict.fromkeys(name for name in (output.source, output.target) if name))
        _line(console, f"output {name} {state}: max_rel {output.max_rel:.2e}, max_abs {output.max_abs:.2e}")
    if not comparison.equivalent and comparison.worst:
        _line(console, f"worst inputs: {', '.join(map(str, comparison.worst))}")
    _noise(console, comparison)


def show_diagnosis(console: Console, diagnosis: Diagnosis) -> None:
    """Print a diagnosis: a verdict, the fault table, and each fault's sentence."""
    found = len(diagnosis.faults)
    if found:
        _verdict(console, False, f"{found} {'fault' if found == 1 else 'faults'} found.")
    else:
        comparison = diagnosis.comparison
        more = "" if comparison.equivalent else f" {comparison.reason}"
        _verdict(console, comparison.equivalent, f"No faults found.{more}")
    _faults(console, [fault_row(fault) for fault in diagnosis.faults])
    _comparisons(console, [("", diagnosis.comparison)])
    for note in diagnosis.remarks:
        _line(console, f"note: {note}")
    _line(console, f"{diagnosis.aligned:.0%} of the target's nodes are aligned with the source's.")
    _noise(console, diagnosis.comparison)


def show_repair(console: Console, repair: Repair) -> None:
    """Print a repair: a verdict, the fault table with what was done, and the comparisons that prove it."""
    _verdict(console, repair.success, verdict(repair))
    _faults(console, repair_rows(repair))
    _comparisons(console, repair_comparisons(repair))
    if repair.holdout_note:
        _line(console, f"held-out data: {repair.holdout_note}")
    for note in repair.diagnosis.remarks:
        _line(console, f"note: {note}")


def show_conversion(console: Console, conversion: Conversion) -> None:
    """Print a conversion: a verdict, what each converter did, what was repaired, and the comparisons that prove it."""
    _verdict(console, conversion.success, conversion.verdict)
    for number, attempt in enumerate(conversion.attempts, 1):
        _line(console, f"{number}. {attempt.converter}: {attempt.outcome}. {attempt.message}")
    if conversion.repair is not None:
        _faults(console, repair_rows(conversion.repair))
    _comparisons(console, conversion_comparisons(conversion))


def show_trace(console: Console, trace: Trace) -> None:
    """Print a trace: a verdict, a line per hop, and the faults of the first one that is broken."""
    _verdict(console, trace.equivalent, trace.verdict)
    for position, hop in enumerate(trace.hops, 1):
        _, source, target, mark, error, overall, why = hop_cells(position, hop)
        told = f": {why}" if why else ""
        _line(console, f"{position}. {mark} {source} -> {target}: max_rel {error}, from the first {overall}{told}")
    if trace.diagnosis is not None:
        _faults(console, [fault_row(fault) for fault in trace.diagnosis.faults])


def show_model(console: Console, model: Model) -> None:
    """Print what a model is: framework, inputs, outputs, operators, parameters."""
    facts = model_facts(model)
    ops = ", ".join(f"{op} {n}" for op, n in facts["ops"].items())
    lines = [("framework", facts["framework"])]
    lines += [("input", str(spec)) for spec in model.inputs]
    lines += [("output", str(spec)) for spec in model.outputs]
    lines += [("nodes", f"{facts['nodes']} ({ops})")]
    lines += [("unknown op", f"{op} (node {node}): onnxruntime does not know it, so it cannot be run or compared")
              for op, node in facts["unknown_ops"].items()]
    lines += [("constants", f"{facts['constants']} tensors, {facts['numbers']:,} numbers")]
    lines += [("parameters", f"{len(facts['parameters'])} of the constants, under the framework's own names")]
    for name, value in lines:
        text = Text(f"{name:<11}", style="bold")
        text.append(value, style="not bold")
        console.print(text, soft_wrap=True, highlight=False)


def _faults(console: Console, rows: Sequence[FaultRow]) -> None:
    if not rows:
        return
    if not console.is_terminal:
        for number, row in enumerate(rows, 1):
            done = f" [{row.done}]" if row.done else ""
            _line(console, f"{number}. {row.kind}: {row.message} (error {row.error}, noise {row.noise}){done}")
        return
    narrow = console.width < 100
    left_out = {"noise"} if narrow else set()
    if not any(row.done for row in rows):
        left_out.add("done")
    shown = [i for i, heading in enumerate(FAULT_HEADINGS) if heading not in left_out]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for heading in (FAULT_HEADINGS[i] for i in shown):
        numeric = heading in ("#", "error", "noise")
        table.add_column(heading, justify="right" if numeric else "left", no_wrap=numeric, overflow="fold")
    # Two columns of names share what the others leave; "<- " stands before half of the names.
    others = sum(_WIDTHS[FAULT_HEADINGS[i]] for i in shown)
    names = max(16, (console.width - others) // 2 - len("<- "))
    for number, row in enumerate(compacted(rows, names), 1):
        cells = row.cells(number, arrow="\n<- ")
        styles = ("", "yellow", "", "cyan", "red", "dim", "red" if row.done.startswith("left") else "green")
        table.add_row(*(Text(cells[i], styles[i]) for i in shown))
    console.print(table)


def _comparisons(console: Console, comparisons: Sequence[tuple[str, Comparison]]) -> None:
    if not console.is_terminal:
        for title, comparison in comparisons:
            cells = comparison_cells(title, comparison)
            pairs = zip(COMPARISON_HEADINGS[2:], cells[2:], strict=True)
            state = "equivalent" if comparison.equivalent else "different"
            _line(console, f"{title or 'comparison'}: {state}, {', '.join(f'{name} {value}' for name, value in pairs)}")
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in COMPARISON_HEADINGS:
        table.add_column(heading, justify="left" if not heading else "right")
    for title, comparison in comparisons:
        table.add_row(*(Text(cell, _MARKS.get(cell, "")) for cell in comparison_cells(title, comparison)))
    console.print(table)


def _verdict(console: Console, good: bool, sentence: str) -> None:
    mark = "\u2713" if good else "\u2717"
    text = Text(f"{mark} ", style=_MARKS[mark])
    text.append(sentence, style="bold")
    console.print(text, soft_wrap=not console.is_terminal, highlight=False)


def _noise(console: Console, comparison: Comparison) -> None:
    if comparison.noise is not None and 10 * comparison.noise >= comparison.rtol:
        _line(console, f"the tolerance is ten times the source's own noise floor, {comparison.noise:.1e}")


def _line(console: Console, text: str) -> None:
    console.print(Text(text), soft_wrap=True, highlight=False)
