"""Functions of single elements, and small reductions, by simpler ones."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onnxfix.canonical.legalization.respelling import Rule, Speller
from onnxfix.canonical.queries import dims, is_float, rank
from onnxfix.canonical.rewriting import array, attribute

# The numbers that define Selu; PyTorch has no others.
_SELU_ALPHA, _SELU_GAMMA = 1.67326319217681884765625, 1.05070102214813232421875


def number(spell: Speller, value: float, like: ir.Value | None) -> ir.Value:
    """A scalar of the element type of ``like``."""
    dtype = np.float32 if like is None or like.dtype is None else like.dtype.numpy()
    return spell.editor.literal(np.asarray(value, dtype=dtype), "number")


def _sinh(spell: Speller) -> ir.Value:
    """``sinh(x) = (exp(x) - exp(-x)) / 2``."""
    x = spell.input(0)
    return spell("Mul", spell("Sub", spell("Exp", x), spell("Exp", spell("Neg", x))), number(spell, 0.5, x))


def _cosh(spell: Speller) -> ir.Value:
    """``cosh(x) = (exp(x) + exp(-x)) / 2``."""
    x = spell.input(0)
    return spell("Mul", spell("Add", spell("Exp", x), spell("Exp", spell("Neg", x))), number(spell, 0.5, x))


def _asinh(spell: Speller) -> ir.Value:
    """``asinh(x) = sign(x) * log(|x| + sqrt(x^2 + 1))``, by the absolute value so that nothing cancels."""
    x = spell.input(0)
    size = spell("Abs", x)
    root = spell("Sqrt", spell("Add", spell("Mul", x, x), number(spell, 1, x)))
    return spell("Mul", spell("Sign", x), spell("Log", spell("Add", size, root)))


def _acosh(spell: Speller) -> ir.Value:
    """``acosh(x) = log(x + sqrt(x^2 - 1))``."""
    x = spell.input(0)
    root = spell("Sqrt", spell("Sub", spell("Mul", x, x), number(spell, 1, x)))
    return spell("Log", spell("Add", x, root))


def _atanh(spell: Speller) -> ir.Value:
    """``atanh(x) = log((1 + x) / (1 - x)) / 2``."""
    x = spell.input(0)
    one = number(spell, 1, x)
    return spell("Mul", spell("Log", spell("Div", spell("Add", one, x), spell("Sub", one, x))), number(spell, 0.5, x))


def _selu(spell: Speller) -> ir.Value | None:
    """``selu(x) = gamma * elu(x, alpha)`` where alpha and gamma are not the usual ones."""
    alpha, gamma = attribute(spell.origin, "alpha", _SELU_ALPHA), attribute(spell.origin, "gamma", _SELU_GAMMA)
    if np.isclose(alpha, _SELU_ALPHA) and np.isclose(gamma, _SELU_GAMMA):
        return None
    x = spell.input(0)
    return spell("Mul", spell("Elu", x, alpha=alpha), number(spell, gamma, x))


def _prelu(spell: Speller) -> ir.Value:
    """``prelu(x, s) = where(x < 0, s * x, x)``, with the broadcasting of ONNX instead of PyTorch's by channel."""
    x, slope = spell.input(0), spell.input(1)
    return spell("Where", spell("Less", x, number(spell, 0, x)), spell("Mul", x, slope), x)


def _modulo(spell: Speller) -> ir.Value | None:
    """``fmod(x, y) = sign(x) * fmod(|x|, |y|)``: of positive numbers fmod and the modulo by floor are the same."""
    if not attribute(spell.origin, "fmod", 0) or spell.origin.meta.get("onnxfix.positive"):
        return None
    x, y = spell.input(0), spell.input(1)
    remainder = spell("Mod", spell("Abs", x), spell("Abs", y), fmod=1)
    producer = remainder.producer()
    if producer is not None:
        producer.meta["onnxfix.positive"] = True
    return spell("Mul", spell("Sign", x), remainder)


def _size(spell: Speller) -> ir.Value:
    """``size(x) = prod(shape(x))``."""
    return spell("ReduceProd", spell("Shape", spell.input(0)), keepdims=0)


def _one_hot(spell: Speller) -> ir.Value | None:
    """``one_hot(i, n, [off, on]) = where(i == arange(n), on, off)``, negative indices counted from the end."""
    indices, depth, values = (spell.input(slot) for slot in range(3))
    size, count = rank(indices), array(depth)
    if size is None or count is None or indices is None or values is None:
        return None
    total = int(count.reshape(-1)[0])
    axis = attribute(spell.origin, "axis", -1) % (size + 1)
    whole = spell("Cast", indices, to=int(ir.DataType.INT64))
    zero, length = (spell.editor.literal(np.asarray(n, np.int64), "number") for n in (0, total))
    wrapped = spell("Where", spell("Less", whole, zero), spell("Add", whole, length), whole)
    spread = spell("Unsqueeze", wrapped, spell.editor.literal(np.array([axis], np.int64), "axes"))
    classes = np.arange(total).reshape([total if k == axis else 1 for k in range(size + 1)])
    hit = spell("Equal", spread, spell.editor.literal(classes, "classes"))
    off, on = spell.many("Split", values, axis=0, num_outputs=2, count=2)
    return spell("Where", hit, on, off)


