"""Functions of single elements, by op type."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx

from onnxfix.frameworks.keras_building.values import Unsupported, Value, elementwise

Attributes = dict[str, Any]

# ONNX op -> name in keras.ops, where they mean the same.
SAME = {
    "Abs": "absolute", "Acos": "arccos", "Acosh": "arccosh", "Add": "add", "And": "logical_and", "Asin": "arcsin",
    "Asinh": "arcsinh", "Atan": "arctan", "Atanh": "arctanh", "BitwiseAnd": "bitwise_and", "BitwiseNot":
    "bitwise_not", "BitwiseOr": "bitwise_or", "BitwiseXor": "bitwise_xor", "Ceil": "ceil", "Cos": "cos", "Cosh":
    "cosh", "Equal": "equal", "Erf": "erf", "Exp": "exp", "Floor": "floor", "Greater": "greater",
    "GreaterOrEqual": "greater_equal", "IsNaN": "isnan", "Less": "less", "LessOrEqual": "less_equal", "Log":
    "log", "Mul": "multiply", "Neg": "negative", "Not": "logical_not", "Or": "logical_or", "Reciprocal":
    "reciprocal", "Relu": "relu", "Round": "round", "Sigmoid": "sigmoid", "Sign": "sign", "Sin": "sin", "Sinh":
    "sinh", "Softplus": "softplus", "Softsign": "softsign", "Sqrt": "sqrt", "Sub": "subtract", "Tan": "tan",
    "Tanh": "tanh", "Where": "where", "Xor": "logical_xor",
}  # fmt: skip


def function(node: onnx.NodeProto, operands: Sequence[Value | None], attributes: Attributes) -> Value:
    """The result of an op of :data:`SAME` or :data:`OTHERS`."""
    import keras

    given = [operand for operand in operands if operand is not None]
    if node.op_type in SAME:
        return elementwise(getattr(keras.ops, SAME[node.op_type]), given)
    return OTHERS[node.op_type](given, attributes)


def _number(value: float, like: Value) -> np.ndarray:
    return np.asarray(value, np.dtype(like.dtype))


def _leaky_relu(operands: Sequence[Value], attributes: Attributes) -> Value:
    from keras import ops

    return elementwise(lambda x: ops.leaky_relu(x, attributes.get("alpha", 0.01)), operands)


def _gelu(operands: Sequence[Value], attributes: Attributes) -> Value:
    from keras import ops

    by_tanh = attributes.get("approximate", "none") == "tanh"
    return elementwise(lambda x: ops.gelu(x, approximate=by_tanh), operands)


def _elu(operands: Sequence[Value], attributes: Attributes) -> Value:
    from keras import ops

    return elementwise(lambda x: ops.elu(x, attributes.get("alpha", 1.0)), operands)


def _celu(operands: Sequence[Value], attributes: Attributes) -> Value:
    """``max(0, x) + min(0, a (exp(x / a) - 1))``, which is elu of slope one."""
    from keras import ops

    alpha = attributes.get("alpha", 1.0)
    return elementwise(lambda x: ops.multiply(ops.elu(ops.divide(x, alpha)), alpha)
                       if alpha > 0 else ops.relu(x), operands)


def _selu(operands: Sequence[Value], attributes: Attributes) -> Value:
    from keras import ops

    return elementwise(ops.selu, operands)


def _hard_sigmoid(operands: Sequence[Value], attributes: Attributes) -> Value:
    from keras import ops

    alpha, beta = attributes.get("alpha", 0.2), attributes.get("beta", 0.5)
    return elementwise(lambda x: ops.clip(ops.add(ops.multiply(x, alpha), beta), 0.0, 1.0), operands)


def _hard_swish(operands: Sequence[Value], attributes: Attributes) -> Value:
    from keras import ops

    return elementwise(
        lambda x: ops.multiply(x, ops.clip(ops.add(ops.multiply(x, 1 / 6), 0.5), 0.0, 1.0)), operands
    )


def _clip(operands: Sequence[Value], attributes: Attributes) -> Value:
    """Both bounds are constants here; others are spelled by Max and Min."""
    from keras import ops

    bounds = [value.constant for value in operands[1:]]
    if len(bounds) != 2 or any(bound is None for bound in bounds):
        raise Unsupported("has a bound that is computed or missing")
    low, high = (bound.reshape(()) for bound in bounds if bound is not None)
    return elementwise(lambda x: ops.minimum(ops.maximum(x, low), high), operands[:1])


def _divide(operands: Sequence[Value], attributes: Attributes) -> Value:
    """Whole numbers are divided towards zero."""
    from keras import ops

    if operands[0].dtype.startswith(("float", "bfloat")):
        return elementwise(ops.divide, operands)
    return elementwise(
        lambda a, b: ops.multiply(
            ops.multiply(ops.sign(a), ops.sign(b)), ops.floor_divide(ops.absolute(a), ops.absolute(b))
        ), operands,
    )


def _modulo(operands: Sequence[Value], attributes: Attributes) -> Value:
    """By floor; with ``fmod``, with the sign of the dividend."""
    from keras import ops

    if not attributes.get("fmod", 0):
        return elementwise(ops.mod, operands)
    return elementwise(
        lambda a, b: ops.multiply(ops.sign(a), ops.mod(ops.absolute(a), ops.absolute(b))), operands
    )


def _power(operands: Sequence[Value], attributes: Attributes) -> Value:
    from keras import ops

    kind = operands[0].dtype
    return elementwise(lambda a, b: ops.cast(ops.power(a, b), kind), operands)


def _folded(name: str) -> Callable[[Sequence[Value], Attributes], Value]:
    """Ops of any number of operands, taken two by two."""

    def rule(operands: Sequence[Value], attributes: Attributes) -> Value:
        import keras

        result = operands[0]
        for operand in operands[1:]:
            result = elementwise(getattr(keras.ops, name), (result, operand))
        return result

    return rule


def _mean(operands: Sequence[Value], attributes: Attributes) -> Value:
    from keras import ops

    total = _folded("add")(operands, attributes)
    return elementwise(lambda x: ops.divide(x, _number(len(operands), total)), (total,))


def _cast(operands: Sequence[Value], attributes: Attributes) -> Value:
    from keras import ops

    kind = onnx.helper.tensor_dtype_to_np_dtype(attributes["to"]).name
    return elementwise(lambda x: ops.cast(x, kind), operands[:1])


def _is_inf(operands: Sequence[Value], attributes: Attributes) -> Value:
    from keras import ops

    return elementwise(ops.isinf, operands)


OTHERS: dict[str, Callable[[Sequence[Value], Attributes], Value]] = {
    "Cast": _cast, "Celu": _celu, "Clip": _clip, "Div": _divide, "Elu": _elu, "Gelu": _gelu,
    "HardSigmoid": _hard_sigmoid, "HardSwish": _hard_swish, "IsInf": _is_inf, "LeakyRelu": _leaky_relu,
    "Max": _folded("maximum"), "Mean": _mean, "Min": _folded("minimum"), "Mod": _modulo, "Pow": _power,
    "Selu": _selu, "Sum": _folded("add"),
}  # fmt: skip
