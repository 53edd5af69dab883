"""TFLite's fused recurrent operators: lowered to ONNX layers that answer as LiteRT does.

The converter writes them from Keras 2 layers only, so the files are put together here, operand by operand.
"""

from __future__ import annotations

import numpy as np
import pytest

import onnxfix
from onnxfix.errors import LoweringError
from onnxfix.frameworks.flatbuffer import schema
from small_keras import FLOAT_NOISE, disagreement

pytest.importorskip("ai_edge_litert")
pytest.importorskip("tensorflow")

N, T, WIDTH, H = 2, 5, 3, 4
# Gate -> the operands that are its kernel, recurrent kernel, bias, peephole.
_GATES = {"i": (1, 5, 12, 9), "f": (2, 6, 13, 10), "c": (3, 7, 14, None), "o": (4, 8, 15, 11)}


class _File:
    """A file of one operator."""

    def __init__(self, code: str, count: int, states: dict[int, int], time_major: bool) -> None:
        self.schema = schema()
        self.random = np.random.default_rng(7)
        self.operands = [-1] * count
        empty = self.schema.BufferT()
        empty.data = []
        self.buffers, self.tensors, self.code = [empty], [], code
        lead = (T, N) if time_major else (N, T)
        self.operands[0] = self.tensor("x", (*lead, WIDTH))
        for slot, size in states.items():
            self.operands[slot] = self.tensor(f"state{slot}", (N, size))
            self.tensors[-1].isVariable = True
        self.output = self.tensor("y", (*lead, H))

    def tensor(self, name: str, shape: tuple[int, ...], content: np.ndarray | None = None) -> int:
        tensor = self.schema.TensorT()
        tensor.name, tensor.shape, tensor.type, tensor.buffer = name, list(shape), 0, 0
        if content is not None:
            buffer = self.schema.BufferT()
            buffer.data = np.frombuffer(content.astype(np.float32).tobytes(), np.uint8)
            self.buffers.append(buffer)
            tensor.buffer = len(self.buffers) - 1
        self.tensors.append(tensor)
        return len(self.tensors) - 1

    def weight(self, slot: int, *shape: int) -> None:
        self.operands[slot] = self.tensor(f"w{slot}", shape, 0.7 * self.random.standard_normal(shape))

    def content(self, kind: str, **options: object) -> bytes:
        import flatbuffers

        s = self.schema
        op, code, graph, model = s.OperatorT(), s.OperatorCodeT(), s.SubGraphT(), s.ModelT()
        code.builtinCode = code.deprecatedBuiltinCode = getattr(s.BuiltinOperator, self.code)
        op.inputs, op.outputs, op.opcodeIndex = self.operands, [self.output], 0
        op.builtinOptionsType = getattr(s.BuiltinOptions, kind)
        op.builtinOptions = getattr(s, f"{kind}T")()
        for name, value in {"fusedActivationFunction": s.ActivationFunctionType.TANH, **options}.items():
            setattr(op.builtinOptions, name, value)
        graph.tensors, graph.operators = self.tensors, [op]
        graph.inputs, graph.outputs, graph.name = [self.operands[0]], [self.output], "main"
        model.version, model.operatorCodes, model.subgraphs, model.buffers = 3, [code], [graph], self.buffers
        builder = flatbuffers.Builder(1024)
        builder.Finish(model.Pack(builder), b"TFL3")
        return bytes(builder.Output())


def _lstm(gates: str = "ifco", peepholes: bool = False, time_major: bool = False, **options: object) -> bytes:
    file = _File("UNIDIRECTIONAL_SEQUENCE_LSTM", 24, {18: H, 19: H}, time_major)
    for gate in gates:
        kernel, recurrent, bias, peephole = _GATES[gate]
        file.weight(kernel, H, WIDTH)
        file.weight(recurrent, H, H)
        file.weight(bias, H)
        if peepholes and peephole is not None:
            file.weight(peephole, H)
    return file.content("UnidirectionalSequenceLSTMOptions", timeMajor=time_major, **options)


def _rnn(**options: object) -> bytes:
    file = _File("UNIDIRECTIONAL_SEQUENCE_RNN", 5, {4: H}, False)
    file.weight(1, H, WIDTH)
    file.weight(2, H, H)
    file.weight(3, H)
    return file.content("SequenceRNNOptions", timeMajor=False, **options)


@pytest.mark.parametrize("content", [
    _lstm(), _lstm(time_major=True), _lstm("fco"), _lstm(peepholes=True), _lstm("fco", peepholes=True),
    _lstm(fusedActivationFunction=1), _rnn(), _rnn(fusedActivationFunction=1),
], ids=["lstm", "time-major", "coupled", "peepholes", "coupled peepholes", "relu", "rnn", "relu rnn"])
def test_a_fused_layer_answers_as_in_litert(content: bytes) -> None:
    model = onnxfix.load(content)
    random = np.random.default_rng(3)
    feeds = {spec.name: random.standard_normal(spec.shape).astype(np.float32) for spec in model.inputs}
    first = disagreement(model, feeds)
    assert first <= FLOAT_NOISE
    assert disagreement(model, feeds) == first  # no state is left from the run before
    assert {"LSTM", "RNN"} & {node.op_type for node in model.canonical.graph.node}


def test_weights_keep_their_names_and_can_be_written_back() -> None:
    model = onnxfix.load(_lstm())
    assert {f"w{slot}" for gate in _GATES.values() for slot in gate[:3]} <= set(model.parameters)


def test_what_onnx_has_no_form_for_is_said() -> None:
    with pytest.raises(LoweringError, match="cell_clip"):
        onnxfix.load(_lstm(cellClip=1.5))
    with pytest.raises(LoweringError, match="activation SIGN_BIT"):
        onnxfix.load(_rnn(fusedActivationFunction=5))
