"""Apply patches to a graph, and take them back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import onnx
from onnx import helper, numpy_helper

from onnxfix.errors import OnnxFixError
from onnxfix.surgeon.edges import change_boundary
from onnxfix.surgeon.patch import ChangeBoundary, Patch, ReplaceRegion, SetAttribute, SetConstant, SetNode, SetParameter


class PatchError(OnnxFixError):
    """A patch does not fit the graph it is applied to."""


def apply(proto: onnx.ModelProto, patches: Iterable[Patch]) -> onnx.ModelProto:
    """Apply patches to a copy of a graph.

    Args:
        proto: The lowered graph for patches whose ``lowered`` is true, the normal form for the others.
        patches: In the order in which they are to be applied.

    Raises:
        PatchError: the graph has no such node or initializer.
    """
    patched = onnx.ModelProto()
    patched.CopyFrom(proto)
    structural = False
    for patch in patches:
        if not (isinstance(patch, SetParameter | SetConstant) and patch.value.dtype.kind == "f"):
            del patched.graph.value_info[:]  # shapes may change; onnxruntime trusts stale ones, and fails
        match patch:
            case SetParameter():
                _set_parameter(patched.graph, patch)
            case SetAttribute():
                _set_attribute(_node(patched.graph, patch.node), patch.attribute, patch.value)
            case SetNode():
                _node(patched.graph, patch.previous.name).CopyFrom(patch.value)
            case SetConstant():
                _set_tensor(patched.graph, patch.name, patch.value)
            case ReplaceRegion():
                _replace(patched.graph, patch)
                structural = True
            case ChangeBoundary():
                change_boundary(patched.graph, patch)
    return _tidied(patched) if structural else patched


def replayed(proto: onnx.ModelProto, patches: Iterable[Patch]) -> onnx.ModelProto:
    """Apply all patches of a repair to the untouched target: those of the lowered graph, then those of its normal form.

    Those that come last come last, in whichever of the two it is.

    Args:
        proto: The target's lowered graph.
        patches: As ``Repair.patches`` has them.

    Raises:
        PatchError: the graph has no such node or initializer.
    """
    from onnxfix.canonical.pipeline import normal_form

    given = list(patches)
    last = [patch for patch in given if isinstance(patch, ChangeBoundary) and patch.last]
    patched = apply(proto, (patch for patch in given if patch.lowered and patch not in last))
    rest = [patch for patch in given if not patch.lowered]
    if rest:
        patched = apply(normal_form(patched).proto, rest)
    return apply(patched, last) if last else patched


def reverted(patch: Patch) -> Patch:
    """The patch that takes a patch back.

    Raises:
        PatchError: a replaced region is not kept; apply the other patches to the untouched target instead.
    """
    match patch:
        case SetParameter():
            return SetParameter(patch.name, patch.previous, patch.value, patch.readers)
        case SetAttribute():
            return SetAttribute(patch.node, patch.attribute, patch.previous, patch.value)
        case SetNode():
            return SetNode(patch.value, patch.previous)
        case SetConstant():
            return SetConstant(patch.name, patch.previous, patch.value)
        case ChangeBoundary():
            return patch.reverted()
        case ReplaceRegion():
            raise PatchError(f"'{patch.describe()}' cannot be taken back: start again from the untouched target.")


def _set_tensor(graph: onnx.GraphProto, name: str, value: np.ndarray) -> None:
    for tensor in graph.initializer:
        if tensor.name == name:
            if tuple(tensor.dims) != value.shape:
                raise PatchError(f"{name} has shape {list(tensor.dims)}, the patch {list(value.shape)}.")
            tensor.CopyFrom(numpy_helper.from_array(np.asarray(value, order="C"), name))
            return
    for node in graph.node:
        if node.op_type == "Constant" and name in node.output:
            del node.attribute[:]
            node.attribute.append(helper.make_attribute("value", numpy_helper.from_array(value)))
            return
    raise PatchError(f"the graph has no initializer {name}.")


def _set_parameter(graph: onnx.GraphProto, patch: SetParameter) -> None:
    others = [n.name for n in graph.node if patch.name in n.input and n.name not in patch.readers]
    if not patch.readers or not others:
        _set_tensor(graph, patch.name, patch.value)
        return
    own = _free_name(graph, f"{patch.name}/repaired")
    graph.initializer.append(numpy_helper.from_array(np.asarray(patch.value, order="C"), own))
    for node in graph.node:
        if node.name in patch.readers:
            node.input[:] = [own if v == patch.name else v for v in node.input]


def _free_name(graph: onnx.GraphProto, name: str) -> str:
    taken = {t.name for t in graph.initializer}
    free, count = name, 1
    while free in taken:
        count += 1
        free = f"{name}{count}"
    return free


def _node(graph: onnx.GraphProto, name: str) -> onnx.NodeProto:
    found: onnx.NodeProto | None = {node.name: node for node in graph.node}.get(name)
    if found is None:
        raise PatchError(f"the graph has no node {name}.")
    return found


def _set_attribute(node: onnx.NodeProto, name: str, value: object) -> None:
    kept = [a for a in node.attribute if a.name != name]
    del node.attribute[:]
    node.attribute.extend(kept)
    if value is not None:
        node.attribute.append(helper.make_attribute(name, value))


def _replace(graph: onnx.GraphProto, patch: ReplaceRegion) -> None:
    """Put the added nodes in and rewire to them; what nothing reads any more goes when the graph is tidied.

    A node that makes a value that the graph already has takes its maker's place.
    """
    made = {o for node in patch.added for o in node.output if o}
    kept = [node for node in graph.node if not made.intersection(node.output)]
    del graph.node[:]
    graph.node.extend([*kept, *patch.added])
    graph.initializer.extend(
        numpy_helper.from_array(np.asarray(value, order="C"), name) for name, value in patch.constants.items()
    )
    for (reader, slot), value in patch.rewired.items():
        if reader:
            _read(_node(graph, reader), slot, value)
    wanted = {slot: value for (reader, slot), value in patch.rewired.items() if not reader}
    _set_outputs(graph, {graph.output[slot].name: value for slot, value in wanted.items()})


def _read(node: onnx.NodeProto, slot: int, value: str) -> None:
    while len(node.input) <= slot:
        node.input.append("")
    node.input[slot] = value


def _set_outputs(graph: onnx.GraphProto, wanted: Mapping[str, str]) -> None:
    """Let graph outputs be other values, under their own names; two of them may change places."""
    aside = {name: f"{name}/replaced" for name in wanted}
    for node in graph.node:
        node.output[:] = [aside.get(o, o) for o in node.output]
        node.input[:] = [aside.get(i, i) for i in node.input]
    for name, value in wanted.items():
        graph.node.append(helper.make_node("Identity", [aside.get(value, value)], [name], f"{name}/repaired"))


def _tidied(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Topological order, nothing dead, no stale shapes."""
    import onnx_ir as ir
    from onnx_ir.passes.common import RemoveUnusedNodesPass, TopologicalSortPass

    del proto.graph.value_info[:]
    model = ir.from_proto(proto)
    TopologicalSortPass()(model)
    RemoveUnusedNodesPass()(model)
    return ir.to_proto(model)
