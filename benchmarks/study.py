"""The published study's 15 erroneous conversions, made again and repaired: photos the source's way and the target's.

``python benchmarks/study.py [--only NAME ...] [--jobs N] [--seed S] [--redo]``

Every judgement is a line in ``build/study/results``, so a run that was cut short goes on where it stopped.
"""

from __future__ import annotations

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import argparse
import json
import multiprocessing
import time
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import study_cases
import tables
from scoring import names, score
from study_cases import CASES, Case
from study_faults import plant

import onnxfix
from onnxfix import FaultKind
from onnxfix.testing import Site, make_names_opaque

Record = dict[str, Any]
WAYS = ("source", "target")
COLUMNS = ["case", "photos prepared", "planted", "labels differ before", "found", "located", "innocent named",
           "labels differ after", "max rel after", "verified", "labels", "time", "x both models"]


INTRODUCTION = """The published prototype's study left 15 conversions that answered otherwise than their sources.
Each is made again here: the source, seeded, its batch norms calibrated on photos that are prepared its own way; the
conversion, by today's converter or, where there is none, by `onnxfix.export`; and faults of the kinds and numbers
that the prototype's logs name (seed {seed}), planted with the operators of `onnxfix.testing` under names that mean
nothing. Where a conversion has fewer places for a kind than were asked for, each of them is spoilt, and the table
says so. Weights are rounded to float16 and biases to bfloat16; an attribute is a window's pads or dilations, a bound
that the data reach, a pool's way to count, a pad's fill or an epsilon; a graph edit is an activation or a summand
that is missing, replaced or exchanged, or a factor too many; the input's layout is rows taken for columns, its
dimensions a size that the data do not have. The sizes of the pictures are reduced to 96 x 96; the networks have their
full depth and 1000 classes.

Repaired on {repair} photos, judged on {held} others that neither calibration nor repair saw. *The source's way*: both
models are fed photos as the source's framework prepares them. *The target's way*: the source is fed as before, and
the target as users of its own framework would feed it: ImageNet's mean and standard deviation in PyTorch, what
`keras.applications` does in Keras (BGR minus the mean for ResNet101, else -1..1), 0..1 in TensorFlow, 0..255 in
TFLite. This is the more demanding reading: the target must come to take its own framework's preparation and answer as
the source does to its own, with all other faults in it; the prototype was left with 32 % to 92 % of the labels wrong
there. (Fed the same to both, a preparation that neither was made for is only other data.) Pictures are scaled and cut
alike: no model can get back pixels that it was not fed.

*labels differ*: on the held-out photos, before and after. *found*: planted faults that a finding names. *located*:
all of them, one of them first, and nothing innocent is named. *verified*: `Repair.success`. *labels*: different
labels that the source gives to the held-out photos, {low} to {high}. *x both models*: time of `repair`, verification
included, as a multiple of running source and target once over all {photos} photos. Written by `make bench-study`."""


def main() -> int:
    parser = argparse.ArgumentParser(description="Make the study's erroneous conversions again and repair them.")
    parser.add_argument("--only", nargs="*", default=None, help="cases whose name contains one of these")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--redo", action="store_true", help="forget what was judged before")
    options = parser.parse_args()
    file = study_cases.FOLDER / "results" / f"{options.seed}.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    if options.redo:
        file.unlink(missing_ok=True)
    done = {line["key"] for line in read(file)}
    wanted = [case for case in CASES if not options.only or any(part in case.name for part in options.only)]
    tasks = [(case, [way for way in WAYS if f"{case.name}/{way}" not in done], options.seed) for case in wanted]
    for case in wanted:
        study_cases.models(case)
    # A process for each case: TensorFlow and torch leak.
    with multiprocessing.get_context("spawn").Pool(options.jobs, maxtasksperchild=1) as pool:
        for lines in pool.imap_unordered(judged, [task for task in tasks if task[1]]):
            with file.open("a") as results:
                results.writelines(json.dumps(line) + "\n" for line in lines)
            for line in lines:
                print(line["key"], "passed" if passed(line) else f"FAILED {line}", flush=True)
    lines = sorted(read(file), key=lambda line: [f"{c.name}/{w}" for c in CASES for w in WAYS].index(line["key"]))
    if len(lines) == len(CASES) * len(WAYS):
        print(f"written to {report(lines, options.seed).relative_to(study_cases.ROOT)}")
    return 0 if all(map(passed, lines)) else 1


