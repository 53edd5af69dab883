"""Which hop of a chain of conversions broke the model."""

from onnxfix.trace.result import Hop, Trace
from onnxfix.trace.tracing import trace

__all__ = ["Hop", "Trace", "trace"]
