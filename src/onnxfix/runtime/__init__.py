"""Executing ONNX."""