def read(file: Path) -> list[Record]:
    """All judgements so far."""
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def passed(line: Record) -> bool:
    """Located, and repaired to no label that differs on photos that the repair did not use."""
    return located(line) and line["verified"] and line["after"] == 0 and line["max_rel"] <= 1e-4


def located(line: Record) -> bool:
    """The guilty first, all of them, and nothing innocent."""
    return bool("error" not in line and line["found"] == line["planted"] and line["first"] and not line["innocent"])


def judged(task: tuple[Case, list[str], int]) -> list[Record]:
    """One case with the photos prepared in each of some ways."""
    case, ways, seed = task
    source, target = map(onnxfix.load, study_cases.models(case))
    _, work, held = study_cases.pictures()
    return list(judge(case, source, target, work, held, ways, seed))


def judge(
    case: Case, source: onnxfix.Model, target: onnxfix.Model, work: np.ndarray, held: np.ndarray, ways: Iterable[str],
    seed: int,
) -> Iterator[Record]:
    """Plant a case's faults, repair, hold the result against the truth.

    Args:
        case: What to plant.
        source: The model that is right.
        target: Its clean conversion.
        work: Photos for the repair, ``[n, height, width, 3]``, 0..255.
        held: Photos for the proof.
        ways: Whose preparation the target is fed with: one line for each.
        seed: Seed of the faults.
    """
    prepared = {side: study_cases.way(case.network, framework)
                for side, framework in (("source", case.source), ("target", case.target))}
    right = onnxfix.Inputs(np.concatenate([work, held]), preprocess=prepared["source"]).bind(source, target)
    feeds = next(iter(right.take(2).feeds(target, "target")))
    faulty, sites = plant(case, target.proto, feeds, zlib.crc32(f"{case.name}/{seed}".encode()))
    opaque = make_names_opaque(faulty, seed=seed)
    sites = tuple(map(opaque.site, sites))
    for way in ways:
        # Loaded anew each time: what a model has found out about itself is not found out again.
        ours, theirs = replace(source), onnxfix.load(opaque.model)
        both = {"source_preprocess": prepared["source"], "target_preprocess": prepared[way]}
        truth = sites if way == "source" else (*sites, _preparation(opaque.model))
        yield {"key": f"{case.name}/{way}", "case": case.name, "way": way, "planted": len(truth),
               "asked": _told(case, truth), "sites": [site.description for site in truth],
               "once": _once(source, target, right),
               **_repaired(ours, theirs, truth, onnxfix.Inputs(work, **both), onnxfix.Inputs(held, **both))}


def _repaired(
    source: onnxfix.Model, target: onnxfix.Model, sites: tuple[Site, ...], work: onnxfix.Inputs, held: onnxfix.Inputs
) -> Record:
    started = time.perf_counter()
    try:
        repair = onnxfix.repair(source, target, work, holdout=held)
    except Exception as error:  # whatever it is, it is this case's result, and the run goes on
        return {"error": f"{type(error).__name__}: {error}", "seconds": time.perf_counter() - started,
                "found": 0, "innocent": 0, "after": 1.0, "max_rel": float("inf"), "verified": False}
    return {"seconds": time.perf_counter() - started, **_result(repair, sites, source, held)}


