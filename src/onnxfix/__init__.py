"""Find, repair and prove faults in models converted between PyTorch, Keras, TensorFlow, TFLite and ONNX."""

from typing import TYPE_CHECKING, Any

# `compare`, `convert`, `diagnose`, `export`, `repair` and `trace` are modules as well as functions: binding the
# functions here, eagerly, is what makes `onnxfix.compare(...)` the function. The modules import heavy libraries when
# called.
from onnxfix.compare import Comparison, compare
from onnxfix.convert import Conversion, convert
from onnxfix.diagnose import Diagnosis, Fault, FaultKind, diagnose
from onnxfix.errors import OnnxFixError
from onnxfix.export import export
from onnxfix.inputs import Inputs
from onnxfix.model import Model, load
from onnxfix.repair import Repair, repair
from onnxfix.testing import assert_equivalent
from onnxfix.trace import Trace, trace

if TYPE_CHECKING:
    from onnxfix.canonical import canonicalize, fingerprint, is_isomorphic

__all__ = [
    "Comparison",
    "Conversion",
    "Diagnosis",
    "Fault",
    "FaultKind",
    "Inputs",
    "Model",
    "OnnxFixError",
    "Repair",
    "Trace",
    "assert_equivalent",
    "canonicalize",
    "compare",
    "convert",
    "diagnose",
    "export",
    "fingerprint",
    "is_isomorphic",
    "load",
    "repair",
    "trace",
]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """The canonicalizer's names, imported on first use so that ``import onnxfix`` stays light."""
    if name not in ("canonicalize", "fingerprint", "is_isomorphic"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from onnxfix import canonical

    return getattr(canonical, name)
