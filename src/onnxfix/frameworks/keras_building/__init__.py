"""ONNX graphs as Keras models, built op by op."""

from onnxfix.frameworks.keras_building.building import build, build_on, free_name, named_output

__all__ = ["build", "build_on", "free_name", "named_output"]
