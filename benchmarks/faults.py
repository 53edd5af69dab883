"""The fault matrix: faults of every kind, in networks of every sort, between every two frameworks.

``python benchmarks/faults.py [--only NETWORK ...] [--jobs N] [--singles N] [--seed S] [--redo]``

For every network and every ordered pair of frameworks that its converters reach, the clean conversion is diagnosed
(any finding is a false alarm), then faults are planted in the target under meaningless names: each of ``--singles``
operators alone, and once several at the same time. Every judgement is a line in ``build/faults/results``, so a run that
was cut short goes on where it stopped. The tables are written when all networks were judged.
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
from pathlib import Path
from typing import Any

import fault_networks
import numpy as np
import onnx
from scoring import names, score

import onnxfix
from onnxfix.testing import InjectionError, Site, inject, make_names_opaque, operators
from onnxfix.testing.faults import REGISTRY

RESULTS = fault_networks.FOLDER / "results"
HELD_OUT = 16  # of 64 inputs
TOGETHER = (2, 3, 5, 8, 20)  # how many faults at once; the pairs of a network take turns

# A repaired target is as close to the source as this, or as the pair's clean conversion is, up to a factor.
CLOSE, NOISE = 1e-4, 2.0
PAIR = ("network", "source", "target")

Record = dict[str, Any]


def main() -> int:
    parser = argparse.ArgumentParser(description="Plant faults of every kind and repair them.")
    parser.add_argument("--only", nargs="*", choices=fault_networks.NAMES, default=None)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--singles", type=int, default=2, help="operators planted alone in each pair")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--redo", action="store_true", help="forget what was judged before")
    options = parser.parse_args()
    wanted = list(options.only or fault_networks.NAMES)
    (RESULTS / str(options.seed)).mkdir(parents=True, exist_ok=True)
    if options.redo:
        for name in wanted:
            _file(name, options.seed).unlink(missing_ok=True)
    tasks = []
    for name in wanted:
        pairs = fault_networks.network(name).pairs
        tasks += [(name, pair, number, options.singles, options.seed) for number, pair in enumerate(pairs)]
    tasks.sort(key=lambda task: task[2])  # a run that is cut short has seen all networks
    # A process for a few pairs: TensorFlow and torch leak.
    with multiprocessing.get_context("spawn").Pool(options.jobs, maxtasksperchild=6) as pool:
        for name, pair, lines in pool.imap_unordered(_judged, tasks):
            with _file(name, options.seed).open("a") as results:
                results.writelines(json.dumps(line) + "\n" for line in lines)
            print(f"{name}: {pair[0]} -> {pair[1]}: {_summary(lines)}", flush=True)
    if not options.only:
        import fault_tables

        print(f"written to {fault_tables.write(read(options.seed), options.seed).relative_to(fault_networks.ROOT)}")
    return 0


def _file(name: str, seed: int) -> Path:
    return RESULTS / str(seed) / f"{name.replace(' ', '_')}.jsonl"


def read(seed: int) -> list[Record]:
    """All judgements so far, each with what the clean conversion of its pair differs by."""
    files = sorted((RESULTS / str(seed)).glob("*.jsonl"))
    lines = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    clean = {(*map(line.get, PAIR),): line.get("before", 0.0) for line in lines if line["fault"] == "clean"}
    return [{**line, "clean": clean.get((*map(line.get, PAIR),), 0.0)} for line in lines]


def _summary(lines: list[Record]) -> str:
    clean = max((line.get("before", 0.0) for line in lines if line["fault"] == "clean"), default=0.0)
    planted = [{**line, "clean": clean} for line in lines if line["fault"] != "clean"]
    good = sum(passed(line) for line in planted)
    alarms = sum(line.get("alarms", 0) for line in lines)
    return f"{good} of {len(planted)} passed" + (f", {alarms} FALSE ALARMS" if alarms else "")


def located(line: Record) -> bool:
    """The guilty first, all of them, and nothing innocent."""
    return bool("error" not in line and line["found"] == line["planted"] and line["first"] and not line["innocent"])


def repaired(line: Record) -> bool:
    """Verified, no label differs, and outputs as close as float32 lets them be: as the clean conversion's are."""
    noise = max(CLOSE, NOISE * line["clean"])
    return bool("error" not in line and line["verified"] and line["labels"] == 0 and line["max_rel"] <= noise)


def passed(line: Record) -> bool:
    """Located and repaired."""
    return located(line) and repaired(line)


def _judged(task: tuple[str, tuple[str, str], int, int, int]) -> tuple[str, tuple[str, str], list[Record]]:
    """Everything about one pair that has not been judged yet."""
    name, pair, number, singles, seed = task
    done = {line["key"] for line in read(seed) if line["network"] == name}
    lines = []
    try:
        for line in Bench(name, pair, seed).lines(singles, TOGETHER[number % len(TOGETHER)], done):
            lines.append({"network": name, "source": pair[0], "target": pair[1], **line})
    except Exception as error:  # neither model of the pair can be blamed on a planted fault
        lines.append({"network": name, "source": pair[0], "target": pair[1], "key": f"{name}/{pair}/load",
                      "fault": "clean", "alarms": 1, "error": str(error)})
    return name, pair, lines


