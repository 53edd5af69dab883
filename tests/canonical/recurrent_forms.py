"""Recurrent layers, written out step by step or as a Loop, in the spellings that exporters use."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx
from forms import normal
from onnx import helper, numpy_helper

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
STATES = {"LSTM": 2, "GRU": 1, "RNN": 1}


@dataclass
class Writer:
    """Collects nodes and constants; every value that it makes has a name of its own."""

    prefix: str = ""
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: dict[str, np.ndarray] = field(default_factory=dict)

    def __call__(self, op: str, *inputs: str, outputs: int = 1, **attributes: object) -> str:
        names = [f"{self.prefix}{op.lower()}{len(self.nodes)}_{k}" for k in range(outputs)]
        self.nodes.append(helper.make_node(op, list(inputs), names, **attributes))
        return names[0]

    def many(self, op: str, *inputs: str, outputs: int, **attributes: object) -> list[str]:
        self(op, *inputs, outputs=outputs, **attributes)
        return list(self.nodes[-1].output)

    def constant(self, value: np.ndarray) -> str:
        name = f"{self.prefix}c{len(self.constants)}"
        self.constants[name] = np.asarray(value)
        return name

    def ints(self, *values: int) -> str:
        return self.constant(np.array(values, np.int64))


@dataclass
class Weights:
    """Weights of a cell, gates in the order of ONNX; ``x @ kernel + h @ recurrent + bias + inner``."""

    op: str
    inputs: int = 3
    size: int = 4

    def __post_init__(self) -> None:
        count = GATES[self.op] * self.size
        self.kernel, self.recurrent = normal(self.inputs, count, seed=1), normal(self.size, count, seed=2)
        self.bias, self.inner = normal(count, seed=3), normal(count, seed=4)


def cell(w: Writer, weights: Weights, x: str, states: tuple[str, ...], style: str = "cut") -> tuple[str, ...]:
    """One step; styles: ``cut`` (one product, gates cut from it), ``apart`` (a product for each gate), ``joined``
    (x and h side by side in front of one matrix; LSTM and RNN), ``before`` (GRU: reset before the product), ``lerp``
    (GRU: ``n + z (h - n)``), ``swapped`` (GRU: the update gate weighs the new part).
    """
    h, count = states[0], GATES[weights.op]
    if weights.op == "GRU":
        return (_gru(w, weights, x, h, style),)
    gates = _linear(w, weights, x, h, style, count)
    if weights.op == "RNN":
        return (w("Tanh", gates[0]),)
    i, o, f, g = gates
    kept, new = w("Mul", w("Sigmoid", f), states[1]), w("Mul", w("Sigmoid", i), w("Tanh", g))
    memory = w("Add", new, kept) if style == "apart" else w("Add", kept, new)
    return w("Mul", w("Sigmoid", o), w("Tanh", memory)), memory


def _linear(w: Writer, weights: Weights, x: str, h: str, style: str, count: int) -> list[str]:
    bias = weights.bias + weights.inner
    if style == "apart":
        columns = [slice(k * weights.size, (k + 1) * weights.size) for k in range(count)]
        return [w("Add", w("Gemm", x, w.constant(weights.kernel[:, c].T.copy()), w.constant(bias[c]), transB=1),
                  w("MatMul", h, w.constant(weights.recurrent[:, c]))) for c in columns]
    if style == "joined":
        both = w("Concat", x, h, axis=1)
        matrix = w.constant(np.concatenate([weights.kernel, weights.recurrent]))
        total = w("Gemm", both, matrix, w.constant(bias))
    else:
        total = w("Add", w("Add", w("MatMul", x, w.constant(weights.kernel)), w.constant(weights.bias)),
                  w("Gemm", h, w.constant(weights.recurrent), w.constant(weights.inner)))
    return [total] if count == 1 else w.many("Split", total, outputs=count, axis=1, num_outputs=count)


def _gru(w: Writer, weights: Weights, x: str, h: str, style: str) -> str:
    size = weights.size
    given = w("Add", w("MatMul", x, w.constant(weights.kernel)), w.constant(weights.bias))
    gz, gr, gn = w.many("Split", given, outputs=3, axis=-1, num_outputs=3)
    if style == "before":
        rz, rr, rn = (w.constant(weights.recurrent[:, k * size : (k + 1) * size]) for k in range(3))
        bz, br, bn = (w.constant(weights.inner[k * size : (k + 1) * size]) for k in range(3))
        z = w("Sigmoid", w("Add", gz, w("Gemm", h, rz, bz)))
        r = w("Sigmoid", w("Add", gr, w("Gemm", h, rr, br)))
        n = w("Tanh", w("Add", gn, w("Gemm", w("Mul", r, h), rn, bn)))
    else:
        own = w("Add", w("MatMul", h, w.constant(weights.recurrent)), w.constant(weights.inner))
        hz, hr, hn = w.many("Split", own, outputs=3, axis=1, num_outputs=3)
        z, r = w("Sigmoid", w("Add", gz, hz)), w("Sigmoid", w("Add", hr, gr))
        n = w("Tanh", w("Add", gn, w("Mul", r, hn)))
    if style == "lerp":
        return w("Add", n, w("Mul", z, w("Sub", h, n)))
    rest = w("Sub", w.constant(np.float32(1)), z)
    if style == "swapped":
        return w("Add", w("Mul", rest, h), w("Mul", z, n))
    return w("Add", w("Mul", z, h), w("Mul", rest, n))


def unrolled(weights: Weights, steps: int = 5, style: str = "cut", *, zeros: bool = True, backwards: bool = False,
             batch: str | int = "N", stacked: bool = True) -> onnx.ModelProto:
    """``x [N, T, I]`` -> the answers [N, T, H] (stacked) or the last one [N, H]."""
    w = Writer()
    count = STATES[weights.op]
    size = w("Concat", w("Shape", "x", start=0, end=1), w.ints(weights.size), axis=0)
    states = tuple(w("Expand", w.constant(np.float32(0)), size) if zeros else f"s{k}" for k in range(count))
    answers = {}
    for t in (range(steps)[::-1] if backwards else range(steps)):
        states = cell(w, weights, w("Gather", "x", w.constant(np.int64(t)), axis=1), states, style)
        answers[t] = states[0]
    axis = w.ints(1)
    rows = [w("Unsqueeze", answers[t], axis) for t in range(steps)]
    result = w("Concat", *rows, axis=1) if stacked else states[0]
    given = [("x", [batch, steps, weights.inputs])]
    given += [] if zeros else [(f"s{k}", [batch, weights.size]) for k in range(count)]
    shape = [batch, steps, weights.size] if stacked else [batch, weights.size]
    return model(w, given, {result: shape})


def loop(weights: Weights, steps: int = 5, style: str = "cut", *, zeros: bool = True, backwards: bool = False,
         batch: str | int = "N", carried: bool = True) -> onnx.ModelProto:
    """``x [T, N, I]`` -> the answers [T, N, H] and the last states, as tf2onnx writes it."""
    inner, outer = Writer("inner_"), Writer()
    count = STATES[weights.op]
    place = inner("Sub", inner.constant(np.int64(steps - 1)), "k") if backwards else "k"
    x = inner("Gather", "sequence" if carried else "x", place, axis=0)
    new = cell(inner, weights, x, tuple(f"h{k}" for k in range(count)), style)
    following = inner("Add", "k", inner.constant(np.int64(1)))
    going = inner("Less", following, inner.constant(np.int64(steps)))
    results = [going, following, *(inner("Identity", v) for v in new), *(["kept"] if carried else []),
               inner("Identity", new[0])]
    if carried:
        inner.nodes.append(helper.make_node("Identity", ["sequence"], ["kept"]))
    body = helper.make_graph(
        inner.nodes, "body",
        [_info("i", [], np.int64), _info("going", [], np.bool_), _info("k", [], np.int64),
         *(_info(f"h{k}", [None, weights.size]) for k in range(count)),
         *([_info("sequence", [steps, batch, weights.inputs])] if carried else [])],
        [_info(going, [], np.bool_), _info(following, [], np.int64),
         *(_info(v, [None, weights.size]) for v in results[2 : 2 + count]),
         *([_info("kept", [steps, batch, weights.inputs])] if carried else []),
         _info(results[-1], [None, weights.size])],
        [numpy_helper.from_array(v, n) for n, v in inner.constants.items()],
    )
    if zeros:
        size = outer("Concat", outer("Shape", "x", start=1, end=2), outer.ints(weights.size), axis=0)
        states = [outer("Expand", outer.constant(np.float32(0)), size) for _ in range(count)]
    else:
        states = [f"s{k}" for k in range(count)]
    outputs = outer.many("Loop", outer.constant(np.int64(2**31)), outer.constant(np.array(True)),
                         outer.constant(np.int64(0)), *states, *(["x"] if carried else []),
                         outputs=1 + count + carried + 1, body=body)
    given = [("x", [steps, batch, weights.inputs])]
    given += [] if zeros else [(f"s{k}", [batch, weights.size]) for k in range(count)]
    shapes = {outputs[-1]: [steps, batch, weights.size]}
    shapes |= {outputs[1 + k]: [batch, weights.size] for k in range(count)}
    return model(outer, given, shapes)


def _info(name: str, shape: list[object], dtype: type = np.float32) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), shape)


def model(w: Writer, given: list[tuple[str, list[object]]], results: dict[str, list[object]]) -> onnx.ModelProto:
    graph = helper.make_graph(
        w.nodes, "g", [_info(name, shape) for name, shape in given], [_info(n, s) for n, s in results.items()],
        [numpy_helper.from_array(v, n) for n, v in w.constants.items()],
    )
    result = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    onnx.checker.check_model(result)
    return result
