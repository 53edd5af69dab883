"""ONNX itself: read, check, name the nodes, run in onnxruntime, write."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx.external_data_helper import ExternalDataInfo, load_external_data_for_model, uses_external_data

from onnxfix.errors import ExportError, LoadError, RuntimeFailure
from onnxfix.frameworks import Feeds, Framework, Lowered

if TYPE_CHECKING:
    from onnxfix.model import Model

_PROTOBUF_LIMIT = 2**31 - 2**20
_SAFE_IR_VERSION = 10  # every onnxruntime that the project supports (>= 1.20) reads it


class OnnxAdapter:
    """ONNX models: ``.onnx`` files, ``onnx.ModelProto`` and ``onnx_ir.Model``."""

    framework = Framework.ONNX

    def recognises(self, obj: object) -> bool:
        """Say whether ``obj`` is a path with suffix ``.onnx``, a ``ModelProto`` or an ``onnx_ir.Model``."""
        if isinstance(obj, Path):
            return obj.suffix.lower() == ".onnx"
        return isinstance(obj, onnx.ModelProto) or _is_ir_model(obj)

    def lower(self, obj: Any, inputs: Any = None) -> Lowered:
        """Read and check the model; nodes without a name of their own get one.

        A ``ModelProto`` given by the caller is never changed: it is copied where something has to change.

        Raises:
            LoadError: the file or object is not a valid ONNX model.
        """
        path = obj if isinstance(obj, Path) else None
        if path is not None:
            native = read_onnx(path)
        elif isinstance(obj, onnx.ModelProto):
            native = obj
            _refuse_detached_data(native)
            _check(native, "The ModelProto")
        else:
            native = _from_ir(obj)
            _check(native, "The onnx_ir.Model")
        proto = _runnable(native, owned=native is not obj)
        parameters = {tensor.name: tensor.name for tensor in proto.graph.initializer}
        return Lowered(proto=proto, native=proto, parameters=parameters, path=path)

    def run(self, model: Model, feeds: Feeds) -> dict[str, np.ndarray]:
        """Run in onnxruntime with graph optimisation off: ONNX's native runtime is the oracle itself."""
        return model.run(feeds)

    def activations(self, model: Model, feeds: Feeds) -> dict[str, np.ndarray]:
        """Every tensor that a node of the main graph computes, by its name."""
        from onnxfix.runtime.session import Session

        proto = onnx.ModelProto()
        proto.CopyFrom(model.proto)
        wanted = list(dict.fromkeys(name for node in proto.graph.node for name in node.output if name))
        known = {output.name for output in proto.graph.output}
        proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted if name not in known)
        values = Session(proto).run(feeds, wanted)
        return {name: value for name, value in values.items() if isinstance(value, np.ndarray)}

    def with_parameters(self, model: Model, parameters: Mapping[str, np.ndarray]) -> onnx.ModelProto:
        """Return a copy of the model in which the named initializers have the given values."""
        return with_initializers(model.proto, parameters)

    def save(self, model: Model, parameters: Mapping[str, np.ndarray], path: Path) -> None:
        """Write an ``.onnx`` file with the named initializers replaced.

        Raises:
            ExportError: the suffix is not ``.onnx``, or a value does not fit its initializer.
        """
        if path.suffix.lower() != ".onnx":
            raise ExportError(f"an ONNX model is written as .onnx, not as {path.suffix or 'a file without suffix'}.")
        write_onnx(with_initializers(model.proto, parameters), path, external=keeps_external_data(model.path))


def read_onnx(path: Path) -> onnx.ModelProto:
    """Read a ``.onnx`` file and its external data, which must lie inside the file's own folder.

    Raises:
        LoadError: it is not a complete, valid ONNX model, or its external data lie elsewhere or are cut short.
    """
    from onnxfix.frameworks.sniff import describe

    if path.is_dir():
        raise LoadError(f"{path} is a directory: give the .onnx file itself.")
    try:
        proto = onnx.load_model(path, load_external_data=False)
    except DecodeError as error:
        raise LoadError(f"{path} cannot be read as ONNX: it is {describe(path)}, or cut short or damaged.") from error
    except OSError as error:
        raise LoadError(f"{path} cannot be read: {error.strerror or error}.") from error
    if not proto.HasField("graph"):
        raise LoadError(f"{path} holds no ONNX graph: it is {describe(path)}, or cut short or damaged.")
    folder = path.parent.resolve()
    external = [tensor for tensor in _tensors(proto.graph) if uses_external_data(tensor)]
    for tensor in external:
        _check_external(tensor, folder, path)
    _check(proto, str(path), path)
    if external:
        load_external_data_for_model(proto, str(folder))
    return proto


def write_onnx(proto: onnx.ModelProto, path: Path, *, external: bool = False) -> None:
    """Write a model; its tensors go to ``<name>.data`` beside it when asked or when they exceed protobuf's 2 GB."""
    if not external and _byte_size(proto) < _PROTOBUF_LIMIT:
        path.write_bytes(proto.SerializeToString())
        return
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)  # save_model empties the tensors it moves out
    onnx.save_model(copy, path, save_as_external_data=True, location=f"{path.name}.data", size_threshold=1024)


def keeps_external_data(path: Path | None) -> bool:
    """Say whether the model was read from an ``.onnx`` file that keeps its tensors outside."""
    if path is None or path.suffix.lower() != ".onnx" or not path.is_file():
        return False
    proto = onnx.load_model(path, load_external_data=False)
    return any(uses_external_data(tensor) for tensor in _tensors(proto.graph))


