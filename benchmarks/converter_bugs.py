"""Conversions that today's converters really get wrong: is the guilty op named first, and the target repaired?

``python benchmarks/converter_bugs.py [case ...]``; the cases lie in ``$ONNXFIX_DATA/converter_bugs``.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass

import tables
from photos import ROOT, data_root

import onnxfix

# A repaired target equals its source to float noise: 100 ulp of float32 of the output's range.
NOISE = 1e-5
COLUMNS = ["case", "converter", "expected", "first finding", "kind", "before", "after", "verified", "time", "result"]


@dataclass(frozen=True)
class Bug:
    """One case: the target nodes that are guilty; none where the converter did nothing wrong."""

    name: str
    guilty: tuple[str, ...]
    source: str | None = None


BUGS = [
    Bug("slim_conv_mul_width", ("/c/Conv_output_0",)),
    Bug("onnxoptimizer_pad_maxpool", ("node_max_pool2d",)),
    Bug("t2o_ts_softplus_threshold", ("/s/Softplus",), source="source.pt2"),
    Bug("tf2onnx_floormod_negative", ("FloorMod", "Div__6", "Mul__7")),
    Bug("k2o_zeropad_maxpool_ort_fusion", ()),
]


def main() -> int:
    wanted = sys.argv[1:]
    rows, passed = [], True
    for bug in BUGS:
        if not wanted or bug.name in wanted:
            row, good = judge(bug)
            rows.append(row)
            passed &= good
    tables.show("Real converter bugs", COLUMNS, rows)
    text = "Conversions that today's converters get wrong, unmodified. Written by `make bench-bugs`."
    if not wanted:
        path = tables.write("converter-bugs", "Real converter bugs", text, COLUMNS, rows)
        print(f"written to {path.relative_to(ROOT)}")
    return 0 if passed else 1


def judge(bug: Bug) -> tuple[list[str], bool]:
    """Repair one case; its row and whether it came out as it must."""
    folder = data_root() / "converter_bugs" / bug.name
    case = json.loads((folder / "case.json").read_text())
    source = onnxfix.load(folder / (bug.source or case["source"].rstrip("/")))
    target = onnxfix.load(folder / case["target"])
    started = time.perf_counter()
    try:
        repair = onnxfix.repair(source, target, folder / "data.npz")
    except onnxfix.OnnxFixError as error:
        return [bug.name, case["converter"], *["-"] * 7, f"FAILED: {error}"], False
    seconds = time.perf_counter() - started
    good = repaired(repair, bug.guilty) if bug.guilty else innocent_of_all(repair)
    first = repair.diagnosis.faults[0] if repair.diagnosis.faults else None
    return [
        bug.name, case["converter"], ", ".join(bug.guilty) or "the runtime",
        ", ".join(first.target_nodes) if first else "; ".join(repair.diagnosis.notes) or "nothing",
        str(first.kind) if first else "-", f"{repair.before.max_rel:.1e}",
        f"{max(repair.after.max_rel, repair.verified.max_rel):.1e}", "yes" if repair.success else "NO",
        f"{seconds:.1f} s", "passed" if good else "FAILED",
    ], good


def repaired(repair: onnxfix.Repair, guilty: tuple[str, ...]) -> bool:
    """The first finding is guilty, and the target equals the source to float noise on held-out data."""
    faults = repair.diagnosis.faults
    named = bool(faults) and not set(guilty).isdisjoint(faults[0].target_nodes)
    return named and repair.success and max(repair.after.max_rel, repair.verified.max_rel) <= NOISE


def innocent_of_all(repair: onnxfix.Repair) -> bool:
    """No fault of the model, and a note that blames the runtime."""
    notes = repair.diagnosis.notes
    return not repair.diagnosis.faults and not repair.patches and any("onnxruntime" in note for note in notes)


if __name__ == "__main__":
    raise SystemExit(main())
