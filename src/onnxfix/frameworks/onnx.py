"""ONNX itself: read, check, name the nodes, run in onnxruntime, write."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from onnxfix import mapped
from onnxfix.errors import ExportError, RuntimeFailure
from onnxfix.frameworks import Feeds, Framework, Lowered
from onnxfix.frameworks.onnx_files import keeps_external_data, read_onnx, write_onnx
from onnxfix.frameworks.onnx_objects import from_ir, from_proto

if TYPE_CHECKING:
    from onnxfix.model import Model
    from onnxfix.surgeon.patch import Patch

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
            native = from_proto(obj)
        else:
            native = from_ir(obj)
        proto = _runnable(native, owned=native is not obj)
        parameters = {tensor.name: tensor.name for tensor in proto.graph.initializer}
        held = mapped.holders(proto)
        return Lowered(proto=proto, native=proto, parameters=parameters, path=path, held=held)

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

    def edited(self, model: Model, patches: Sequence[Patch]) -> onnx.ModelProto:
        """The caller's own graph with the patches in it."""
        from onnxfix.surgeon.apply import apply

        return apply(model.proto, patches)

    def write(self, model: Model, native: onnx.ModelProto, path: Path) -> None:
        """Write an ``.onnx`` file; its weights stay in a file of their own where the model's file keeps them so.

        Raises:
            ExportError: the suffix is not ``.onnx``.
        """
        if path.suffix.lower() != ".onnx":
            raise ExportError(f"an ONNX model is written as .onnx, not as {path.suffix or 'a file without suffix'}.")
        write_onnx(native, path, external=keeps_external_data(model.path))

    def read(self, path: Path) -> onnx.ModelProto:
        """The model of an ``.onnx`` file."""
        return _runnable(read_onnx(path), owned=True)

    def save(self, model: Model, parameters: Mapping[str, np.ndarray], path: Path) -> None:
        """Write the model with the named initializers replaced."""
        self.write(model, self.with_parameters(model, parameters), path)


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


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """All nodes, those of subgraphs included."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from _nodes(inner)
