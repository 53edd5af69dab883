"""Outputs that are not the source's: in another order, too many or too few, with other classes or activations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx
from onnx import helper

from onnxfix.align import GraphView
from onnxfix.compare import Accumulator
from onnxfix.diagnose.boundary.change import Change, boundary_fault, boundary_patch, named, view_of
from onnxfix.diagnose.boundary.fronts import constant
from onnxfix.diagnose.boundary.hidden import hidden_output
from onnxfix.diagnose.boundary.labels import last_layer
from onnxfix.diagnose.boundary.matching_outputs import Match, Output, assigned, match
from onnxfix.diagnose.boundary.samples import Samples
from onnxfix.diagnose.boundary.stored import stored
from onnxfix.diagnose.boundary.tails import Tail, tail
from onnxfix.diagnose.boundary.ways import Arrays, Way
from onnxfix.diagnose.fault import FaultKind
from onnxfix.errors import CanonicalizationError
from onnxfix.model import Model, TensorSpec
from onnxfix.runtime.assembly import assemble
from onnxfix.runtime.session import Session
from onnxfix.surgeon.patch import ChangeBoundary, SetParameter


def output_changes(source: Model, target: Model, samples: Samples) -> list[Change]:
    """The faults of the target's outputs; one patch sets all of them right."""
    ours = _outputs(source, samples, "source")
    theirs = _outputs(target, samples, "target")
    if not ours or not theirs:
        return []
    movable = _moved(source, target, samples)
    opset = _opset(target)

    def apply(way: Way, arrays: Arrays) -> Arrays:
        return _applied(way, arrays, opset)

    table = [[match(a, b, apply) for b in theirs] for a in ours]
    for i, j in movable:
        table[i][j] = Match(Way(), 0.0, 0.0, table[i][j].kin)
    chosen = assigned(ours, theirs, table)
    return _Report(source, target, samples, ours, theirs, table, chosen).changes()


def _outputs(model: Model, samples: Samples, side: str) -> list[Output]:
    view = view_of(model)
    tails = [tail(view, spec.name) for spec in model.outputs]
    before = _values(view, [t.last[0].input[0] for t in tails if t.last], samples, side)
    try:
        canonical = GraphView(model.canonical)
        layers = [last_layer(canonical, name) for name in canonical.outputs]
    except CanonicalizationError:
        layers = [None] * len(tails)
    found = []
    for values, end, layer in zip(samples.run(model, side), tails, layers, strict=True):
        core = end.unactivated(before[end.last[0].input[0]]) if end.last else None
        order = None if layer is None else end.order(len(layer.rows))
        found.append(Output(end.output, values, core or values, end, layer, order, _scale(view, end.output)))
    return found


def _values(view: GraphView, wanted: Sequence[str], samples: Samples, side: str) -> dict[str, Arrays]:
    """Values inside a lowered graph, feed by feed."""
    names = list(dict.fromkeys(wanted))
    if not names:
        return {}
    nodes = [n for n in view.nodes.values() if n]
    tensors = {t.name: t for t in view.proto.graph.initializer}
    inputs = {name: view.element_types[name] for name in view.inputs}
    session = Session(assemble(view.proto, nodes, tensors, inputs, names))
    feeds = samples.source if side == "source" else samples.target
    runs = [list(session.run(feed).values()) for feed in feeds]
    return {name: [run[k] for run in runs] for k, name in enumerate(names)}


def _scale(view: GraphView, output: str) -> tuple[np.ndarray, np.ndarray] | None:
    """Scale and zero point of an output that is quantized last."""
    node = view.nodes[view.producer[output][0]] if output in view.producer else None
    if node is None or node.op_type != "QuantizeLinear":
        return None
    found = [constant(view, v) for v in node.input[1:3]]
    if len(found) < 2 or found[0] is None or found[1] is None or found[0].ndim:
        return None
    return found[0], found[1]


