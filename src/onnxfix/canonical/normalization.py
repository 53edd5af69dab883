"""Layer normalization that converters spell out is LayerNormalization, with its scale and shift inside."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxfix.canonical.channels import is_made_up_zero
from onnxfix.canonical.map_norms import channel_of, instance_norm
from onnxfix.canonical.origins import Literal
from onnxfix.canonical.permutation import inverse as inverted
from onnxfix.canonical.permutation import permute
from onnxfix.canonical.queries import dims, finite, is_float, nodes_of, operands, producer, rank, scalar, used_once
from onnxfix.canonical.rewriting import Editor, array, is_constant, origin_of

_MEANS = ("ReduceMean", "GlobalAveragePool")


@dataclass(frozen=True)
class _Statistics:
    """Mean and ``1 / Sqrt(variance + epsilon)`` of a value over some axes, and the nodes that compute them."""

    value: ir.Value
    mean: ir.Value
    centered: ir.Value
    deviation: ir.Value
    axes: tuple[int, ...]
    shape: tuple[int, ...]
    epsilon: float
    nodes: tuple[ir.Node, ...]


class RecognizeLayerNorm(ir.passes.InPlacePass):
    """Chains of means and differences over the same axes become LayerNormalization, between Transposes if need be.

    With ``m = ReduceMean(x)``, ``d = x - m``, ``s = Sqrt(ReduceMean(d * d) + epsilon)``:

    - ``d / s = d * Reciprocal(s) = LayerNormalization(x, 1, 0)``
    - ``d * gamma / s`` in any order is a product with the normalization
    - ``x * (gamma / s) + (beta - m * (gamma / s)) = LayerNormalization(x, gamma, beta)`` (TensorFlow's spelling)
    - over the whole map of each channel it is InstanceNormalization, which scales and shifts channels
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Recognise."""
        editor = Editor(model.graph)
        for node in nodes_of(model.graph, "Sqrt"):
            statistics = _statistics(node)
            if statistics is not None:
                _centered_form(editor, statistics)
                _expanded_form(editor, statistics)
        return ir.passes.PassResult(model, editor.modified)


def _statistics(root: ir.Node) -> _Statistics | None:
    add = producer(root.inputs[0], "Add")
    pair = operands(add) if add is not None else None
    epsilon = 0.0 if add is None else None if pair is None else scalar(pair[1])
    if epsilon is None or not is_float(root.inputs[0]):
        return None  # an epsilon that is too small to count is left out by optimisers
    variance = producer(root.inputs[0] if pair is None else pair[0], *_MEANS)
    square = None if variance is None else producer(variance.inputs[0], "Mul")
    if variance is None or square is None or square.inputs[0] is not square.inputs[1]:
        return None
    center = producer(square.inputs[0], "Sub")
    mean = None if center is None else producer(center.inputs[1], *_MEANS)
    if center is None or mean is None or mean.inputs[0] is not center.inputs[0] or mean.inputs[0] is None:
        return None
    value = mean.inputs[0]
    axes = _axes(mean, value)
    shape = dims(value) or ()
    if axes is None or axes != _axes(variance, value):
        return None
    if channel_of(value, axes) is None and any(shape[a] is None for a in axes):
        return None
    return _Statistics(
        value=value, mean=mean.outputs[0], centered=center.outputs[0], deviation=root.outputs[0], axes=axes,
        shape=tuple(int(shape[a] or 0) for a in axes), epsilon=epsilon,
        nodes=(root, *([] if add is None else [add]), variance, square, center, mean),
    )


def _axes(reduction: ir.Node, value: ir.Value) -> tuple[int, ...] | None:
    """The axes of a reduction that keeps them as ones."""
    axes = array(reduction.inputs[1]) if len(reduction.inputs) > 1 else None
    size = rank(value)
    if reduction.op_type == "GlobalAveragePool":
        return None if size is None else tuple(range(2, size))
    if axes is None or not size or not reduction.attributes.get_int("keepdims", 1):
        return None
    return tuple(sorted(int(a) % size for a in axes.reshape(-1))) or None


def _users(value: ir.Value, *ops: str) -> Iterator[ir.Node]:
    for usage in tuple(value.uses()):
        if usage.node.domain == "" and usage.node.op_type in ops and usage.node.graph is value.graph:
            yield usage.node


def _reciprocals(statistics: _Statistics) -> Iterator[ir.Node]:
    yield from _users(statistics.deviation, "Reciprocal")


def _centered_form(editor: Editor, statistics: _Statistics) -> None:
    for node in tuple(_users(statistics.deviation, "Div")):
        if node.inputs[1] is statistics.deviation:
            _scaled(editor, node, statistics, node.inputs[:1], {statistics.centered})
    for inverse in tuple(_reciprocals(statistics)):
        for node in tuple(_users(inverse.outputs[0], "Mul")):
            _scaled(editor, node, statistics, node.inputs, {statistics.centered, inverse.outputs[0]})


def _scaled(
    editor: Editor, node: ir.Node, statistics: _Statistics, operands: Iterable[ir.Value | None], wanted: set[ir.Value]
) -> None:
    """``d * c / s = (d / s) * c`` for constants c among the factors of the operands."""
    term, inner = _Term(1, [], []), list[ir.Node]()
    for operand in operands:
        if operand is not None:
            _factors(operand, term, inner, wanted, 3)
    if set(term.variables) == wanted and len(term.variables) == len(wanted) and all(map(finite, term.constants)):
        _emit(editor, node, statistics, term.constants, None, inner)


def _expanded_form(editor: Editor, statistics: _Statistics) -> None:
    for inverse in tuple(_reciprocals(statistics)):
        for scaled in (inverse, *_users(inverse.outputs[0], "Mul")):
            for product in tuple(_users(scaled.outputs[0], "Mul")):
                if statistics.value in product.inputs:
                    _expanded(editor, statistics, inverse.outputs[0], product)


def _expanded(editor: Editor, statistics: _Statistics, inverse: ir.Value, product: ir.Node) -> None:
    """Follow ``x * g`` through the sums it goes into until they are the whole normalization."""
    found: tuple[ir.Node, ir.Value | None, ir.Value | None, list[ir.Node]] | None = None
    node, value = product, product.outputs[0]
    for _ in range(3):
        if not used_once(value):
            break
        following = next(_users(value, "Add", "Sub"), None)
        if following is None:
            break
        node, value = following, following.outputs[0]
        parts = _parts(node, statistics, inverse)
        if parts is not None:
            found = (node, *parts)
    if found is not None:
        gammas = [] if found[1] is None else [found[1]]
        _emit(editor, found[0], statistics, gammas, found[2], found[3])


@dataclass
class _Term:
    sign: int
    variables: list[ir.Value]
    constants: list[ir.Value]


def _parts(
    node: ir.Node, statistics: _Statistics, inverse: ir.Value
) -> tuple[ir.Value | None, ir.Value | None, list[ir.Node]] | None:
    """(gamma, beta, nodes) where a sum is ``x * r * gamma - m * r * gamma + beta``."""
    nodes: list[ir.Node] = []
    terms = list(_terms(node.outputs[0], 1, nodes, {statistics.value, statistics.mean, inverse}))
    scaled, shifted, betas = [], [], []
    for term in terms:
        if not term.variables:
            betas.append(term)
        elif set(term.variables) == {statistics.value, inverse} and len(term.variables) == 2:
            scaled.append(term)
        elif set(term.variables) == {statistics.mean, inverse} and len(term.variables) == 2:
            shifted.append(term)
        else:
            return None
    if len(scaled) != 1 or len(shifted) != 1 or len(betas) > 1 or scaled[0].sign != 1:
        return None
    negations = [c for c in shifted[0].constants if scalar(c) == -1.0 and c not in scaled[0].constants]
    gammas = [c for c in shifted[0].constants if c not in negations]
    if shifted[0].sign * (-1) ** len(negations) != -1 or gammas != scaled[0].constants or len(gammas) > 1:
        return None
    if betas and (betas[0].sign != 1 or len(betas[0].constants) != 1):
        return None
    return (gammas[0] if gammas else None, betas[0].constants[0] if betas else None, nodes)


def _terms(value: ir.Value, sign: int, nodes: list[ir.Node], leaves: set[ir.Value], depth: int = 5) -> Iterator[_Term]:
    node = value.producer()
    if depth and node is not None and value not in leaves and node.domain == "" and node.op_type in ("Add", "Sub"):
        nodes.append(node)
        for slot, operand in enumerate(node.inputs):
            if operand is not None:
                inner = -sign if slot == 1 and node.op_type == "Sub" else sign
                yield from _terms(operand, inner, nodes, leaves, depth - 1)
        return
    term = _Term(sign, [], [])
    _factors(value, term, nodes, leaves, 5)
    yield term


def _factors(value: ir.Value, term: _Term, nodes: list[ir.Node], leaves: set[ir.Value], depth: int) -> None:
    node = value.producer()
    if is_constant(value):
        term.constants.append(value)
    elif value in leaves or node is None or node.op_type != "Mul" or node.domain != "" or depth == 0:
        term.variables.append(value)
    else:
        nodes.append(node)
        for operand in node.inputs:
            if operand is not None:
                _factors(operand, term, nodes, leaves, depth - 1)


def _emit(
    editor: Editor, node: ir.Node, statistics: _Statistics, gammas: list[ir.Value], beta: ir.Value | None,
    inner: list[ir.Node],
) -> None:
    """Replace ``node`` by the normalization; a scale or shift that does not fit inside comes behind it."""
    size = rank(statistics.value) or 0
    if any((rank(constant) or 0) > size for constant in (*gammas, *([] if beta is None else [beta]))):
        return
    like = [node, *(n for n in inner if n is not node), *statistics.nodes]
    plain = instance_norm(editor, statistics.value, statistics.axes, statistics.epsilon, like, node)
    if plain is None:
        plain, gammas, beta = _layer_norm(editor, node, statistics, gammas, beta, like)
    for gamma in gammas:
        plain = editor.node("Mul", [plain, gamma], like=like, before=node).outputs[0]
    if beta is not None:
        plain = editor.node("Add", [plain, beta], like=like, before=node).outputs[0]
    editor.replace(node.outputs[0], plain)
    editor.remove([node])


def _layer_norm(
    editor: Editor, node: ir.Node, statistics: _Statistics, gammas: list[ir.Value], beta: ir.Value | None,
    like: list[ir.Node],
) -> tuple[ir.Value, list[ir.Value], ir.Value | None]:
    """The normalization with as much of scale and shift as fits inside, and what is left of them."""
    dtype, size = statistics.value.dtype, rank(statistics.value) or 0
    perm = (*(k for k in range(size) if k not in statistics.axes), *statistics.axes)
    scale = spread(editor, _moved(editor, gammas[0], perm), statistics.shape) if len(gammas) == 1 else None
    shift = None
    if beta is not None and (scale is not None or not gammas):
        shift = spread(editor, _moved(editor, beta, perm), statistics.shape)
    kind = np.float32 if dtype is None else dtype.numpy()
    made = editor.node(
        "LayerNormalization",
        [permute(editor, statistics.value, perm, like, node, like_shape=statistics.value),
         scale or editor.literal(np.ones(statistics.shape, kind), "scale"),
         shift or editor.literal(np.zeros(statistics.shape, kind), "bias")],
        like=like, before=node,
        attributes={"axis": size - len(statistics.axes), "epsilon": statistics.epsilon, "stash_type": 1},
    )
    result = permute(editor, made.outputs[0], inverted(perm), like, node, like_shape=statistics.value)
    return result, [] if scale is not None else gammas, None if shift is not None else beta


def _moved(editor: Editor, constant: ir.Value, perm: tuple[int, ...]) -> ir.Value:
    """A constant that broadcasts with a value, as it broadcasts with the transposed value."""
    shape = np.asarray(array(constant)).shape
    if list(perm) == sorted(perm) or len(shape) > len(perm):
        return constant
    full = np.array([1] * (len(perm) - len(shape)) + list(shape), np.int64)
    return editor.constant("Transpose", editor.constant("Reshape", constant, editor.literal(full)), perm=list(perm))


def spread(editor: Editor, constant: ir.Value, shape: tuple[int, ...]) -> ir.Value | None:
    """A constant over the last axes, in their full shape; None if it varies along any other axis."""
    content = array(constant)
    if content is None:
        return None
    lead = content.ndim - len(shape)
    if any(d != 1 for d in content.shape[: max(lead, 0)]):
        return None
    inner = content.shape[max(lead, 0) :]
    if any(d not in (1, s) for d, s in zip(reversed(inner), reversed(shape), strict=False)):
        return None
    if content.shape == shape:
        return constant
    value = constant
    if lead > 0:
        value = editor.constant("Reshape", value, editor.literal(np.array(inner, np.int64)))
    if inner != shape:
        value = editor.constant("Expand", value, editor.literal(np.array(shape, np.int64)))
    return value


class FoldIntoLayerNorm(ir.passes.InPlacePass):
    """``LayerNorm(x, g, b) * s + t = LayerNorm(x, g * s, b * s + t)`` along the normalized axes, bias explicit."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Fold."""
        editor = Editor(model.graph)
        for node in nodes_of(model.graph, "LayerNormalization"):
            self._explicit_bias(editor, node)
        for node in nodes_of(model.graph, "Mul", "Add"):
            pair = operands(node)
            norm = producer(pair[0], "LayerNormalization") if pair else None
            if pair is None or norm is None or not used_once(norm.outputs[0]) or not finite(pair[1]):
                continue
            self._fold(editor, node, norm, pair[1])
        return ir.passes.PassResult(model, editor.modified)

    @staticmethod
    def _explicit_bias(editor: Editor, node: ir.Node) -> None:
        scale = node.inputs[1]
        shape = dims(scale)
        if shape is None or scale is None or scale.dtype is None or None in shape:
            return
        if len(node.inputs) > 2 and node.inputs[2] is not None:
            return
        if len(node.inputs) < 3:
            node.resize_inputs(3)
        node.replace_input_with(2, editor.literal(np.zeros(shape, scale.dtype.numpy()), f"{scale.name}.bias"))  # type: ignore[arg-type]

    @staticmethod
    def _fold(editor: Editor, node: ir.Node, norm: ir.Node, constant: ir.Value) -> None:
        scale, bias = norm.inputs[1], norm.inputs[2] if len(norm.inputs) > 2 else None
        size, shape = rank(norm.inputs[0]), dims(scale)
        if scale is None or bias is None or not is_constant(scale) or not is_constant(bias) or shape is None:
            return
        if len(norm.outputs) > 1 and any(o.uses() or o.is_graph_output() for o in norm.outputs[1:]):
            return
        axis = norm.attributes.get_int("axis", -1)
        if size is None or len(array(constant).shape) > size or len(shape) != size - axis % size:  # type: ignore[union-attr]
            return
        vector = spread(editor, constant, tuple(int(d or 0) for d in shape))
        if vector is None or dims(bias) != shape:
            return
        if node.op_type == "Mul":
            scale = vector if _is_made_up_one(scale) else editor.constant("Mul", scale, vector)
        if not (node.op_type == "Mul" and is_made_up_zero(bias)):
            bias = vector if is_made_up_zero(bias) else editor.constant(node.op_type, bias, vector)
        folded = editor.node(
            "LayerNormalization", [norm.inputs[0], scale, bias], like=[norm, node], before=node,
            attributes=dict(norm.attributes),
        )
        editor.replace(node.outputs[0], folded.outputs[0])
        editor.remove([node, norm])


def _is_made_up_one(value: ir.Value) -> bool:
    return isinstance(origin_of(value), Literal) and bool(np.all(array(value) == 1))
