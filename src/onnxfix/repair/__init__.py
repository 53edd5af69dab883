"""Candidates, choice, verification."""

from onnxfix.repair.repairing import repair
from onnxfix.repair.result import Repair, Unrepaired

__all__ = ["Repair", "Unrepaired", "repair"]
