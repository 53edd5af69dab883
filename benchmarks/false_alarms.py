"""False alarms: conversions that are right, diagnosed at default settings on their own data, photos and random data.

``python benchmarks/false_alarms.py [--origins ORIGIN ...] [--only TEXT] [--jobs N] [--redo [TEXT]] [--table]``. Every
judgement is a line in ``build/alarms/results.jsonl``, so a run that was cut short goes on where it stopped; ``--redo``
forgets the lines whose key has the text in it, ``--table`` judges nothing more. Exit status 1 if there is an alarm.
"""

from __future__ import annotations

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import argparse
import json
import multiprocessing
import re
import time
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import clean_pairs
import tables
from alarm_data import SORTS, data_for
from photos import ROOT

import onnxfix
from onnxfix.errors import InputError

RESULTS = ROOT / "build" / "alarms" / "results.jsonl"
COLUMNS = ["origin", "converter", "pairs", "diagnoses", *SORTS, "equivalent", "alarms", "worst max rel", "seconds"]
TEXT = """\
Conversions that are right, each diagnosed at default settings on its own data, on photos that these do not hold (models
that take pictures; others count as n/a) and on random data: normal values, token ids, flags; for a quantized target
uniform values of the range that it was quantized for. Written by `make bench-alarms`. The columns of the three sorts
say how many pairs were diagnosed and, after a slash, how many raised an alarm. An alarm is a fault, an error, or a
float target called different without a fault. A target with fewer bits on request may differ by what these cost.
*Refused* are data that can show nothing, since both models answer the same to all of them or with NaN. *Left out* are
files that ask for inputs that nothing reads (tf2onnx leaves those of constants that it folded): these are not clean."""

Record = dict[str, Any]


def main() -> int:
    parser = argparse.ArgumentParser(description="Diagnose conversions that are right.")
    parser.add_argument("--origins", nargs="*", choices=list(clean_pairs.ORIGINS))
    parser.add_argument("--only", help="pairs whose key has this in it")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--redo", nargs="?", const="", help="judge again the pairs whose key has this in it")
    parser.add_argument("--table", action="store_true", help="write the table of what has been judged")
    options = parser.parse_args()
    if options.table:
        print(f"written to {write(read())}")
        return 1 if any(map(is_alarm, read())) else 0
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    if options.redo is not None:
        kept = [line for line in read() if options.redo not in line["key"]]
        RESULTS.write_text("".join(json.dumps(line) + "\n" for line in kept))
    done = {(line["key"], line["data"]) for line in read()}
    wanted = [(pair.key, pair.origin) for pair in clean_pairs.pairs(options.origins)
              if (not options.only or options.only in pair.key) and any((pair.key, s) not in done for s in SORTS)]
    # A process for a few pairs: TensorFlow and torch leak.
    with multiprocessing.get_context("spawn").Pool(options.jobs, maxtasksperchild=8) as pool:
        for lines in pool.imap_unordered(_judged, wanted):
            with RESULTS.open("a") as results:
                results.writelines(json.dumps(line) + "\n" for line in lines)
            for line in lines:
                print(f"{line['key']} on {line['data']}: {line['result']}, {line.get('seconds', 0):.1f} s", flush=True)
    lines = read()
    if not options.only and not options.origins:
        print(f"written to {write(lines)}")
    return 1 if any(is_alarm(line) for line in lines) else 0


