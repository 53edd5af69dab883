"""The normal form: one spelling for everything that converters spell in different ways."""

from onnxfix.canonical.pipeline import NormalForm, canonicalize, normal_form

__all__ = ["NormalForm", "canonicalize", "normal_form"]
