"""What ``nn.TransformerEncoder`` does with padding in inference: it leaves zeros in padded places.

Called without gradients and with ``src_key_padding_mask``, the encoder packs the sequences into a nested tensor and
pads its answer with zeros. ``torch.export`` follows the other path, which computes something there.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def padding_as_in_inference(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[None]:
    """Let the encoders of a module that leave zeros in padded places do so on the path that can be traced, too.

    Args:
        module: The module; it is as before afterwards.
        args: Example arguments.
        kwargs: Example keyword arguments.
    """
    import torch

    encoders = [child for child in module.modules() if isinstance(child, torch.nn.TransformerEncoder)]
    mended = _packing(encoders, module, args, kwargs) if encoders and not module.training else []
    try:
        for encoder in mended:
            encoder.forward = _forward(encoder)
        yield
    finally:
        for encoder in mended:
            del encoder.forward


def _packing(encoders: list[Any], module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    """The encoders that pack padded sequences when the module is called so."""
    import torch

    calls: dict[Any, Any] = {}

    def record(encoder: Any, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        calls[encoder] = inspect.signature(type(encoder).forward).bind(encoder, *given, **named)

    hooks = [encoder.register_forward_pre_hook(record, with_kwargs=True) for encoder in encoders]
    try:
        with torch.no_grad():
            module(*args, **kwargs)
    finally:
        for hook in hooks:
            hook.remove()
    return [encoder for encoder, bound in calls.items() if _packs(encoder, bound)]


def _packs(encoder: Any, bound: inspect.BoundArguments) -> bool:
    """Try with nothing padded: which path is taken then depends on the encoder alone, not on the example's padding."""
    import torch

    padding = bound.arguments.get("src_key_padding_mask")
    if padding is None or bound.arguments.get("mask") is not None:
        return False
    seen: list[bool] = []
    hook = encoder.layers[0].register_forward_pre_hook(lambda layer, given: seen.append(given[0].is_nested))
    given = {**bound.arguments, "src_key_padding_mask": torch.zeros_like(padding)}
    given.pop("self", None)
    try:
        with torch.no_grad():
            encoder(**given)
    finally:
        hook.remove()
    return any(seen)


def _forward(encoder: Any) -> Any:
    import torch

    def forward(
        src: Any, mask: Any = None, src_key_padding_mask: Any = None, is_causal: bool | None = None
    ) -> Any:
        if mask is not None or src_key_padding_mask is None:
            return type(encoder).forward(encoder, src, mask, src_key_padding_mask, is_causal)
        output = src
        for layer in encoder.layers:
            output = layer(output, src_key_padding_mask=src_key_padding_mask)
        padded = src_key_padding_mask if src_key_padding_mask.dtype == torch.bool else src_key_padding_mask != 0
        if getattr(encoder, "mask_check", True):  # sequences are packed only where all padding is at the end
            kept_after_padding = padded[:, :-1] & ~padded[:, 1:]
            padded = padded & (kept_after_padding.to(torch.int32).sum() == 0)
        output = torch.where(padded.unsqueeze(-1), torch.zeros_like(output), output)
        return output if encoder.norm is None else encoder.norm(output)

    return forward