def read() -> list[Record]:
    """All judgements so far."""
    return [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []


def is_alarm(line: Record) -> bool:
    """Whether something was said against a conversion that is right."""
    return line["result"] not in ("clean", "n/a", "refused", "left out")


def _judged(task: tuple[str, str]) -> list[Record]:
    """One pair on all sorts of data."""
    key, origin = task
    pair = next(pair for pair in clean_pairs.pairs([origin]) if pair.key == key)
    base = {"key": key, "origin": origin, "converter": pair.converter}
    try:
        source, target = pair.source(), pair.target()
    except Exception as error:  # whatever it is, it is this pair's result
        said = [f"{type(error).__name__}: {error}"]
        return [{**base, "data": sort, "result": "error", "said": said} for sort in SORTS]
    idle = _unread(target) if len(target.inputs) > len(source.inputs) else []
    if idle:  # no clean conversion: whoever runs it must feed what the source does not have
        said = [f"asks for {', '.join(idle)}, which nothing reads"]
        return [{**base, "data": sort, "result": "left out", "said": said} for sort in SORTS]
    return [{**base, "data": sort, **_diagnosed(pair, source, target, sort)} for sort in SORTS]


def _unread(model: onnxfix.Model) -> list[str]:
    """Inputs that no node reads: tf2onnx leaves those of constants that it folded."""
    read = {name for node in model.proto.graph.node for name in node.input}
    return [spec.name for spec in model.inputs if spec.name not in read]


def _diagnosed(pair: clean_pairs.CleanPair, source: onnxfix.Model, target: onnxfix.Model, sort: str) -> Record:
    data = data_for(sort, pair, source)
    if data is None:
        return {"result": "n/a"}
    started = time.perf_counter()
    try:
        diagnosis = onnxfix.diagnose(source, target, data)
    except InputError as error:
        return {"result": "refused" if "show nothing" in str(error) else "error", "said": [str(error)]}
    except Exception as error:  # as above
        return {"result": "error", "said": [f"{type(error).__name__}: {error}"]}
    comparison, faults = diagnosis.comparison, diagnosis.faults
    differs = not comparison.equivalent and not pair.quantized
    return {
        "seconds": time.perf_counter() - started, "max_rel": comparison.max_rel, "equivalent": comparison.equivalent,
        "result": "fault" if faults else "different" if differs else "clean",
        "said": [f"{fault.kind}: {fault.message}" for fault in faults] or diagnosis.notes[:2],
    }


def write(lines: list[Record]) -> str:
    """Write the dated table; its path within the repository."""
    said = [[line["key"], line["data"], line["result"], "; ".join(map(str, line.get("said", [])))]
            for line in lines if line["result"] not in ("clean", "n/a")]
    lines = [line for line in lines if line["result"] != "left out"]
    groups: dict[tuple[str, str], list[Record]] = defaultdict(list)
    for line in lines:
        short = re.split(r"[(\[]| \+ (?=onnx|ORT)", line["converter"])[0].strip()  # without options and optimisers
        groups[line["origin"], short].append(line)
    order = list(clean_pairs.ORIGINS)
    rows = [[*group, *_counts(groups[group])] for group in sorted(groups, key=lambda g: (order.index(g[0]), g[1]))]
    rows.append(["**all**", "", *_counts(lines)])
    pairs = len({line["key"] for line in lines})
    diagnosed = [line for line in lines if line["result"] != "n/a"]
    alarms = sum(map(is_alarm, lines))
    summary = f"**{alarms} alarms in {len(diagnosed)} diagnoses of {pairs} conversions.**"
    return str(tables.write_sections("false-alarms", "False alarms", f"{TEXT}\n\n{summary}", [
        ("By origin and converter", "Seconds are the median of one diagnosis.", COLUMNS, rows),
        ("What was said", "All that is neither clean nor n/a." if said else "No alarm, and no refusal.",
         ["pair", "data", "result", "said"], said),
    ]))


def _counts(lines: list[Record]) -> list[str]:
    judged = [line for line in lines if "seconds" in line]
    cells = []
    for sort in SORTS:
        of_sort = [line for line in lines if line["data"] == sort and line["result"] != "n/a"]
        cells.append(f"{len(of_sort)}/{sum(map(is_alarm, of_sort))}" if of_sort else "n/a")
    worst = max((line["max_rel"] for line in judged), default=0)
    return [
        str(len({line["key"] for line in lines})), str(sum(line["result"] != "n/a" for line in lines)), *cells,
        str(sum(line["equivalent"] for line in judged)), str(sum(map(is_alarm, lines))), f"{worst:.1e}",
        f"{_median(line['seconds'] for line in judged):.1f}",
    ]


def _median(values: Iterable[float]) -> float:
    ordered = sorted(values)
    return ordered[len(ordered) // 2] if ordered else 0.0


if __name__ == "__main__":
    raise SystemExit(main())
