"""Faults of a model's boundary: how inputs are prepared, what outputs there are and what they mean."""

from onnxfix.diagnose.boundary.feeding import Misfed, misfed
from onnxfix.diagnose.boundary.settling import Boundary, bound, compared, resized, settle

__all__ = ["Boundary", "Misfed", "bound", "compared", "misfed", "resized", "settle"]
