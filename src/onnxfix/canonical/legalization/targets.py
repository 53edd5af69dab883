"""What each converter accepts."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Target(StrEnum):
    """The converters that models are respelled for."""

    ONNX2TORCH = "onnx2torch"
    LITERT_TORCH = "litert-torch"
    ONNX2TF = "onnx2tf"
    TF2ONNX_TFLITE = "tf2onnx-tflite"


@dataclass(frozen=True)
class Dialect:
    """The ONNX that a converter reads correctly.

    Attributes:
        opset: The opset to write.
        respelled: Op types that it lacks or gets wrong, to be spelled by others.
        torch: It runs the model in PyTorch: pools, resizes and padding must be ones that PyTorch has, every output
            must be the only output of a node of its own, and names must be ones that PyTorch modules can have.
    """

    opset: int
    respelled: frozenset[str]
    torch: bool


# Ops whose definition in the ONNX standard is itself a graph of simpler ops.
_DEFINED = frozenset(
    {"AffineGrid", "Attention", "CenterCropPad", "Gelu", "GroupNormalization", "MeanVarianceNormalization", "Mish",
     "NegativeLogLikelihoodLoss", "RMSNormalization", "RotaryEmbedding", "Shrink", "SoftmaxCrossEntropyLoss", "Swish",
     "ThresholdedRelu"}
)
# What onnx2torch 1.5 has no converter for, or none that is right, and that opset 17 can say otherwise.
_NOT_IN_ONNX2TORCH = _DEFINED | frozenset(
    {"Acosh", "Asinh", "Atanh", "BatchNormalization", "Cosh", "DepthToSpace", "DequantizeLinear",
     "DynamicQuantizeLinear", "GlobalMaxPool", "GRU", "Hardmax", "LpNormalization", "LRN", "LSTM", "OneHot", "PRelu",
     "QuantizeLinear", "RNN", "Selu", "Sinh", "Size", "SpaceToDepth", "Trilu"}
)
_TORCH = Dialect(opset=17, respelled=_NOT_IN_ONNX2TORCH, torch=True)

# litert-torch reads PyTorch programs, so ONNX reaches it through onnx2torch.
DIALECTS: dict[Target, Dialect] = {
    Target.ONNX2TORCH: _TORCH,
    Target.LITERT_TORCH: _TORCH,
    Target.ONNX2TF: Dialect(opset=17, respelled=_DEFINED | {"Mod"}, torch=False),
    Target.TF2ONNX_TFLITE: Dialect(opset=18, respelled=_DEFINED, torch=False),
}
