"""Shape arithmetic of onnx2torch modules on Python integers.

onnx2torch computes sizes in tensors, whose content ``torch.export`` does not know. Python integers, taken from
``x.shape`` where they are needed, it does, open dimensions included.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

# A size tensor's content: a number, a list of them, or the fx node that makes either.
Sizes = Any
# The module and its operands (sizes where known, else None) -> function and arguments that make its sizes.
Maker = Callable[[Any, list[Any]], "tuple[Callable[..., Any], tuple[Any, ...]] | None"]

_LONGEST = 64


def find_sizes(module: Any) -> dict[Any, Sizes]:
    """Add nodes that compute on integers what small integer tensors of a ``GraphModule`` hold.

    Returns:
        fx node of the tensor -> its content.
    """
    import torch

    constants = dict(module.named_buffers())
    found: dict[Any, Sizes] = {}
    for node in list(module.graph.nodes):
        if node.op == "get_attr" and node.target in constants:
            value = constants[node.target]
            if value.dtype in (torch.int64, torch.int32, torch.bool) and value.dim() < 2 and value.numel() <= _LONGEST:
                found[node] = value.tolist()
        if node.op != "call_module" or node.kwargs:
            continue
        called = module.get_submodule(node.target)
        maker = _MAKERS.get(type(called).__name__)
        if type(called).__name__ == "OnnxShape":
            made = (shape_of, (node.args[0], called._start, called._end))
        else:
            operands = [found.get(argument) for argument in node.args]
            if maker is None or any(operand is None for operand in operands):
                continue
            computed = maker(called, operands)
            if computed is None:
                continue
            made = computed
        with module.graph.inserting_before(node):
            found[node] = module.graph.call_function(*made)
    return found


def shape_of(x: Any, start: int, end: int | None) -> list[Any]:
    """ONNX Shape."""
    return list(x.shape[start:end])


def pick(sizes: Sequence[Any], index: Any) -> Any:
    """ONNX Gather along the only axis."""
    return [sizes[i] for i in index] if isinstance(index, list) else sizes[index]


def joined(*parts: Sequence[Any]) -> list[Any]:
    """ONNX Concat."""
    return [size for part in parts for size in part]


def listed(value: Any) -> list[Any]:
    """One number as a list of one."""
    return list(value) if isinstance(value, list | tuple) else [value]


def single(value: Any) -> Any:
    """A list of one as its number."""
    return value[0] if isinstance(value, list | tuple) else value


def part(sizes: Sequence[Any], starts: Sequence[int], ends: Sequence[int], step: int) -> list[Any]:
    """ONNX Slice along the only axis."""
    return list(sizes[starts[0] : ends[0] : step])


def each(name: str, *operands: Any) -> Any:
    """A function of numbers, by the name it has here, broadcast over lists."""
    function = _FUNCTIONS[name]
    if not any(isinstance(operand, list | tuple) for operand in operands):
        return function(*operands)
    count = max(len(operand) for operand in operands if isinstance(operand, list | tuple))
    columns = [
        list(operand) * (count if len(operand) == 1 else 1) if isinstance(operand, list | tuple) else [operand] * count
        for operand in operands
    ]
    return [function(*row) for row in zip(*columns, strict=True)]


def choose(condition: Any, first: Any, second: Any) -> Any:
    """One of two numbers."""
    return first if condition else second


def product(sizes: Any) -> Any:
    """ONNX ReduceProd over everything."""
    return math.prod(listed(sizes))


def filled(sizes: Sequence[Any], value: int) -> list[Any]:
    """A list of equal numbers."""
    return [value] * single(sizes)


# Sizes are never negative, so ONNX's division, which truncates, is the one by floor.
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "_onnx_div": operator.floordiv,
    "eq": operator.eq,
    "same": operator.pos,
    "choose": choose,
}


def _arithmetic(module: Any, operands: list[Any]) -> Any:
    name = getattr(module.math_op_function, "__name__", "")
    return (each, (name, *operands)) if name in _FUNCTIONS else None


def _cast(module: Any, operands: list[Any]) -> Any:
    return (each, ("same", operands[0])) if "int" in str(module.torch_dtype) else None


def _comparison(module: Any, operands: list[Any]) -> Any:
    name = getattr(module.compare_function, "__name__", "")
    return (each, (name, *operands)) if name in _FUNCTIONS else None


def _reduction(module: Any, operands: list[Any]) -> Any:
    if module.operation_type != "ReduceProd":
        return None
    return product, (operands[0],)


def _slice(module: Any, operands: list[Any]) -> Any:
    steps = operands[4] if len(operands) > 4 else [1]
    return (part, (*operands[:3], steps[0])) if isinstance(steps, list) and len(steps) == 1 else None


_MAKERS: dict[str, Maker] = {
    "OnnxBinaryMathOperation": _arithmetic,
    "OnnxCast": _cast,
    "OnnxCompare": _comparison,
    "OnnxConcat": lambda module, operands: (joined, tuple(operands)),
    "OnnxGather": lambda module, operands: (pick, tuple(operands)),
    "OnnxReduceStaticAxes": _reduction,
    "OnnxReshape": lambda module, operands: (listed, (operands[0],)),
    "OnnxSlice": _slice,
    "OnnxSqueezeDynamicAxes": lambda module, operands: (single, (operands[0],)),
    "OnnxSqueezeStaticAxes": lambda module, operands: (single, (operands[0],)),
    "OnnxUnsqueezeStaticAxes": lambda module, operands: (listed, (operands[0],)),
    "OnnxWhere": lambda module, operands: (each, ("choose", *operands)),
}
