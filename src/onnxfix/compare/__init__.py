"""Comparing two models' outputs: metrics, comparators, and the result."""

from onnxfix.compare.accumulator import Accumulator
from onnxfix.compare.comparing import compare
from onnxfix.compare.result import Comparison, OutputComparison
from onnxfix.compare.telling import refuse_blank

__all__ = ["Accumulator", "Comparison", "OutputComparison", "compare", "refuse_blank"]
