"""Affine quantization, ``x = (q - zero_point) * scale``, as QuantizeLinear and DequantizeLinear state it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from onnx import numpy_helper

QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"


@dataclass(frozen=True)
class Quantization:
    """Scale and zero point of a whole tensor.

    Attributes:
        scale: Size of one step.
        zero_point: The integer that stands for zero.
        dtype: Name of the integer type.
    """

    scale: float
    zero_point: int
    dtype: str

    @property
    def limits(self) -> tuple[float, float]:
        """The smallest and the largest number that can be told."""
        info = np.iinfo(self.dtype)
        return (info.min - self.zero_point) * self.scale, (info.max - self.zero_point) * self.scale

    def quantize(self, values: np.ndarray) -> np.ndarray:
        """Floats as integers: rounded half to even, saturated."""
        info = np.iinfo(self.dtype)
        steps = np.rint(np.asarray(values, np.float64) / self.scale) + self.zero_point
        return np.asarray(np.clip(steps, info.min, info.max).astype(self.dtype))

    def dequantize(self, values: np.ndarray) -> np.ndarray:
        """Integers as float32."""
        return np.asarray((values.astype(np.float64) - self.zero_point) * self.scale, np.float32)


def input_quantization(proto: onnx.ModelProto, name: str) -> Quantization | None:
    """What an integer input stands for: all that reads it dequantizes it alike."""
    readers = [node for node in proto.graph.node if name in node.input]
    if not readers or any(node.op_type != DEQUANTIZE for node in readers):
        return None
    found = {quantization_of(proto, node) for node in readers}
    return found.pop() if len(found) == 1 else None


def output_quantization(proto: onnx.ModelProto, name: str) -> Quantization | None:
    """What an integer output stands for: it is what a QuantizeLinear makes."""
    maker = next((node for node in proto.graph.node if name in node.output), None)
    return None if maker is None or maker.op_type != QUANTIZE else quantization_of(proto, maker)


def quantization_of(proto: onnx.ModelProto, node: onnx.NodeProto) -> Quantization | None:
    """Scale and zero point of a quantizing node; None where they are computed, or not of the whole tensor."""
    constants = {t.name: t for t in proto.graph.initializer if t.name in node.input[1:3]}
    if len(node.input) < 3 or any(name not in constants for name in node.input[1:3]):
        return None
    scale, zero = (numpy_helper.to_array(constants[name]) for name in node.input[1:3])
    if scale.size != 1 or zero.size != 1 or zero.dtype.kind not in "iu":
        return None
    return Quantization(float(scale.item()), int(zero.item()), zero.dtype.name)


def is_quantized(proto: onnx.ModelProto) -> bool:
    """Whether a model was quantized on purpose: it stores integers that it widens, or computes with."""
    stored = {t.name for t in proto.graph.initializer}
    return any(
        (node.op_type == DEQUANTIZE and node.input[0] in stored)
        or (node.op_type in ("MatMulInteger", "ConvInteger") and node.input[1] in stored)
        for node in proto.graph.node
    )