class Bench:
    """One pair of models and their data."""

    def __init__(self, name: str, pair: tuple[str, str], seed: int) -> None:
        network = fault_networks.network(name)
        self.key, self.seed = f"{name}/{pair[0]}-{pair[1]}/{seed}", seed
        self.source = onnxfix.load(network.files[pair[0]])
        self.target = onnxfix.load(network.files[pair[1]])
        self.data, self.held_out = ({key: value[part] for key, value in network.data.items()}
                                    for part in (slice(HELD_OUT, None), slice(HELD_OUT)))
        if set(self.data) != {spec.name for spec in self.source.inputs}:  # another framework's names, the same order
            for part in ("data", "held_out"):
                values = getattr(self, part).values()
                setattr(self, part, {s.name: v for s, v in zip(self.source.inputs, values, strict=True)})
        bound = onnxfix.Inputs(self.data).bind(self.source, self.target)
        self.feeds = list(bound.feeds(self.target, "target"))[:2]
        self.random = np.random.default_rng([seed, zlib.crc32(self.key.encode())])

    def lines(self, singles: int, together: int, done: set[str]) -> Any:
        """Judgements: the clean conversion, single faults, several at once."""
        once = self._once()
        if f"{self.key}/clean" not in done:
            yield self._clean(once)
        order = [operators()[index] for index in self.random.permutation(len(operators()))]
        planted = 0
        for operator in order:
            if planted == singles:
                break
            key = f"{self.key}/{operator}"
            injection = self._inject(self.target.proto, operator, 0)
            if injection is None:
                continue
            planted += 1
            if key not in done:
                yield {"key": key, "fault": operator, "once": once, **self._repair(injection.model, injection.sites)}
        key = f"{self.key}/together{together}"
        if key not in done:
            model, sites = self._together(order, together)
            if len(sites) > 1:
                yield {"key": key, "fault": "together", "once": once, **self._repair(model, sites)}

    def _once(self) -> float:
        """Seconds to run both models once over all inputs."""
        data = {name: np.concatenate([value, self.held_out[name]]) for name, value in self.data.items()}
        bound = onnxfix.Inputs(data).bind(self.source, self.target)
        started = time.perf_counter()
        for chunk in bound.chunks(self.source, self.target):
            self.source.run(chunk.source)
            self.target.run(chunk.target)
        return time.perf_counter() - started

    def _inject(self, model: onnx.ModelProto, operator: str, attempt: int) -> Any:
        seed = int(zlib.crc32(f"{self.key}/{operator}/{attempt}".encode()))
        try:
            return inject(model, operator, seed=seed, data=self.feeds)
        except InjectionError:
            return None

    def _together(self, order: list[str], count: int) -> tuple[onnx.ModelProto, tuple[Site, ...]]:
        """Up to ``count`` faults of different kinds, no two at the same node, none hidden by a later one.

        No more than a third of the nodes of the normal form are spoiled: what is left of a small network otherwise is
        another network.
        """
        model, sites = self.target.proto, ()
        count = min(count, max(2, len(self.target.canonical.graph.node) // 3))
        order = sorted(order, key=lambda name: REGISTRY[name].reforms)  # last: the model may take no such data any more
        taken: set[str] = set()
        for attempt in range(3 * count):
            injection = self._inject(model, order[attempt % len(order)], attempt + 1)
            if injection is None:
                continue
            nodes = {node for site in injection.sites for node in (site.node, *site.also)}
            reaching = _reaching_an_output(injection.model)
            if taken.isdisjoint(nodes) and all(site.node in reaching for site in sites):
                model, sites, taken = injection.model, (*sites, *injection.sites), taken | nodes
            if len(sites) >= count:
                break
        return model, sites

    def _clean(self, once: float) -> Record:
        line: Record = {"key": f"{self.key}/clean", "fault": "clean", "once": once}
        started = time.perf_counter()
        try:
            diagnosis = onnxfix.diagnose(self.source, self.target, self.data)
        except Exception as error:  # whatever it is, it is this case's result, and the sweep goes on
            return {**line, "alarms": 1, "error": f"{type(error).__name__}: {error}"}
        return {**line, "alarms": len(diagnosis.faults), "seconds": time.perf_counter() - started,
                "before": diagnosis.comparison.max_rel,
                "said": [f"{f.kind}: {f.message}" for f in diagnosis.faults[:3]]}

    def _repair(self, model: onnx.ModelProto, sites: tuple[Site, ...]) -> Record:
        opaque = make_names_opaque(model, seed=self.seed)
        sites = tuple(map(opaque.site, sites))
        line: Record = {"planted": len(sites), "kinds": [str(site.kind) for site in sites],
                        "sites": [site.description for site in sites]}
        started = time.perf_counter()
        try:
            repair = onnxfix.repair(self.source, opaque.model, self.data, holdout=self.held_out)
        except Exception as error:
            return {**line, "error": f"{type(error).__name__}: {error}", "seconds": time.perf_counter() - started}
        seconds = time.perf_counter() - started
        result, faults = score(repair, sites), repair.diagnosis.faults
        named = [next((str(f.kind) for f in faults if names(f, site)), "none") for site in sites]
        return {**line, "found": result.found, "first": result.first, "innocent": result.innocent,
                "labels": result.labels, "max_rel": result.max_rel, "verified": result.verified,
                "before": repair.before.max_rel, "detected": not repair.before.equivalent or bool(faults),
                "named": named, "seconds": seconds, "said": [f"{f.kind}: {f.message}" for f in faults[:3]],
                "unrepaired": [item.reason for item in repair.unrepaired[:3]]}


def _reaching_an_output(model: onnx.ModelProto) -> set[str]:
    """The nodes that an output depends on."""
    wanted = {output.name for output in model.graph.output}
    names = set()
    for node in reversed(model.graph.node):
        if not wanted.isdisjoint(node.output):
            names.add(node.name)
            wanted.update(node.input)
    return names


if __name__ == "__main__":
    raise SystemExit(main())
