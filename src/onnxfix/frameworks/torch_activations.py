"""Intermediate values of PyTorch models: modules, exported programs, TorchScript graphs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from onnxfix.frameworks.torch_call import outputs_of


def module_activations(module: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """What every submodule answers, by module path.

    A submodule that answers several tensors has ``path:0``, ``path:1``, ...; one that is called several times, its
    last answer.
    """
    values: dict[str, Any] = {}
    hooks = [_watch(child, path, values) for path, child in module.named_modules() if path]
    try:
        module(*args, **kwargs)
    finally:
        for hook in hooks:
            hook.remove()
    return values


def program_activations(module: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """What every torch operator of an exported program's module answers, by its graph name."""
    import torch
    from torch.utils import _pytree as pytree

    values: dict[str, Any] = {}

    class Recorder(torch.fx.Interpreter):  # type: ignore[misc]  # torch is an extra, so mypy does not follow it
        def run_node(self, n: Any) -> Any:
            value = super().run_node(n)
            if n.op.startswith("call") and isinstance(value, torch.Tensor):
                values[n.name] = value.clone()  # a later in-place operator must not change the record
            return value

    Recorder(module).run(*pytree.tree_leaves((args, dict(kwargs))), enable_io_processing=False)
    return values


def script_activations(script: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Every tensor of a TorchScript module's inlined main graph, by its value name.

    ScriptModules take no hooks: a copy of the graph that hands out every value is run instead.
    """
    import torch

    graph = script.inlined_graph.copy()
    own = len(list(graph.outputs()))
    names = []
    for node in list(graph.nodes()):
        for value in node.outputs():
            if node.kind() != "prim::GetAttr" and value.type().kind() == "TensorType":
                graph.registerOutput(value)
                names.append(value.debugName())
    graph.makeMultiOutputIntoTuple()
    function = torch._C._create_function_from_graph("forward", graph)
    order = [argument.name for argument in script.forward.schema.arguments[1:]]
    answers = function(script._c, *args, *(kwargs[name] for name in order[len(args) :] if name in kwargs))
    recorded = answers[own:] if isinstance(answers, tuple) else ()
    return dict(zip(names, recorded, strict=False))  # none where the module hands out its only value


def _watch(child: Any, path: str, values: dict[str, Any]) -> Any:
    def keep(_module: Any, _args: Any, answer: Any) -> None:
        tensors = [tensor.clone() for tensor in outputs_of(answer)]  # a later in-place operator must not change them
        if len(tensors) == 1:
            values[path] = tensors[0]
        else:
            values.update({f"{path}:{index}": tensor for index, tensor in enumerate(tensors)})

    return child.register_forward_hook(keep)
