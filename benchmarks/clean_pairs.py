"""Conversions that are right: every pair must be equivalent, isomorphic and without a finding.

``python benchmarks/clean_pairs.py [--photos N] [family ...]``; exit status 1 if any pair is not clean.
"""

from __future__ import annotations

import argparse
import time

import networks
import tables

import onnxfix

COLUMNS = ["pair", "labels differ", "max rel", "isomorphic", "findings", "aligned", "compare", "diagnose"]


def main() -> int:
    parser = argparse.ArgumentParser(description="Check that clean conversion pairs raise no finding.")
    parser.add_argument("families", nargs="*", help="mobilenet_v2, keras_mobilenet_v2, ...; all when none is given")
    parser.add_argument("--photos", type=int, default=250)
    options = parser.parse_args()
    rows, clean = [], True
    for pair in networks.pairs(options.families):
        row, good = check(pair, options.photos)
        rows.append(row)
        clean &= good
        print("  ".join(row), flush=True)
    tables.show(f"Clean conversions, {options.photos} photos", COLUMNS, rows)
    if options.families:
        return 0 if clean else 1
    path = tables.write(
        "clean-pairs", "Clean conversions",
        f"{options.photos} photos; written by `make bench-clean`. Every finding in this table is a false alarm.",
        COLUMNS, rows,
    )
    print(f"written to {path.relative_to(networks.ROOT)}")
    return 0 if clean else 1


def check(pair: networks.Pair, count: int) -> tuple[list[str], bool]:
    """One row, and whether the pair is clean."""
    source, target, data = onnxfix.load(pair.source), onnxfix.load(pair.target), pair.inputs(count)
    started = time.perf_counter()
    comparison = onnxfix.compare(source, target, data)
    compared = time.perf_counter()
    diagnosis = onnxfix.diagnose(source, target, data)
    diagnosed = time.perf_counter()
    same = onnxfix.is_isomorphic(source, target)
    row = [
        pair.name, f"{comparison.label_discrepancy:.1%}", f"{comparison.max_rel:.1e}", "yes" if same else "NO",
        str(len(diagnosis.faults)), f"{diagnosis.aligned:.0%}",
        f"{compared - started:.1f} s", f"{diagnosed - compared:.1f} s",
    ]
    return row, comparison.label_discrepancy == 0 and comparison.equivalent and same and not diagnosis.faults


if __name__ == "__main__":
    raise SystemExit(main())
