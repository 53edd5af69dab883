"""From differences to faults."""

from onnxfix.diagnose.diagnosis import diagnose
from onnxfix.diagnose.fault import Diagnosis, Fault, FaultKind

__all__ = ["Diagnosis", "Fault", "FaultKind", "diagnose"]
