"""The convergence matrix as a dated page: ours, the optimisers' own, and every cell that does not pass."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tables

COLUMNS = ["network", "route", "plain", "onnxslim", "onnxsim", "onnxoptimizer", "onnxscript", "ORT basic"]
TEXT = """Each cell is one way from a network to ONNX, plain or after an optimiser; written by `make bench-convergence`.
A cell counts where its answers are those of the origin to 1e-3 of the greatest; the raw lowering itself, which
all others are compared with, is not counted. *equal*: the normal form is that of the raw lowering, to the byte; *iso*:
isomorphic with weights (float noise, layout and batch of the boundary aside); a number: nodes of another kind, where 0
says that they are wired or parametrised differently; *failed*: the converter or optimiser failed, for the reason given
at the end; *other*: it converts to other answers; *refused*: onnxruntime refuses the file. In brackets, after an
optimiser: whether its own output, without our normal form, is isomorphic to what it makes of the raw lowering (+ or -);
the raw lowering has a symbolic batch where most PyTorch routes fix it, which no optimiser can undo, so this is a lower
bound for them. Where onnx2torch or litert-torch fails on a network as its exporter writes it, they are given what
`onnxfix.export` legalises for them.
Pictures are small and stacks short: see `benchmarks/convergence_nets.py`."""


def write(cache: Path, names: Sequence[str]) -> Path:
    """Write ``docs/benchmarks/<date>-convergence.md`` from the results in the cache; its path."""
    from convergence import describe, folder_of

    rows, failing, failed = [], [], []
    counted = passed = theirs = peers = 0
    for name in names:
        path = folder_of(name) / "results.json"
        if not path.exists():
            reason = path.with_name("raw.failed")
            failed.append(f"- {name}, all routes: nothing to compare with, "
                          f"{_clean(reason.read_text()) if reason.exists() else 'not converted yet'}")
            continue
        results: dict[str, dict[str, Any]] = json.loads(path.read_text())
        for route in (cell for cell in results if " + " not in cell):
            cells = [results[route], *(results[f"{route} + {peer}"] for peer in COLUMNS[3:])]
            rows.append([name, route, *map(_short, cells)])
            for peer, cell in zip(("", *COLUMNS[3:]), cells, strict=True):
                if route == "raw" and not peer:
                    continue
                where = f"{name}, {route}{', ' + peer if peer else ''}"
                counted += bool(cell.get("counted"))
                passed += bool(cell.get("counted") and cell["isomorphic"])
                if cell.get("counted") and "peer" in cell:
                    peers, theirs = peers + 1, theirs + bool(cell["peer"])
                if cell.get("counted") and not cell["isomorphic"]:
                    failing.append(f"- {where}: {describe(cell)}")
                elif not cell.get("counted") and cell.get("failed") != "no source":
                    failed.append(f"- {where}: {_clean(cell.get('failed') or describe(cell))}")
    summary = (f"**{passed} of {counted} counted cells pass.** Judged on the optimisers' own output, "
               f"{theirs} of {peers} do.")
    path = tables.write("convergence", "Convergence matrix", f"{TEXT}\n\n{summary}", COLUMNS, rows)
    parts = [path.read_text(), "## Counted cells that differ\n", *(failing or ["None."]),
             "\n## Not counted\n", *(failed or ["None."]), ""]
    path.write_text("\n".join(parts))
    return path


def _clean(reason: str) -> str:
    """Without terminal colours, and without the folders of this machine."""
    plain = re.sub(r"\x1b\[[0-9;]*m|\[[0-9]+m", "", reason)
    return re.sub(r"/[\w./-]*/(?=[\w.-]+)", "", plain)


def _short(cell: dict[str, Any]) -> str:
    if "failed" in cell:
        return "-" if cell["failed"] == "no source" else "failed"
    if "error" in cell:
        return "refused" if "refuses" in cell["error"] else "error"
    if not cell["counted"]:
        return "other"
    differ = sum(cell["more"].values()) + sum(cell["less"].values())
    word = ("equal" if cell["equal"] else "iso") if cell["isomorphic"] else f"**{differ}**"
    return word + {True: " (+)", False: " (-)", None: ""}[cell.get("peer")]
