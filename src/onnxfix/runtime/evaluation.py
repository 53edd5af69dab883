"""What one ONNX operator answers, according to the oracle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx

from onnxfix.runtime.session import Session

_OPSET = 21
_IR_VERSION = 10


def evaluate_op(
    op: str, operands: Sequence[np.ndarray | None], attributes: Mapping[str, Any], *, opset: int = _OPSET
) -> tuple[np.ndarray, ...]:
    """Run one operator of the standard domain, with one output, in onnxruntime with optimisation off.

    Args:
        op: Op type.
        operands: One array per operand; None where it is left out. All but the first become initializers.
        attributes: Attribute name -> plain Python value.
        opset: The opset whose operator it is.

    Raises:
        RuntimeFailure: onnxruntime refuses it.
    """
    names = ["" if o is None else f"i{k}" for k, o in enumerate(operands)]
    given = {name: np.asarray(o) for name, o in zip(names, operands, strict=True) if o is not None}
    first = names[0]
    data = onnx.helper.make_tensor_value_info(
        first, onnx.helper.np_dtype_to_tensor_dtype(given[first].dtype), given[first].shape
    )
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node(op, names, ["o"], **attributes)], "operator", [data],
        [onnx.helper.make_value_info("o", onnx.TypeProto())],
        [onnx.numpy_helper.from_array(value, name) for name, value in given.items() if name != first],
    )
    model = onnx.helper.make_model(
        graph, ir_version=_IR_VERSION, opset_imports=[onnx.helper.make_opsetid("", opset)]
    )
    inferred = onnx.shape_inference.infer_shapes(model)
    return tuple(Session(inferred).run({first: given[first]}).values())
