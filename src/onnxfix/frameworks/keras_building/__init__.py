"""ONNX graphs as Keras models, built op by op."""

from onnxfix.frameworks.keras_building.building import build

__all__ = ["build"]
