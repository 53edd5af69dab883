"""The normal form: one spelling for everything that converters spell in different ways."""

from onnxfix.canonical.identity import fingerprint, is_isomorphic
from onnxfix.canonical.pipeline import NormalForm, canonicalize, normal_form

__all__ = ["NormalForm", "canonicalize", "fingerprint", "is_isomorphic", "normal_form"]
