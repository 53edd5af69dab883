"""Data sources and preprocessing: one logical input, fed to each model in its own name, layout and dtype."""

from onnxfix.inputs.inputs import Chunk, Inputs
from onnxfix.inputs.matching import InputPair, pair_inputs, pair_outputs
from onnxfix.inputs.preparation import Preparation

__all__ = ["Chunk", "InputPair", "Inputs", "Preparation", "pair_inputs", "pair_outputs"]
