"""One TFLite operator by itself: what it lowers to, and how far that is from what is wanted."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from onnxfix.errors import OnnxFixError
from onnxfix.frameworks.flatbuffer import DTYPES, Flatbuffer, schema
from onnxfix.frameworks.flatbuffer_editing import Content, FlatbufferEditor
from onnxfix.frameworks.tflite_graph import LANDMARK, RAW
from onnxfix.quantization import DEQUANTIZE, QUANTIZE

# Constants of up to this many elements are settings (pads, axes, sizes), compared element by element.
SETTING = 64
_UNKNOWN_OP, _MISSING = 4.0, 2.0


@dataclass(frozen=True, eq=False)
class Form:
    """An operator as it is or as it could be.

    Attributes:
        kind: Its name in the schema's BuiltinOperator.
        options: Its options (object API), or None.
        inputs: The values that it reads; "" for an operand left out. Constants go by their tensor's name.
        constants: Contents of those constants that it is to have a copy of its own of, by the name in ``inputs``.
    """

    kind: str
    options: Any
    inputs: tuple[str, ...]
    constants: Mapping[str, np.ndarray] = field(default_factory=dict)

    def with_option(self, name: str, value: Any) -> Form:
        """The same operator with one option set."""
        options = copy.copy(self.options)
        setattr(options, name, value)
        return replace(self, options=options)

    def with_constant(self, name: str, value: np.ndarray) -> Form:
        """The same operator with another constant operand."""
        return replace(self, constants={**self.constants, name: value})

    def with_inputs(self, inputs: Sequence[str]) -> Form:
        """The same operator on other operands."""
        return replace(self, inputs=tuple(inputs))


class Workbench:
    """Lowers operators of a file one at a time.

    Args:
        editor: The file being edited; tensors are taken as they are there.
        tensor: Value name -> tensor index.
    """

    def __init__(self, editor: FlatbufferEditor, tensor: Mapping[str, int]) -> None:
        self._editor = editor
        self._tensor = tensor
        self._schema = schema()

    def lowered(self, form: Form, outputs: Sequence[str], position: int) -> onnx.ModelProto | None:
        """What an operator lowers to by itself.

        Args:
            form: The operator.
            outputs: The values that it makes.
            position: Which operator of the file it is a form of.

        Returns:
            Its ONNX graph, inputs and outputs under the given names; None if LiteRT or the lowering refuses it.
        """
        from onnxfix.frameworks.tflite import lower_file

        try:
            return lower_file(Flatbuffer(self._alone(form, outputs, position), "The operator"))
        except (OnnxFixError, TypeError):  # the builder raises a TypeError for a number beyond its field's range
            return None

    def _alone(self, form: Form, outputs: Sequence[str], position: int) -> bytes:
        import flatbuffers

        module, editor = self._schema, self._editor
        tensors: list[Any] = []
        buffers: list[Any] = [module.BufferT()]
        entering: list[int] = []

        def add(name: str) -> int:
            content = form.constants.get(name)
            if content is not None:
                known = name in self._tensor
                tensor = constant(content, editor.tensors[self._tensor[name]] if known else None)
                data = np.ascontiguousarray(content).reshape(-1).view(np.uint8)
            else:
                tensor = copy.copy(editor.tensors[self._tensor[name]])
                data = editor.buffers[tensor.buffer].data
            tensor.name, tensor.buffer = name.encode(), 0
            if data is not None and len(data):
                tensor.buffer = len(buffers)
                buffers.append(Content(np.asarray(data)))
            tensors.append(tensor)
            return len(tensors) - 1

        places: dict[str, int] = {"": -1}
        for name in form.inputs:
            if name not in places:
                places[name] = add(name)
                if not tensors[-1].buffer:
                    entering.append(places[name])
        operator = copy.copy(editor.operators[position])
        operator.opcodeIndex = 0
        set_options(operator, form.options)
        operator.inputs = np.array([places[name] for name in form.inputs], np.int32)
        operator.outputs = np.array([add(name) for name in outputs], np.int32)
        for index in operator.outputs:
            tensors[index].shapeSignature = None  # LiteRT finds the shape anew, but not the signature
        operator.intermediates = None
        graph = module.SubGraphT(
            tensors=tensors, operators=[operator], inputs=np.array(entering, np.int32), outputs=operator.outputs,
        )  # fmt: skip
        model = module.ModelT(version=3, operatorCodes=[code(form.kind)], subgraphs=[graph], buffers=buffers)
        builder = flatbuffers.Builder(4096)
        builder.Finish(model.Pack(builder), b"TFL3")
        return bytes(builder.Output())


def code(kind: str, version: int = 1) -> Any:
    """A new operator code of a built-in operator."""
    module = schema()
    number = getattr(module.BuiltinOperator, kind)
    return module.OperatorCodeT(builtinCode=number, deprecatedBuiltinCode=min(number, 127), version=version)


def set_options(operator: Any, options: Any) -> None:
    """Give an operator options; their kind goes by their type."""
    module = schema()
    operator.builtinOptions = options
    name = "NONE" if options is None else type(options).__name__.removesuffix("T")
    operator.builtinOptionsType = getattr(module.BuiltinOptions, name)


def constant(content: np.ndarray, like: Any = None) -> Any:
    """A tensor for a constant, without its buffer; quantized as another one where that is given."""
    tensor = schema().TensorT() if like is None else copy.copy(like)
    tensor.type = getattr(schema().TensorType, content.dtype.name.upper())
    tensor.shape, tensor.shapeSignature, tensor.hasRank = np.array(content.shape, np.int32), None, True
    return tensor


def inner_name(value: str) -> bytes:
    """A value's name for a tensor inside the graph, clear of the endings that the lowering gives names itself."""
    return f"{value}_".encode() if value.endswith((RAW, LANDMARK)) else value.encode()


