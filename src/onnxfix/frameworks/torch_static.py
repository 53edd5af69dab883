"""Modules made by onnx2torch, with their constant operands as plain numbers.

onnx2torch keeps the target of a Reshape, the sizes of a Resize and the like in buffers and reads them on every call,
which ``torch.export`` cannot trace: what is in a buffer may change. Here they become arguments.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from onnxfix.frameworks.torch_sizes import find_sizes

# The module and its operands -> a function and its arguments that do the same, or None.
Maker = Callable[[Any, list[Any]], "tuple[Callable[..., Any], tuple[Any, ...]] | None"]


def make_static(module: Any) -> Any:
    """Turn the constant operands of an onnx2torch ``GraphModule`` into arguments, in place.

    Returns:
        The module.
    """
    constants = dict(module.named_buffers())
    sizes = find_sizes(module)
    for node in list(module.graph.nodes):
        if node.op != "call_module":
            continue
        called = module.get_submodule(node.target)
        maker = _MAKERS.get(type(called).__name__)
        operands = [_operand(argument, constants, sizes) for argument in _arguments(node, called)]
        made = None if maker is None or not operands else maker(called, operands)
        if made is None:
            continue
        function, arguments = made
        with module.graph.inserting_before(node):
            call = module.graph.call_function(function, arguments)
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
    return module


def _arguments(node: Any, called: Any) -> list[Any]:
    """The operands in order, keyword arguments in their place."""
    names = list(inspect.signature(called.forward).parameters)
    if not node.kwargs:
        return list(node.args)
    filled = list(node.args) + [None] * (len(names) - len(node.args))
    for name, value in node.kwargs.items():
        filled[names.index(name)] = value
    return filled


@dataclass(frozen=True)
class _Operand:
    """An operand: its fx node, its content where it is constant, the fx node of its numbers where those are sizes."""

    node: Any
    constant: Any = None
    sizes: Any = None


def _operand(argument: Any, constants: dict[str, Any], sizes: Mapping[Any, Any]) -> _Operand | None:
    """What is known of an operand; None for one left out."""
    if argument is None:
        return None
    is_constant = getattr(argument, "op", None) == "get_attr" and argument.target in constants
    return _Operand(argument, constants[argument.target] if is_constant else None, sizes.get(argument))


def _numbers(operand: _Operand | None) -> list[int] | None:
    """The integers of a constant; None if it is left out or computed."""
    if operand is None or operand.constant is None:
        return None
    return [int(n) for n in operand.constant.reshape(-1).tolist()]


def _sizes(operand: _Operand | None) -> Any:
    """The same, or the fx node of the numbers; None if neither is known."""
    numbers = _numbers(operand)
    return numbers if numbers is not None or operand is None else operand.sizes


def reshape(x: Any, shape: Sequence[int]) -> Any:
    """ONNX Reshape: a 0 keeps the dimension that is there."""
    return x.reshape([x.shape[k] if size == 0 else size for k, size in enumerate(shape)])


def expand(x: Any, shape: Sequence[int]) -> Any:
    """ONNX Expand: broadcasts in both directions."""
    lead = max(len(shape) - x.dim(), 0)
    own = (1,) * lead + tuple(x.shape)
    wanted = (1,) * (len(own) - len(shape)) + tuple(shape)
    return x.expand([size if target == 1 else target for size, target in zip(own, wanted, strict=True)])


def crop(x: Any, axes: Sequence[int], starts: Sequence[int], ends: Sequence[int], steps: Sequence[int]) -> Any:
    """ONNX Slice."""
    import torch

    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        if step < 0:
            x = torch.flip(x, [axis])
            start, end, step = -start - 1, -end - 1, -step
        x = x[(slice(None),) * axis + (slice(start, end, step),)]
    return x


def scatter(data: Any, indices: Any, updates: Any) -> Any:
    """ONNX ScatterND without reduction."""
    return data.index_put(tuple(indices.unbind(-1)), updates)


def filled(shape: Sequence[int], value: float, dtype: Any) -> Any:
    """ONNX ConstantOfShape."""
    import torch

    return torch.full(tuple(shape), value, dtype=dtype)


def take(x: Any, axis: int, index: int) -> Any:
    """ONNX Gather of one element along an axis."""
    return x.select(axis, index)


def span(start: Any, limit: Any, step: Any) -> Any:
    """ONNX Range of whole numbers."""
    import torch

    return torch.arange(start, limit, step)


def _reshape(module: Any, operands: list[Any]) -> Any:
    shape = _sizes(operands[1])
    return None if shape is None else (reshape, (operands[0].node, shape))


def _expand(module: Any, operands: list[Any]) -> Any:
    shape = _sizes(operands[1])
    return None if shape is None else (expand, (operands[0].node, shape))


def _constant_of_shape(module: Any, operands: list[Any]) -> Any:
    shape = _sizes(operands[0])
    return None if shape is None else (filled, (shape, module.value.reshape(-1)[0].item(), module.value.dtype))


def _range(module: Any, operands: list[Any]) -> Any:
    limits = [operand.sizes for operand in operands]
    return None if None in limits else (span, tuple(limits))


def _gather(module: Any, operands: list[Any]) -> Any:
    index = operands[1].constant
    if index is None or index.dim() or index.is_floating_point():
        return None
    return take, (operands[0].node, module._axis, int(index))


def _slice(module: Any, operands: list[Any]) -> Any:
    rest = [*operands[1:], *[None] * (5 - len(operands))]
    starts, ends = _sizes(rest[0]), _sizes(rest[1])
    axes, steps = _numbers(rest[2]), _numbers(rest[3])
    if starts is None or ends is None or not axes or min(axes) < 0 or (rest[3] is not None and steps is None):
        return None
    return crop, (operands[0].node, axes, starts, ends, steps or [1] * len(axes))


def _squeeze(module: Any, operands: list[Any]) -> Any:
    import torch

    axes = _numbers(operands[1]) if len(operands) > 1 else None
    return None if not axes else (torch.squeeze, (operands[0].node, tuple(axes)))


def _pad(module: Any, operands: list[Any]) -> Any:
    from torch.nn import functional

    amounts = _numbers(operands[1])
    value = operands[2] if len(operands) > 2 else None
    if amounts is None or (value is not None and value.constant is None):
        return None
    half = len(amounts) // 2
    pairs = [n for k in reversed(range(half)) for n in (amounts[k], amounts[k + half])]
    if module.mode != "constant":
        return None if any(pairs[-4:]) else (functional.pad, (operands[0].node, pairs[:-4], module.mode))
    while len(pairs) > 2 and not any(pairs[-2:]):
        pairs = pairs[:-2]
    fill = 0.0 if value is None else value.constant.reshape(-1)[0].item()
    return functional.pad, (operands[0].node, pairs, "constant", fill)


def _resize(module: Any, operands: list[Any]) -> Any:
    from torch.nn import functional

    given = [(k, o.constant) for k, o in enumerate(operands[2:4]) if o is not None and o.constant is not None]
    given = [(k, constant) for k, constant in given if constant.numel()]
    if len(given) != 1:
        return None
    by_size, numbers = given[0][0] == 1, given[0][1].tolist()
    linear = {3: "linear", 4: "bilinear", 5: "trilinear"}
    mode = {"nearest": "nearest", "linear": linear.get(len(numbers)), "cubic": "bicubic"}[module.onnx_mode]
    corners = module.align_corners if mode != "nearest" else None
    if by_size:
        return functional.interpolate, (operands[0].node, [int(n) for n in numbers[2:]], None, mode, corners)
    return (functional.interpolate, (operands[0].node, None, numbers[2:], mode, corners)) if (
        numbers[:2] == [1, 1]
    ) else None


def _split(module: Any, operands: list[Any]) -> Any:
    import torch

    sizes = _numbers(operands[1]) if len(operands) > 1 else None
    return None if sizes is None else (torch.split, (operands[0].node, sizes, module.axis))


def _tile(module: Any, operands: list[Any]) -> Any:
    import torch

    repeats = _sizes(operands[1])
    return None if repeats is None else (torch.tile, (operands[0].node, repeats))


def _topk(module: Any, operands: list[Any]) -> Any:
    import torch

    count = _numbers(operands[1])
    if count is None:
        return None
    return torch.topk, (operands[0].node, count[0], module.dim, module.largest, module.sorted)


def _cumsum(module: Any, operands: list[Any]) -> Any:
    import torch

    axis = _numbers(operands[1])
    return None if axis is None or module.exclusive or module.reverse else (torch.cumsum, (operands[0].node, axis[0]))


def _scatter_nd(module: Any, operands: list[Any]) -> Any:
    return scatter, tuple(operand.node for operand in operands)


_MAKERS: dict[str, Maker] = {
    "OnnxConstantOfShape": _constant_of_shape,
    "OnnxCumSum": _cumsum,
    "OnnxExpand": _expand,
    "OnnxGather": _gather,
    "OnnxPadDynamic": _pad,
    "OnnxRange": _range,
    "OnnxReshape": _reshape,
    "OnnxResize": _resize,
    "OnnxScatterND": _scatter_nd,
    "OnnxSlice": _slice,
    "OnnxSplit13": _split,
    "OnnxSqueezeDynamicAxes": _squeeze,
    "OnnxTile": _tile,
    "OnnxTopK": _topk,
}
