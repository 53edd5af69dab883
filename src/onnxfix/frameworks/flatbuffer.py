"""The bytes of a TFLite file: checked before anything else touches them, and constants replaced in place.

LiteRT and tf2onnx trust offsets and indices, so a truncated file crashes the process. :class:`Flatbuffer` walks the
whole structure first and refuses what does not hold together.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from types import ModuleType
from typing import Any

import numpy as np

from onnxfix.errors import ExportError, LoadError, MissingDependencyError

DTYPES: dict[str, np.dtype[Any]] = {
    name: np.dtype(name.lower())
    for name in ("FLOAT32", "FLOAT16", "FLOAT64", "INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32",
                 "UINT64", "BOOL", "COMPLEX64", "COMPLEX128")
}
"""TFLite tensor type -> dtype; strings, packed 4-bit integers and resources are absent."""

_BROKEN = (struct.error, IndexError, ValueError, TypeError, OverflowError, UnicodeDecodeError, AttributeError, KeyError)


@dataclass(frozen=True)
class Constant:
    """A tensor whose values lie in the file.

    Attributes:
        name: The tensor's name (unique in the main subgraph).
        dtype: Its element type.
        shape: Its shape.
        buffer: Index of the buffer that holds it; several tensors may share one.
        start: Where its bytes begin in the file.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    buffer: int
    start: int

    @property
    def stop(self) -> int:
        """Where its bytes end in the file."""
        return self.start + int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


