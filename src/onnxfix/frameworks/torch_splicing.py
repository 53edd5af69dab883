"""Pieces of a patched lowered graph put into a PyTorch graph, in the place of those that they differ from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx

from onnxfix.errors import ExportError
from onnxfix.frameworks.export_pytorch import converted
from onnxfix.frameworks.pieces import edits, matched, observed, renamed_as
from onnxfix.frameworks.torch_call import to_array, to_tensor
from onnxfix.surgeon.patch import Patch


def spliced(
    module: Any,
    old: onnx.ModelProto,
    new: onnx.ModelProto,
    patches: Sequence[Patch],
    parameters: Mapping[str, str],
    feeds: Mapping[str, np.ndarray],
    leaves: Sequence[Any],
) -> Any:
    """Edit a ``torch.fx.GraphModule`` so that it computes what the patched graph computes.

    Args:
        module: The graph module; it is changed.
        old: The lowered graph.
        new: The lowered graph with the patches.
        patches: The patches.
        parameters: Initializer -> parameter of the module.
        feeds: Inputs of the lowered graph, two samples.
        leaves: The same, in the order of the module's placeholders.

    Raises:
        ExportError: the module's graph has no place for a patch.
    """
    before, names = renamed_as(old, patches)
    lowered = observed(old, feeds)
    native = _native(module, lowered, leaves)
    inputs = {info.name for info in old.graph.input}
    placeholders = {name: native[name] for name in inputs if name in native}
    native = placeholders | {names.get(value, value): node for value, node in native.items()}
    change = edits(before, new, native, parameters, observed(new, feeds))
    graph = module.graph
    made: dict[str, Any] = {}
    for index, piece in enumerate(change.pieces):
        name = _free(module, index)
        module.add_submodule(name, converted(piece.proto))
        given = [made.get(v) or native[v] for v in piece.inputs]
        last = max((node for node in given if node is not None), key=list(graph.nodes).index, default=None)
        if last is None:
            raise ExportError("a value that depends on no input cannot be put into the module's graph")
        with graph.inserting_after(_behind_placeholders(graph, last)):
            made[piece.value] = graph.call_module(name, tuple(given))
    own = {made[value] for value in made}
    for value, piece_value in change.replaced.items():
        users = [user for user in native[value].users if user not in own]
        for user in users:
            user.replace_input_with(native[value], made[piece_value])
    for value, was, now in change.rewired:
        target = made.get(now) or native[now]
        for node in _between(native[value], native[was]):
            node.replace_input_with(native[was], target)
    _set_outputs(module, old, new, names, native, made)
    graph.eliminate_dead_code()
    try:
        graph.lint()
    except RuntimeError as error:  # a value is read before it is made
        raise ExportError(f"the module's graph has no order for the patch ({error})") from error
    module.delete_all_unused_submodules()
    module.recompile()
    return module


def _native(module: Any, lowered: Mapping[str, np.ndarray], leaves: Sequence[Any]) -> dict[str, Any]:
    """Lowered value -> the node of the module's graph that computes it, told by name and content."""
    import torch

    values: dict[Any, np.ndarray] = {}

    class Recorder(torch.fx.Interpreter):  # type: ignore[misc]  # torch is an extra, so mypy does not follow it
        def run_node(self, n: Any) -> Any:
            value = super().run_node(n)
            if isinstance(value, torch.Tensor) and n.op not in ("get_attr", "output"):
                values[n] = to_array(value.clone())
            return value

    with torch.no_grad():
        Recorder(module).run(*[to_tensor(leaf) if isinstance(leaf, np.ndarray) else leaf for leaf in leaves],
                             enable_io_processing=False)
    return matched(lowered, values)


def _free(module: Any, index: int) -> str:
    name = f"repaired_{index}"
    while hasattr(module, name):
        name += "_"
    return name


def _behind_placeholders(graph: Any, node: Any) -> Any:
    """Inputs stand together at the beginning of a graph."""
    return [n for n in graph.nodes if n.op == "placeholder"][-1] if node.op == "placeholder" else node


def _between(end: Any, begin: Any) -> list[Any]:
    """The nodes on the way from one to another that read the first."""
    found, queue = [], [end]
    seen = {end}
    while queue:
        node = queue.pop()
        if begin in node.all_input_nodes:
            found.append(node)
        for other in node.all_input_nodes:
            if other is not begin and other not in seen and other > begin:
                seen.add(other)
                queue.append(other)
    return found


def _set_outputs(
    module: Any, old: onnx.ModelProto, new: onnx.ModelProto, names: Mapping[str, str], native: Mapping[str, Any],
    made: Mapping[str, Any],
) -> None:
    """Let the graph answer what the patched graph answers, in its order."""
    from torch.fx.node import map_arg

    was = [names.get(info.name, info.name) for info in old.graph.output]
    now = [info.name for info in new.graph.output]
    if was == now:
        return
    (output,) = (node for node in module.graph.nodes if node.op == "output")
    answers = [made.get(value) or native[value] for value in now]
    if len(was) == len(now):
        instead = {native[value]: answer for value, answer in zip(was, answers, strict=True)}
        output.args = map_arg(output.args, lambda node: instead.get(node, node))
        return
    raise ExportError("the module's answer has another number of tensors")
