"""Conversion with proof: convert, check, repair, and try the next converter where that fails."""

from onnxfix.convert.converting import convert
from onnxfix.convert.result import Attempt, Conversion, Outcome

__all__ = ["Attempt", "Conversion", "Outcome", "convert"]
