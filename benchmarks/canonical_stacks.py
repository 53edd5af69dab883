"""Stacks of equal blocks, to see how the time of canonicalization grows with the size of a model."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

_WIDTH = 8


class _Writer:
    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.random = np.random.default_rng(0)

    def node(self, op: str, *inputs: str, **attributes: object) -> str:
        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [name], **attributes))
        return name

    def weight(self, *shape: int, positive: bool = False) -> str:
        value = self.random.uniform(0.5, 1.5, shape) if positive else self.random.normal(0, 0.1, shape)
        return self.constant(value.astype(np.float32))

    def constant(self, value: np.ndarray) -> str:
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(value, name))
        return name


def _residual(write: _Writer, x: str) -> str:
    """A residual block as exporters write it: convolution, batch norm, ReLU, convolution, batch norm, Add, ReLU."""
    y = x
    for last in (False, True):
        y = write.node("Conv", y, write.weight(_WIDTH, _WIDTH, 3, 3), pads=[1, 1, 1, 1])
        scale, variance = (write.weight(_WIDTH, positive=True) for _ in range(2))
        y = write.node("BatchNormalization", y, scale, write.weight(_WIDTH), write.weight(_WIDTH), variance)
        y = write.node("Add", y, x) if last else y
        y = write.node("Relu", y)
    return y


def _transformer(write: _Writer, x: str) -> str:
    """A pre-norm transformer block of two heads, layer norm and GELU spelled out."""
    y = _norm(write, x)
    heads = write.constant(np.array([1, 4, 2, _WIDTH // 2], np.int64))
    q, k, v = (write.node("Transpose", write.node("Reshape", _dense(write, y, _WIDTH, _WIDTH), heads), perm=perm)
               for perm in ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3]))
    scores = write.node("Mul", write.node("MatMul", q, k), write.constant(np.float32(0.5)))
    mixed = write.node("MatMul", write.node("Softmax", scores, axis=-1), v)
    flat = write.node("Reshape", write.node("Transpose", mixed, perm=[0, 2, 1, 3]),
                      write.constant(np.array([1, 4, _WIDTH], np.int64)))
    x = write.node("Add", x, _dense(write, flat, _WIDTH, _WIDTH))
    hidden = _dense(write, _norm(write, x), _WIDTH, 2 * _WIDTH)
    inner = write.node("Erf", write.node("Div", hidden, write.constant(np.float32(np.sqrt(2)))))
    gelu = write.node("Mul", write.node("Mul", hidden, write.node("Add", inner, write.constant(np.float32(1)))),
                      write.constant(np.float32(0.5)))
    return write.node("Add", x, _dense(write, gelu, 2 * _WIDTH, _WIDTH))


def _norm(write: _Writer, x: str) -> str:
    last = write.constant(np.array([-1], np.int64))
    apart = write.node("Sub", x, write.node("ReduceMean", x, last))
    variance = write.node("ReduceMean", write.node("Mul", apart, apart), last)
    deviation = write.node("Sqrt", write.node("Add", variance, write.constant(np.float32(1e-5))))
    scaled = write.node("Mul", write.node("Div", apart, deviation), write.weight(_WIDTH, positive=True))
    return write.node("Add", scaled, write.weight(_WIDTH))


def _dense(write: _Writer, x: str, inside: int, outside: int) -> str:
    kernel = write.node("Transpose", write.weight(outside, inside), perm=[1, 0])
    return write.node("Add", write.node("MatMul", x, kernel), write.weight(outside))


BLOCKS: dict[str, tuple[Callable[[_Writer, str], str], list[int]]] = {
    "residual blocks": (_residual, [1, _WIDTH, 8, 8]),
    "transformer blocks": (_transformer, [1, 4, _WIDTH]),
}


def stack(kind: str, count: int) -> onnx.ModelProto:
    """A stack of ``count`` blocks of a kind with weights of their own."""
    block, shape = BLOCKS[kind]
    write, value = _Writer(), "x"
    for _ in range(count):
        value = block(write, value)
    graph = helper.make_graph(
        write.nodes, kind.replace(" ", "_"), [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(value, TensorProto.FLOAT, shape)], write.weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
