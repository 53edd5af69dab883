"""Watching the layers of a Keras model while it runs: which layer is called, and what it returns."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any


def layer_paths(model: Any) -> list[tuple[str, Any]]:
    """Every layer below a model with its path: ``conv``, and ``encoder/conv`` for a layer of an inner model."""
    found: list[tuple[str, Any]] = []
    seen: set[int] = {id(model)}

    def walk(owner: Any, prefix: str) -> None:
        for layer in owner._flatten_layers(recursive=False, include_self=False):
            if id(layer) in seen:
                continue
            seen.add(id(layer))
            path = f"{prefix}{layer.name}"
            found.append((path, layer))
            walk(layer, f"{path}/")

    walk(model, "")
    return found


@contextmanager
def watched(
    model: Any, before: Callable[[str], Any], after: Callable[[str, Any, Any], None]
) -> Iterator[None]:
    """Call ``before(path)`` before, and ``after(path, token, outputs)`` after each layer's ``call`` inside the block.

    ``token`` is what ``before`` returned. The model is as it was when the block ends.
    """
    changed = []
    try:
        for path, layer in layer_paths(model):
            # Into the instance's __dict__ directly: Keras tracks what is set the ordinary way.
            layer.__dict__["call"] = _watch(layer.call, path, before, after)
            changed.append(layer)
        yield
    finally:
        for layer in changed:
            del layer.__dict__["call"]


def _watch(
    call: Callable[..., Any], path: str, before: Callable[[str], Any], after: Callable[[str, Any, Any], None]
) -> Callable[..., Any]:
    @wraps(call)
    def watching(*args: Any, **kwargs: Any) -> Any:
        token = before(path)
        outputs = call(*args, **kwargs)
        after(path, token, outputs)
        return outputs

    return watching
