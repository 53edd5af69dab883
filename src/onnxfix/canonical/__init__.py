"""The normal form: one spelling for everything that converters spell in different ways."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onnxfix.canonical.identity import fingerprint, is_isomorphic
    from onnxfix.canonical.legalization.legalizing import legalize
    from onnxfix.canonical.pipeline import NormalForm, canonicalize, normal_form

__all__ = ["NormalForm", "canonicalize", "fingerprint", "is_isomorphic", "legalize", "normal_form"]

_HOME = {
    "NormalForm": "onnxfix.canonical.pipeline",
    "canonicalize": "onnxfix.canonical.pipeline",
    "fingerprint": "onnxfix.canonical.identity",
    "is_isomorphic": "onnxfix.canonical.identity",
    "legalize": "onnxfix.canonical.legalization.legalizing",
    "normal_form": "onnxfix.canonical.pipeline",
}


def __getattr__(name: str) -> Any:
    # The passes stand on onnx_ir, whose import costs as much as everything else here together.
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
