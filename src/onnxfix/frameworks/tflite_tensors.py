"""Which tensor of a TFLite file holds which value of a patched lowered graph."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx

from onnxfix.errors import ExportError
from onnxfix.frameworks.flatbuffer import Flatbuffer, schema
from onnxfix.frameworks.flatbuffer_editing import FlatbufferEditor
from onnxfix.frameworks.tflite_forms import constant, dtype_of, inner_name
from onnxfix.frameworks.tflite_wanted import Wanted


class Tensors:
    """The tensors of a file that is being edited, by the values that they hold.

    Attributes:
        file: The file as it was.
        editor: The file as it will be.
        native: Name of a tensor of the file -> its index.
        aliases: Value -> the value that takes its place.
        added: Value -> the tensor that was added for it, or that it inherits.
        origins: Value -> the value of the unpatched graph that it comes from.
        values: All values of the patched graph.
    """

    def __init__(self, editor: FlatbufferEditor) -> None:
        self.file: Flatbuffer = editor.file
        self.editor = editor
        self.native = {name: index for index, name in enumerate(self.file.tensor_names)}
        self.aliases: dict[str, str] = {}
        self.added: dict[str, int] = {}
        self.origins: dict[str, str] = {}
        self.values: set[str] = set()

    def read(self, wanted: Wanted) -> None:
        """Take the values of a patched graph."""
        graph = wanted.proto.graph
        self.origins = {new: old for old, new in wanted.renamed.items()}
        self.values = {v for n in graph.node for v in (*n.input, *n.output)}
        self.values.update(info.name for info in (*graph.input, *graph.output))

    def holds(self, value: str) -> bool:
        """Whether a value has a tensor in the file."""
        return value in self.native or self.origins.get(value) in self.native

    def index(self, value: str) -> int:
        """The tensor that holds a value of the patched graph.

        Raises:
            ExportError: none does.
        """
        while value in self.aliases:
            value = self.aliases[value]
        if value in self.added:
            return self.added[value]
        if value in self.native:
            return self.native[value]
        origin = self.origins.get(value)
        if origin not in self.native:
            raise ExportError(f"no tensor of the file holds {value}")
        if origin not in self.values:
            return self.native[origin]
        tensor = copy.copy(self.editor.tensors[self.native[origin]])
        tensor.name = inner_name(value)
        self.added[value] = self.editor.add_tensor(tensor)
        return self.added[value]

    def index_of(self, value: str, info: onnx.ValueInfoProto) -> int:
        """The same for a value that may be new."""
        try:
            return self.index(value)
        except ExportError:
            kind = onnx.helper.tensor_dtype_to_np_dtype(info.type.tensor_type.elem_type)
            number = getattr(schema().TensorType, np.dtype(kind).name.upper())
            sizes = [d.dim_value or 1 for d in info.type.tensor_type.shape.dim]
            tensor = schema().TensorT(shape=np.array(sizes, np.int32), type=number, name=inner_name(value))
            tensor.hasRank = True
            self.added[value] = self.editor.add_tensor(tensor)
            return self.added[value]

    def own_constant(self, name: str, content: np.ndarray, position: int) -> int:
        """The tensor of a constant with another content: its own where nothing else reads it, else a new one."""
        editor, index = self.editor, self.native.get(name)
        raw = np.frombuffer(np.ascontiguousarray(content).tobytes(), np.uint8)
        like = None if index is None else editor.tensors[index]
        if like is not None and index is not None:
            readers = [k for k, op in enumerate(self.file.graph.operators) if index in op.inputs]
            sharers = [t for t in editor.tensors if t.buffer == like.buffer]
            if readers == [position] and len(sharers) == 1:
                editor.edit(editor.buffers, like.buffer).data = raw
                if content.shape != self.file.constants[name].shape:
                    editor.edit(editor.tensors, index).shape = np.array(content.shape, np.int32)
                return index
        fresh = constant(content, like)
        fresh.name = (name if like is None else f"{name}/repaired{position}").encode()
        fresh.buffer = editor.add_buffer(raw.tobytes())
        return editor.add_tensor(fresh)


class Types(dict[str, onnx.ValueInfoProto]):
    """Types of the values that tensors of the file hold, and of the graph's inputs."""

    def __init__(self, parent: Tensors, inputs: Iterable[onnx.ValueInfoProto]) -> None:
        super().__init__({info.name: info for info in inputs})
        self._parent = parent

    def __contains__(self, name: object) -> bool:
        return super().__contains__(name) or self._tensor(str(name)) is not None

    def __missing__(self, name: str) -> onnx.ValueInfoProto:
        tensor = self._tensor(name)
        if tensor is None:
            raise KeyError(name)
        signature = tensor.shapeSignature if tensor.shapeSignature is not None else tensor.shape
        sizes = ["batch" if n < 0 and k == 0 else None if n < 0 else int(n) for k, n in enumerate(signature)]
        kind = onnx.helper.np_dtype_to_tensor_dtype(dtype_of(tensor) or np.dtype(np.float32))
        return onnx.helper.make_tensor_value_info(name, kind, sizes)

    def _tensor(self, name: str) -> Any:
        parent = self._parent
        while name in parent.aliases:
            name = parent.aliases[name]
        origin = name if name in parent.native else parent.origins.get(name)
        return parent.editor.tensors[parent.native[origin]] if origin in parent.native else None


class Places(dict[str, int]):
    """Value -> tensor, for the values at a piece's boundary."""

    def __init__(self, parent: Tensors, piece: onnx.ModelProto) -> None:
        super().__init__()
        self._parent = parent
        self._types = {info.name: info for info in (*piece.graph.input, *piece.graph.output)}

    def __contains__(self, name: object) -> bool:
        return name in self._types or name in self._parent.native

    def __missing__(self, name: str) -> int:
        parent = self._parent
        return parent.index_of(name, self._types[name]) if name in self._types else parent.index(name)
