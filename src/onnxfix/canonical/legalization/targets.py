"""What each converter accepts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum


class Target(StrEnum):
    """The converters that models are respelled for."""

    ONNX2TORCH = "onnx2torch"
    LITERT_TORCH = "litert-torch"
    ONNX2TF = "onnx2tf"
    TF2ONNX_TFLITE = "tf2onnx-tflite"
    KERAS = "keras"


@dataclass(frozen=True)
class Dialect:
    """The ONNX that a converter reads correctly.

    Attributes:
        opset: The newest opset to write.
        defined: Op types to be replaced by the graphs that define them in the ONNX standard.
        respelled: Op types that it lacks or gets wrong, to be spelled by others.
        torch: It runs the model in PyTorch: pools, resizes and padding must be ones that PyTorch has, every output
            must be the only output of a node of its own, and names must be ones that PyTorch modules can have.
        crops: Transposed convolutions do not pad: what their padding would crop is sliced off. Max pools are not
            dilated.
    """

    opset: int
    defined: frozenset[str]
    respelled: frozenset[str]
    torch: bool
    crops: bool = False


# Ops whose definition in the ONNX standard is itself a graph of simpler ops.
_DEFINED = frozenset(
    {"AffineGrid", "Attention", "CenterCropPad", "DynamicQuantizeLinear", "Gelu", "GroupNormalization",
     "MeanVarianceNormalization", "Mish", "NegativeLogLikelihoodLoss", "RMSNormalization", "RotaryEmbedding", "Shrink",
     "SoftmaxCrossEntropyLoss", "Swish", "ThresholdedRelu"}
)
# What onnx2torch 1.5 has no converter for, or none that is right for all cases, and opset 17 can say otherwise.
_NOT_IN_ONNX2TORCH = frozenset(
    {"Acosh", "Asinh", "Atanh", "AveragePool", "BatchNormalization", "CastLike", "Clip", "ConvTranspose", "Cosh", "DFT",
     "DepthToSpace", "DequantizeLinear", "Dropout", "GatherElements", "GlobalMaxPool", "GreaterOrEqual", "GridSample",
     "GRU", "Hardmax", "IsInf", "LayerNormalization", "LessOrEqual", "LpNormalization", "LpPool", "LSTM", "MaxPool",
     "OneHot", "Pad", "Pow", "PRelu", "QuantizeLinear", "RNN", "Selu", "Sinh", "Size", "SpaceToDepth", "STFT", "Trilu"}
)
_TORCH = Dialect(opset=17, defined=_DEFINED, respelled=_NOT_IN_ONNX2TORCH, torch=True)

# What onnxfix itself builds in Keras (frameworks/keras_building).
_IN_KERAS = frozenset(
    {"Acosh", "Asinh", "Atanh", "Cosh", "GlobalMaxPool", "GreaterOrEqual", "LessOrEqual", "Pow", "Sinh"}
)
_KERAS_LAYERS = frozenset({"Gelu", "GroupNormalization", "RMSNormalization"})

# litert-torch reads PyTorch programs, so ONNX reaches it through onnx2torch.
DIALECTS: dict[Target, Dialect] = {
    Target.ONNX2TORCH: _TORCH,
    Target.LITERT_TORCH: replace(_TORCH, respelled=_TORCH.respelled | {"LRN"}, crops=True),
    Target.KERAS: Dialect(
        23, _DEFINED - _KERAS_LAYERS, _NOT_IN_ONNX2TORCH - _IN_KERAS | {"LRN"}, torch=False, crops=True
    ),
    Target.ONNX2TF: Dialect(17, _DEFINED, frozenset({"CastLike", "GridSample", "Mod"}), torch=False),
    Target.TF2ONNX_TFLITE: Dialect(18, _DEFINED, frozenset({"CastLike"}), torch=False),
}
