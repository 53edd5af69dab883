"""Faults in precision: casts, overflow, half-precision regions, wrong quantization."""

# ruff: noqa: D102 - candidates and apply are documented where FaultOperator declares them
from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto

from onnxfix.diagnose.fault import FaultKind
from onnxfix.testing.faults.editor import Graph, Unfit
from onnxfix.testing.faults.operator import Candidate, FaultOperator, Site
from onnxfix.testing.visibility import random_batches, run_all

_COMPUTING = (
    "Conv", "Gemm", "MatMul", "Add", "Mul", "BatchNormalization", "LayerNormalization", "Relu", "Clip", "Softmax",
    "Concat", "MaxPool", "AveragePool", "GlobalAveragePool",
)  # fmt: skip
_LINEAR = ("Conv", "Gemm", "MatMul", "ConvTranspose")
# A power of two that takes any activation of a working network beyond the range of float16.
_OVERFLOWING = 2.0**24


class _CastOperator(FaultOperator):
    """An activation takes a detour through another type."""

    kind = FaultKind.PRECISION
    through: int
    what: str

    def candidates(self, graph: Graph) -> list[Candidate]:
        return [(node.name,) for node in graph.data_nodes(*_COMPUTING)]

    def apply(self, graph: Graph, candidate: Candidate, rng: np.random.Generator) -> tuple[Site, ...]:
        value = graph.nodes[candidate[0]].output[0]
        around = (*graph.computed_by(value), *graph.read_by(value))
        first = graph.splice(value, "Cast", to=self.through)
        second = graph.splice(first.output[0], "Cast", to=TensorProto.FLOAT)
        done = f"cast {value} to {self.what} and back"
        return (self.site(first.name, None, done, (second.name, *around), expected="float32", actual=self.what),)


class CastFloat16(_CastOperator):
    """An activation is rounded to float16."""

    name = "cast_float16"
    through = TensorProto.FLOAT16
    what = "float16"


class CastBfloat16(_CastOperator):
    """An activation is rounded to bfloat16."""

    name = "cast_bfloat16"
    through = TensorProto.BFLOAT16
    what = "bfloat16"


class CastInteger(_CastOperator):
    """An activation loses its fraction in an integer."""

    name = "cast_integer"
    through = TensorProto.INT32
    what = "int32"


class OverflowFloat16(FaultOperator):
    """An activation is scaled beyond the range of float16 and back, so that it becomes infinite."""

    name = "overflow_float16"
    kind = FaultKind.PRECISION
    finite = False

    def candidates(self, graph: Graph) -> list[Candidate]:
        return [(node.name,) for node in graph.data_nodes(*_COMPUTING)]

    def apply(self, graph: Graph, candidate: Candidate, rng: np.random.Generator) -> tuple[Site, ...]:
        value = graph.nodes[candidate[0]].output[0]
        around = (*graph.computed_by(value), *graph.read_by(value))
        up, down = (graph.add_constant(np.array(f, np.float32), "factor") for f in (_OVERFLOWING, 1 / _OVERFLOWING))
        scaled = graph.splice(value, "Mul", up)
        half = graph.splice(scaled.output[0], "Cast", to=TensorProto.FLOAT16)
        whole = graph.splice(half.output[0], "Cast", to=TensorProto.FLOAT)
        back = graph.splice(whole.output[0], "Mul", down)
        also = (scaled.name, whole.name, back.name, *around)
        return (self.site(half.name, None, f"made {value} overflow in float16", also, actual="float16"),)


