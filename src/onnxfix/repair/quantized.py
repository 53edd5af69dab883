"""Repair a quantized target: what is wrong with the straightened model, then with the quantizers themselves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx

from onnxfix.compare import Accumulator, Comparison
from onnxfix.diagnose.examination import in_chunks
from onnxfix.diagnose.quantized import Quantizer, Straightened, WrongQuantizer, activation_spans, wrong_quantizers
from onnxfix.diagnose.quantized.cost import MARGIN, rounded
from onnxfix.inputs import Inputs
from onnxfix.model import Model
from onnxfix.quantization import Quantization, quantization_of
from onnxfix.repair.result import Repair
from onnxfix.runtime.session import Session
from onnxfix.surgeon.apply import apply
from onnxfix.surgeon.patch import ChangeBoundary, Patch, ReplaceRegion, SetAttribute, SetNode, SetParameter


def of_target(target: Model, straight: Model, patches: Sequence[Patch]) -> tuple[Patch, ...] | None:
    """Patches of the straightened model as such of the quantized one; None where it has no place for one.

    Nodes have the same names in both; what they read may have another, where a quantizer was left out. Regions are put
    in as floats, between what is quantized.
    """
    nodes = {node.name: node for node in target.proto.graph.node}
    found: list[Patch] = []
    for patch in patches:
        if isinstance(patch, SetNode):
            node = nodes.get(patch.previous.name)
            if node is None or node.op_type != patch.previous.op_type:
                return None
            names = dict(zip((*patch.previous.input, *patch.previous.output), (*node.input, *node.output), strict=True))
            value = onnx.NodeProto()
            value.CopyFrom(patch.value)
            value.input[:] = [names.get(v, v) for v in value.input]
            value.output[:] = [names.get(v, v) for v in value.output]
            found.append(SetNode(node, value))
        elif isinstance(patch, SetAttribute) and patch.node not in nodes:
            return None
        elif isinstance(patch, SetParameter | SetAttribute):
            found.append(patch)
        elif isinstance(patch, ReplaceRegion) and (region := _region(target, straight, patch)) is not None:
            found.append(region)
        elif isinstance(patch, ChangeBoundary) and _has_such_boundary(target, straight, patch):
            found.append(patch)
        else:
            return None
    return tuple(found)


def _region(target: Model, straight: Model, patch: ReplaceRegion) -> ReplaceRegion | None:
    """A region between the values that nodes of the quantized graph read in place of the straightened one's."""
    nodes = {node.name: node for node in target.proto.graph.node}
    read = {i.name: i.name for i in target.proto.graph.input} | {t.name: t.name for t in target.proto.graph.initializer}
    for node in straight.proto.graph.node:
        twin = nodes.get(node.name)
        if twin is not None and twin.op_type == node.op_type and len(twin.input) == len(node.input):
            read = dict(zip(node.input, twin.input, strict=True)) | read
    fresh = {o for node in patch.added for o in node.output} | patch.constants.keys()
    wanted = {v for node in patch.added for v in node.input if v} | set(patch.rewired.values())
    readers = {reader for reader, _ in patch.rewired if reader}
    made = {o for node in straight.proto.graph.node for o in node.output}
    known = all(v in fresh or v in read for v in wanted) and readers <= nodes.keys()
    if not patch.lowered or not known or made.intersection(fresh) or not set(patch.removed) <= nodes.keys():
        return None
    added = []
    for node in patch.added:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.input[:] = [v if v in fresh else read.get(v, v) for v in node.input]
        added.append(copy)
    rewired = {place: v if v in fresh else read[v] for place, v in patch.rewired.items()}
    return replace(patch, added=tuple(added), rewired=rewired)


def _has_such_boundary(target: Model, straight: Model, patch: ChangeBoundary) -> bool:
    """Whether a change of the straightened model's inputs and outputs means the same in the quantized graph."""

    def ends(model: Model) -> list[tuple[str, int]]:
        graph = model.proto.graph
        return [(info.name, info.type.tensor_type.elem_type) for info in (*graph.input, *graph.output)]

    graph = target.proto.graph
    values = {o for node in graph.node for o in node.output} | {i.name for i in (*graph.input, *graph.initializer)}
    fresh = {o for node in patch.added for o in node.output} | patch.constants.keys() | set(patch.renamed.values())
    wanted = {v for node in patch.added for v in node.input if v} | patch.renamed.keys() | patch.dropped.keys()
    gone = {node.name for node in patch.removed}
    return ends(target) == ends(straight) and wanted <= values | fresh and gone <= {node.name for node in graph.node}


