"""From canonical names back to the names people know: lowered nodes, layer paths, parameters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import numpy as np
import onnx

from onnxfix.align.graph import attributes
from onnxfix.canonical.origins import Origin, Parameter, parameters_of
from onnxfix.model import Model

# Key of the metadata of nodes that only widen a stored integer, spelled as arithmetic.
WIDENS = "onnxfix.widens"
# Ops that compute nothing.
MOVERS = frozenset({"Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Cast", "Constant"})


_PASSED_THROUGH = frozenset(
    {"Cast", "DequantizeLinear", "Expand", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"}
)


def node_names(model: Model, canonical: Iterable[str], *, readers_of: Iterable[str] = ()) -> tuple[str, ...]:
    """Names of canonical nodes in the lowered graph, then in the framework.

    Args:
        model: The model.
        canonical: Canonical node names.
        readers_of: Lowered parameters; where given, of the many lowered nodes behind a canonical one those that read
            these parameters are meant.
    """
    lowered: dict[str, None] = {}
    provenance = model.normal_form.provenance
    for name in canonical:
        if name not in provenance:
            continue  # a node put in at the boundary, for the sake of comparison
        behind = provenance[name]
        reading = _readers(model, readers_of)
        chosen = [n for n in reading if n in behind] or reading or _like(model, name, behind) or [name]
        lowered.update(dict.fromkeys(chosen))
    layers = dict.fromkeys(model.layers[n] for n in lowered if n in model.layers)
    return tuple(dict.fromkeys((*lowered, *layers)))


def nodes_of_op(
    model: Model, canonical: str, op: str, *, unless: tuple[str, object] = ("", None)
) -> tuple[str, ...]:
    """The lowered nodes of one op type behind a canonical node, then their layers; its primary node if none is.

    Args:
        model: The model.
        canonical: The canonical node.
        op: The op type.
        unless: An attribute and the value it should have; nodes that have it are left out where others have not.
    """
    nodes = {node.name: node for node in model.proto.graph.node}
    behind = model.normal_form.provenance.get(canonical, ())
    chosen = [n for n in behind if n in nodes and nodes[n].op_type == op]
    name, value = unless
    wrong = [n for n in chosen if attributes(nodes[n]).get(name) != value] if name else []
    chosen = wrong or chosen or list(behind[:1]) or [canonical]
    return tuple(dict.fromkeys((*chosen, *(model.layers[n] for n in chosen if n in model.layers))))


def last_names(model: Model, canonical: Iterable[str]) -> tuple[str, ...]:
    """The last lowered node that computes something behind each canonical node, then their layers.

    Where an op is missing after a convolution with its batch norm folded in, it is missing after the batch norm.
    """
    order = {node.name: k for k, node in enumerate(model.proto.graph.node) if node.op_type not in MOVERS}
    last: list[str] = []
    for name in canonical:
        behind = [n for n in model.normal_form.provenance.get(name, ()) if n in order]
        last.extend([max(behind, key=order.__getitem__)] if behind else node_names(model, [name]))
    return tuple(dict.fromkeys((*last, *(model.layers[n] for n in last if n in model.layers))))


def others_behind(
    target: Model, source: Model, pair: tuple[str, str], parameter: str, *, moving: bool
) -> tuple[str, ...]:
    """The lowered nodes behind a canonical one, other than the readers of a parameter and what the source has, too.

    Args:
        target: The model whose nodes are wanted.
        source: The other model.
        pair: The canonical node of the target, and its partner.
        parameter: The parameter.
        moving: Whether nodes that only move elements are meant, or the others.
    """
    reading = {node.name for node in target.proto.graph.node if parameter in node.input}
    known = Counter(_spelling(node) for node in _behind(source, pair[1]))
    chosen = []
    # Composed transposes stand in provenance from the last to the first; what was put in comes after what was there.
    for node in reversed(_behind(target, pair[0])):
        if known[_spelling(node)] > 0:
            known[_spelling(node)] -= 1
        elif node.name not in reading and (node.op_type in ("Transpose", "Reshape")) == moving:
            chosen.append(node.name)
    return tuple(dict.fromkeys((*chosen, *(target.layers[n] for n in chosen if n in target.layers))))


def _behind(model: Model, canonical: str) -> list[onnx.NodeProto]:
    nodes = {node.name: node for node in model.proto.graph.node}
    return [nodes[n] for n in model.normal_form.provenance.get(canonical, ()) if n in nodes]


def _spelling(node: onnx.NodeProto) -> tuple[str, str]:
    return node.op_type, repr(sorted(attributes(node).items(), key=lambda item: item[0]))


def _like(model: Model, canonical: str, behind: tuple[str, ...]) -> list[str]:
    """Of the lowered nodes behind a canonical one, the one that is just like it; else the primary one.

    Transposes are composed on the way to the normal form: one of them is what is left, the others cancelled.
    """
    nodes = {node.name: node for node in model.proto.graph.node}
    own = next(node for node in model.canonical.graph.node if node.name == canonical)
    alike = [
        n for n in behind
        if n in nodes and nodes[n].op_type == own.op_type and attributes(nodes[n]) == attributes(own)
    ]
    return alike if len(alike) == 1 else list(behind[:1])


def _readers(model: Model, parameters: Iterable[str]) -> list[str]:
    """The lowered nodes that compute with some parameters; nodes that only move or widen them are passed through."""
    wanted = set(parameters)
    found: list[str] = []
    for node in model.proto.graph.node if wanted else ():
        if not wanted.intersection(node.input):
            continue
        if node.op_type in _PASSED_THROUGH or any(prop.key == WIDENS for prop in node.metadata_props):
            wanted.update(node.output)
        else:
            found.append(node.name)
    return found


def label(model: Model, names: tuple[str, ...]) -> str:
    """One name for a sentence: the framework's own where there is one."""
    layers = set(model.layers.values())
    return next((n for n in names if n in layers), names[0] if names else "the graph")


def counterpart(model: Model, origin: Origin | None, shape: tuple[int, ...]) -> str | None:
    """The lowered parameter that a person would name for a canonical constant.

    The one whose elements make up the constant (as many of them, in some order), the largest where none has.
    """
    if origin is None:
        return None
    if isinstance(origin, Parameter):
        return origin.name
    names = [n for n in parameters_of(origin) if n in model.normal_form.parameters]
    sizes = {n: int(np.size(model.normal_form.parameters[n])) for n in names}
    exact = [n for n in names if sizes[n] == int(np.prod(shape))]
    best = exact or sorted(names, key=lambda n: -sizes[n])
    return best[0] if best else None
