"""Lower a PyTorch module again, for inputs of several sizes.

A module is traced on one example. Where the data have others, the dimensions that vary become dynamic. Adaptive pools,
whose windows torch.export freezes to the example's size, are written as products with matrices that follow the size:
``y = R x C^T``, row ``i`` of ``R`` holding ``1 / n`` on the ``n`` rows of window ``i``, ``[i h / o, (i + 1) h / o)``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxfix.errors import OnnxFixError

if TYPE_CHECKING:
    from onnxfix.model import Model

_SAME = 1e-4  # relative; what float32 rounding leaves of a deep network


def with_free_sizes(model: Model, feeds: Sequence[Mapping[str, np.ndarray]]) -> Model | None:
    """The model lowered for all sizes among the feeds; None where that cannot be had.

    Args:
        model: A PyTorch module or exported program.
        feeds: One feed of each size, which the module itself takes.

    Returns:
        The model; on every feed its graph answers as the module does.
    """
    from onnxfix.frameworks.pytorch import positional
    from onnxfix.frameworks.torch_call import to_tensor
    from onnxfix.frameworks.torch_lowering import lower_resizable

    names = [spec.name for spec in model.inputs]
    if any(name not in feed for feed in feeds for name in names):
        return None
    free = [_varying([spec.shape or (), *(feed[spec.name].shape for feed in feeds)]) for spec in model.inputs]
    try:
        with adaptive_pools_as_products():
            example = [to_tensor(feeds[0][name]) for name in names]
            flat = positional(model)
            if model.native is not flat.inner:  # a program's graph, made anew at each call
                _pools_of_graph_as_products(flat.inner)
            proto, layers = lower_resizable(flat, example, names, free)
        resized = replace(model, proto=proto, layers=layers)
        return resized if all(_agrees(resized, feed) for feed in feeds) else None
    except OnnxFixError:
        return None


def _varying(shapes: Sequence[tuple[int | str | None, ...]]) -> set[int]:
    """The axes along which shapes of one rank differ; a size without a number differs from all others."""
    return {axis for axis, sizes in enumerate(zip(*shapes, strict=False)) if len(set(sizes)) > 1}


def _agrees(model: Model, feed: Mapping[str, np.ndarray]) -> bool:
    ours, theirs = model.run_native(feed), model.run(feed)
    return all(
        a.shape == b.shape and np.abs(a - b).max(initial=0.0) <= _SAME * np.abs(a).max(initial=0.0)
        for a, b in zip(ours.values(), theirs.values(), strict=True)
    )


@contextmanager
def adaptive_pools_as_products() -> Iterator[None]:
    """While it lasts, adaptive average pools follow the size of what they are given."""
    import torch.nn.functional as functional

    names = {f"adaptive_avg_pool{rank}d": rank for rank in (1, 2, 3)}
    kept = {name: getattr(functional, name) for name in names}
    try:
        for name, rank in names.items():
            setattr(functional, name, _pool(rank))
        yield
    finally:
        for name, function in kept.items():
            setattr(functional, name, function)


def _pools_of_graph_as_products(module: Any) -> None:
    """Adaptive average pools of an exported program's graph, in place."""
    import torch

    pools = {getattr(torch.ops.aten, f"adaptive_avg_pool{rank}d").default: rank for rank in (1, 2, 3)}
    for node in module.graph.nodes:
        if node.op == "call_function" and node.target in pools:
            node.target = _pool(pools[node.target])
    module.recompile()


def _pool(rank: int) -> Any:
    def pooled(x: Any, output_size: Any) -> Any:
        sizes = output_size if isinstance(output_size, tuple | list) else (output_size,) * rank
        for position, size in enumerate(sizes):
            axis = position - rank
            if size is not None:
                x = (x.transpose(axis, -1) @ _windows(x, axis, size).T).transpose(axis, -1)
        return x

    return pooled


def _windows(x: Any, axis: int, count: int) -> Any:
    """``[count, size]``: the share of each element in the mean of each window."""
    import torch

    size = x.shape[axis]
    window, place = torch.arange(count)[:, None], torch.arange(size)[None]
    first, beyond = (window * size) // count, ((window + 1) * size + count - 1) // count
    inside = ((place >= first) & (place < beyond)).to(x.dtype)
    return inside / (beyond - first).to(x.dtype)
