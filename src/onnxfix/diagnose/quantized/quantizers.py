"""The quantizers of activations that are wrong, and what they should be."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
import onnx
from onnx import helper, numpy_helper

from onnxfix.canonical.origins import EXPRESSION_OPSET
from onnxfix.diagnose.evidence import Evidence, Exhibit
from onnxfix.diagnose.examination import in_chunks
from onnxfix.diagnose.fault import Fault, FaultKind
from onnxfix.diagnose.naming import label
from onnxfix.diagnose.quantized.ranges import (
    CONTRADICTED,
    INPUT_LENIENCY,
    TOO_NARROW,
    TOO_WIDE,
    Span,
    Spans,
    fitting,
    misfit,
    usual,
)
from onnxfix.diagnose.quantized.straightening import Quantizer, Straightened
from onnxfix.frameworks import Feeds
from onnxfix.inputs import Inputs
from onnxfix.model import Model
from onnxfix.quantization import Quantization
from onnxfix.surgeon.patch import SetParameter

# Batches by which ranges are judged.
_BATCHES = 8

SpanOf = Callable[[Quantizer], Span | None]


@dataclass(frozen=True, eq=False)
class WrongQuantizer:
    """A quantizer, or several that share a scale, with a scheme that is wrong.

    Attributes:
        fault: The fault.
        patches: What sets it right in the lowered graph.
    """

    fault: Fault
    patches: tuple[SetParameter, ...]


def wrong_quantizers(
    target: Model, quantizers: Sequence[Quantizer], views: Sequence[SpanOf], trusted: onnx.ModelProto | None = None
) -> tuple[WrongQuantizer, ...]:
    """Judge the quantizers of a model.

    Args:
        target: The quantized model.
        quantizers: Its quantizers.
        views: What passes a quantizer, as the straightened model has it and as the quantized one has it itself; the
            first of them is the truth.
        trusted: The quantized graph with its constants set right, whose biases tell the scales of their layers' inputs.
    """
    kept = [q for q in quantizers if q.scheme is not None and views[0](q) is not None]
    found = [wrong for q in kept for wrong in _disagreeing(target, q, views[0])]
    spoilt = {q for q in kept if any(s is not None and s != q.scheme for s in q.schemes)}
    groups = _groups([q for q in kept if q not in spoilt])
    fits = [[misfit(scheme, _joint(group, view)) for scheme, group in groups.items()] for view in views]
    normal = [usual(fit) for fit in fits]
    told = {} if trusted is None else _told_by_biases(trusted)
    for k, (scheme, group) in enumerate(groups.items()):
        ratios = [fit[k] / base for fit, base in zip(fits, normal, strict=True)]
        hint = next((told[q.first] for q in group if q.first in told), None)
        right = _right(scheme, _joint(group, views[0]), ratios, hint, _is_input(target, group))
        if right is not None:
            found.append(_misfitting(target, group, scheme, right, _joint(group, views[0])))
    return tuple(found)


def activation_spans(
    source: Model, target: Model, straight: Straightened, repaired: onnx.ModelProto, data: Inputs
) -> tuple[SpanOf, SpanOf]:
    """What passes each quantizer: as the repaired straightened model has it, and as the target has it itself.

    Args:
        source: The source, by which the data are fed.
        target: The quantized model.
        straight: The same, straightened.
        repaired: The straightened graph with its other faults set right.
        data: The data; the first batches are used.
    """
    truth, own = Spans(), Spans()
    model = replace(straight.model, proto=repaired)
    truth.measure(repaired, (q.value for q in straight.quantizers), _feeds(source, model, data))
    makers = {node.name: node for node in target.proto.graph.node}
    entering = {q: makers[q.first].input[0] for q in straight.quantizers}
    own.measure(target.proto, entering.values(), _feeds(source, target, data))
    return (
        lambda q: truth.spans.get(q.value),
        lambda q: own.spans.get(entering[q]) or truth.spans.get(q.value),
    )


def _feeds(source: Model, model: Model, data: Inputs) -> Iterator[Feeds]:
    for chunk in islice(in_chunks(source, model, data), _BATCHES):
        yield chunk.target


def _groups(quantizers: Iterable[Quantizer]) -> dict[Quantization, list[Quantizer]]:
    """Quantizers by scheme: ops that only move or pick elements share one with their neighbours."""
    groups: dict[Quantization, list[Quantizer]] = {}
    for quantizer in quantizers:
        if quantizer.scheme is not None:
            groups.setdefault(quantizer.scheme, []).append(quantizer)
    return groups


def _joint(group: Sequence[Quantizer], view: SpanOf) -> Span:
    joint = Span()
    for quantizer in group:
        joint = joint.joined(view(quantizer) or Span())
    return joint


def _is_input(target: Model, group: Sequence[Quantizer]) -> bool:
    inputs = {i.name for i in target.proto.graph.input}
    return any(q.value in inputs for q in group)


def _right(
    scheme: Quantization, span: Span, ratios: Sequence[float], hint: float | None, is_input: bool
) -> Quantization | None:
    """The scheme that should be there, where the one that is there is wrong."""
    if hint is not None and abs(np.log(hint / scheme.scale)) > np.log(CONTRADICTED):
        return Quantization(hint, scheme.zero_point, scheme.dtype)
    factor = INPUT_LENIENCY if is_input else 1.0
    if min(ratios) > TOO_WIDE * factor or max(ratios) < 1 / (TOO_NARROW * factor) or _drowned(scheme, span):
        return fitting(scheme, span)
    return None


def _drowned(scheme: Quantization, span: Span) -> bool:
    """Whether one step is larger than all there is."""
    return span.width > 0 and scheme.scale > span.width


def _misfitting(
    target: Model, group: Sequence[Quantizer], scheme: Quantization, right: Quantization, span: Span
) -> WrongQuantizer:
    nodes = [name for q in _culprits_first(target, group) for name in (q.first, *q.readers)]
    how = "saturates" if misfit(scheme, span) < 1 and not _drowned(scheme, span) else "leaves too few steps"
    low, high = scheme.limits
    names = _named(target, nodes)
    message = (
        f"the range [{low:.3g}, {high:.3g}] of {label(target, names)} {how} for values in "
        f"[{span.low:.3g}, {span.high:.3g}]: its scale is {scheme.scale:.6g} instead of {right.scale:.6g}."
    )
    patches = _patches(target.proto, nodes, right)
    exhibit = _exhibit(scheme, scheme, span)
    return WrongQuantizer(_fault(names, patches, scheme, right, _error(scheme, span), message, exhibit), patches)


def _error(scheme: Quantization, span: Span) -> float:
    """How far a number at the ends or between two steps is off, as a share of the range that passes."""
    if span.width == 0:
        return 0.0
    low, high = scheme.limits
    cut = max(low - span.low, span.high - high, 0.0)
    return min(1.0, max(cut, min(scheme.scale / 2, span.width)) / span.width)


def _disagreeing(target: Model, quantizer: Quantizer, view: SpanOf) -> Iterable[WrongQuantizer]:
    """Readers that widen integers by another scheme than they were made with."""
    span, scheme = view(quantizer), quantizer.scheme
    if span is None or scheme is None:
        return
    other = [(n, s) for n, s in zip(quantizer.readers, quantizer.schemes, strict=True) if s is not None and s != scheme]
    if not other:
        return
    if len(other) == len(quantizer.readers) and len({s for _, s in other}) == 1 and _fits_better(
        other[0][1], scheme, span
    ):
        blamed: list[tuple[str, Quantization]] = [(quantizer.first, scheme)]
        right = other[0][1]
    else:
        blamed, right = other, scheme
    for name, actual in blamed:
        names = _named(target, [name, quantizer.first, *quantizer.readers])
        patches = _patches(target.proto, [name], right)
        message = (
            f"{label(target, names)} is widened with scale {actual.scale:.6g} and zero point {actual.zero_point}, but "
            f"quantized with {scheme.scale:.6g} and {scheme.zero_point}."
        )
        error = abs(actual.scale / right.scale - 1) + abs(actual.zero_point - right.zero_point) / 256
        pair = (scheme, actual) if right == scheme else (actual, other[0][1])
        yield WrongQuantizer(
            _fault(names, patches, actual, right, error, message, _exhibit(*pair, span)), patches
        )


def _fits_better(one: Quantization, other: Quantization, span: Span) -> bool:
    first, second = (abs(np.log(max(misfit(s, span), 1e-9))) for s in (one, other))
    return bool(first < second - np.log(1.2))


def _culprits_first(target: Model, group: Sequence[Quantizer]) -> list[Quantizer]:
    """The quantizer behind a Where first: a mask's filler is what spoils a range that others share."""
    makers = {o: node.op_type for node in target.proto.graph.node for o in node.output}
    return sorted(group, key=lambda q: makers.get(q.value) not in ("Where", "Add"))


