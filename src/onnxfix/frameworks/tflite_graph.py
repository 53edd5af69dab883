"""TFLite subgraphs as tf2onnx graphs, with unique tensor names, and TFLite operators mended that tf2onnx misreads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from onnx import ModelProto, TensorProto, helper

from onnxfix.frameworks.flatbuffer import Flatbuffer
from onnxfix.frameworks.lowering_tf2onnx import rename_values
from onnxfix.frameworks.tflite_recurrent import note_operands

RAW = "/inside"
LANDMARK = "/landmark"
_OUTPUT = "_graph_outputs"  # in the name of the Identity that tf2onnx puts in front of every graph output
_CLIPS = {"RELU_N1_TO_1": (-1.0, 1.0), "RELU_0_TO_1": (0.0, 1.0)}  # activations that tf2onnx does not know


def graphs(file: Flatbuffer, shapes: Mapping[int, list[int]]) -> tuple[Any, list[Any]]:
    """Make tf2onnx graphs of a file's subgraphs.

    Args:
        file: The file.
        shapes: Shapes of the main subgraph's tensors by index, where they are known better than from the file.

    Returns:
        The main graph and the graphs of the control-flow bodies.
    """
    from tf2onnx import tflite_utils
    from tf2onnx.graph import Graph
    from tf2onnx.tflite.Model import Model

    model = Model.GetRootAsModel(bytearray(file.data), 0)
    codes = _operator_codes(model)
    names = file.tensor_names
    better = {names[index]: shape for index, shape in shapes.items() if index < len(names)}
    *bodies, main = tflite_utils.get_model_subgraphs(model)
    made = []
    for subgraph in (*bodies, main):
        is_main = subgraph is main
        view = _Named(subgraph, names) if is_main else subgraph
        prefix = "" if is_main else subgraph.Name().decode() + "_"
        nodes, _, _, output_shapes, dtypes, inputs, outputs, name = tflite_utils.parse_tflite_graph(
            view, codes, model, prefix, better if is_main else None
        )
        note_operands(nodes, subgraph, codes)
        if is_main:
            nodes = _with_landmarks(nodes, output_shapes, dtypes)
        graph = Graph(
            nodes, output_shapes, dtypes, input_names=inputs, output_names=outputs,
            is_subgraph=not is_main, graph_name=name,
        )
        _mend(graph)
        made.append(graph)
    return made[-1], made[:-1]


def _operator_codes(model: Any) -> dict[int, str]:
    from tf2onnx import tflite_utils

    codes = {}
    for index in range(model.OperatorCodesLength()):
        code = model.OperatorCodes(index)
        number = max(code.DeprecatedBuiltinCode(), code.BuiltinCode())
        name = tflite_utils.lookup_enum(number, "BuiltinOperator")
        codes[index] = code.CustomCode().decode() if name == "CUSTOM" else name
    return codes


class _Named:
    """A subgraph whose tensors answer with given names: tf2onnx tells tensors apart by name alone."""

    def __init__(self, subgraph: Any, names: tuple[str, ...]) -> None:
        self._subgraph = subgraph
        self._names = names

    def __getattr__(self, name: str) -> Any:
        return getattr(self._subgraph, name)

    def Tensors(self, index: int) -> Any:
        """The tensor, renamed."""
        return _NamedTensor(self._subgraph.Tensors(index), self._names[index])


class _NamedTensor:
    def __init__(self, tensor: Any, name: str) -> None:
        self._tensor = tensor
        self._name = name.encode()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tensor, name)

    def Name(self) -> bytes:
        """The given name."""
        return self._name


def _with_landmarks(nodes: list[Any], shapes: dict[str, Any], dtypes: dict[str, int]) -> list[Any]:
    """Put an Identity behind every operator, which takes over its output's name.

    tf2onnx keeps an operator's output name for the first node it turns into, such as a Conv in front of the activation
    and the transpose back; the Identity's output is what TFLite calls by that name.
    """
    marked = []
    for node in nodes:
        marked.append(node)
        if node.op_type in ("Const", "Placeholder"):
            continue
        for index, name in enumerate(node.output):
            if dtypes.get(name, TensorProto.UNDEFINED) == TensorProto.UNDEFINED:
                continue  # a list or a resource
            raw = f"{name}{RAW}"
            shapes[raw], dtypes[raw] = shapes[name], dtypes[name]
            node.output[index] = raw
            marked.append(helper.make_node("Identity", [raw], [name], name=f"{name}{LANDMARK}"))
    return marked


def without_landmarks(proto: ModelProto) -> None:
    """Take the landmarks out again; the values in front of them get their names."""
    landmarks = [node for node in proto.graph.node if node.name.endswith(LANDMARK)]
    native = {node.output[0] for node in landmarks}
    fixed = {value.name for value in (*proto.graph.input, *proto.graph.initializer)}
    renames: dict[str, str] = {}
    kept = []
    for node in proto.graph.node:
        is_landmark = node.name.endswith(LANDMARK) and node.input[0] not in native
        is_output = node.op_type == "Identity" and _OUTPUT in node.name and node.input[0] in native
        if (is_landmark or is_output) and node.input[0] not in fixed and node.input[0] not in renames:
            renames[node.input[0]] = node.output[0]
        else:
            kept.append(node)
    del proto.graph.node[:]
    proto.graph.node.extend(kept)
    rename_values(proto.graph, {name: _end(name, renames) for name in renames})


def _end(name: str, renames: Mapping[str, str]) -> str:
    while name in renames:
        name = renames[name]
    return name


def _mend(graph: Any) -> None:
    """Rewrite, before tf2onnx maps them, the operators whose TFLite meaning it misses."""
    for node in list(graph.get_nodes()):
        if node.type == "TFL_SOFTMAX":
            _softmax_beta(graph, node)
        elif node.type == "TFL_FULLY_CONNECTED":
            _flat_fully_connected(graph, node)
        elif node.type == "TFL_GELU":
            _gelu(graph, node)
        elif node.type.removeprefix("TFL_") in _CLIPS:
            _clip_operator(graph, node, *_CLIPS[node.type.removeprefix("TFL_")])
        activation = node.attr.get("fused_activation_function")
        if activation is not None and activation.s.decode() in _CLIPS:
            _clip_output(graph, node, *_CLIPS[activation.s.decode()])


def _softmax_beta(graph: Any, node: Any) -> None:
    """Beta scales the logits; tf2onnx scales the probabilities."""
    from tf2onnx import utils

    beta = node.get_attr_value("beta")
    if beta == 1:
        return
    factor = graph.make_const(utils.make_name("beta"), np.array(beta, np.float32))
    scaled = graph.make_node(
        "Mul", [node.input[0], factor.output[0]], op_name_scope=node.name,
        shapes=[graph.get_shape(node.input[0])], dtypes=[graph.get_dtype(node.input[0])],
    )
    graph.replace_inputs(node, [scaled.output[0]])
    node.set_attr("beta", 1.0)


def _flat_fully_connected(graph: Any, node: Any) -> None:
    """Flatten the input before a dense layer; tf2onnx does so too, but then drops the bias."""
    from tf2onnx import utils

    if node.attr["keep_num_dims"].i or graph.get_rank(node.input[0]) == 2 or len(node.input) < 3:
        return
    width = graph.get_shape(node.input[1])[1]
    target = graph.make_const(utils.make_name("flat"), np.array([-1, width], np.int64))
    flat = graph.make_node(
        "Reshape", [node.input[0], target.output[0]], op_name_scope=node.name,
        shapes=[[-1, width]], dtypes=[graph.get_dtype(node.input[0])],
    )
    graph.replace_inputs(node, [flat.output[0], *node.input[1:]])


def _gelu(graph: Any, node: Any) -> None:
    """``x / 2 * (1 + erf(x / sqrt(2)))``, or with tanh where approximate (arXiv:1606.08415); tf2onnx has no GELU."""
    from tf2onnx import utils

    x = node.input[0]
    shape, dtype = [graph.get_shape(x)], [graph.get_dtype(x)]

    def make(op_type: str, *inputs: str | float, **attributes: Any) -> str:
        values = [
            value if isinstance(value, str) else graph.make_const(utils.make_name("c"), np.float32(value)).output[0]
            for value in inputs
        ]
        made = graph.make_node(op_type, values, shapes=shape, dtypes=dtype, op_name_scope=output, **attributes)
        name: str = made.output[0]
        return name

    output, approximate = node.output[0], node.get_attr_value("approximate")
    graph.remove_node(node.name)
    if approximate:
        cubic = make("Mul", make("Mul", make("Mul", x, x), x), 0.044715)
        bent = make("Tanh", make("Mul", make("Add", x, cubic), float(np.sqrt(2 / np.pi))))
    else:
        bent = make("Erf", make("Div", x, float(np.sqrt(2))))
    make("Mul", make("Mul", x, 0.5), make("Add", bent, 1.0), outputs=[output])


def _clip_operator(graph: Any, node: Any, low: float, high: float) -> None:
    node.type = "Clip"
    node.skip_conversion = True
    graph.replace_inputs(node, [node.input[0], *_bounds(graph, low, high)])


def _clip_output(graph: Any, node: Any, low: float, high: float) -> None:
    node.set_attr("fused_activation_function", "NONE")
    output = node.output[0]
    clip = graph.make_node(
        "Clip", [output, *_bounds(graph, low, high)],
        shapes=[graph.get_shape(output)], dtypes=[graph.get_dtype(output)],
    )
    graph.insert_node_on_output(clip, output)


def _bounds(graph: Any, low: float, high: float) -> list[str]:
    from tf2onnx import utils

    return [graph.make_const(utils.make_name("bound"), np.array(b, np.float32)).output[0] for b in (low, high)]
