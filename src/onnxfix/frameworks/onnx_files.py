"""ONNX files: read with their external data, written in one file or two; large tensors stay in their files."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto

from onnxfix import mapped
from onnxfix.errors import LoadError
from onnxfix.frameworks.onnx_tensors import check_tensor, external_file, stored_bytes, tensors_of
from onnxfix.frameworks.onnx_validity import sound

PROTOBUF_LIMIT = 2**31 - 2**20
# Initializers smaller than this stay in the .onnx file when the others go to a file of their own (bytes).
_INLINE = 1024
_ALIGNMENT = 4096


def read_onnx(path: Path) -> onnx.ModelProto:
    """Read a ``.onnx`` file and its external data, which must lie inside the file's own folder.

    External data of more than ``mapped.MAPPED_FROM`` bytes are not read: the initializers become references to the
    file (see :mod:`onnxfix.mapped`).

    Raises:
        LoadError: it is not a complete, valid ONNX model, or its external data lie elsewhere or are cut short.
    """
    proto = _parsed(path)
    tensors = list(tensors_of(proto))
    external = [tensor for tensor in tensors if mapped.is_external(tensor)]
    files = {id(tensor): external_file(tensor, path) for tensor in external}
    for tensor in tensors:
        check_tensor(tensor, str(path))
    large = sum(map(mapped.byte_size, external)) > mapped.MAPPED_FROM
    mappable = {id(tensor) for tensor in proto.graph.initializer if mapped.is_mappable(tensor)} if large else set()
    for tensor in external:
        file, offset = files[id(tensor)]
        if id(tensor) in mappable and offset % mapped.item_size(tensor) == 0:
            mapped.refer(tensor, mapped.opened(file), offset, mapped.byte_size(tensor))
        else:
            _take_in(tensor, file, offset)
    return sound(proto, str(path))


def _take_in(tensor: TensorProto, file: Path, offset: int) -> None:
    with file.open("rb") as handle:
        handle.seek(offset)
        tensor.raw_data = handle.read(stored_bytes(tensor))
    tensor.data_location = TensorProto.DEFAULT
    del tensor.external_data[:]


def _parsed(path: Path) -> onnx.ModelProto:
    from onnxfix.frameworks.sniff import describe

    if path.is_dir():
        raise LoadError(f"{path} is a directory: give the .onnx file itself.")
    try:
        if path.stat().st_size >= 2**31:
            raise LoadError(f"{path} is larger than the 2 GB that one .onnx file can hold: keep its weights outside.")
        proto = onnx.load_model(path, load_external_data=False)
    except DecodeError as error:
        raise LoadError(f"{path} cannot be read as ONNX: it is {describe(path)}, or cut short or damaged.") from error
    except OSError as error:
        raise LoadError(f"{path} cannot be read: {error.strerror or error}.") from error
    if not proto.HasField("graph"):
        raise LoadError(f"{path} holds no ONNX graph: it is {describe(path)}, or cut short or damaged.")
    return proto


def write_onnx(proto: onnx.ModelProto, path: Path, *, external: bool = False) -> None:
    """Write a model.

    Its initializers go to ``<name>.data`` beside it when asked, when the proto only refers to them, or when they exceed
    protobuf's 2 GB; they are written one by one.
    """
    outside = external or any(mapped.references(proto)) or byte_size(proto) >= PROTOBUF_LIMIT
    if not outside:
        path.write_bytes(proto.SerializeToString())
        return
    copy = mapped.skeleton(proto, _moves_out)
    sources = {tensor.name: tensor for tensor in proto.graph.initializer}
    data = path.with_name(f"{path.name}.data")
    with data.open("wb") as file:
        for tensor in copy.graph.initializer:
            if _moves_out(sources[tensor.name]):
                _append(file, tensor, sources[tensor.name], data.name)
    if data.stat().st_size == 0:
        data.unlink()
    path.write_bytes(copy.SerializeToString())


def _moves_out(tensor: TensorProto) -> bool:
    return mapped.is_external(tensor) or (tensor.HasField("raw_data") and len(tensor.raw_data) >= _INLINE)


def _append(file: BinaryIO, tensor: TensorProto, source: TensorProto, location: str) -> None:
    """Write the data of ``source`` to the end of a file, aligned, and make ``tensor`` point there."""
    file.write(bytes(-file.tell() % _ALIGNMENT))
    offset = file.tell()
    if mapped.is_external(source):
        for piece in mapped.streamed(mapped.to_array(source)):
            file.write(piece.data)
    else:
        file.write(source.raw_data)
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", str(offset)), ("length", str(file.tell() - offset))):
        tensor.external_data.add(key=key, value=value)


def keeps_external_data(path: Path | None) -> bool:
    """Say whether the model was read from an ``.onnx`` file that keeps its tensors outside."""
    if path is None or path.suffix.lower() != ".onnx" or not path.is_file():
        return False
    return any(mapped.is_external(tensor) for tensor in tensors_of(onnx.load_model(path, load_external_data=False)))


def byte_size(proto: onnx.ModelProto) -> int:
    """Serialised size; protobuf cannot say it above 2 GB, so the data in the proto are summed first."""
    data = sum(mapped.byte_size(tensor) for tensor in proto.graph.initializer if not mapped.is_external(tensor))
    return data if data >= PROTOBUF_LIMIT else proto.ByteSize()
