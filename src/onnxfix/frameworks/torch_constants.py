"""Keep constant shapes known while a module made from ONNX is exported.

onnx2torch hands shapes, axes and pads around as tensors and reads them back with ``tolist()``, ``bool()`` and the like.
``torch.export`` traces such tensors without values and gives up at the first read. Here they keep their values: what
is computed from constants alone is computed for real, and the trace sees a constant only where it meets other data.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

_MAX_INTEGERS = 4096  # elements: shapes, axes and small index tables
_MAX_FLOATS = 8  # elements: scales of Resize


def interpreter(module: Any) -> Any:
    """A callable like ``module``, an ``fx.GraphModule``, whose small constants keep their values under export."""
    import torch

    stored = {node.target: _attribute(module, node.target) for node in module.graph.nodes if node.op == "get_attr"}
    with torch.no_grad():
        stored |= {
            node.target: _attribute(module, node.target)()
            for node in module.graph.nodes
            if node.op == "call_module" and not node.args and not node.kwargs  # a Constant
        }
    known = {
        target: value.detach().clone()
        for target, value in stored.items()
        if isinstance(value, torch.Tensor) and _small(value)
    }

    # While the module is traced its own buffers have no values either: these copies keep theirs.
    real = {
        node.target: copy.deepcopy(child)
        for node in module.graph.nodes
        if node.op == "call_module"
        and all(map(_small, (child := _attribute(module, node.target)).state_dict().values()))
    }

    class Interpreter(torch.fx.Interpreter):  # type: ignore[misc]  # torch is an extra, so mypy does not follow it
        def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
            traced = super().get_attr(target, args, kwargs)
            return _known_tensor()(known[target], traced) if target in known else traced

        def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
            tensors = [t for t in torch.utils._pytree.tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
            if tensors and target in real and all(isinstance(t, _known_tensor()) for t in tensors):
                return _computed(real[target], args, kwargs)
            traced = super().call_module(target, args, kwargs)
            return _known_tensor()(known[target], traced) if target in known else traced

    def call(*args: Any, **kwargs: Any) -> Any:
        names = [node.target for node in module.graph.nodes if node.op == "placeholder"]
        ordered = (*args, *(kwargs[name] for name in names[len(args) :] if name in kwargs))
        with _known_stays_known():
            answer = Interpreter(module, garbage_collect_values=False).run(*ordered)
        return torch.utils._pytree.tree_map(_traced, answer)

    return call


@cache
def _known_tensor() -> Any:
    """The tensor subclass; made on first use, because torch is an extra."""
    import torch

    class Known(torch.Tensor):  # type: ignore[misc]  # see above
        """A tensor with real values inside a trace; ``traced`` is its stand-in where it meets traced data."""

        traced: Any

        @staticmethod
        def __new__(cls: Any, value: Any, traced: Any = None) -> Any:
            tensor = torch.Tensor._make_subclass(cls, value)
            tensor.traced = traced
            return tensor

        @classmethod
        def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return _dispatch(func, args, kwargs or {})  # reached where the mode below is not, inside of a call

    return Known


def _computed(function: Any, args: Any, kwargs: Any) -> Any:
    """The function's answer on known tensors, computed outside the trace."""
    import torch

    with torch.utils._python_dispatch._disable_current_modes(), torch._C.DisableTorchFunction():
        args, kwargs = torch.utils._pytree.tree_map(_plain, (args, kwargs))
        return torch.utils._pytree.tree_map(_known, function(*args, **kwargs))


def _known(value: Any) -> Any:
    import torch

    return _known_tensor()(value) if isinstance(value, torch.Tensor) else value


def _plain(value: Any) -> Any:
    import torch

    return value.as_subclass(torch.Tensor) if isinstance(value, _known_tensor()) else value


def _number(value: Any) -> Any:
    """An integer scalar as a number, which arguments such as ``k`` of top-k must be; all else as the trace sees it."""
    import torch

    scalar = isinstance(value, _known_tensor()) and value.ndim == 0 and not value.is_floating_point()
    return _computed(torch.Tensor.item, (value,), {}) if scalar else _traced(value)


def _traced(value: Any) -> Any:
    """What the trace sees instead of a known tensor: the buffer itself, or a new constant."""
    import torch

    if not isinstance(value, _known_tensor()):
        return value
    if value.traced is None:
        with torch._C.DisableTorchFunction():  # not to be computed for real once more
            value.traced = torch.tensor(_computed(torch.Tensor.tolist, (value,), {}), dtype=value.dtype)
    return value.traced


@contextmanager
def _known_stays_known() -> Iterator[None]:
    """Compute for real what is made from known tensors or plain numbers alone (a shape without dynamic dimensions)."""
    import torch

    class Mode(torch.overrides.TorchFunctionMode):  # type: ignore[misc]  # see above
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return _dispatch(func, args, kwargs or {})

    with Mode():
        yield


def _dispatch(func: Any, args: Any, kwargs: Any) -> Any:
    """Compute on known tensors, or let the call go on into the trace."""
    import torch

    args, kwargs = torch.utils._pytree.tree_map(_numbers_in_slice, (args, kwargs))
    leaves = torch.utils._pytree.tree_leaves((args, kwargs))
    tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
    known = [isinstance(tensor, _known_tensor()) for tensor in tensors]
    if func in (torch.tensor, torch.full, torch.ones, torch.zeros, torch.arange):
        if not tensors and not any(map(_dynamic, leaves)) and _small(answer := _computed(func, args, kwargs)):
            return answer
    elif known and all(known):
        return _computed(func, args, kwargs)
    return _mixed(func, args, kwargs) if any(known) else func(*args, **kwargs)


def _mixed(func: Any, args: Any, kwargs: Any) -> Any:
    """Call on known and traced tensors; a known scalar may be meant as a number (``k`` of top-k) or as a tensor."""
    import torch

    for form in (_number, _traced):
        given, named = torch.utils._pytree.tree_map(form, (args, kwargs))
        try:
            return func(*given, **named)
        except TypeError as error:
            refused = error
    raise refused


def _numbers_in_slice(value: Any) -> Any:
    if not isinstance(value, slice):
        return value
    return slice(*(int(_computed(int, (part,), {})) if isinstance(part, _known_tensor()) else part
                   for part in (value.start, value.stop, value.step)))


def _dynamic(leaf: Any) -> bool:
    import torch

    return any(map(_dynamic, leaf)) if isinstance(leaf, torch.Size) else isinstance(leaf, torch.SymInt)


def _small(tensor: Any) -> bool:
    limit = _MAX_FLOATS if tensor.is_floating_point() else _MAX_INTEGERS
    return bool(tensor.device.type == "cpu" and tensor.numel() <= limit)


def _attribute(module: Any, target: str) -> Any:
    for name in target.split("."):
        module = getattr(module, name)
    return module