def _moved(source: Model, target: Model, samples: Samples) -> set[tuple[int, int]]:
    """Outputs that a comparison of the models takes for equal but for where the channels are, which is no fault."""
    accumulator = Accumulator.for_models(source, target)
    for ours, theirs, count in zip(samples.source, samples.target, samples.counts, strict=True):
        accumulator.add([*source.run(ours).values()], [*target.run(theirs).values()], count)
    per_output = accumulator.result().per_output
    return {(k, k) for k, o in enumerate(per_output) if o.permutation is not None and o.source and o.target}


def _applied(way: Way, arrays: Arrays, opset: int) -> Arrays:
    shaped = [way.shaped(array) for array in arrays]
    for node in way.activations:
        shaped = [_run_node(node, array, opset) for array in shaped]
    return shaped if way.dtype is None else [array.astype(way.dtype) for array in shaped]


def _run_node(like: onnx.NodeProto, array: np.ndarray, opset: int) -> np.ndarray:
    node = onnx.NodeProto()
    node.CopyFrom(like)
    node.input[:], node.output[:] = ["x"], ["y"]
    base = helper.make_model(helper.make_graph([], "g", [], []), opset_imports=[helper.make_opsetid("", opset)])
    base.ir_version = 9
    kind = helper.np_dtype_to_tensor_dtype(array.dtype)
    [result] = Session(assemble(base, [node], {}, {"x": kind}, ["y"])).run({"x": array}).values()
    return result


def _opset(model: Model) -> int:
    return next((o.version for o in model.proto.opset_import if o.domain in ("", "ai.onnx")), 1)


