"""Result tables: on the terminal, and as Markdown with what they were measured on."""

from __future__ import annotations

import datetime
import os
import platform
from importlib.metadata import version
from pathlib import Path

from photos import ROOT

PACKAGES = ("onnxruntime", "onnx", "torch", "tensorflow_cpu", "keras", "tf2onnx", "onnx2torch", "litert-torch")


def show(title: str, columns: list[str], rows: list[list[str]]) -> None:
    """Print a table."""
    from rich.console import Console
    from rich.table import Table

    table = Table(*columns, title=title, title_justify="left")
    for row in rows:
        table.add_row(*row)
    Console(width=None if os.isatty(1) else 160).print(table)


def write(name: str, title: str, text: str, columns: list[str], rows: list[list[str]]) -> Path:
    """Write ``docs/benchmarks/<date>-<name>.md``; its path."""
    lines = [f"# {title}", "", text, "", measured_on(), ""]
    lines += [_row(columns), _row(["---"] * len(columns)), *map(_row, rows), ""]
    path = ROOT / "docs" / "benchmarks" / f"{datetime.date.today().isoformat()}-{name}.md"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines))
    return path


def write_sections(
    name: str, title: str, text: str, sections: list[tuple[str, str, list[str], list[list[str]]]]
) -> Path:
    """As :func:`write`, for several tables with a heading and a text each; the path within the repository."""
    lines = [f"# {title}", "", text, "", measured_on(), ""]
    for heading, words, columns, rows in sections:
        lines += [f"## {heading}", "", words, ""]
        lines += [_row(columns), _row(["---"] * len(columns)), *map(_row, rows), ""]
    path = ROOT / "docs" / "benchmarks" / f"{datetime.date.today().isoformat()}-{name}.md"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines))
    return path.relative_to(ROOT)


def measured_on() -> str:
    """One sentence: the packages and the machine."""
    packages = ", ".join(f"{package} {version(package)}" for package in PACKAGES)
    return f"Measured with Python {platform.python_version()}, {packages}, on {os.cpu_count()} CPU cores."


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