def _told(case: Case, sites: tuple[Site, ...]) -> str:
    """How many faults of each kind, and of how many that were asked for."""
    kinds = [site.kind for site in sites]
    asked = {FaultKind.WEIGHTS: case.weights, FaultKind.HYPERPARAMETERS: case.attributes, FaultKind.GRAPH: case.edits}
    words = {FaultKind.HYPERPARAMETERS: "attributes", FaultKind.GRAPH: "graph edits"}
    counted = [f"{kinds.count(k)} {words.get(k, k)}" + (f" (of {n} asked for)" if kinds.count(k) < n else "")
               for k, n in asked.items() if n]
    once = (FaultKind.TENSOR_LAYOUT, FaultKind.INPUT_DIMENSIONS, FaultKind.PREPROCESSING)
    return ", ".join([*counted, *(k.replace("_", " ") for k in once if k in kinds)])


def _preparation(target: onnx.ModelProto) -> Site:
    """The fault of an input that the target is fed in another way than it was made for."""
    name = target.graph.input[0].name
    readers = [node.name for node in target.graph.node if name in node.input]
    return Site(readers[0], name, FaultKind.PREPROCESSING, f"{name} is prepared the target's way", tuple(readers[1:]))


def _result(repair: Any, sites: tuple[Site, ...], source: onnxfix.Model, held: onnxfix.Inputs) -> Record:
    result, faults = score(repair, sites), repair.diagnosis.faults
    before = onnxfix.compare(source, repair.target, held) if repair.before.count else None
    answers = [next(iter(source.run(feed).values())).argmax(-1) for feed in held.feeds(source)]
    return {
        "before": None if before is None else before.label_discrepancy, "found": result.found, "first": result.first,
        "innocent": result.innocent, "after": repair.verified.label_discrepancy, "max_rel": repair.verified.max_rel,
        "verified": repair.success, "labels": len(set(np.concatenate(answers).tolist())), "faults": len(faults),
        "missed": [site.description for site in sites if not any(names(fault, site) for fault in faults)][:8],
        "said": [f"{fault.kind}: {fault.message}" for fault in faults[:4]],
        "unrepaired": [item.reason for item in repair.unrepaired[:3]],
    }


def _once(source: onnxfix.Model, target: onnxfix.Model, photos: onnxfix.Inputs) -> float:
    """Seconds to run both models once over all photos."""
    started = time.perf_counter()
    for chunk in photos.chunks(source, target):
        source.run(chunk.source)
        target.run(chunk.target)
    return time.perf_counter() - started


def report(lines: list[Record], seed: int) -> Path:
    """Write ``docs/benchmarks/<date>-study.md``; its path."""
    good, labels = sum(map(passed, lines)), [line["labels"] for line in lines if "labels" in line]
    introduction = INTRODUCTION.format(
        seed=seed, low=min(labels), high=max(labels), repair=study_cases.REPAIR, held=study_cases.HELD_OUT,
        photos=study_cases.REPAIR + study_cases.HELD_OUT,
    )
    text = (
        f"**{good} of {len(lines)} passed: every planted fault named, nothing innocent named, repaired to zero label "
        f"discrepancy and verified.**\n\n{introduction}"
    )
    title = "The erroneous conversions of the published study"
    return tables.write("study", title, text, COLUMNS, list(map(_row, lines)))


def _row(line: Record) -> list[str]:
    start = [line["case"], f"the {line['way']}'s way", line["asked"]]
    if "error" in line:
        return [*start, *["-"] * (len(COLUMNS) - 5), f"{line['seconds']:.0f} s", f"FAILED: {line['error']}"]
    before = "cannot be fed" if line["before"] is None else f"{line['before']:.1%}"
    return [
        *start, before, f"{line['found']}/{line['planted']}", "yes" if located(line) else "NO", str(line["innocent"]),
        f"{line['after']:.1%}", f"{line['max_rel']:.1e}", "yes" if line["verified"] else "NO", str(line["labels"]),
        f"{line['seconds']:.0f} s", f"{line['seconds'] / line['once']:.1f}",
    ]


if __name__ == "__main__":
    raise SystemExit(main())