class Flatbuffer:
    """A TFLite file that holds together.

    Args:
        data: The file's content.
        what: How messages call it.

    Raises:
        LoadError: an offset, index or length leads out of the file.
    """

    def __init__(self, data: bytes, what: str) -> None:
        self.data = data
        self.what = what
        self._schema = schema()
        try:
            root = self._schema.Model.GetRootAs(_Strict(data), 0)
            self.model: Any = self._schema.ModelT.InitFromObj(root)
            self.root = root
            self._check()
        except _BROKEN as error:
            raise LoadError(
                f"{what} is a damaged TFLite file (it was cut off or overwritten): download or convert it again."
            ) from error

    @cached_property
    def graph(self) -> Any:
        """The main subgraph, as the object API gives it."""
        return self.model.subgraphs[0]

    @cached_property
    def tensor_names(self) -> tuple[str, ...]:
        """The main subgraph's tensor names by index, made unique where the file repeats or omits one."""
        names: list[str] = []
        taken: set[str] = set()
        for index, tensor in enumerate(self.graph.tensors):
            name = base = text(tensor.name) or f"tensor_{index}"
            count = 0
            while name in taken:
                count += 1
                name = f"{base}_{count}"
            taken.add(name)
            names.append(name)
        return tuple(names)

    @cached_property
    def constants(self) -> dict[str, Constant]:
        """The main subgraph's constants that lie in the file densely and with a plain element type, by name."""
        found = {}
        for index, tensor in enumerate(self.graph.tensors):
            span = self._span(tensor.buffer)
            dtype = DTYPES.get(self._enum("TensorType", tensor.type))
            if span is None or dtype is None or tensor.sparsity is not None:
                continue
            shape = tuple(int(d) for d in tensor.shape) if tensor.shape is not None else ()
            constant = Constant(self.tensor_names[index], dtype, shape, int(tensor.buffer), span[0])
            if constant.stop == span[1]:
                found[constant.name] = constant
        return found

    @cached_property
    def operators(self) -> dict[str, str]:
        """Output tensor name -> location of the operator that computes it: ``CONV_2D@3 (name of its first output)``."""
        found = {}
        for position, operator in enumerate(self.graph.operators):
            outputs = [self.tensor_names[i] for i in operator.outputs if i >= 0] if operator.outputs is not None else []
            for name in outputs:
                found[name] = f"{self._operator_name(operator)}@{position} ({outputs[0]})"
        return found

    def value(self, constant: Constant) -> np.ndarray:
        """The values of a constant (a read-only view)."""
        raw = np.frombuffer(self.data, np.uint8, constant.stop - constant.start, constant.start)
        return raw.view(constant.dtype).reshape(constant.shape)

    def replaced(self, values: Mapping[str, np.ndarray]) -> bytes:
        """The file with the named constants replaced; every other byte is as it was.

        Raises:
            ExportError: a name is no constant of the file, a shape or dtype differs, or two tensors that share a
                buffer should get different values.
        """
        data = bytearray(self.data)
        written: dict[int, tuple[str, bytes]] = {}
        for name, value in values.items():
            constant = self._writable(name, value)
            content = np.ascontiguousarray(value).tobytes()
            earlier, same = written.get(constant.buffer, (name, content))
            if same != content:
                raise ExportError(
                    f"{self.what} stores {earlier} and {name} in one buffer, and the repair gives them different "
                    "values: save the repaired model as .onnx instead."
                )
            data[constant.start : constant.stop] = content
            written[constant.buffer] = (name, content)
        self._check_sharers(values, written)
        return bytes(data)

    def _writable(self, name: str, value: np.ndarray) -> Constant:
        constant = self.constants.get(name)
        if constant is None:
            raise ExportError(
                f"{name} is not stored as one plain block in {self.what}, so it cannot be replaced in place: save the "
                "repaired model as .onnx instead."
            )
        if value.shape != constant.shape or value.dtype != constant.dtype:
            raise ExportError(
                f"{name} is {constant.dtype}{list(constant.shape)} in {self.what} and cannot take "
                f"{value.dtype}{list(value.shape)}: save the repaired model as .onnx instead."
            )
        return constant

    def _check_sharers(self, values: Mapping[str, np.ndarray], written: Mapping[int, tuple[str, bytes]]) -> None:
        """A tensor that shares a rewritten buffer but was not to change is a conflict too."""
        for other in self.constants.values():
            if other.buffer not in written or other.name in values:
                continue
            name, content = written[other.buffer]
            if content != self.data[other.start : other.stop]:
                raise ExportError(
                    f"{self.what} stores {name} and {other.name} in one buffer, and only {name} is to change: save the "
                    "repaired model as .onnx instead."
                )

    def _check(self) -> None:
        """Check every index that LiteRT and tf2onnx follow, and that constants have the bytes their shape needs."""
        model = self.model
        if not model.subgraphs or not model.operatorCodes or not model.buffers:
            raise ValueError("no subgraph, operator code or buffer")
        for graph in model.subgraphs:
            count = len(graph.tensors or ())
            for tensor in graph.tensors or ():
                _within(tensor.buffer, len(model.buffers))
                self._check_tensor(tensor)
            for operator in graph.operators or ():
                _within(operator.opcodeIndex, len(model.operatorCodes))
            ends = [ends for op in graph.operators or () for ends in (op.inputs, op.outputs)]
            for indices in (graph.inputs, graph.outputs, *ends):
                for index in () if indices is None else indices:
                    _within(index, count, lowest=-1)

    def _check_tensor(self, tensor: Any) -> None:
        dtype = DTYPES.get(self._enum("TensorType", tensor.type))
        data = self.model.buffers[tensor.buffer].data
        if dtype is None or data is None or not len(data) or tensor.sparsity is not None:
            return
        needed = int(np.prod(() if tensor.shape is None else tensor.shape, dtype=np.int64)) * dtype.itemsize
        if needed != len(data):
            raise ValueError("a constant's size does not fit its shape")

    def _span(self, index: int) -> tuple[int, int] | None:
        """First and last byte (exclusive) of a buffer; None where it is empty or lies outside of the flatbuffer."""
        table = self.root.Buffers(index)
        length = table.DataLength()
        if not index or not length:
            return None
        start = table._tab.Vector(table._tab.Offset(4))  # slot 4 is `data`, the first field of the schema's Buffer
        return start, start + length

    def _operator_name(self, operator: Any) -> str:
        code = self.model.operatorCodes[operator.opcodeIndex]
        # Codes above 126 do not fit the byte they had at first, and moved; the larger of the two is the valid one.
        name = self._enum("BuiltinOperator", max(code.builtinCode, code.deprecatedBuiltinCode))
        return text(code.customCode) if name == "CUSTOM" else name

    def _enum(self, name: str, value: int) -> str:
        members: dict[str, int] = vars(getattr(self._schema, name))
        return next((key for key, number in members.items() if number == value), f"{name}_{value}")


class _Strict(bytearray):
    """Bytes that refuse slices beyond their end: the flatbuffers library reads strings by slices, which are lenient."""

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, slice) and key.stop is not None and key.stop > len(self):
            raise IndexError("slice beyond the end")
        return super().__getitem__(key)


def schema() -> ModuleType:
    """The generated TFLite schema module.

    Raises:
        MissingDependencyError: neither LiteRT nor TensorFlow is installed.
    """
    try:
        from ai_edge_litert import schema_py_generated

        return schema_py_generated  # type: ignore[no-any-return]
    except ImportError:
        pass
    try:
        from tensorflow.lite.python import schema_py_generated as from_tensorflow

        return from_tensorflow  # type: ignore[no-any-return]
    except ImportError as error:
        raise MissingDependencyError("ai-edge-litert", "tflite", "reading a TFLite file") from error


def text(raw: Any) -> str:
    """A flatbuffer string as str ('' for none)."""
    return raw.decode("utf-8", errors="replace") if isinstance(raw, bytes) else (raw or "")


def _within(index: int, count: int, lowest: int = 0) -> None:
    if not lowest <= index < count:
        raise IndexError("index out of range")
