"""Legalisation: a model respelled, without changing what it computes, in what one converter accepts."""

from onnxfix.canonical.legalization.legalizing import legalize
from onnxfix.canonical.legalization.targets import Target

__all__ = ["Target", "legalize"]
