"""A piece of an ONNX graph put onto tensors of a Keras model, op by op."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx

from onnxfix.errors import CanonicalizationError, ExportError
from onnxfix.frameworks.graph_matching import GraphIndex
from onnxfix.frameworks.keras_building import build_on
from onnxfix.frameworks.keras_fitting import cut


def built_of(
    graph: GraphIndex, value: str, nodes: Sequence[onnx.NodeProto], tensors: Mapping[str, Any], layer: str | None,
    taken: set[str],
) -> Any:
    """The tensor of a value of a graph.

    Args:
        graph: The graph.
        value: The value.
        nodes: What makes it, in order.
        tensors: The values that these begin with.
        layer: The name of the layer in whose place they stand.
        taken: Names that new layers must not have; theirs are added.

    Raises:
        ExportError: an op has no form in Keras.
    """
    from onnxfix.canonical.legalization import legalize

    infos = [_info(name, tensor) for name, tensor in tensors.items()]
    try:
        legal = legalize(cut(graph, [_called_after(n, layer) for n in nodes], infos, [value]), "keras")
    except CanonicalizationError as error:
        raise ExportError(str(error)) from error
    return build_on(legal, tensors, taken, layers=True)[value]


def _info(name: str, tensor: Any) -> onnx.ValueInfoProto:
    shape = [("batch" if axis == 0 else f"{name}_{axis}") if n is None else n for axis, n in enumerate(tensor.shape)]
    return onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(np.dtype(tensor.dtype)), shape)


def _called_after(node: onnx.NodeProto, layer: str | None) -> onnx.NodeProto:
    """A node that is named after the layer that it replaces."""
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    if layer is not None:
        copy.name = layer
    return copy