class HalfRegion(FaultOperator):
    """A linear layer computes in float16: its operands and its result are rounded.

    Spelled by casts to and fro around it, since onnxruntime computes in float32 where it has no kernel for float16.
    """

    name = "float16_region"
    kind = FaultKind.PRECISION

    def candidates(self, graph: Graph) -> list[Candidate]:
        return [(node.name,) for node in graph.data_nodes(*_LINEAR)]

    def apply(self, graph: Graph, candidate: Candidate, rng: np.random.Generator) -> tuple[Site, ...]:
        node = graph.nodes[candidate[0]]
        name, op = node.name, node.op_type
        around = (*graph.computed_by(node.output[0]), *graph.read_by(node.output[0]))
        half = graph.splice(node.output[0], "Cast", to=TensorProto.FLOAT16)
        casts = [half.name, graph.splice(half.output[0], "Cast", to=TensorProto.FLOAT).name]
        for slot, value in enumerate(list(node.input)):
            if value:
                casts += self._rounded(graph, name, slot, value)
        done = f"let {op} {name} compute in float16"
        also = (*casts, *around, *graph.computed_by(graph.nodes[name].input[0]))
        return (self.site(name, None, done, also, expected="float32", actual="float16"),)

    def _rounded(self, graph: Graph, name: str, slot: int, value: str) -> list[str]:
        made = []
        for to in (TensorProto.FLOAT16, TensorProto.FLOAT):
            result = graph.fresh(f"{value}_cast")
            cast = onnx.helper.make_node("Cast", [value], [result], graph.fresh("Cast"), to=to)
            graph.insert_node(cast, before=graph.nodes[name])
            made.append(cast.name)
            value = result
        graph.nodes[name].input[slot] = value
        graph.reindex()
        return made


class _QuantizingOperator(FaultOperator):
    """An activation takes a detour through int8, with a scale that is chosen from what it holds."""

    kind = FaultKind.PRECISION
    share: float
    what: str

    def candidates(self, graph: Graph) -> list[Candidate]:
        return [(node.name,) for node in graph.data_nodes("Conv", "Gemm", "MatMul", "Add", "Relu", "Clip")]

    def apply(self, graph: Graph, candidate: Candidate, rng: np.random.Generator) -> tuple[Site, ...]:
        value = graph.nodes[candidate[0]].output[0]
        peak = _peak(graph, value, rng)
        around = (*graph.computed_by(value), *graph.read_by(value))
        scale = graph.add_constant(np.array(self.share * peak / 127, np.float32), "scale")
        zero = graph.add_constant(np.array(0, np.int8), "zero_point")
        first = graph.splice(value, "QuantizeLinear", scale, zero)
        second = graph.splice(first.output[0], "DequantizeLinear", scale, zero)
        done = f"{self.what} {value}"
        return (self.site(first.name, None, done, (second.name, *around), expected="float32", actual="int8"),)


class QuantizeActivation(_QuantizingOperator):
    """One activation of a float model is quantized to eight bits."""

    name = "quantize_activation"
    share = 1.0
    what = "quantized to int8"


class SaturateActivation(_QuantizingOperator):
    """One activation is quantized with a scale that is far too small, so that it saturates."""

    name = "saturate_activation"
    share = 0.1
    what = "saturated in int8"


class WrongScale(FaultOperator):
    """A tensor is dequantized with another scale than it was quantized with."""

    name = "wrong_scale"
    kind = FaultKind.PRECISION

    def candidates(self, graph: Graph) -> list[Candidate]:
        return [(node.name,) for node in graph.graph.node if node.op_type == "DequantizeLinear"]

    def apply(self, graph: Graph, candidate: Candidate, rng: np.random.Generator) -> tuple[Site, ...]:
        node = graph.nodes[candidate[0]]
        scale = graph.constant(node.input[1])
        if scale is None:
            raise Unfit(f"the scale of {node.name} is computed")
        wrong = (scale * float(rng.choice((0.25, 0.5, 2.0, 4.0)))).astype(scale.dtype)
        node.input[1] = graph.add_constant(wrong, node.input[1])
        done = f"gave {node.name} another scale"
        around = (*graph.computed_by(node.input[0]), *graph.read_by(node.output[0]))
        return (self.site(node.name, node.input[1], done, around, expected=scale, actual=wrong),)


