"""Inputs that the target takes with its axes in an order that no framework's layout explains."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import onnx
from onnx import helper

from onnxfix.diagnose.boundary.change import Change, boundary_fault, boundary_patch, changed, named
from onnxfix.diagnose.boundary.samples import Samples, distance
from onnxfix.diagnose.fault import FaultKind
from onnxfix.errors import AlignmentError, InputError, RuntimeFailure
from onnxfix.inputs import Inputs
from onnxfix.inputs.matching import Dim, fitting_move
from onnxfix.model import Model, TensorSpec

_SAMPLES = 4


def rearranged(source: Model, target: Model, data: Inputs) -> list[Change]:
    """The transposes after which the target can be fed what the source is; none where its axes are not the matter.

    Where several fit, the one whose answers are nearest to the source's is taken.
    """
    if len(source.inputs) != len(target.inputs):
        return []
    choices = [list(_orders(a, b)) for a, b in zip(source.inputs, target.inputs, strict=True)]
    moving = [k for k, perms in enumerate(choices) if perms]
    if not moving:
        return []
    best: tuple[float, list[Change]] | None = None
    for perms in itertools.islice(itertools.product(*(choices[k] for k in moving)), 24):
        found = [
            _change(source, target, source.inputs[k], target.inputs[k], perm)
            for k, perm in zip(moving, perms, strict=True)
        ]
        apart = _apart(source, changed(target, [p for change in found for p in change.patches]), data)
        if apart is not None and (best is None or apart < best[0]):
            best = apart, found
    return [] if best is None else best[1]


def _orders(ours: TensorSpec, theirs: TensorSpec) -> Iterator[tuple[int, ...]]:
    """Orders of the source's axes that have the target's sizes, where its own order and the usual layouts have not."""
    if ours.shape is None or theirs.shape is None or len(ours.shape) != len(theirs.shape):
        return
    if not 2 <= len(ours.shape) <= 5 or (fitting_move(ours.shape, theirs.shape) and _fits(ours.shape, theirs.shape)):
        return
    for perm in itertools.permutations(range(len(ours.shape))):
        if perm != tuple(range(len(perm))) and _fits([ours.shape[axis] for axis in perm], theirs.shape):
            yield perm


def _fits(shape: tuple[Dim, ...] | list[Dim], wanted: tuple[Dim, ...]) -> bool:
    """Whether sizes agree, a size without a number only with another such."""
    return all(a == b if isinstance(a, int) and isinstance(b, int) else isinstance(a, int) == isinstance(b, int)
               for a, b in zip(shape, wanted, strict=True))  # fmt: skip


def _change(
    source: Model, target: Model, ours: TensorSpec, theirs: TensorSpec, perm: tuple[int, ...]
) -> Change:
    between = f"{theirs.name}/moved"
    back = [theirs.shape[perm.index(axis)] for axis in range(len(perm))] if theirs.shape else []
    info = helper.make_tensor_value_info(theirs.name, helper.np_dtype_to_tensor_dtype(theirs.dtype), back)
    node = helper.make_node("Transpose", [theirs.name], [between], f"{between}/transpose", perm=list(perm))
    patch = boundary_patch(
        target, f"take {theirs.name} with the source's axes", inputs={theirs.name: info}, added=(node,),
        renamed={theirs.name: between},
    )  # fmt: skip
    readers = [n for n in target.proto.graph.node if theirs.name in n.input]
    there: list[onnx.NodeProto] = [n for n in source.proto.graph.node if ours.name in n.input]
    fault = boundary_fault(
        FaultKind.TENSOR_LAYOUT, named(target, readers), named(source, there), theirs.name,
        f"Input {theirs.name} is taken as {list(theirs.shape or ())}, which is the source's {list(ours.shape or ())} "
        f"with the axes in the order {list(perm)}.",
        expected=list(ours.shape or ()), actual=list(theirs.shape or ()), error=float("inf"),
    )  # fmt: skip
    return Change(fault, (patch,))


def _apart(source: Model, target: Model, data: Inputs) -> float | None:
    """How far the outputs are apart; None where the target cannot be fed."""
    try:
        samples = Samples.of(source, target, data, _SAMPLES)
        ours, theirs = samples.run(source, "source"), samples.run(target, "target")
    except (InputError, AlignmentError, RuntimeFailure):
        return None
    return sum(min(distance(a, b), 2.0) for a, b in zip(ours, theirs, strict=False))
