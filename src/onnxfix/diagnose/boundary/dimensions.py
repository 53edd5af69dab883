"""Inputs whose size was frozen: the target cannot be fed what the source can, or fails on it.

A fixed size in itself is no fault: TFLite files fix the batch, and are fed one sample at a time. It is one where the
data cannot be fed in any way, or where a size was baked into a Reshape and more samples than one break it.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import numpy as np
import onnx
from onnx import helper

from onnxfix.diagnose.boundary.change import Change, boundary_fault, boundary_patch, changed, named, view_of
from onnxfix.diagnose.boundary.fronts import constant
from onnxfix.diagnose.boundary.rearranging import rearranged
from onnxfix.diagnose.fault import Fault, FaultKind
from onnxfix.errors import AlignmentError, InputError, OnnxFixError, RuntimeFailure
from onnxfix.inputs import Chunk, Inputs
from onnxfix.model import Model, TensorSpec
from onnxfix.surgeon.patch import SetParameter

# Chunks that are looked at for the shapes that the data have.
_CHUNKS = 64


def dimension_changes(source: Model, target: Model, data: Inputs) -> list[Change]:
    """What keeps the target from being fed the data, and the patches that free it.

    Raises:
        InputError: the data cannot be fed to the source either, or freeing the sizes does not help.
        AlignmentError: the models do not take the same inputs.
    """
    try:
        chunks = _chunks(source, target, data)
    except (InputError, AlignmentError) as problem:
        return _freed(source, target, data, problem)
    broken = next((c for c in chunks if _broken(source, target, c)), None)
    if broken is None:
        return []
    change = _unbaked(source, target, chunks)
    return [] if change is None else [change]


def _chunks(source: Model, target: Model, data: Inputs) -> list[Chunk]:
    """One chunk of each shape that the data have, of two samples where they can be cut."""
    data = Inputs.of(data, batch_size=2)
    kept: dict[object, Chunk] = {}
    for chunk in islice(data.chunks(source, target), _CHUNKS):
        kept.setdefault(tuple(array.shape for array in chunk.source.values()), chunk)
    return list(kept.values())


def _broken(source: Model, target: Model, chunk: Chunk) -> bool:
    """Whether the target fails on what the source takes, or answers in other sizes."""
    try:
        theirs = [a.shape for a in target.run(chunk.target).values()]
    except RuntimeFailure:
        return True
    ours = [a.shape for a in source.run(chunk.source).values()]
    # Axes of one size in the source are what is frozen; other differences are not a matter of sizes.
    return any(a[:1] != b[:1] for a, b in zip(ours, theirs, strict=False) if len(a) == len(b))


def _freed(source: Model, target: Model, data: Inputs, problem: OnnxFixError) -> list[Change]:
    """The target's inputs with the source's sizes, or its axes in the source's order."""
    next(iter(data.bind(source).feeds(source)))  # it is the source's own problem if this fails
    moved = rearranged(source, target, data)
    if moved:
        return moved
    frozen = [(a, b) for a, b in zip(source.inputs, target.inputs, strict=False) if _is_frozen(a, b)]
    if not frozen or len(source.inputs) != len(target.inputs):
        raise problem
    infos = {b.name: _info(b, a) for a, b in frozen}
    outputs = [_open(info) for info in target.proto.graph.output]
    patch = boundary_patch(target, f"free the size of {', '.join(infos)}", inputs=infos, outputs=outputs)
    free = changed(target, [patch])
    try:
        chunks = _chunks(source, free, data)
    except (InputError, AlignmentError):
        raise problem from None
    faults = [_frozen_fault(source, target, a, b) for a, b in frozen]
    found = [Change(faults[0], (patch,)), *(Change(fault) for fault in faults[1:])]
    if any(_broken(source, free, chunk) for chunk in chunks):
        baked = _unbaked(source, free, chunks)
        if baked is None and not all(_runs(free, chunk) for chunk in chunks):
            raise problem
        found.extend([] if baked is None else [baked])
    return found


def _runs(target: Model, chunk: Chunk) -> bool:
    try:
        target.run(chunk.target)
    except RuntimeFailure:
        return False
    return True


def _is_frozen(ours: TensorSpec, theirs: TensorSpec) -> bool:
    if ours.shape is None or theirs.shape is None or len(ours.shape) != len(theirs.shape):
        return False
    return any(isinstance(b, int) and a != b for a, b in zip(ours.shape, theirs.shape, strict=True))


def _info(theirs: TensorSpec, ours: TensorSpec) -> onnx.ValueInfoProto:
    kind = helper.np_dtype_to_tensor_dtype(theirs.dtype)
    return helper.make_tensor_value_info(theirs.name, kind, list(ours.shape or ()))


def _open(info: onnx.ValueInfoProto) -> onnx.ValueInfoProto:
    """The same output, of any size."""
    copy = onnx.ValueInfoProto()
    copy.CopyFrom(info)
    for dim in copy.type.tensor_type.shape.dim:
        dim.ClearField("value")
    return copy


def _frozen_fault(source: Model, target: Model, ours: TensorSpec, theirs: TensorSpec) -> Fault:
    readers = [n for n in target.proto.graph.node if theirs.name in n.input]
    there = [n for n in source.proto.graph.node if ours.name in n.input]
    expected, actual = list(ours.shape or ()), list(theirs.shape or ())
    return boundary_fault(
        FaultKind.INPUT_DIMENSIONS, named(target, readers), named(source, there), theirs.name,
        f"The size of input {theirs.name} is fixed to {actual}; the source takes {expected}.",
        expected=expected, actual=actual, error=float("inf"),
    )  # fmt: skip


def _unbaked(source: Model, target: Model, chunks: list[Chunk]) -> Change | None:
    """Reshapes with the batch baked in, made to take any; None where that does not mend it."""
    baked = list(_baked(target))
    if not baked:
        return None
    patches = [patch for _, patch in baked]
    free = changed(target, patches)
    if any(_broken(source, free, chunk) for chunk in chunks):
        return None
    nodes = [node for node, _ in baked]
    first = patches[0]
    there = [n for n in source.proto.graph.node if n.op_type == "Reshape"]
    fault = boundary_fault(
        FaultKind.INPUT_DIMENSIONS, named(target, nodes), named(source, there), first.name,
        f"The number of samples is baked into {len(nodes)} Reshape, {nodes[0].name} first: it takes no other.",
        expected=first.value, actual=first.previous, error=float("inf"),
    )  # fmt: skip
    return Change(fault, tuple(patches))


def _baked(target: Model) -> Iterator[tuple[onnx.NodeProto, SetParameter]]:
    """Reshapes of data whose first size is fixed, and the size that follows from the others instead."""
    view = view_of(target)
    for node in view.nodes.values():
        if node.op_type != "Reshape" or constant(view, node.input[0]) is not None:
            continue
        wanted = constant(view, node.input[1])
        stored = view.is_constant(node.input[1]) or view.nodes[view.producer[node.input[1]][0]].op_type == "Constant"
        if wanted is None or not stored or wanted.size < 2 or wanted[0] < 1:
            continue
        value = wanted.copy()
        value[0] = 0 if np.any(wanted[1:] < 0) else -1
        alone = len(view.consumers[node.input[1]]) == 1
        yield node, SetParameter(node.input[1], value, wanted, () if alone else (node.name,))