class WrongZeroPoint(FaultOperator):
    """A tensor is dequantized with another zero point than it was quantized with (uint8 read as int8)."""

    name = "wrong_zero_point"
    kind = FaultKind.PRECISION

    def candidates(self, graph: Graph) -> list[Candidate]:
        return [(n.name,) for n in graph.graph.node if n.op_type == "DequantizeLinear" and len(n.input) > 2]

    def apply(self, graph: Graph, candidate: Candidate, rng: np.random.Generator) -> tuple[Site, ...]:
        node = graph.nodes[candidate[0]]
        zero = graph.constant(node.input[2])
        if zero is None or zero.dtype not in (np.int8, np.uint8):
            raise Unfit(f"the zero point of {node.name} is not in eight bits")
        limits = np.iinfo(zero.dtype)
        wrong = np.where(zero.astype(int) + 32 <= limits.max, zero.astype(int) + 32, zero.astype(int) - 32)
        wrong = wrong.astype(zero.dtype).reshape(zero.shape)
        node.input[2] = graph.add_constant(wrong, node.input[2])
        done = f"gave {node.name} another zero point"
        around = (*graph.computed_by(node.input[0]), *graph.read_by(node.output[0]))
        return (self.site(node.name, node.input[2], done, around, expected=zero, actual=wrong),)


class WrongRange(FaultOperator):
    """A quantized activation has a range that does not fit it: an eighth of it, or eight times as much."""

    name = "wrong_range"
    kind = FaultKind.PRECISION

    def candidates(self, graph: Graph) -> list[Candidate]:
        return [(node.name,) for node in graph.data_nodes("QuantizeLinear")]

    def apply(self, graph: Graph, candidate: Candidate, rng: np.random.Generator) -> tuple[Site, ...]:
        node = graph.nodes[candidate[0]]
        readers = [n for n, _ in graph.consumers(node.output[0])]
        scale = graph.constant(node.input[1])
        if scale is None or not readers or any(n.op_type != "DequantizeLinear" for n in readers):
            raise Unfit(f"{node.name} is not read by DequantizeLinear alone")
        wrong = (scale * float(rng.choice((0.125, 8.0)))).astype(scale.dtype)
        name = graph.add_constant(wrong, node.input[1])
        for quantizer in (node, *readers):
            quantizer.input[1] = name
        also = (*(n.name for n in readers), *graph.computed_by(node.input[0]))
        done = f"gave {node.name} and its readers another range"
        return (self.site(node.name, name, done, also, expected=scale, actual=wrong),)


class Dequantize(FaultOperator):
    """A quantized tensor is silently kept in float: a pair of quantize and dequantize is gone."""

    name = "dequantize"
    kind = FaultKind.PRECISION

    def candidates(self, graph: Graph) -> list[Candidate]:
        return [(node.name,) for node in graph.data_nodes("QuantizeLinear")]

    def apply(self, graph: Graph, candidate: Candidate, rng: np.random.Generator) -> tuple[Site, ...]:
        node = graph.nodes[candidate[0]]
        readers = [n for n, _ in graph.consumers(node.output[0])]
        if not readers or any(n.op_type != "DequantizeLinear" for n in readers):
            raise Unfit(f"{node.name} is not read by DequantizeLinear alone")
        around = (*graph.computed_by(node.input[0]), *(n for r in readers for n in graph.read_by(r.output[0])))
        done = f"left {node.input[0]} in float"
        for reader in readers:
            reader.input[0] = node.input[0]
            graph.reindex()
            graph.bypass(reader)
        gone = graph.prune_nodes()
        left = [n for n in around if n not in gone and n in graph.nodes]
        if not left:
            raise Unfit("nothing is left beside the pair")
        return (self.site(left[0], None, done, tuple(left[1:]), expected="int8", actual="float32"),)


def _peak(graph: Graph, value: str, rng: np.random.Generator) -> float:
    """The largest magnitude of a value on random input."""
    tapped = onnx.ModelProto()
    tapped.CopyFrom(graph.proto)
    del tapped.graph.output[:]
    tapped.graph.output.append(onnx.ValueInfoProto(name=value))
    values = [out[value] for out in run_all(tapped, random_batches(graph.proto, rng))]
    peak = max(float(np.abs(v).max(initial=0.0)) for v in values)
    if not np.isfinite(peak) or peak == 0 or values[0].dtype != np.float32:
        raise Unfit(f"{value} has no range to quantize")
    return peak


OPERATORS: tuple[type[FaultOperator], ...] = (
    CastFloat16,
    CastBfloat16,
    CastInteger,
    OverflowFloat16,
    HalfRegion,
    QuantizeActivation,
    SaturateActivation,
    WrongScale,
    WrongZeroPoint,
    WrongRange,
    Dequantize,
)