@dataclass(frozen=True, eq=False)
class _Report:
    """From an assignment of outputs to faults and the patch."""

    source: Model
    target: Model
    samples: Samples
    ours: Sequence[Output]
    theirs: Sequence[Output]
    table: Sequence[Sequence[Match]]
    chosen: Sequence[int | None]

    def changes(self) -> list[Change]:
        """The faults, the patch with the first of them."""
        edit = _Edit(self.target, self.theirs)
        faults: list[Change] = [*self._order(), *self._surplus()]
        inside: list[SetParameter] = []
        for i, j in enumerate(self.chosen):
            if j is None:
                faults.append(self._missing(edit, i))
                continue
            found, more = self._by_weights(self.table[i][j], j)
            inside.extend(more)
            edit.put(self.ours[i], self.theirs[j], found.way, self.source.outputs[i].shape)
            faults.extend(self._of_way(self.ours[i], self.theirs[j], self.table[i][j], more))
        if not faults or not any(not change.reason for change in faults):
            return faults
        first = next(k for k, change in enumerate(faults) if not change.reason)
        faults[first] = replace(faults[first], patches=(*inside, *edit.patches()))
        return faults

    def _by_weights(self, found: Match, j: int) -> tuple[Match, tuple[SetParameter, ...]]:
        """Classes that only the last layer has in another order are put in order there."""
        index, layer = found.way.index, self.theirs[j].layer
        if index is None or layer is None or len(index) != len(layer.rows) or self.theirs[j].tail.movers:
            return found, ()
        wanted = layer.reordered(GraphView(self.target.canonical), index)
        patches = stored(self.target, wanted)
        return (found, ()) if patches is None else (replace(found, way=replace(found.way, index=None)), patches)

    def _order(self) -> list[Change]:
        used = [j for j in self.chosen if j is not None]
        if used == sorted(used):
            return []
        names = [self.theirs[j].name for j in used]
        given = [o.name for o in self.theirs if o.name in names]
        return [
            self._change(
                FaultKind.OUTPUT, used[0], 0, f"The outputs come in another order: {', '.join(given)} instead of "
                f"{', '.join(names)}.", expected=names, actual=given,
            )
        ]  # fmt: skip

    def _surplus(self) -> list[Change]:
        extra = [j for j in range(len(self.theirs)) if j not in self.chosen]
        wrong = len(self.theirs) != len(self.ours)
        return [
            self._change(
                FaultKind.OUTPUT, j, 0, f"Output {self.theirs[j].name} is not in the source.",
                expected=[o.name for o in self.ours], actual=[o.name for o in self.theirs],
            )
            for j in extra if wrong
        ]  # fmt: skip

    def _missing(self, edit: _Edit, i: int) -> Change:
        name = self.ours[i].name
        found = hidden_output(view_of(self.target), self.samples, self.ours[i])
        sources = _makers(self.source, self.ours[i])
        if found is not None:
            edit.expose(name, found, self.source.outputs[i])
        fault = boundary_fault(
            FaultKind.OUTPUT, named(self.target, _node_of(self.target, found)), sources, name,
            f"The source's output {name} is missing" + (f": {found} computes it." if found else "."),
            expected=[o.name for o in self.ours], actual=[o.name for o in self.theirs], error=float("inf"),
        )  # fmt: skip
        return Change(fault, reason="" if found else f"nothing in the target computes the source's output {name}")

    def _of_way(
        self, ours: Output, theirs: Output, found: Match, inside: tuple[SetParameter, ...]
    ) -> list[Change]:
        way, name = found.way, theirs.name
        i, j = self.ours.index(ours), self.theirs.index(theirs)
        made: list[Change] = []
        if ours.tail.ops != theirs.tail.ops and (way.activations or way.kept is not None):
            made.append(self._activation(ours, theirs, i, j))
        if way.perm is not None or way.unit:
            layout = way.perm is not None and len(way.perm) > 2 and _is_channel_move(way.perm)
            kind = FaultKind.TENSOR_LAYOUT if layout else FaultKind.OUTPUT
            text = f"Output {name} has its axes in another order." if way.perm else f"Output {name} has another rank."
            made.append(
                self._change(
                    kind, j, i, text, expected=list(ours.arrays[0].shape), actual=list(theirs.arrays[0].shape)
                )
            )
        if way.index is not None:
            made.append(self._labels(way, theirs, i, j, inside))
        if way.dtype is not None or way.scale is not None:
            a, b = ours.arrays[0].dtype, theirs.arrays[0].dtype
            made.append(
                self._change(
                    FaultKind.OUTPUT, j, i, f"Output {name} is {b} instead of {a}.", expected=str(a), actual=str(b)
                )
            )
        return made

    def _activation(self, ours: Output, theirs: Output, i: int, j: int) -> Change:
        mine, yours = ours.tail.ops, theirs.tail.ops
        has, wants = "-".join(yours) or "nothing", "-".join(mine) or "nothing"
        text = f"Output {theirs.name} ends with {has}, the source's with {wants}."
        return self._change(FaultKind.OUTPUT, j, i, text, expected=mine, actual=yours)

    def _labels(self, way: Way, theirs: Output, i: int, j: int, inside: tuple[SetParameter, ...]) -> Change:
        index = np.asarray(way.index)
        classes = theirs.arrays[0].shape[-1 if theirs.arrays[0].ndim < 3 else 1]
        if len(index) < classes and np.array_equal(index, np.arange(len(index)) + index[0]):
            text = (
                f"Output {theirs.name} has {classes} classes instead of {len(index)}: the source's first is its "
                f"class {index[0]}."
            )
        else:
            text = f"The classes of output {theirs.name} are in another order than the source's."
        change = self._change(FaultKind.OUTPUT, j, i, text, expected=np.arange(len(index)), actual=index)
        if not inside:
            return change
        readers = [n for n in self.target.proto.graph.node if inside[0].name in n.input]
        return Change(replace(change.fault, parameter=inside[0].name, target_nodes=named(self.target, readers)))

    def _change(self, kind: FaultKind, j: int, i: int, text: str, *, expected: object, actual: object) -> Change:
        theirs, ours = self.theirs[j], self.ours[i]
        guilty = named(self.target, theirs.tail.nodes) or _makers(self.target, theirs)
        there = named(self.source, ours.tail.nodes) or _makers(self.source, ours)
        error = self.table[i][j].plain
        return Change(
            boundary_fault(kind, guilty, there, theirs.name, text, expected=expected, actual=actual, error=error)
        )