def _named(target: Model, nodes: Iterable[str]) -> tuple[str, ...]:
    kept = tuple(dict.fromkeys(nodes))
    return tuple(dict.fromkeys((*kept, *(target.layers[n] for n in kept if n in target.layers))))


def _fault(
    names: tuple[str, ...], patches: Sequence[SetParameter], actual: Quantization, right: Quantization, error: float,
    message: str, exhibit: Exhibit,
) -> Fault:  # fmt: skip
    scales = [p for p in patches if p.value.dtype.kind == "f"] or list(patches)
    return Fault(
        kind=FaultKind.PRECISION,
        target_nodes=names,
        source_nodes=(),
        parameter=scales[0].name if scales else None,
        expected={"scale": right.scale, "zero_point": right.zero_point},
        actual={"scale": actual.scale, "zero_point": actual.zero_point},
        local_error=float(error),
        message=message,
        evidence=Evidence(piece=lambda: exhibit),
    )


def _exhibit(narrow: Quantization, wide: Quantization, span: Span) -> Exhibit:
    """Quantized and widened again, with values over the range that passes; expected are the values themselves."""
    values = np.linspace(span.low, span.high, 256, dtype=np.float32)[np.newaxis]
    tensors = []
    for name, scheme in (("narrow", narrow), ("wide", wide)):
        tensors.append(numpy_helper.from_array(np.asarray(scheme.scale, np.float32), f"{name}_scale"))
        tensors.append(numpy_helper.from_array(np.asarray(scheme.zero_point, scheme.dtype), f"{name}_zero"))
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "narrow_scale", "narrow_zero"], ["q"], "quantize"),
        helper.make_node("DequantizeLinear", ["q", "wide_scale", "wide_zero"], ["y"], "dequantize"),
    ]
    info = [helper.make_tensor_value_info(v, onnx.TensorProto.FLOAT, ["N", 256]) for v in ("x", "y")]
    graph = helper.make_graph(nodes, "quantizer", info[:1], info[1:], tensors)
    opsets = [helper.make_opsetid("", EXPRESSION_OPSET)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    return Exhibit(model, None, {"x": values}, (values,))


def _patches(proto: onnx.ModelProto, nodes: Iterable[str], right: Quantization) -> tuple[SetParameter, ...]:
    """Scale and zero point of some nodes, each initializer once; readers outside keep the old value."""
    by_name = {node.name: node for node in proto.graph.node}
    tensors = {t.name: t for t in proto.graph.initializer}
    wanted: dict[tuple[str, int], list[str]] = {}
    for name in dict.fromkeys(nodes):
        for slot in (1, 2):
            wanted.setdefault((by_name[name].input[slot], slot), []).append(name)
    made = []
    for (initializer, slot), readers in wanted.items():
        previous = numpy_helper.to_array(tensors[initializer])
        value = np.full_like(previous, right.scale if slot == 1 else right.zero_point)
        others = [n.name for n in proto.graph.node if initializer in n.input and n.name not in readers]
        if not np.array_equal(value, previous):
            made.append(SetParameter(initializer, value, previous, tuple(readers) if others else ()))
    return tuple(made)


def _told_by_biases(proto: onnx.ModelProto) -> Mapping[str, float]:
    """What the scale of an int32 bias says on the input of its layer: it is that of the input times the weight's."""
    makers = {o: node for node in proto.graph.node for o in node.output}
    tensors = {t.name: t for t in proto.graph.initializer}

    def through(value: str) -> onnx.NodeProto | None:
        node = makers.get(value)
        while node is not None and node.op_type in ("Transpose", "Reshape", "Squeeze", "Unsqueeze", "Identity"):
            node = makers.get(node.input[0])
        return node

    def scale(node: onnx.NodeProto | None, *, wide: bool = False) -> np.ndarray | None:
        if node is None or node.op_type != "DequantizeLinear" or node.input[0] not in tensors:
            return None
        if wide and tensors[node.input[0]].data_type != onnx.TensorProto.INT32:
            return None
        return numpy_helper.to_array(tensors[node.input[1]]) if node.input[1] in tensors else None

    found: dict[str, float] = {}
    for node in proto.graph.node:
        linear, bias = node, node.input[2] if len(node.input) > 2 else ""
        if node.op_type == "Add":
            sides = [makers.get(v) for v in node.input]
            layer = next((s for s in sides if s is not None and s.op_type in ("MatMul", "Gemm")), None)
            if layer is None:
                continue
            linear, bias = layer, next(v for v in node.input if v not in layer.output)
        elif node.op_type not in ("Conv", "Gemm", "ConvTranspose"):
            continue
        entering = through(linear.input[0])
        weight, own = scale(through(linear.input[1])), scale(through(bias) if bias else None, wide=True)
        if weight is None or own is None or entering is None or entering.op_type != "DequantizeLinear":
            continue
        quantizer = through(entering.input[0])
        ratio = np.asarray(own, np.float64) / weight if own.shape == weight.shape else np.zeros(0)
        if quantizer is not None and ratio.size and np.ptp(ratio) <= 1e-3 * ratio.max():
            found[quantizer.name] = float(np.float32(np.median(ratio)))
    return found