def left(straight: Straightened, target: onnx.ModelProto, repaired: onnx.ModelProto) -> Straightened:
    """The straightened model with those quantizers that are still there once the target is patched.

    Args:
        straight: The straightened model.
        target: The patched target.
        repaired: The patched straightened graph.
    """
    nodes = {node.name for node in target.graph.node}
    values = {o for node in repaired.graph.node for o in node.output} | {i.name for i in repaired.graph.input}
    kept = (q for q in straight.quantizers if {q.first, *q.readers} <= nodes and q.value in values)
    return replace(straight, quantizers=tuple(kept))


@dataclass(frozen=True, eq=False)
class QuantizedRepair:
    """What is needed to finish the repair of a quantized target.

    Attributes:
        target: The quantized target.
        straight: The same, straightened.
        inner: The repair of the straightened model, its patches as such of the target.
        repaired: The repaired straightened graph.
        data: The data used for the repair.
        rtol: Relative tolerance of the whole models' comparison.
        atol: Absolute tolerance of the same.
    """

    target: Model
    straight: Straightened
    inner: Repair
    repaired: onnx.ModelProto
    data: Inputs
    rtol: float
    atol: float

    def faults(self) -> tuple[WrongQuantizer, ...]:
        """The quantizers that are wrong."""
        spans = activation_spans(self.inner.source, self.target, self.straight, self.repaired, self.data)
        trusted = apply(self.target.proto, self.inner.patches)
        return wrong_quantizers(self.target, self.straight.quantizers, spans, trusted)

    def finished(self, model: Model, wrong: Sequence[WrongQuantizer]) -> Repair:
        """The repair of the quantized target, proved.

        Args:
            model: The target with all patches.
            wrong: The wrong quantizers.
        """
        inner, source = self.inner, self.inner.source
        patches: tuple[Patch, ...] = (*inner.patches, *(p for w in wrong for p in w.patches))
        held = inner.holdout.bind(source, self.target)
        before = self._compared(self.target, self.data)
        after = self._explained(self._compared(model, self.data), model, self.data)
        verified = self._explained(self._compared(model, held), model, held)
        faults = tuple(
            sorted((*inner.diagnosis.faults, *(w.fault for w in wrong)), key=lambda f: -min(f.local_error, 1e30))
        )
        share = 1.0 if not faults else min(1.0, after.max_rel / before.max_rel) if before.max_rel > 0 else 1.0
        before = replace(before, explained=min(share, after.explained or 0.0) if not faults else share)
        return replace(
            inner,
            model=model,
            target=self.target,
            diagnosis=replace(inner.diagnosis, faults=faults, comparison=before),
            patches=patches,
            before=before,
            after=after,
            verified=verified,
            holdout=held,
        )

    def _compared(self, model: Model, data: Inputs) -> Comparison:
        source = self.inner.source
        accumulator = Accumulator.for_models(source, model, rtol=self.rtol, atol=self.atol)
        for chunk in in_chunks(source, model, data):
            expected, actual = source.run(chunk.source), model.run(chunk.target)
            accumulator.add([*expected.values()], [*actual.values()], chunk.count)
        return accumulator.result()

    def _explained(self, comparison: Comparison, model: Model, data: Inputs) -> Comparison:
        """A comparison, with the share of its difference that a correct quantization explains."""
        straight = replace(self.straight.model, proto=self.repaired)
        schemes = [_scheme(model, quantizer) for quantizer in self.straight.quantizers]
        session = Session(rounded(straight.proto, self.straight.quantizers, schemes))
        source = self.inner.source
        accumulator = Accumulator.for_models(source, straight, rtol=self.rtol, atol=self.atol)
        for chunk in in_chunks(source, straight, data):
            expected = source.run(chunk.source)
            accumulator.add([*expected.values()], [*session.run(chunk.target).values()], chunk.count)
        allowed = max(MARGIN * accumulator.result().max_rel, self.rtol)
        if not np.isfinite(comparison.max_rel):
            return replace(comparison, explained=0.0)
        return replace(comparison, explained=min(1.0, allowed / comparison.max_rel) if comparison.max_rel else 1.0)


def _scheme(model: Model, quantizer: Quantizer) -> Quantization | None:
    node = next(n for n in model.proto.graph.node if n.name == quantizer.first)
    return None if quantizer.scheme is None else quantization_of(model.proto, node)
