"""Training mode: active dropout, and batch norms that use the statistics of the batch at hand.

Such nodes answer by chance or by what else is in the batch. They are switched to inference before anything else is
compared, so that only what is wrong beyond that is blamed on other nodes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice

import numpy as np
import onnx
from onnx import helper, numpy_helper

from onnxfix.canonical.origins import EXPRESSION_OPSET
from onnxfix.diagnose.evidence import Evidence, Exhibit
from onnxfix.diagnose.examination import in_chunks
from onnxfix.diagnose.fault import Fault, FaultKind
from onnxfix.diagnose.naming import label
from onnxfix.diagnose.noise import FLOOR
from onnxfix.frameworks import Framework
from onnxfix.inputs import Inputs
from onnxfix.model import Model
from onnxfix.runtime.probe import LocalError, measure
from onnxfix.runtime.session import Session
from onnxfix.surgeon.apply import apply
from onnxfix.surgeon.patch import SetNode

# Batches on which it is seen whether a node in training mode matters.
_BATCHES = 2


@dataclass(frozen=True, eq=False)
class Switched:
    """A target in inference mode.

    Attributes:
        model: The target with the patches applied; the target itself where nothing trains.
        patches: What switched it, one for each fault.
        faults: The nodes that were in training mode.
    """

    model: Model
    patches: tuple[SetNode, ...] = ()
    faults: tuple[Fault, ...] = ()


def switched(source: Model, target: Model, data: Inputs) -> Switched:
    """Switch a target to inference.

    A source that trains by itself is taken at its word: then nothing is switched.

    Args:
        source: The model that is right.
        target: The conversion of it.
        data: The data, on which it is seen which of the nodes matter.
    """
    training = _training(target.proto)
    if not training or _training(source.proto):
        return Switched(target)
    patches = tuple(SetNode(node, _inferring(node)) for node in training)
    model = _patched(target, patches)
    shown = _exhibits(source, model, patches, data)
    kept = [(p, e, s) for p, (e, s) in zip(patches, shown, strict=True) if e.broken or e.relative > FLOOR]
    if not kept:
        return Switched(target)
    chosen = tuple(patch for patch, _, _ in kept)
    faults = tuple(_fault(target, patch.previous, error, exhibit) for patch, error, exhibit in kept)
    return Switched(_patched(target, chosen), chosen, faults)


def _training(proto: onnx.ModelProto) -> list[onnx.NodeProto]:
    """Nodes of the main graph that are in training mode, and whose answer differs from that of inference."""
    constants = {t.name: t for t in proto.graph.initializer}
    made = {n.output[0]: n.attribute[0].t for n in proto.graph.node if n.op_type == "Constant" and n.attribute}
    outputs = {o.name for o in proto.graph.output}
    read = outputs | {v for node in proto.graph.node for v in node.input}

    def holds(name: str) -> bool:
        tensor = constants.get(name, made.get(name))
        return tensor is not None and bool(np.any(numpy_helper.to_array(tensor)))

    def trains(node: onnx.NodeProto) -> bool:
        if any(v in read for v in node.output[1:]):
            return False
        if node.op_type == "BatchNormalization":
            return any(a.name == "training_mode" and a.i for a in node.attribute)
        active = node.op_type == "Dropout" and len(node.input) > 2 and holds(node.input[2])
        return active and (not node.input[1] or holds(node.input[1]))

    return [node for node in proto.graph.node if trains(node)]


def _inferring(node: onnx.NodeProto) -> onnx.NodeProto:
    """The node in inference mode."""
    if node.op_type == "Dropout":
        return helper.make_node("Identity", [node.input[0]], [node.output[0]], name=node.name)
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    kept = [a for a in node.attribute if a.name not in ("training_mode", "momentum")]
    del copy.attribute[:]
    copy.attribute.extend(kept)
    del copy.output[1:]
    return copy


def _patched(target: Model, patches: tuple[SetNode, ...]) -> Model:
    proto = apply(target.proto, patches)
    return Model(proto, Framework.ONNX, proto, parameters=target.parameters, layers=target.layers)


def _exhibits(
    source: Model, model: Model, patches: tuple[SetNode, ...], data: Inputs
) -> list[tuple[LocalError, Exhibit]]:
    """What training mode does at each node, fed with what the model in inference mode feeds it."""
    tapped = onnx.ModelProto()
    tapped.CopyFrom(model.proto)
    present = {o.name for o in tapped.graph.output}
    inputs = {i.name for i in tapped.graph.input}
    wanted = [v for p in patches for v in (p.previous.input[0], p.previous.output[0])]
    computed = [v for v in dict.fromkeys(wanted) if v not in inputs]
    tapped.graph.output.extend(onnx.ValueInfoProto(name=v) for v in computed if v not in present)
    session = Session(tapped)
    errors = [LocalError() for _ in patches]
    exhibits: list[Exhibit] = []
    for chunk in islice(in_chunks(source, model, data), _BATCHES):
        values = {**chunk.target, **session.run(chunk.target, computed)}
        exhibits = [_exhibit(model.proto, patch, values) for patch in patches]
        for k, shown in enumerate(exhibits):
            made = list(Session(shown.model).run(dict(shown.inputs)).values())
            errors[k] = errors[k].joined(measure(shown.expected, made))
    return list(zip(errors, exhibits, strict=True))


def _exhibit(proto: onnx.ModelProto, patch: SetNode, values: Mapping[str, np.ndarray]) -> Exhibit:
    node, x = patch.previous, values[patch.previous.input[0]]
    return Exhibit(
        _alone(proto, node, x), _alone(proto, patch.value, x), {node.input[0]: x}, (values[node.output[0]],)
    )


def _alone(proto: onnx.ModelProto, node: onnx.NodeProto, value: np.ndarray) -> onnx.ModelProto:
    """One node as a model, with the constants that it reads."""
    kind = helper.np_dtype_to_tensor_dtype(value.dtype)
    constants = [t for t in proto.graph.initializer if t.name in node.input]
    makers = [n for n in proto.graph.node if n.op_type == "Constant" and n.output[0] in node.input]
    graph = helper.make_graph(
        [*makers, node],
        "node",
        [helper.make_tensor_value_info(node.input[0], kind, value.shape)],
        [helper.make_tensor_value_info(node.output[0], kind, None)],
        constants,
    )
    opset = next((o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")), EXPRESSION_OPSET)
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=min(proto.ir_version, 10)
    )


def _fault(target: Model, node: onnx.NodeProto, error: LocalError, exhibit: Exhibit) -> Fault:
    names = tuple(dict.fromkeys((node.name, *([target.layers[node.name]] if node.name in target.layers else []))))
    here = label(target, names)
    what = "drops values at random" if node.op_type == "Dropout" else "uses the statistics of the batch at hand"
    return Fault(
        kind=FaultKind.MODE,
        target_nodes=names,
        source_nodes=(),
        parameter="training_mode",
        expected=False,
        actual=True,
        local_error=error.relative,
        message=f"{here} is in training mode: it {what}.",
        evidence=Evidence(piece=lambda: exhibit),
    )
