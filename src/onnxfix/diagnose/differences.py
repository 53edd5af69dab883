"""What a matched node has otherwise than its partner, read off without running anything."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from onnxfix import mapped
from onnxfix.align import Alignment, Region
from onnxfix.align.graph import attributes, renamed
from onnxfix.runtime.assembly import Constant, constants_read
from onnxfix.runtime.probe import saturated

# Folding a batch norm in another order changes a weight by a few units in the last place.
ULPS = 4 * float(np.finfo(np.float32).eps)

REDUCTIONS = (
    "ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2", "ReduceSumSquare",
    "ReduceLogSum", "ReduceLogSumExp",
)  # fmt: skip

# Operands that say how an op works rather than what it has learned: op -> operand slots.
SETTINGS: Mapping[str, frozenset[int]] = {
    "Clip": frozenset({1, 2}),
    "Pad": frozenset({1, 2, 3}),
    "Slice": frozenset({1, 2, 3, 4}),
    "Resize": frozenset({1, 2, 3}),
    "Reshape": frozenset({1}),
    "Expand": frozenset({1}),
    "Tile": frozenset({1}),
    "TopK": frozenset({1}),
    "Split": frozenset({1}),
    "CumSum": frozenset({1}),
    "OneHot": frozenset({1, 2}),
    "Squeeze": frozenset({1}),
    "Unsqueeze": frozenset({1}),
    "Dropout": frozenset({1, 2}),
    "Trilu": frozenset({1}),
    **dict.fromkeys(REDUCTIONS, frozenset({1})),
}
SETTING_NAMES: Mapping[tuple[str, int], str] = {
    ("Clip", 1): "min",
    ("Clip", 2): "max",
    ("Pad", 1): "pads",
    ("Pad", 2): "constant_value",
    ("Pad", 3): "axes",
    ("Slice", 1): "starts",
    ("Slice", 2): "ends",
    ("Slice", 3): "axes",
    ("Slice", 4): "steps",
    ("Resize", 1): "roi",
    ("Resize", 2): "scales",
    ("Resize", 3): "sizes",
    ("Reshape", 1): "shape",
    ("TopK", 1): "k",
    ("OneHot", 1): "depth",
    ("OneHot", 2): "values",
    ("Expand", 1): "shape",
    ("Tile", 1): "repeats",
    ("Split", 1): "split",
    ("CumSum", 1): "axis",
    ("Dropout", 1): "ratio",
    ("Dropout", 2): "training_mode",
    ("Trilu", 1): "k",
    **{(op, 1): "axes" for op in ("Squeeze", "Unsqueeze", *REDUCTIONS)},
}


@dataclass(frozen=True, eq=False)
class Difference:
    """One thing that a target node has otherwise than the source's.

    Attributes:
        op: The op types differ (within one family); nothing else is compared then.
        attribute: Name of the attribute that differs, or "".
        slot: Target operand slot of the constant that differs, or -1.
        expected: The source's value.
        actual: The target's value.
    """

    op: bool
    attribute: str
    slot: int
    expected: Any
    actual: Any


def differences(alignment: Alignment, region: Region) -> tuple[Difference, ...]:
    """All static differences of a region that is one matched node."""
    ours = alignment.source.nodes[region.source_nodes[0]]
    theirs = alignment.target.nodes[region.target_nodes[0]]
    if ours.op_type != theirs.op_type:
        return (Difference(True, "", -1, ours.op_type, theirs.op_type),)
    return (*_attributes(ours, theirs), *_constants(alignment, region, ours, theirs), *_subgraphs(ours, theirs))


def _attributes(ours: onnx.NodeProto, theirs: onnx.NodeProto) -> Iterable[Difference]:
    a, b = attributes(ours), attributes(theirs)
    for name in sorted({*a, *b}):
        if not _same(a.get(name), b.get(name)):
            yield Difference(False, name, -1, a.get(name), b.get(name))


def _same(a: object, b: object) -> bool:
    if isinstance(a, float) and isinstance(b, float):
        return bool(np.isclose(a, b, rtol=1e-6, atol=0, equal_nan=True))
    if isinstance(a, onnx.TensorProto) and isinstance(b, onnx.TensorProto):
        return np.array_equal(mapped.to_array(a), mapped.to_array(b))
    return a == b


def _constants(
    alignment: Alignment, region: Region, ours: onnx.NodeProto, theirs: onnx.NodeProto
) -> Iterable[Difference]:
    for slot in range(max(len(theirs.input), len(ours.input))):
        own = region.operands.get(slot, slot)
        t = theirs.input[slot] if slot < len(theirs.input) else ""
        s = ours.input[own] if own < len(ours.input) else ""
        a = alignment.source.constant(s) if s and alignment.source.is_constant(s) else None
        b = alignment.target.constant(t) if t and alignment.target.is_constant(t) else None
        if (a is None and s) or (b is None and t) or (a is None and b is None):
            continue
        if a is None or b is None or not close(a, b):
            yield Difference(False, "", slot, a, b)


def close(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two constants are the same to within what folding in another order may change."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if a.dtype.kind != "f":
        return np.array_equal(a, b)
    if a.tobytes() == b.tobytes():
        return True
    with np.errstate(all="ignore"):
        peak = float(np.abs(a).max(initial=0.0))
        if np.isfinite(peak) and np.all(np.abs(a - b) <= ULPS * np.abs(b) + ULPS / 4 * peak):
            return True
    x, y = saturated(a), saturated(b)
    peak = float(np.abs(x).max(initial=0.0, where=np.isfinite(x)))
    return bool(np.allclose(x, y, rtol=ULPS, atol=ULPS / 4 * peak, equal_nan=True))


def _subgraphs(ours: onnx.NodeProto, theirs: onnx.NodeProto) -> Iterable[Difference]:
    """Bodies of control flow are compared whole."""
    bodies = ({a.name: a.g.SerializeToString() for a in n.attribute if a.HasField("g")} for n in (ours, theirs))
    a, b = bodies
    if a != b:
        yield Difference(True, "", -1, ours.op_type, theirs.op_type)


def corrected(
    alignment: Alignment, region: Region, chosen: Iterable[Difference]
) -> tuple[onnx.NodeProto, dict[str, Constant]]:
    """The target's node with the chosen differences set to the source's values.

    Returns:
        The node, reading and making the target's values, and the constants it reads.
    """
    ours = alignment.source.nodes[region.source_nodes[0]]
    theirs = alignment.target.nodes[region.target_nodes[0]]
    chosen = tuple(chosen)
    if any(d.op for d in chosen):
        return _transplanted(alignment, region)
    node = renamed(theirs, {})
    constants: dict[str, Constant] = dict(constants_read(alignment.target, [theirs]))
    for difference in chosen:
        if difference.attribute:
            _set_attribute(node, difference.attribute, ours)
            continue
        while len(node.input) <= difference.slot:
            node.input.append("")
        if difference.expected is None:
            node.input[difference.slot] = ""
            continue
        name = f"source/{difference.slot}/{region.source_nodes[0]}"
        node.input[difference.slot] = name
        constants[name] = difference.expected
    return node, {k: v for k, v in constants.items() if k in node.input}


def _transplanted(alignment: Alignment, region: Region) -> tuple[onnx.NodeProto, dict[str, Constant]]:
    ours = alignment.source.nodes[region.source_nodes[0]]
    names = {s: t for t, s in region.feeds.items()} | {s: t for s, t in region.outputs}
    constants: dict[str, Constant] = {}
    for value, tensor in constants_read(alignment.source, [ours]).items():
        names[value] = f"source/{value}"
        constants[names[value]] = tensor
    node = renamed(ours, names)
    node.name = region.target_nodes[0]
    return node, constants


def _set_attribute(node: onnx.NodeProto, name: str, ours: onnx.NodeProto) -> None:
    kept = [a for a in node.attribute if a.name != name]
    kept += [a for a in ours.attribute if a.name == name]
    del node.attribute[:]
    node.attribute.extend(kept)
