"""Modules made by onnx2torch, with their constant operands as plain numbers.

onnx2torch keeps the target of a Reshape, the sizes of a Resize and the like in buffers and reads them on every call,
which ``torch.export`` cannot trace: what is in a buffer may change. Here they become arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

# The module and its operands, tensors for the constant ones -> a function of the first operand's fx node, or None.
Maker = Callable[[Any, list[Any]], "tuple[Callable[..., Any], tuple[Any, ...]] | None"]


def make_static(module: Any) -> Any:
    """Turn the constant operands of an onnx2torch ``GraphModule`` into arguments, in place.

    Returns:
        The module.
    """
    import torch

    constants = dict(module.named_buffers())
    for node in list(module.graph.nodes):
        if node.op != "call_module":
            continue
        called = module.get_submodule(node.target)
        maker = _MAKERS.get(type(called).__name__)
        operands = [_operand(argument, constants) for argument in _arguments(node, called)]
        made = None if maker is None or not operands else maker(called, operands)
        if made is None:
            continue
        function, arguments = made
        with module.graph.inserting_before(node):
            call = module.graph.call_function(function, (node.args[0], *arguments))
        node.replace_all_uses_with(call)
        module.graph.erase_node(node)
    module.graph.eliminate_dead_code()
    module.delete_all_unused_submodules()
    used = {node.target for node in module.graph.nodes if node.op == "get_attr"}
    holder = getattr(module, "initializers", None)
    for name in [] if holder is None else list(holder._buffers):
        if f"initializers.{name}" not in used:
            delattr(holder, name)
    module.recompile()
    if not isinstance(module, torch.fx.GraphModule):
        raise TypeError(f"{type(module).__name__} is no GraphModule")
    return module


def _arguments(node: Any, called: Any) -> list[Any]:
    """The operands in order, keyword arguments in their place."""
    import inspect

    names = list(inspect.signature(called.forward).parameters)
    if not node.kwargs:
        return list(node.args)
    filled = list(node.args) + [None] * (len(names) - len(node.args))
    for name, value in node.kwargs.items():
        filled[names.index(name)] = value
    return filled


def _operand(argument: Any, constants: dict[str, Any]) -> Any:
    """The tensor of a constant operand; other operands as they are."""
    is_constant = getattr(argument, "op", None) == "get_attr" and argument.target in constants
    return constants[argument.target] if is_constant else argument


def _numbers(operand: Any) -> list[int] | None:
    """The integers of a constant; None if it is left out or computed."""
    import torch

    return [int(n) for n in operand.reshape(-1).tolist()] if isinstance(operand, torch.Tensor) else None


def reshape(x: Any, shape: Sequence[int]) -> Any:
    """ONNX Reshape: a 0 keeps the dimension that is there."""
    return x.reshape([x.shape[k] if size == 0 else size for k, size in enumerate(shape)])


def expand(x: Any, shape: Sequence[int]) -> Any:
    """ONNX Expand: broadcasts in both directions."""
    lead = max(len(shape) - x.dim(), 0)
    own = (1,) * lead + tuple(x.shape)
    wanted = (1,) * (len(own) - len(shape)) + tuple(shape)
    return x.expand([size if target == 1 else target for size, target in zip(own, wanted, strict=True)])


def crop(x: Any, bounds: Sequence[tuple[int, int, int, int]]) -> Any:
    """ONNX Slice by (axis, start, end, step)."""
    import torch

    for axis, start, end, step in bounds:
        if step < 0:
            x = torch.flip(x, [axis])
            start, end, step = -start - 1, -end - 1, -step
        x = x[(slice(None),) * axis + (slice(start, end, step),)]
    return x


def scatter(data: Any, indices: Any, updates: Any) -> Any:
    """ONNX ScatterND without reduction."""
    return data.index_put(tuple(indices.unbind(-1)), updates)


def _reshape(module: Any, operands: list[Any]) -> Any:
    shape = _numbers(operands[1])
    return None if shape is None else (reshape, (shape,))


def _expand(module: Any, operands: list[Any]) -> Any:
    shape = _numbers(operands[1])
    return None if shape is None else (expand, (shape,))


def _slice(module: Any, operands: list[Any]) -> Any:
    starts, ends, axes, steps = (_numbers(operand) for operand in [*operands[1:], *[None] * (5 - len(operands))])
    given = [operand is not None for operand in [*operands[1:], *[None] * (5 - len(operands))]]
    if starts is None or ends is None or (given[2] and axes is None) or (given[3] and steps is None):
        return None
    axes = list(range(len(starts))) if axes is None else axes
    steps = [1] * len(starts) if steps is None else steps
    if min(axes, default=0) < 0:
        return None
    return crop, (list(zip(axes, starts, ends, steps, strict=True)),)


def _squeeze(module: Any, operands: list[Any]) -> Any:
    import torch

    axes = _numbers(operands[1]) if len(operands) > 1 else None
    return None if not axes else (torch.squeeze, (tuple(axes),))


def _pad(module: Any, operands: list[Any]) -> Any:
    import torch
    from torch.nn import functional

    amounts = _numbers(operands[1])
    value = operands[2] if len(operands) > 2 else None
    if amounts is None or not (value is None or isinstance(value, torch.Tensor)):
        return None
    half = len(amounts) // 2
    pairs = [n for k in reversed(range(half)) for n in (amounts[k], amounts[k + half])]
    if module.mode != "constant":
        if any(pairs[-4:]):
            return None
        return functional.pad, (pairs[:-4], module.mode)
    while len(pairs) > 2 and not any(pairs[-2:]):
        pairs = pairs[:-2]
    return functional.pad, (pairs, "constant", 0.0 if value is None else value.reshape(-1)[0].item())


def _resize(module: Any, operands: list[Any]) -> Any:
    import torch
    from torch.nn import functional

    scales, sizes = [*operands[2:], None, None][:2]
    modes = {"nearest": "nearest", "linear": None, "cubic": "bicubic"}
    given = [operand for operand in (scales, sizes) if isinstance(operand, torch.Tensor) and operand.numel()]
    if len(given) != 1:
        return None
    numbers = given[0].tolist()
    mode = modes[module.onnx_mode] or {3: "linear", 4: "bilinear", 5: "trilinear"}[len(numbers)]
    corners = module.align_corners if mode != "nearest" else None
    if given[0] is sizes:
        return functional.interpolate, ([int(n) for n in numbers[2:]], None, mode, corners)
    if numbers[:2] != [1, 1]:
        return None
    return functional.interpolate, (None, numbers[2:], mode, corners)


def _split(module: Any, operands: list[Any]) -> Any:
    import torch

    sizes = _numbers(operands[1]) if len(operands) > 1 else None
    return None if sizes is None else (torch.split, (sizes, module.axis))


def _tile(module: Any, operands: list[Any]) -> Any:
    import torch

    repeats = _numbers(operands[1])
    return None if repeats is None else (torch.tile, (repeats,))


def _topk(module: Any, operands: list[Any]) -> Any:
    import torch

    count = _numbers(operands[1])
    return None if count is None else (torch.topk, (count[0], module.dim, module.largest, module.sorted))


def _cumsum(module: Any, operands: list[Any]) -> Any:
    import torch

    axis = _numbers(operands[1])
    return None if axis is None or module.exclusive or module.reverse else (torch.cumsum, (axis[0],))


def _scatter_nd(module: Any, operands: list[Any]) -> Any:
    import torch

    if any(isinstance(operand, torch.Tensor) for operand in operands):
        return None
    return scatter, tuple(operands[1:])


_MAKERS: dict[str, Maker] = {
    "OnnxCumSum": _cumsum,
    "OnnxExpand": _expand,
    "OnnxPadDynamic": _pad,
    "OnnxReshape": _reshape,
    "OnnxResize": _resize,
    "OnnxScatterND": _scatter_nd,
    "OnnxSlice": _slice,
    "OnnxSplit13": _split,
    "OnnxSqueezeDynamicAxes": _squeeze,
    "OnnxTile": _tile,
    "OnnxTopK": _topk,
}