def with_initializers(proto: onnx.ModelProto, values: Mapping[str, np.ndarray]) -> onnx.ModelProto:
    """Return a copy of ``proto`` in which the named initializers have the given values.

    Raises:
        ExportError: there is no such initializer, or shape or dtype differ.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    tensors = {tensor.name: tensor for tensor in copy.graph.initializer}
    for name, value in values.items():
        tensor = tensors.get(name)
        if tensor is None:
            raise ExportError(f"the model has no initializer {name}.")
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
        if tuple(tensor.dims) != value.shape or dtype != value.dtype:
            raise ExportError(
                f"initializer {name} is {dtype}{list(tensor.dims)}, the new value {value.dtype}{list(value.shape)}."
            )
        tensor.CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(value), name))
    return copy


def name_nodes(proto: onnx.ModelProto) -> None:
    """Give every node without a name, or with one that an earlier node has, a free one: ``Conv_3``."""
    taken = {node.name for node in _nodes(proto.graph)}
    seen: set[str] = set()
    for index, node in enumerate(_nodes(proto.graph)):
        if not node.name or node.name in seen:
            stem = node.name or node.op_type
            name = f"{stem}_{index}"
            while name in taken:
                name += "_"
            node.name = name
            taken.add(name)
        seen.add(node.name)


def _is_ir_model(obj: object) -> bool:
    return type(obj).__module__.startswith("onnx_ir") and type(obj).__name__ == "Model"


def _from_ir(model: Any) -> onnx.ModelProto:
    import onnx_ir

    proto: onnx.ModelProto = onnx_ir.to_proto(onnx_ir.external_data.load_to_model(model.clone()))
    return proto


def _refuse_detached_data(proto: onnx.ModelProto) -> None:
    detached = next((tensor.name for tensor in _tensors(proto.graph) if uses_external_data(tensor)), None)
    if detached is not None:
        raise LoadError(
            f"tensor {detached} of the ModelProto lies in an external file that was not loaded: "
            "give the path of the .onnx file, or load the proto with its external data."
        )


def _check_external(tensor: onnx.TensorProto, folder: Path, path: Path) -> None:
    """Refuse data outside the model's folder (a file must not make us read arbitrary others) and data cut short."""
    info = ExternalDataInfo(tensor)
    location = Path(info.location)
    target = (folder / location).resolve()
    if not info.location or location.is_absolute() or ".." in location.parts or not target.is_relative_to(folder):
        raise LoadError(
            f"{path} keeps tensor {tensor.name} in {info.location!r}, outside its own folder, which is refused: "
            "put the data file beside the model."
        )
    if not target.is_file():
        raise LoadError(f"{path} keeps tensor {tensor.name} in {info.location}, which is missing beside it.")
    itemsize = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize if tensor.data_type else 0
    length = info.length or (0 if itemsize == 0 else math.prod(tensor.dims) * itemsize)
    if (info.offset or 0) + length > target.stat().st_size:
        raise LoadError(f"{path} needs more data for tensor {tensor.name} than {info.location} holds: it is cut short.")


def _check(proto: onnx.ModelProto, what: str, path: Path | None = None) -> None:
    """Refuse a graph that is no complete model; large in-memory protos, which cannot be serialised, get less."""
    if not proto.graph.output:
        raise LoadError(f"{what} has no outputs, so it is not a complete ONNX model.")
    try:
        if path is not None:
            onnx.checker.check_model(str(path))
        elif _byte_size(proto) < _PROTOBUF_LIMIT:
            onnx.checker.check_model(proto)
    except onnx.checker.ValidationError as error:
        raise LoadError(f"{what} is not a valid ONNX model: {_reason(error)}.") from error


def _reason(error: Exception) -> str:
    """The checker's first sentence, without its C++ source context."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".:") if lines else "the checker refuses it"


def _runnable(native: onnx.ModelProto, *, owned: bool) -> onnx.ModelProto:
    """The model with unique node names and an IR version that onnxruntime reads."""
    names = Counter(node.name for node in _nodes(native.graph))
    unnamed = "" in names or any(count > 1 for count in names.values())
    version = native.ir_version
    if version > _SAFE_IR_VERSION:
        version = min(version, _runtime_ir_version())
    if not unnamed and version == native.ir_version:
        return native
    proto = native
    if not owned:
        proto = onnx.ModelProto()
        proto.CopyFrom(native)
    proto.ir_version = version
    if unnamed:
        name_nodes(proto)
    return proto


@cache
def _runtime_ir_version() -> int:
    """The newest IR version that the installed onnxruntime reads."""
    from onnxfix.runtime.session import Session

    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    result = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["x"], ["y"])], "probe", [value], [result])
    for version in range(int(onnx.IR_VERSION), _SAFE_IR_VERSION, -1):
        proto = onnx.helper.make_model(graph, ir_version=version, opset_imports=[onnx.helper.make_opsetid("", 17)])
        try:
            Session(proto)
        except RuntimeFailure:
            continue
        return version
    return _SAFE_IR_VERSION


def _byte_size(proto: onnx.ModelProto) -> int:
    """Serialised size; protobuf cannot say it above 2 GB, so tensors are summed first."""
    tensors = sum(len(tensor.raw_data) for tensor in proto.graph.initializer)
    return tensors if tensors >= _PROTOBUF_LIMIT else proto.ByteSize()


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """All nodes, those of subgraphs included."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from _nodes(inner)


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """All stored tensors: initializers and tensor attributes, those of subgraphs included."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            for inner in (attribute.g, *attribute.graphs):
                yield from _tensors(inner)
