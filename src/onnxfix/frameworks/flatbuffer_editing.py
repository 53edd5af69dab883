"""Edit the tables of a TFLite file; every byte of what is not edited stays as it was.

A flatbuffer's offsets count forward, so a longer list cannot be appended: it could not refer to the tables that are
there already. What is new is put in *front* instead, in one block whose tables refer to the old ones behind it. The old
file follows the block byte for byte, whatever lies behind the flatbuffer (an archive of labels) included. Numbers that
have a place in the file already are overwritten there, and where that is all, nothing is put in front.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from onnxfix.errors import ExportError
from onnxfix.frameworks.flatbuffer import Flatbuffer, schema
from onnxfix.frameworks.flatbuffer_archive import moved_archive
from onnxfix.frameworks.flatbuffer_scalars import NotInPlaceError, same, writes

_IDENTIFIER = b"TFL3"
_LIMIT = 2**31 - 2**20  # offsets are 31 bits wide in every reader; some room for what comes
_BLOCK = 64  # tables keep every alignment that they had when they move by a multiple of this
_BUFFER_ALIGNMENT = 16


class FlatbufferEditor:
    """A TFLite file whose main graph is being changed.

    Attributes:
        file: The file as it was.
        operators: The main graph's operators (object API) in order of execution.
        tensors: Its tensors.
        inputs: Tensor indices of its inputs.
        outputs: Tensor indices of its outputs.
        codes: The file's operator codes.
        buffers: The file's buffers.
        signatures: The file's signatures.

    Objects in these lists are those of the file until :meth:`edit` puts a copy in their place.

    Args:
        file: The file to change.

    Raises:
        ExportError: the file keeps data outside of the flatbuffer, which cannot move.
    """

    def __init__(self, file: Flatbuffer) -> None:
        self.file = file
        self._schema = schema()
        model, graph = file.model, file.graph
        self.codes: list[Any] = list(model.operatorCodes)
        self.buffers: list[Any] = list(model.buffers)
        self.signatures: list[Any] = list(model.signatureDefs or ())
        self.operators: list[Any] = list(graph.operators or ())
        self.tensors: list[Any] = list(graph.tensors or ())
        self.inputs = [int(i) for i in graph.inputs]
        self.outputs = [int(i) for i in graph.outputs]
        self._check()
        self._readers: dict[int, Any] = dict(self._tables())
        self._origins: dict[int, Any] = {}

    def edit(self, items: list[Any], index: int) -> Any:
        """Put a copy in the place of an object of one of the lists, and return it to be changed."""
        old = items[index]
        if id(old) not in self._readers:
            return old  # it is a copy, or new
        fresh = copy.deepcopy(old)
        self._origins[id(fresh)] = old
        items[index] = fresh
        return fresh

    def add_buffer(self, content: bytes) -> int:
        """Add a buffer and return its index."""
        self.buffers.append(Content(np.frombuffer(content, np.uint8)))
        return len(self.buffers) - 1

    def add_tensor(self, tensor: Any) -> int:
        """Add a tensor and return its index."""
        self.tensors.append(tensor)
        return len(self.tensors) - 1

    def add_code(self, code: Any) -> int:
        """The index of an operator code, which is added where the file has no such one of that version or a later."""
        def kind(c: Any) -> tuple[int, Any]:
            return max(c.builtinCode, c.deprecatedBuiltinCode), c.customCode

        for index, present in enumerate(self.codes):
            if kind(present) == kind(code) and present.version >= code.version:
                return index
        self.codes.append(code)
        return len(self.codes) - 1

    def result(self) -> bytes:
        """The changed file.

        Raises:
            ExportError: it would be larger than a flatbuffer can be.
        """
        self._drop_unchanged()
        for in_place in (True, False):
            data = self._written(in_place)
            if same(Flatbuffer(data, self.file.what).model, self._intended()):
                return data
        raise ExportError(f"{self.file.what} shares tables in an unusual way and cannot be edited in place.")

    def _check(self) -> None:
        model = self.file.model
        if len(self.file.data) > _LIMIT:
            raise ExportError(f"{self.file.what} is too large to be edited: a flatbuffer ends at 2 GB.")
        outside = any(b.offset > 1 for b in self.buffers) or getattr(model, "externalBuffers", None)
        if outside or any(op.largeCustomOptionsOffset > 1 for op in _operators(model)):
            raise ExportError(
                f"{self.file.what} keeps data outside of its flatbuffer, and only its constants can be replaced in "
                "place: save the repaired model as .onnx instead."
            )

    def _tables(self) -> Iterator[tuple[int, Any]]:
        """Object (by identity) -> its table in the file."""
        root, model = self.file.root, self.file.model
        graph = root.Subgraphs(0)
        for items, get in (
            (model.operatorCodes, root.OperatorCodes),
            (model.buffers, root.Buffers),
            (model.signatureDefs or (), root.SignatureDefs),
            (model.metadata or (), root.Metadata),
            (model.subgraphs, root.Subgraphs),
            (self.operators, graph.Operators),
            (self.tensors, graph.Tensors),
        ):
            for index, item in enumerate(items):
                yield id(item), get(index)

    def _drop_unchanged(self) -> None:
        """Copies that were not changed after all become the original again."""
        for items in (self.operators, self.tensors, self.buffers, self.signatures):
            for index, item in enumerate(items):
                origin = self._origins.get(id(item))
                if origin is not None and same(origin, item):
                    items[index] = origin

    def _intended(self) -> Any:
        """The whole model as it is to be read."""
        graph = copy.copy(self.file.graph)
        graph.operators, graph.tensors = self.operators, self.tensors
        graph.inputs, graph.outputs = np.array(self.inputs, np.int32), np.array(self.outputs, np.int32)
        model = copy.copy(self.file.model)
        model.operatorCodes, model.buffers = self.codes, self.buffers
        model.subgraphs = [graph, *model.subgraphs[1:]]
        model.signatureDefs = self.signatures or model.signatureDefs
        return model

    def _written(self, in_place: bool) -> bytes:
        data = bytearray(self.file.data)
        kept: dict[int, int] = {key: reader._tab.Pos for key, reader in self._readers.items()}
        if in_place:
            for items in (self.operators, self.tensors, self.buffers, self.signatures):
                for item in items:
                    self._overwrite(data, item, kept)
        model = self._intended()
        graph = model.subgraphs[0]
        tables = (model.operatorCodes, model.buffers, graph.operators, graph.tensors, self.signatures)
        original = (
            self.file.model.operatorCodes, self.file.model.buffers, self.file.graph.operators,
            self.file.graph.tensors, self.file.model.signatureDefs or (),
        )  # fmt: skip
        same_tables = all(
            len(new) == len(old) and all(kept.get(id(n)) == kept[id(o)] for n, o in zip(new, old, strict=True))
            for new, old in zip(tables, original, strict=True)
        )
        if same_tables and in_place and self._overwrite_ends(data):
            return bytes(data)
        return self._with_block(bytes(data), model, kept)

    def _overwrite(self, data: bytearray, item: Any, kept: dict[int, int]) -> None:
        """Change an object's table where it stands, as far as that can be."""
        origin = self._origins.get(id(item))
        if origin is None:
            return
        reader = self._readers[id(origin)]
        try:
            places = list(writes(reader, origin, item))  # all of them, or none
        except NotInPlaceError:
            return
        for position, content in places:
            data[position : position + len(content)] = content
        kept[id(item)] = reader._tab.Pos

    def _overwrite_ends(self, data: bytearray) -> bool:
        graph, now = self.file.root.Subgraphs(0), copy.copy(self.file.graph)
        now.inputs, now.outputs = np.array(self.inputs, np.int32), np.array(self.outputs, np.int32)
        try:
            places = list(writes(graph, self.file.graph, now))
        except NotInPlaceError:
            return False
        for position, content in places:
            data[position : position + len(content)] = content
        return True

    def _with_block(self, data: bytes, model: Any, kept: dict[int, int]) -> bytes:
        """The file with a block in front that holds what is new, and the tables on the way to it."""
        import flatbuffers

        end = -(-len(data) // _BLOCK) * _BLOCK  # the builder aligns by the distance from the end
        builder = flatbuffers.Builder(0)
        builder.Bytes = bytearray(_room(self)) + data + bytes(end - len(data))
        builder.head = len(builder.Bytes) - end
        builder.minalign = _BLOCK

        def standing(items: Iterable[Any]) -> list[Any]:
            return [_Standing(end - kept[id(item)]) if id(item) in kept else item for item in items]

        graph = model.subgraphs[0]
        graph.operators, graph.tensors = standing(graph.operators), standing(graph.tensors)
        model.subgraphs = [graph, *standing(model.subgraphs[1:])]
        model.operatorCodes = standing(model.operatorCodes)
        buffers = standing(model.buffers)
        model.buffers = [b if isinstance(b, _Standing | Content) else Content(_bytes(b.data)) for b in buffers]
        if model.signatureDefs is not None:
            model.signatureDefs = standing(model.signatureDefs)
        if model.metadata is not None:
            model.metadata = standing(model.metadata)
        try:
            builder.Finish(model.Pack(builder), _IDENTIFIER)
        except flatbuffers.builder.BuilderSizeError as error:
            raise ExportError(f"{self.file.what} would be larger than 2 GB, where a flatbuffer ends.") from error
        made = builder.Output()
        front = len(made) - end
        return bytes(made[:front]) + moved_archive(data, front)


class _Standing:
    """A table that is in the file already."""

    def __init__(self, offset: int) -> None:
        self._offset = offset

    def Pack(self, builder: Any) -> int:
        """Where it is, counted from the end."""
        return self._offset


class Content:
    """A new buffer, aligned as TFLite's kernels need it; stands for a BufferT of the object API."""

    def __init__(self, data: np.ndarray) -> None:
        self.data = data
        self.offset = self.size = 0

    def Pack(self, builder: Any) -> int:
        """Write it."""
        module = schema()
        vector = None
        if len(self.data):
            builder.StartVector(1, len(self.data), _BUFFER_ALIGNMENT)
            builder.head -= len(self.data)
            builder.Bytes[builder.head : builder.head + len(self.data)] = self.data.tobytes()
            vector = builder.EndVector()
        module.BufferStart(builder)
        if vector is not None:
            module.BufferAddData(builder, vector)
        return int(module.BufferEnd(builder))


def _bytes(data: Any) -> np.ndarray:
    return np.zeros(0, np.uint8) if data is None else np.asarray(data, np.uint8)


def _room(editor: FlatbufferEditor) -> int:
    """Bytes that the block takes at least; the builder copies the whole file when it grows."""
    contents = sum(len(b.data) for b in editor.buffers if isinstance(b, Content))
    return contents + 64 * (len(editor.operators) + len(editor.tensors) + len(editor.buffers)) + 4096


def _operators(model: Any) -> Iterator[Any]:
    for graph in model.subgraphs:
        yield from graph.operators or ()