def _is_channel_move(perm: tuple[int, ...]) -> bool:
    rank = len(perm)
    return perm in ((0, *range(2, rank), 1), (0, rank - 1, *range(1, rank - 1)))


def _makers(model: Model, output: Output) -> tuple[str, ...]:
    return named(model, _node_of(model, output.name))


def _node_of(model: Model, value: str | None) -> list[onnx.NodeProto]:
    return [node for node in model.proto.graph.node if value and value in node.output]


class _Edit:
    """Collects what becomes of the target's outputs, for one patch."""

    def __init__(self, target: Model, theirs: Sequence[Output]) -> None:
        self._target, self._theirs = target, theirs
        self._infos = {info.name: info for info in target.proto.graph.output}
        self._outputs: list[onnx.ValueInfoProto] = []
        self._added: list[onnx.NodeProto] = []
        self._removed: list[onnx.NodeProto] = []
        self._constants: dict[str, np.ndarray] = {}
        self._renamed: dict[str, str] = {}

    def put(self, ours: Output, theirs: Output, way: Way, shape: tuple[int | str | None, ...] | None) -> None:
        """An output that stays, changed in some way."""
        name = theirs.name
        if way.is_identity():
            self._outputs.append(self._infos[name])
            return
        self._outputs.append(self._info(name, way, ours, theirs, shape))
        opset = _opset(self._target)
        if way.kept is None:
            given = f"{name}/raw"
            self._renamed[name] = given
        else:
            given = self._stripped(theirs.tail, way, name)
            if not given:
                return
        nodes, constants = way.nodes(given, name, opset)
        self._added.extend(nodes)
        self._constants.update(constants)

    def _stripped(self, last: Tail, way: Way, name: str) -> str:
        """Take activations out; the value on which the rest is put, or "" where it is the output itself already."""
        stay, gone = last.stripped()
        self._removed.extend(gone)
        more = not replace(way, kept=None).is_identity()
        if not stay:
            if more:
                return str(gone[0].input[0])
            self._renamed[gone[0].input[0]] = name
            return ""
        self._added.extend(stay)
        if not more:
            return ""
        stay[-1].output[0] = f"{name}/raw"
        return str(stay[-1].output[0])

    def expose(self, name: str, value: str, spec: TensorSpec) -> None:
        """A value inside becomes an output."""
        taken = {o for node in self._target.proto.graph.node for o in node.output}
        free = name
        while free in taken:
            free += "/output"
        kind = helper.np_dtype_to_tensor_dtype(spec.dtype)
        info = helper.make_tensor_value_info(free, kind, list(spec.shape or ()))
        self._added.append(helper.make_node("Identity", [value], [free], f"{free}/exposed"))
        self._outputs.append(info)

    def _info(
        self, name: str, way: Way, ours: Output, theirs: Output, shape: tuple[int | str | None, ...] | None
    ) -> onnx.ValueInfoProto:
        """Dtype and shape afterwards: the source's, with the target's own batch."""
        old = self._infos[name].type.tensor_type
        kind = helper.np_dtype_to_tensor_dtype(ours.arrays[0].dtype) if way.dtype or way.scale else old.elem_type
        dims = list(shape) if shape is not None else [None] * ours.arrays[0].ndim
        if dims and old.HasField("shape") and old.shape.dim and way.perm is None:
            first = old.shape.dim[0]
            dims[0] = first.dim_value if first.HasField("dim_value") else (first.dim_param or None)
        return helper.make_tensor_value_info(name, kind, dims)

    def patches(self) -> tuple[ChangeBoundary, ...]:
        """The patch; none where nothing changes."""
        if not self._added and not self._removed and self._outputs == list(self._infos.values()):
            return ()
        patch = boundary_patch(
            self._target, "give the outputs that the source has", outputs=self._outputs, added=tuple(self._added),
            removed=tuple(self._removed), constants=self._constants, renamed=self._renamed,
        )  # fmt: skip
        return (patch,)
