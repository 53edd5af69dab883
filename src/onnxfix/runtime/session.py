"""The oracle: onnxruntime with every graph optimisation off.

Its default level miscomputes zero Pad + MaxPool on negative inputs (folds the pad into the pool, which pads with
-inf; onnxruntime 1.31.1, microsoft/onnxruntime#18136), so correctness is never judged with optimisations on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import onnxruntime as ort
from google.protobuf.message import EncodeError

from onnxfix import mapped
from onnxfix.errors import InputError, RuntimeFailure
from onnxfix.runtime.operators import unknown_ops


class Session:
    """An onnxruntime session over a model, by default with graph optimisation off.

    Args:
        proto: The model.
        optimize: Use onnxruntime's default optimisation level instead (for fast paths, and to catch its own faults).
        intra_threads: Threads per operator; 0 lets onnxruntime choose.

    Raises:
        RuntimeFailure: onnxruntime refuses the model.
    """

    def __init__(self, proto: onnx.ModelProto, *, optimize: bool = False, intra_threads: int = 0) -> None:
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = intra_threads
        level = ort.GraphOptimizationLevel
        options.graph_optimization_level = level.ORT_ENABLE_ALL if optimize else level.ORT_DISABLE_ALL
        try:
            self._session, self._lent = _open(proto, options)
        except Exception as error:  # onnxruntime raises a family of pybind exceptions with no common base of its own
            raise RuntimeFailure(_unknown(proto) or f"onnxruntime refuses the model: {_first_line(error)}") from error
        self.input_names: tuple[str, ...] = tuple(i.name for i in self._session.get_inputs())
        self.output_names: tuple[str, ...] = tuple(o.name for o in self._session.get_outputs())

    def run(self, feeds: Mapping[str, np.ndarray], outputs: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        """Run once.

        Args:
            feeds: Input name -> array; entries that the model does not have are ignored.
            outputs: Which outputs to fetch; all when None.

        Raises:
            InputError: an input is missing.
            RuntimeFailure: onnxruntime fails on these feeds.
        """
        missing = [name for name in self.input_names if name not in feeds]
        if missing:
            raise InputError(f"no data for input {', '.join(missing)}: the data has {', '.join(feeds) or 'nothing'}.")
        wanted = list(self.output_names if outputs is None else outputs)
        try:
            values = self._session.run(wanted, {name: feeds[name] for name in self.input_names})
        except Exception as error:  # see above
            raise RuntimeFailure(f"onnxruntime fails on this input: {_first_line(error)}") from error
        return dict(zip(wanted, values, strict=True))


def _unknown(proto: onnx.ModelProto) -> str | None:
    """The sentence for a model with an op that onnxruntime does not know; None for any other."""
    op, node = next(iter(unknown_ops(proto).items()), (None, ""))
    if op is None:
        return None
    return f"onnxruntime does not know the op {op} (node {node}), so the model cannot run: replace it by standard ops."


def _open(proto: onnx.ModelProto, options: ort.SessionOptions) -> tuple[ort.InferenceSession, list[ort.OrtValue]]:
    """A session, and the values that it was lent, which must be held as long as it."""
    lent: list[ort.OrtValue] = []
    providers = ["CPUExecutionProvider"]
    content = None if _is_huge(proto) else _serialized(proto)
    if content is None:
        proto, lent = _lending(proto, options)
        content = proto.SerializeToString()
    return ort.InferenceSession(content, options, providers=providers), lent


def _lending(proto: onnx.ModelProto, options: ort.SessionOptions) -> tuple[onnx.ModelProto, list[ort.OrtValue]]:
    """The model without its large constants, which onnxruntime is lent as arrays: no second copy of them."""
    copy = mapped.skeleton(proto, _is_lent)
    arrays = {t.name: (mapped.to_array(t), t.data_type) for t in proto.graph.initializer if _is_lent(t)}
    for tensor in copy.graph.initializer:
        if tensor.name in arrays:
            tensor.data_location = onnx.TensorProto.EXTERNAL
            tensor.external_data.add(key="location", value="lent")
    values = [_ort_value(array, kind) for array, kind in arrays.values()]
    options.add_external_initializers(list(arrays), values)
    options.add_session_config_entry("session.disable_prepacking", "1")  # packing would copy them all
    return copy, values


def _is_huge(proto: onnx.ModelProto) -> bool:
    """Whether a model cannot be one string of bytes: its constants lie elsewhere, or are too large."""
    return any(mapped.references(proto)) or sum(map(mapped.byte_size, proto.graph.initializer)) >= 2**31


def _is_lent(tensor: onnx.TensorProto) -> bool:
    return mapped.is_external(tensor) or (tensor.HasField("raw_data") and mapped.byte_size(tensor) >= mapped.SMALL)


def _ort_value(array: np.ndarray, kind: int) -> ort.OrtValue:
    if array.dtype.kind in "fiub":
        return ort.OrtValue.ortvalue_from_numpy(array)
    return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array.view(f"u{array.itemsize}"), kind)


def _serialized(proto: onnx.ModelProto) -> bytes | None:
    """The model as bytes; None where it is larger than the 2 GB of a protobuf (asking first costs as much again)."""
    try:
        content: bytes = proto.SerializeToString()
        return content
    except (ValueError, EncodeError):
        return None


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
