"""The tables of the fault matrix: by kind, by network, by pair, what was taken for what, and every case that failed."""

from __future__ import annotations

import datetime
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from faults import located, passed, repaired
from photos import ROOT
from tables import measured_on

Record = dict[str, Any]


def write(lines: list[Record], seed: int) -> Path:
    """Write ``docs/benchmarks/<date>-faults.md``; its path."""
    clean = [line for line in lines if line["fault"] == "clean"]
    planted = [line for line in lines if line["fault"] != "clean"]
    parts = [
        "# Fault matrix", "", _introduction(seed), "", _totals(clean, planted), "", measured_on(), "",
        "## By kind", "", *_grouped(planted, _kind, "kind"), "",
        "## By network", "", *_grouped(planted, lambda line: line["network"], "network", clean), "",
        "## By pair of frameworks", "", *_grouped(planted, _pair, "source -> target", clean), "",
        "## By operator", "", *_grouped(planted, lambda line: line["fault"], "operator"), "",
        "## What was taken for what", "", *_confusion(planted), "",
        "## False alarms", "", *_alarms(clean), "",
        "## Cases that failed", "", *_failures(planted), "",
    ]
    path = ROOT / "docs" / "benchmarks" / f"{datetime.date.today().isoformat()}-faults.md"
    path.write_text("\n".join(parts))
    return path


def _introduction(seed: int) -> str:
    return (
        f"Faults planted by `onnxfix.testing.inject` (seed {seed}; each case's own seed is made from its name) in "
        "clean conversions whose names were then made meaningless, repaired on 48 inputs and verified on 16 others; "
        "written by `make bench-faults`. *Detected*: the models are found to differ. *Located*: every planted fault "
        "is named, the first finding is one of them, nothing innocent is named. *Repaired*: verified on the held-out "
        "inputs, no label differs, max_rel <= 1e-4 or twice what the clean conversion of the pair differs by (float "
        "noise of a deep network). Times are seconds for `repair` and multiples of running both models once over the "
        "64 inputs."
    )


def _totals(clean: list[Record], planted: list[Record]) -> str:
    faults = sum(line["planted"] for line in planted)
    alarms = sum(bool(line["alarms"]) for line in clean)
    return (
        f"**{len(planted)} cases with {faults} faults: detected {_share(planted, _detected)}, located "
        f"{_share(planted, located)}, repaired {_share(planted, repaired)}, all of it {_share(planted, passed)}.** "
        f"{len(clean)} clean conversions: {alarms} false alarms. Not repaired and not reported as such: "
        f"{sum(_dishonest(line) for line in planted)}."
    )


def _detected(line: Record) -> bool:
    return bool(line.get("detected"))


def _dishonest(line: Record) -> bool:
    return bool(line.get("verified")) and not repaired(line)


def _share(lines: list[Record], holds: Callable[[Record], bool]) -> str:
    count = sum(map(holds, lines))
    return f"{count}/{len(lines)} ({count / max(len(lines), 1):.1%})"


def _kind(line: Record) -> str:
    kinds = set(line["kinds"])
    return kinds.pop() if len(kinds) == 1 else "mixed"


def _pair(line: Record) -> str:
    return f"{line['source']} -> {line['target']}"


def _grouped(
    planted: list[Record], key: Callable[[Record], str], title: str, clean: list[Record] | None = None
) -> Iterable[str]:
    groups: dict[str, list[Record]] = defaultdict(list)
    for line in planted:
        groups[key(line)].append(line)
    alarms = Counter(key(line) for line in clean or () if line["alarms"])
    columns = [title, "cases", "faults", "detected", "located", "repaired", "median s", "median x", "most x"]
    yield _row([*columns, "false alarms"] if clean else columns)
    yield _row(["---"] * (len(columns) + bool(clean)))
    for name, lines in sorted(groups.items()):
        seconds = [line["seconds"] for line in lines]
        times = [line["seconds"] / line["once"] for line in lines]
        cells = [name, str(len(lines)), str(sum(line["planted"] for line in lines)),
                 *(_share(lines, holds) for holds in (_detected, located, repaired)),
                 f"{np.median(seconds):.1f}", f"{np.median(times):.1f}", f"{max(times):.1f}"]
        yield _row([*cells, str(alarms[name])] if clean else cells)


def _confusion(planted: list[Record]) -> Iterable[str]:
    counts = Counter(pair for line in planted for pair in zip(line["kinds"], line.get("named", ()), strict=False))
    named = sorted({name for _, name in counts})
    yield _row(["planted \\ named", *named])
    yield _row(["---"] * (len(named) + 1))
    for kind in sorted({kind for kind, _ in counts}):
        yield _row([kind, *(str(counts[kind, name] or "") for name in named)])


def _alarms(clean: list[Record]) -> Iterable[str]:
    found = [line for line in clean if line["alarms"]]
    for line in found:
        yield f"- {line['network']}, {_pair(line)}: {line.get('error') or '; '.join(line['said'])}"
    if not found:
        yield "None."


def _failures(planted: list[Record]) -> Iterable[str]:
    failed = [line for line in planted if not passed(line)]
    for line in failed:
        if "error" in line:
            what = line["error"]
        else:
            what = (f"found {line['found']}/{line['planted']}, first {line['first']}, innocent {line['innocent']}, "
                    f"max_rel {line['before']:.1e} -> {line['max_rel']:.1e}, verified {line['verified']}")
        yield f"- `{line['key']}` ({'; '.join(line['sites'][:2])}): {what}"
    if not failed:
        yield "None."


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"
