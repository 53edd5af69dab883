"""Comparing two models' outputs: metrics, comparators, and the result."""

from onnxfix.compare.accumulator import Accumulator
from onnxfix.compare.comparing import compare
from onnxfix.compare.result import Comparison, OutputComparison

__all__ = ["Accumulator", "Comparison", "OutputComparison", "compare"]