def dtype_of(tensor: Any) -> np.dtype[Any] | None:
    """A tensor's element type as numpy's; None for what numpy does not know."""
    module = schema()
    names = {number: name for name, number in vars(module.TensorType).items() if isinstance(number, int)}
    return DTYPES.get(names.get(tensor.type, ""))


class Distance:
    """How many edits lie between two lowered graphs: 0 iff they are the same up to the names inside."""

    def __init__(self, one: onnx.ModelProto, two: onnx.ModelProto) -> None:
        self._graphs = tuple(_copied(proto) for proto in (one, two))
        self._makers = tuple({o: n for n in g.node for o in n.output if o} for g in self._graphs)
        for makers in self._makers:
            for node in makers.values():
                node.input[:] = [_behind_identities(v, makers) for v in node.input]
        self._constants = tuple(_constants(proto.graph) for proto in (one, two))
        self._known: dict[tuple[str, str], float] = {}

    def total(self) -> float:
        """Over all outputs."""
        one, two = ([o.name for o in g.output] for g in self._graphs)
        if len(one) != len(two):
            return float("inf")
        ends = [[_behind_identities(v, makers) for v in names]
                for names, makers in zip((one, two), self._makers, strict=True)]
        return sum(self._between(a, b) for a, b in zip(*ends, strict=True))

    def _between(self, a: str, b: str) -> float:
        key = a, b
        if key not in self._known:
            self._known[key] = float("inf")
            self._known[key] = self._computed(a, b)
        return self._known[key]

    def _computed(self, a: str, b: str) -> float:
        one, two = self._constants[0].get(a), self._constants[1].get(b)
        if one is not None and two is not None:
            return apart(one, two)
        first, second = self._makers[0].get(a), self._makers[1].get(b)
        if first is None and second is None:
            return 0.0 if a == b and one is two else _UNKNOWN_OP
        options = [2 * _UNKNOWN_OP + self._size(0, a) + self._size(1, b)]
        if first is not None and second is not None:
            other = 0.0 if first.op_type == second.op_type else _UNKNOWN_OP
            options.append(other + _attributes_apart(first, second) + self._inputs(first, second))
            if not other:
                return options[-1]
        if first is not None and first.input:
            options.append(_MISSING + self._between(first.input[0], b))
        if second is not None and second.input:
            options.append(_MISSING + self._between(a, second.input[0]))
        return min(options)

    def _inputs(self, first: onnx.NodeProto, second: onnx.NodeProto) -> float:
        missing = abs(len(first.input) - len(second.input)) * _MISSING
        return missing + sum(
            self._between(a, b) if a and b else (0.0 if a == b else _MISSING)
            for a, b in zip(first.input, second.input, strict=False)
        )

    def _size(self, side: int, value: str) -> float:
        return 1.0 if value in self._makers[side] else 0.0


