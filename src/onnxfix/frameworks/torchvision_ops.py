"""Make ``import torchvision`` work beside a torch build that its compiled operators do not fit.

torchvision from the default index, next to a CPU torch, cannot load its C++ library, and its Python side then fails to
import with "operator torchvision::nms does not exist". onnx2torch imports torchvision, so onnxfix would fail with it
although neither needs those operators.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

_SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
_libraries: list[Any] = []  # torch forgets a schema when the Library that defined it is collected


def ensure_torchvision_importable() -> None:
    """Define the operator schemas that ``import torchvision`` needs, where they are missing.

    Does nothing when torchvision is not installed or imports by itself. Call it before ``import onnx2torch``.
    """
    if _libraries or find_spec("torchvision") is None:
        return
    import torch

    try:
        import torchvision  # noqa: F401
    except RuntimeError as error:  # what torch raises for an operator that does not exist
        if "torchvision::" not in str(error):
            raise
    else:
        return
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name, schema in _SCHEMAS.items():
        if not hasattr(torch.ops.torchvision, name):
            library.define(schema)
    _libraries.append(library)
