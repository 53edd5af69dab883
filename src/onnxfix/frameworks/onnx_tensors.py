"""Tensors stored in an ONNX model: do they hold what they declare, and do their files lie where they may?"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import onnx
from onnx import TensorProto

from onnxfix.errors import LoadError

_QUARTER_BYTE = frozenset({getattr(TensorProto, name, -1) for name in ("INT2", "UINT2")})
# Which field holds the elements of a type that is not in raw_data, and how many elements one entry stands for.
_FIELDS: dict[int, tuple[str, float]] = {
    TensorProto.FLOAT: ("float_data", 1), TensorProto.COMPLEX64: ("float_data", 0.5),
    TensorProto.DOUBLE: ("double_data", 1), TensorProto.COMPLEX128: ("double_data", 0.5),
    TensorProto.INT64: ("int64_data", 1), TensorProto.STRING: ("string_data", 1),
    TensorProto.UINT32: ("uint64_data", 1), TensorProto.UINT64: ("uint64_data", 1),
    TensorProto.INT4: ("int32_data", 2), TensorProto.UINT4: ("int32_data", 2),
    TensorProto.FLOAT4E2M1: ("int32_data", 2), **{kind: ("int32_data", 4) for kind in _QUARTER_BYTE},
}  # fmt: skip
_HALF_BYTE = frozenset({TensorProto.INT4, TensorProto.UINT4, TensorProto.FLOAT4E2M1})


def tensors_of(proto: onnx.ModelProto) -> Iterator[TensorProto]:
    """All stored tensors: initializers and tensor attributes, those of subgraphs and functions included."""
    waiting = [proto.graph]
    nodes: list[onnx.NodeProto] = [node for function in proto.functions for node in function.node]
    while waiting or nodes:
        if not nodes:
            graph = waiting.pop()
            yield from graph.initializer
            for sparse in graph.sparse_initializer:
                yield from (sparse.values, sparse.indices)
            nodes.extend(graph.node)
            continue
        for attribute in nodes.pop().attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            if attribute.HasField("g"):
                waiting.append(attribute.g)
            waiting.extend(attribute.graphs)


def stored_bytes(tensor: TensorProto) -> int:
    """How many bytes the declared elements take in raw or external data.

    Raises:
        ValueError: the element type is none that ONNX knows, or has no fixed size.
    """
    count: int = math.prod(tensor.dims)
    if tensor.data_type in _HALF_BYTE:
        return (count + 1) // 2
    if tensor.data_type in _QUARTER_BYTE:
        return (count + 3) // 4
    try:
        return count * int(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)
    except KeyError:
        raise ValueError(f"element type {tensor.data_type}, which onnx does not know") from None


def check_tensor(tensor: TensorProto, what: str) -> None:
    """Refuse a tensor that does not hold the elements its shape declares; nothing is allocated for them.

    Raises:
        LoadError: it says which tensor, and what it holds.
    """
    name = tensor.name or "without a name"
    if any(dim < 0 for dim in tensor.dims):
        raise LoadError(
            f"tensor {name} in {what} has a negative dimension, {list(tensor.dims)}: export the model again."
        )
    if tensor.HasField("segment"):
        raise LoadError(f"tensor {name} in {what} is stored in segments, which is not supported: save it in one piece.")
    try:
        wanted, held, unit = _amounts(tensor)
    except ValueError as error:
        raise LoadError(f"tensor {name} in {what} has {error}: export the model again.") from error
    if wanted != held:
        raise LoadError(
            f"tensor {name} in {what} is declared as {list(tensor.dims)}, which takes {wanted} {unit}, but holds "
            f"{held}: the file is damaged, export the model again."
        )


def _amounts(tensor: TensorProto) -> tuple[int, int, str]:
    """What the shape needs, what is there, and the unit of both."""
    kind = tensor.data_type
    if kind not in TensorProto.DataType.values() or kind == TensorProto.UNDEFINED:
        raise ValueError(f"element type {kind}, which onnx does not know")
    if tensor.data_location == TensorProto.EXTERNAL:
        if kind == TensorProto.STRING:
            raise ValueError("strings as external data")
        wanted = stored_bytes(tensor)
        return wanted, _declared_length(tensor, wanted), "bytes"
    count = math.prod(tensor.dims)
    field, per_entry = _FIELDS.get(kind, ("int32_data", 1))
    if tensor.HasField("raw_data"):
        if kind == TensorProto.STRING:
            raise ValueError("strings as raw data")
        return stored_bytes(tensor), len(tensor.raw_data), "bytes"
    return math.ceil(count / per_entry), len(getattr(tensor, field)), "elements"


def _entries(tensor: TensorProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in tensor.external_data}


def _declared_length(tensor: TensorProto, default: int) -> int:
    return _number(_entries(tensor).get("length", ""), default)


def _number(text: str, default: int) -> int:
    if not text:
        return default
    if not text.isascii() or not text.isdigit():
        raise ValueError(f"the offset or length {text!r}, which is no number of bytes")
    return int(text)


def external_file(tensor: TensorProto, path: Path) -> tuple[Path, int]:
    """The file that holds a tensor's data, and where in it they begin.

    A model file must not make us read arbitrary other files: only those inside its own folder are allowed.

    Raises:
        LoadError: the file lies elsewhere, is missing, or is too short.
    """
    location = _entries(tensor).get("location", "")
    folder = path.parent.resolve()
    parts = Path(location).parts
    try:
        target = (folder / location).resolve()
        inside = bool(location) and not Path(location).is_absolute() and ".." not in parts
        inside = inside and target.is_relative_to(folder)
        missing = inside and not target.is_file()
        size = target.stat().st_size if inside and not missing else 0
    except (OSError, ValueError, RuntimeError) as error:  # a name with a null byte or too long, a loop of links
        raise LoadError(
            f"{path} keeps tensor {tensor.name} in a file whose name cannot be used: save the model again."
        ) from error
    if not inside:
        raise LoadError(
            f"{path} keeps tensor {tensor.name} in {location!r}, outside its own folder, which is refused: "
            "put the data file beside the model."
        )
    if missing:
        raise LoadError(f"{path} keeps tensor {tensor.name} in {location}, which is missing beside it.")
    try:
        begin = _number(_entries(tensor).get("offset", ""), 0)
        needed = begin + max(stored_bytes(tensor), _declared_length(tensor, 0))
    except ValueError as error:
        raise LoadError(f"tensor {tensor.name} in {path} has {error}: export the model again.") from error
    if needed > size:
        raise LoadError(f"{path} needs more data for tensor {tensor.name} than {location} holds: it is cut short.")
    return target, begin
