"""Quantized targets: their faults told from what a correct quantization costs."""

from onnxfix.diagnose.quantized.quantizers import WrongQuantizer, activation_spans, wrong_quantizers
from onnxfix.diagnose.quantized.straightening import Quantizer, Straightened, quantizes, straightened

__all__ = [
    "Quantizer",
    "Straightened",
    "WrongQuantizer",
    "activation_spans",
    "quantizes",
    "straightened",
    "wrong_quantizers",
]
