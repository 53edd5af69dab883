"""Patches of a lowered PyTorch graph written into the module or program that it came from.

An attribute of the submodule that a node comes from is set where that does what the patch says. Else the graph of the
module (``torch.fx``) or program (``torch.export``) is edited; a program is then traced anew from the edited graph, its
parameters under their names.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxfix.errors import ExportError, OnnxFixError
from onnxfix.frameworks import Feeds
from onnxfix.frameworks.agreement import agrees
from onnxfix.frameworks.example_inputs import accepted_feeds
from onnxfix.frameworks.torch_attributes import set_attributes
from onnxfix.frameworks.torch_call import to_tensor
from onnxfix.frameworks.torch_lowering import quiet
from onnxfix.frameworks.torch_splicing import spliced
from onnxfix.frameworks.writing import refusal
from onnxfix.surgeon.apply import apply
from onnxfix.surgeon.patch import Patch, SetParameter

if TYPE_CHECKING:
    from onnxfix.model import Model

Bind = Callable[["Model", Feeds], tuple[tuple[Any, ...], dict[str, Any]]]


def edited(
    model: Model, patches: Sequence[Patch], others: Sequence[Patch], fresh: Callable[[], Any], bind: Bind
) -> Any:
    """A copy of a module or program with patches in it that are more than new parameters.

    Args:
        model: The model.
        patches: All patches.
        others: Those that are more.
        fresh: Makes a copy of the module or program with the new parameters.
        bind: How to call it.

    Raises:
        ExportError: there is no place for a patch.
    """
    import torch

    patched = replace(model, proto=apply(model.proto, patches))
    try:
        trial = accepted_feeds(patched, None, (2,))[0]
        if not isinstance(model.native, torch.export.ExportedProgram):
            module = fresh()
            if set_attributes(module, model, others) and agrees(patched, module, trial):
                return module
        return _spliced(model, patched, patches, others, fresh(), bind)
    except OnnxFixError as error:
        raise refusal(model, others[0], str(error).rstrip(".")) from error


def _spliced(
    model: Model, patched: Model, patches: Sequence[Patch], others: Sequence[Patch], native: Any, bind: Bind
) -> Any:
    """The module's graph with the changed pieces in it."""
    import torch
    from torch.utils import _pytree as pytree

    feeds = accepted_feeds(model, None, (2,))[0]
    args, kwargs = bind(model, feeds)
    is_program = isinstance(native, torch.export.ExportedProgram)
    graph = native.module(check_guards=False) if is_program else _graph(native, args, kwargs)
    # New values of parameters are in the copy already.
    own = [p for p in patches if isinstance(p, SetParameter) and p.name in model.parameters and not p.readers]
    before = apply(model.proto, own)
    leaves = [to_tensor(v) if isinstance(v, np.ndarray) else v for v in pytree.tree_leaves((args, kwargs))]
    module = spliced(graph, before, patched.proto, others, model.parameters, feeds, leaves)
    if not is_program:
        for name, value in native.__dict__.items():
            if name.startswith("_onnxfix"):
                object.__setattr__(module, name, value)
        return module
    return _retraced(module, patched, bind)


def _graph(native: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The module as a graph module, its own submodules called as they are; traced by export where fx cannot."""
    import torch

    try:
        with quiet():
            return torch.fx.symbolic_trace(copy.deepcopy(native)).eval()
    except Exception:  # whatever a forward does with proxies
        try:
            with quiet(), torch.no_grad():
                return torch.export.export(native, args, kwargs, strict=False).module(check_guards=False)
        except Exception as error:  # torch.export raises everything from ValueError to AssertionError
            raise ExportError("neither torch.fx nor torch.export can trace the module") from error


def _retraced(module: Any, patched: Model, bind: Bind) -> Any:
    import torch
    from torch.utils import _pytree as pytree

    feeds = accepted_feeds(patched, None, (2,))[0]
    args, kwargs = bind(patched, feeds)
    by_shape = iter([_open(spec.shape or ()) for spec in patched.inputs])
    shapes = pytree.tree_map(lambda leaf: next(by_shape) if isinstance(leaf, torch.Tensor) else None, (args, kwargs))
    dynamic = shapes[1] if kwargs and not args else shapes[0]
    try:
        with quiet(), torch.no_grad():
            return torch.export.export(module, args, kwargs, dynamic_shapes=dynamic, strict=False)
    except Exception as error:  # as above
        first = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise ExportError(f"torch.export cannot trace the edited program ({first})") from error


def _open(shape: tuple[int | str | None, ...]) -> dict[int, Any] | None:
    import torch

    return {axis: torch.export.Dim.AUTO for axis, size in enumerate(shape) if not isinstance(size, int)} or None