def _trilu(spell: Speller) -> ir.Value | None:
    """``trilu(x, k) = where(mask, x, 0)`` with a constant mask, where the matrices' size is known."""
    x, offset = spell.input(0), spell.input(1)
    shape, diagonal = dims(x), 0 if offset is None else array(offset)
    if x is None or shape is None or diagonal is None or shape[-1] is None or shape[-2] is None:
        return None
    triangle = np.triu if attribute(spell.origin, "upper", 1) else np.tril
    ones = np.ones((shape[-2], shape[-1]), dtype=np.bool_)
    mask = triangle(ones, int(np.asarray(diagonal).reshape(-1)[0]))
    return spell("Where", spell.editor.literal(mask, "mask"), x, number(spell, 0, x))


def _hardmax(spell: Speller) -> ir.Value | None:
    """``hardmax(x) = one_hot(argmax(x))``."""
    x = spell.input(0)
    shape = dims(x)
    axis = attribute(spell.origin, "axis", -1)
    if x is None or x.dtype is None or shape is None or shape[axis] is None:
        return None
    place = spell("ArgMax", x, axis=axis, keepdims=1)
    length = shape[axis] or 0
    classes = np.arange(length).reshape([length if k == axis % len(shape) else 1 for k in range(len(shape))])
    return spell("Cast", spell("Equal", place, spell.editor.literal(classes, "classes")), to=int(x.dtype))


def _global_max(spell: Speller) -> ir.Value | None:
    """``GlobalMaxPool(x) = ReduceMax(x)`` over the spatial axes."""
    size = rank(spell.input(0))
    if size is None:
        return None
    axes = spell.editor.literal(np.arange(2, size), "axes")
    return spell("ReduceMax", spell.input(0), axes, keepdims=1)


def _lp_normalization(spell: Speller) -> ir.Value | None:
    """``x / ||x||_p``, and 0 where the norm is 0."""
    x = spell.input(0)
    order = attribute(spell.origin, "p", 2)
    if order not in (1, 2):
        return None
    axes = spell.editor.literal(np.array([attribute(spell.origin, "axis", -1)], np.int64), "axes")
    norm = spell(f"ReduceL{order}", x, axes, keepdims=1)
    zero = number(spell, 0, x)
    safe = spell("Where", spell("Equal", norm, zero), number(spell, 1, x), norm)
    return spell("Div", x, safe)


def _batch_norm(spell: Speller) -> ir.Value | None:
    """``y = x * s + t`` with ``s = scale / sqrt(var + eps)``, where the statistics are not all constants."""
    x, scale, shift, mean, variance = (spell.input(slot) for slot in range(5))
    size = rank(x)
    if size is None or all(array(v) is not None for v in (scale, shift, mean, variance)):
        return None
    epsilon = number(spell, attribute(spell.origin, "epsilon", 1e-5), x)
    factor = spell("Div", scale, spell("Sqrt", spell("Add", variance, epsilon)))
    offset = spell("Sub", shift, spell("Mul", mean, factor))
    axes = spell.editor.literal(np.arange(1, size - 1), "axes")
    columns = [spell("Unsqueeze", v, axes) if size > 2 else v for v in (factor, offset)]
    return spell("Add", spell("Mul", x, columns[0]), columns[1])


def _layer_norm(spell: Speller) -> Sequence[ir.Value] | None:
    """Spelled out where the mean or the deviation is an output too."""
    node, x = spell.origin, spell.input(0)
    size = rank(x)
    if size is None or not any(output.uses() or output.is_graph_output() for output in node.outputs[1:]):
        return None
    axes = spell.editor.literal(np.arange(attribute(node, "axis", -1) % size, size), "axes")
    mean = spell("ReduceMean", x, axes, keepdims=1)
    centred = spell("Sub", x, mean)
    variance = spell("ReduceMean", spell("Mul", centred, centred), axes, keepdims=1)
    root = spell("Sqrt", spell("Add", variance, number(spell, attribute(node, "epsilon", 1e-5), x)))
    inverse = spell("Reciprocal", root)
    result = spell("Mul", spell("Mul", centred, inverse), spell.input(1))
    return (result if spell.input(2) is None else spell("Add", result, spell.input(2))), mean, inverse


def _dropout(spell: Speller) -> None:
    """A seed says nothing outside training."""
    spell.editor.modified = spell.origin.attributes.pop("seed", None) is not None


def _power(spell: Speller) -> ir.Value | None:
    """The result has the type of the base, also where the exponent has another."""
    x, exponent = spell.input(0), spell.input(1)
    if x is None or exponent is None or None in (x.dtype, exponent.dtype) or x.dtype == exponent.dtype:
        return None
    if is_float(x):
        return spell("Pow", x, spell("Cast", exponent, to=int(x.dtype or 1)))
    wide = spell("Pow", spell("Cast", x, to=int(ir.DataType.DOUBLE)), spell("Cast", exponent, to=11))
    return spell("Cast", wide, to=int(x.dtype or 1))


ELEMENTWISE: dict[str, Rule] = {
    "Acosh": _acosh,
    "Asinh": _asinh,
    "Atanh": _atanh,
    "BatchNormalization": _batch_norm,
    "Cosh": _cosh,
    "Dropout": _dropout,
    "GlobalMaxPool": _global_max,
    "Hardmax": _hardmax,
    "LayerNormalization": _layer_norm,
    "LpNormalization": _lp_normalization,
    "Mod": _modulo,
    "OneHot": _one_hot,
    "PRelu": _prelu,
    "Pow": _power,
    "Selu": _selu,
    "Sinh": _sinh,
    "Size": _size,
    "Trilu": _trilu,
}