def _constants(graph: onnx.GraphProto) -> dict[str, np.ndarray]:
    found = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            found[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
        elif node.op_type == "Cast" and node.input[0] in found and found[node.input[0]].size <= SETTING:
            kind = onnx.helper.tensor_dtype_to_np_dtype(node.attribute[0].i)
            found[node.output[0]] = found[node.input[0]].astype(kind)
    return found


def apart(one: np.ndarray, two: np.ndarray) -> float:
    """In how many places two constants differ; weights count as one place."""
    if one.shape != two.shape or one.dtype != two.dtype:
        same_size = one.size == two.size
        return _MISSING + (0.0 if same_size else _MISSING)
    differ = int(np.count_nonzero((one != two) & ~((one != one) & (two != two))))
    return float(differ) if one.size <= SETTING else float(differ > 0)


def _copied(proto: onnx.ModelProto) -> onnx.GraphProto:
    """A graph's nodes and ends, to be changed; initializers are not copied."""
    graph = onnx.GraphProto()
    graph.node.extend(proto.graph.node)
    graph.output.extend(proto.graph.output)
    return graph


def _behind_identities(value: str, makers: Mapping[str, onnx.NodeProto]) -> str:
    while value in makers and makers[value].op_type == "Identity":
        value = makers[value].input[0]
    return value


def _attributes_apart(first: onnx.NodeProto, second: onnx.NodeProto) -> float:
    one, two = ({a.name: onnx.helper.get_attribute_value(a) for a in n.attribute} for n in (first, second))
    return sum(
        _values_apart(one.get(name, _default(first, name, two)), two.get(name, _default(second, name, one)))
        for name in {*one, *two}
    )


_NEUTRAL = {"pads": 0, "strides": 1, "dilations": 1, "output_padding": 0}


def _default(node: onnx.NodeProto, name: str, other: Mapping[str, Any]) -> Any:
    """What an attribute is where a node does not say."""
    if name in _NEUTRAL:
        return [_NEUTRAL[name]] * len(other.get(name, ()))
    known = onnx.defs.get_schema(node.op_type).attributes if onnx.defs.has(node.op_type) else {}
    default = known[name].default_value if name in known else None
    return onnx.helper.get_attribute_value(default) if default is not None and default.type else None


def _values_apart(one: Any, two: Any) -> float:
    if isinstance(one, onnx.TensorProto) and isinstance(two, onnx.TensorProto):
        return apart(numpy_helper.to_array(one), numpy_helper.to_array(two))
    if isinstance(one, Sequence) and isinstance(two, Sequence) and not isinstance(one, str | bytes):
        return abs(len(one) - len(two)) + float(sum(a != b for a, b in zip(one, two, strict=False)))
    return 0.0 if one == two else 1.0


def operands(graph: onnx.GraphProto) -> Iterator[np.ndarray]:
    """The constants of a graph, and its attributes as arrays; stored integers of quantized layers are no settings."""
    quantized = {name for node in graph.node if node.op_type in (QUANTIZE, DEQUANTIZE) for name in node.input}
    yield from (value for name, value in _constants(graph).items() if name not in quantized)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type in (onnx.AttributeProto.INT, onnx.AttributeProto.INTS):
                yield np.atleast_1d(np.asarray(onnx.helper.get_attribute_value(attribute), np.int64))
            elif attribute.type in (onnx.AttributeProto.FLOAT, onnx.AttributeProto.FLOATS):
                yield np.atleast_1d(np.asarray(onnx.helper.get_attribute_value(attribute), np.float32))
