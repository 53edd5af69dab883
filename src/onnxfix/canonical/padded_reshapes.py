"""A Pad stands right in front of the Conv that it is for, not behind a Reshape that only places ones."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onnxfix.canonical.queries import dims, nodes_of, producer
from onnxfix.canonical.rewriting import Editor, array, sole_consumer


class PadBehindReshape(ir.passes.InPlacePass):
    """``Conv(Reshape(Pad(x, p))) = Conv(Pad(Reshape(x), p'))`` where the Reshape only adds, drops or moves ones.

    ``p'`` has the pads of each axis where the Reshape puts that axis. FoldPads then takes the Pad into the Conv.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Move."""
        editor = Editor(model.graph)
        for node in nodes_of(model.graph, "Conv"):
            reshape = producer(node.inputs[0], "Reshape")
            pad = None if reshape is None else producer(reshape.inputs[0], "Pad")
            if reshape is None or pad is None or sole_consumer(reshape.outputs[0]) is not node:
                continue
            if sole_consumer(pad.outputs[0]) is reshape:
                _exchange(editor, pad, reshape)
        return ir.passes.PassResult(model, editor.modified)


def _exchange(editor: Editor, pad: ir.Node, reshape: ir.Node) -> None:
    before, after, bare = dims(pad.outputs[0]), dims(reshape.outputs[0]), dims(pad.inputs[0])
    amounts = array(pad.inputs[1])
    if before is None or after is None or bare is None or amounts is None or len(pad.inputs) > 3:
        return
    places, half = _places(before, after), len(before)
    if places is None or any(amounts[k] or amounts[half + k] for k in range(half) if k not in places):
        return
    sizes: list[int | str | None] = [1] * len(after)
    moved = np.zeros(2 * len(after), np.int64)
    for axis, place in places.items():
        sizes[place] = bare[axis]
        moved[place], moved[len(after) + place] = amounts[axis], amounts[half + axis]
    other_axes = [*moved[:2], *moved[len(after) :][:2]]
    if any(other_axes) or moved.min() < 0 or pad.attributes.get_string("mode", "constant") != "constant":
        return  # no Conv takes it in
    target = [0 if place == 0 and not isinstance(size, int) else size for place, size in enumerate(sizes)]
    if not all(isinstance(size, int) for size in target):
        return
    shaped = editor.node(
        "Reshape", [pad.inputs[0], editor.literal(np.array(target, np.int64))], like=[reshape], before=reshape,
        attributes={"allowzero": 0},
    )
    padded = editor.node(
        "Pad", [shaped.outputs[0], editor.literal(moved), *pad.inputs[2:3]], like=[pad], before=reshape,
        attributes={"mode": "constant"},
    )
    editor.replace(reshape.outputs[0], padded.outputs[0])
    editor.remove([reshape, pad])


def _places(
    before: Sequence[int | str | None], after: Sequence[int | str | None]
) -> dict[int, int] | None:
    """Axis -> the axis that a Reshape makes of it, for all axes but ones; None where it does more than place ones."""
    ours = [k for k, size in enumerate(before) if size != 1]
    theirs = [k for k, size in enumerate(after) if size != 1]
    same = len(ours) == len(theirs) and all(
        before[a] == after[b] and (before[a] is not None or a == b == 0) for a, b in zip(ours, theirs, strict=True)
    )
    return dict(zip(ours, theirs, strict=True)) if same else None
