"""Activation functions of elements that runtimes only have them for in single and half precision, written out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxfix.canonical.queries import nodes_of
from onnxfix.canonical.rewriting import Editor, attribute

_SELU_ALPHA, _SELU_GAMMA = 1.67326319217681884765625, 1.05070102214813232421875
_INTEGERS = frozenset({ir.DataType.INT32, ir.DataType.INT64, ir.DataType.UINT32, ir.DataType.UINT64})


class WriteOutActivations(ir.passes.InPlacePass):
    """Activations of doubles, PRelu of integers and Relu of 64-bit integers become what the standard defines them as.

    Of these, onnxruntime runs the definition only, and takes it from the standard up to opset 18 alone.

    - ``Elu(x) = Where(x < 0, alpha * (Exp(x) - 1), x)``,
      ``Selu(x) = Where(x <= 0, gamma * (alpha * Exp(x) - alpha), gamma * x)``
    - ``LeakyRelu(x) = Where(x < 0, alpha * x, x)``, ``PRelu(x, s) = Where(x < 0, s * x, x)``
    - ``HardSwish(x) = x * Clip(x / 6 + 0.5, 0, 1)``, ``Mish(x) = x * Tanh(Log(Exp(x) + 1))``
    - ``Softplus(x) = Log(Exp(x) + 1)``, ``Softsign(x) = x / (1 + Abs(x))``
    - ``ThresholdedRelu(x) = Where(x > alpha, x, 0)``, ``Relu(x) = Max(x, 0)``
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Write out."""
        editor = Editor(model.graph)
        for node in nodes_of(model.graph, *_DEFINITIONS):
            value = node.inputs[0]
            if value is None or value.dtype is None or not _is_written_out(node.op_type, value.dtype):
                continue
            editor.replace(node.outputs[0], _DEFINITIONS[node.op_type](_Writer(editor, node, value)))
            editor.remove([node])
        return ir.passes.PassResult(model, editor.modified)


def _is_written_out(op: str, dtype: ir.DataType) -> bool:
    if op == "Relu":
        return dtype == ir.DataType.INT64
    return dtype == ir.DataType.DOUBLE or (op == "PRelu" and dtype in _INTEGERS)


@dataclass(frozen=True)
class _Writer:
    """Inserts the nodes of a definition in front of the node that it defines."""

    editor: Editor
    node: ir.Node
    x: ir.Value

    def __call__(self, op: str, *inputs: ir.Value | float) -> ir.Value:
        operands = [value if isinstance(value, ir.Value) else self._number(value) for value in inputs]
        made: ir.Value = self.editor.node(op, operands, like=[self.node], before=self.node).outputs[0]
        return made

    def _number(self, value: float) -> ir.Value:
        dtype = np.dtype(np.float32) if self.x.dtype is None else self.x.dtype.numpy()
        return self.editor.literal(np.asarray(value, dtype), "number")

    def parameter(self, name: str, default: float) -> float:
        """An attribute as the standard keeps it, in single precision."""
        return float(np.float32(attribute(self.node, name, default)))


def _elu(write: _Writer) -> ir.Value:
    x, alpha = write.x, write.parameter("alpha", 1.0)
    return write("Where", write("Less", x, 0), write("Mul", write("Sub", write("Exp", x), 1), alpha), x)


def _selu(write: _Writer) -> ir.Value:
    x, alpha, gamma = write.x, write.parameter("alpha", _SELU_ALPHA), write.parameter("gamma", _SELU_GAMMA)
    low = write("Mul", write("Sub", write("Mul", write("Exp", x), alpha), alpha), gamma)
    return write("Where", write("LessOrEqual", x, 0), low, write("Mul", x, gamma))


def _leaky_relu(write: _Writer) -> ir.Value:
    x = write.x
    return write("Where", write("Less", x, 0), write("Mul", x, write.parameter("alpha", 0.01)), x)


def _prelu(write: _Writer) -> ir.Value:
    x, slope = write.x, write.node.inputs[1]
    if slope is None:
        raise ValueError("PRelu has two operands")
    return write("Where", write("Less", x, 0), write("Mul", x, slope), x)


def _hard_swish(write: _Writer) -> ir.Value:
    x = write.x
    return write("Mul", x, write("Clip", write("Add", write("Mul", x, float(np.float32(1 / 6))), 0.5), 0, 1))


def _softplus(write: _Writer) -> ir.Value:
    return write("Log", write("Add", write("Exp", write.x), 1))


def _mish(write: _Writer) -> ir.Value:
    return write("Mul", write.x, write("Tanh", _softplus(write)))


def _softsign(write: _Writer) -> ir.Value:
    return write("Div", write.x, write("Add", write("Abs", write.x), 1))


def _thresholded_relu(write: _Writer) -> ir.Value:
    x = write.x
    return write("Where", write("Greater", x, write.parameter("alpha", 1.0)), x, 0)


def _relu(write: _Writer) -> ir.Value:
    return write("Max", write.x, 0)


_DEFINITIONS: dict[str, Callable[[_Writer], ir.Value]] = {
    "Elu": _elu,
    "HardSwish": _hard_swish,
    "LeakyRelu": _leaky_relu,
    "Mish": _mish,
    "PRelu": _prelu,
    "Relu": _relu,
    "Selu": _selu,
    "Softplus": _softplus,
    "Softsign": _softsign,
    "ThresholdedRelu": _thresholded_relu,
}
