"""Patches of a lowered TensorFlow graph as constants and attributes of its operators."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxfix.surgeon.patch import Patch, SetAttribute, SetParameter

if TYPE_CHECKING:
    from onnxfix.model import Model

_WINDOWS = {"strides": "strides", "dilations": "dilations", "kernel_shape": "ksize"}
_NUMBERS = {"epsilon": "epsilon", "alpha": "alpha"}
_DEPTH = 3  # operators between one that is set up by a constant and the constant


def set_directly(graph_def: Any, model: Model, patches: Iterable[Patch]) -> dict[str, Any] | None:
    """Set constants and attributes as patches say, in place; the caller checks what comes out.

    Args:
        graph_def: A copy of the graph.
        model: The model.
        patches: The patches.

    Returns:
        The operators that were changed, by name; None where there is no place for a patch.
    """
    nodes = {node.name: node for node in graph_def.node}
    changed: dict[str, Any] = {}
    for patch in patches:
        found = list(_set(nodes, model, patch))
        if not found and not _follows(nodes, model, patch):
            return None
        changed.update((node.name, node) for node in found)
    return changed


def _follows(nodes: dict[str, Any], model: Model, patch: Patch) -> bool:
    """Whether TensorFlow computes the attribute itself: the padding SAME."""
    if not isinstance(patch, SetAttribute) or patch.attribute not in ("pads", "auto_pad"):
        return False
    owner = _owner(nodes, model, patch, "padding")
    return owner is not None and owner.attr["padding"].s == b"SAME"


def _owner(nodes: dict[str, Any], model: Model, patch: SetAttribute, attribute: str) -> Any:
    """The operator that has the attribute: a lowered convolution may go by the name of the bias added to it."""
    level = [model.layers.get(patch.node, "")]
    for _ in range(_DEPTH):
        found = [nodes[name] for name in level if name in nodes]
        owner = next((node for node in found if attribute in node.attr), None)
        if owner is not None:
            return owner
        level = [name.lstrip("^").split(":")[0] for node in found for name in node.input]
    return None


def _set(nodes: dict[str, Any], model: Model, patch: Patch) -> Iterator[Any]:
    if isinstance(patch, SetAttribute):
        name = _WINDOWS.get(patch.attribute) or _NUMBERS.get(patch.attribute, "")
        owner = _owner(nodes, model, patch, name) if name else None
        if owner is not None and _set_attribute(owner, patch):
            yield owner
    elif isinstance(patch, SetParameter):
        yield from _set_constant(nodes, model, patch)


def _set_attribute(node: Any, patch: SetAttribute) -> bool:
    if patch.attribute in _NUMBERS and _NUMBERS[patch.attribute] in node.attr:
        node.attr[_NUMBERS[patch.attribute]].f = float(patch.value)
        return True
    name = _WINDOWS.get(patch.attribute, "")
    if name not in node.attr:
        return False
    numbers = [int(v) for v in patch.value]
    whole = [1, 1, *numbers] if node.attr["data_format"].s == b"NCHW" else [1, *numbers, 1]
    if len(whole) != len(node.attr[name].list.i):
        return False
    node.attr[name].list.i[:] = whole
    return True


def _set_constant(nodes: dict[str, Any], model: Model, patch: SetParameter) -> Iterator[Any]:
    """The constant of that content that the operators behind the patch's readers read."""
    import tensorflow as tf

    readers = [n for n in model.proto.graph.node if patch.name in n.input or patch.name in n.output]
    owners = dict.fromkeys(model.layers[n.name] for n in readers if n.name in model.layers)
    stem = patch.name.split(":")[0]
    for name in dict.fromkeys((stem, *(c for owner in owners for c in _constants(nodes, owner)))):
        node = nodes.get(name)
        if node is None or node.op != "Const":
            continue
        held = tf.make_ndarray(node.attr["value"].tensor)
        for was, now in _spellings(np.asarray(patch.previous), np.asarray(patch.value)):
            if was.size == held.size and np.array_equal(was.reshape(held.shape), held.astype(was.dtype)):
                value = now.reshape(held.shape).astype(held.dtype)
                node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(value))
                yield node
                return


def _constants(nodes: dict[str, Any], owner: str) -> Iterator[str]:
    """The constants that an operator reads, directly or through a few others."""
    level = [owner]
    for _ in range(_DEPTH):
        names = [name.lstrip("^").split(":")[0] for n in level if n in nodes for name in nodes[n].input]
        yield from (name for name in names if name in nodes and nodes[name].op == "Const")
        level = names


def _spellings(was: np.ndarray, now: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The old and the new value as TensorFlow may have it."""
    yield was, now
    if was.ndim == 1 and was.size % 2 == 0 and was.dtype.kind == "i":  # paddings: all begins, then all ends
        pairs = [array.reshape(2, -1).T for array in (was, now)]
        yield pairs[0], pairs[1]
        if was.size == 8:
            order = [0, 2, 3, 1]
            yield pairs[0][order], pairs[1][order]
