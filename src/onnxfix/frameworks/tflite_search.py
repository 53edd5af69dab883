"""Which change of a TFLite operator does what is wanted of its lowered nodes: tried one by one, and seen.

Nothing here knows how an operator's options are lowered. An edit is proposed, the operator lowered by itself, and what
comes out compared with what is wanted; the edit that comes nearest is kept, until nothing differs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import permutations, product
from typing import Any

import numpy as np
import onnx

from onnxfix.frameworks.flatbuffer import schema
from onnxfix.frameworks.tflite_forms import SETTING, Distance, Form, Workbench, operands

_STEPS = 8
_FLAGS = 3
_LEVEL = 6
_NUMBERS = 24  # numbers in the wanted graph beyond this are weights, not settings

_FAMILIES = (
    ("ADD", "SUB", "MUL", "DIV", "MAXIMUM", "MINIMUM", "SQUARED_DIFFERENCE", "POW", "FLOOR_DIV", "FLOOR_MOD"),
    ("RELU", "RELU6", "RELU_N1_TO_1", "RELU_0_TO_1", "LEAKY_RELU", "ELU", "TANH", "LOGISTIC", "HARD_SWISH", "GELU",
     "ABS", "NEG", "EXP", "LOG", "SQRT", "RSQRT", "SQUARE", "SIN", "COS", "FLOOR", "CEIL", "ROUND", "SOFTMAX",
     "LOG_SOFTMAX"),
    ("MAX_POOL_2D", "AVERAGE_POOL_2D", "L2_POOL_2D"),
    ("MEAN", "SUM", "REDUCE_MAX", "REDUCE_MIN", "REDUCE_PROD"),
    ("RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR"),
    ("PAD", "MIRROR_PAD"),
    ("EQUAL", "NOT_EQUAL", "LESS", "LESS_EQUAL", "GREATER", "GREATER_EQUAL"),
    ("LOGICAL_AND", "LOGICAL_OR"),
    ("ARG_MAX", "ARG_MIN"),
)  # fmt: skip
"""Operators that take the same operands: a repair may put one in the place of another."""

_OPTIONS = {
    "RELU": None, "RELU6": None, "RELU_N1_TO_1": None, "RELU_0_TO_1": None, "ELU": None, "TANH": None,
    "LOGISTIC": None, "LOG": None, "SQRT": None, "RSQRT": None, "SIN": None, "FLOOR": None, "CEIL": None,
    "ROUND": None, "MEAN": "ReducerOptionsT", "SUM": "ReducerOptionsT", "REDUCE_MAX": "ReducerOptionsT",
    "REDUCE_MIN": "ReducerOptionsT", "REDUCE_PROD": "ReducerOptionsT", "MAX_POOL_2D": "Pool2DOptionsT",
    "AVERAGE_POOL_2D": "Pool2DOptionsT", "L2_POOL_2D": "Pool2DOptionsT", "MAXIMUM": "MaximumMinimumOptionsT",
    "MINIMUM": "MaximumMinimumOptionsT", "MIRROR_PAD": "MirrorPadOptionsT", "HARD_SWISH": "HardSwishOptionsT",
}  # fmt: skip
"""Options whose type does not follow from the operator's name; the others are ``<Name>OptionsT``."""

_BIASED = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV")

_CHOICES = {
    "padding": ("Padding",), "fusedActivationFunction": ("ActivationFunctionType",), "mode": ("MirrorPadMode",),
}  # fmt: skip


def found(
    workbench: Workbench, form: Form, wanted: onnx.ModelProto, outputs: Sequence[str], position: int
) -> Form | None:
    """The form of an operator that lowers to what is wanted.

    Args:
        workbench: Lowers forms.
        form: The operator as it is.
        wanted: The nodes that it should lower to, as a graph of their own.
        outputs: The values that it makes.
        position: Which operator of the file it is.

    Returns:
        The form, or None where none of the edits that lead nearer reaches it.
    """

    def far(candidate: Form) -> float:
        lowered = workbench.lowered(candidate, outputs, position)
        return float("inf") if lowered is None else Distance(lowered, wanted).total()

    best, distance = form, far(form)
    values = [value.name for value in wanted.graph.input]
    level: list[Form] = []
    for _ in range(_STEPS):
        if not distance:
            return best
        nearer = None
        level = []
        for candidate in candidates(best, wanted, values):
            reached = far(candidate)
            if reached == distance:
                level.append(candidate)
            elif reached < distance:
                nearer, distance = candidate, reached
                level = []
            if not distance:
                return candidate
        if nearer is None:
            break
        best = nearer
    # Some spellings differ though they mean the same, such as a setting that another one makes void.
    near = (best, *_without_bias(best), *level[:_LEVEL])
    return next((f for f in near if _means(workbench.lowered(f, outputs, position), wanted)), None)


def _means(lowered: onnx.ModelProto | None, wanted: onnx.ModelProto) -> bool:
    """Whether two graphs are spelled differently, but the same."""
    from onnxfix.canonical.identity import is_isomorphic
    from onnxfix.model import Model

    if lowered is None:
        return False
    return is_isomorphic(Model(proto=lowered, native=lowered), Model(proto=wanted, native=wanted))


def candidates(form: Form, wanted: onnx.ModelProto, values: Sequence[str]) -> Iterator[Form]:
    """The operator with one thing changed; numbers are taken from the wanted nodes."""
    known = list(operands(wanted.graph))
    settings = [a for a in known if a.size <= SETTING]
    integers = sorted({int(n) for a in settings if a.dtype.kind in "iu" for n in a.flat}, key=abs)[:_NUMBERS]
    floats = sorted({float(n) for a in settings if a.dtype.kind == "f" for n in a.flat}, key=abs)[:_NUMBERS]
    yield from _rewired(form, values)
    yield from _with_bias(form, known)
    yield from _with_constants(form, known, integers)
    yield from _with_options(form, integers, floats)
    yield from _exchanged(form)


def _rewired(form: Form, values: Sequence[str]) -> Iterator[Form]:
    """Operands in another order, or other values for them."""
    if len(form.inputs) <= 3:
        for order in permutations(form.inputs):
            if order != form.inputs:
                yield form.with_inputs(order)
    for slot, now in enumerate(form.inputs):
        for value in values:
            if value != now:
                yield form.with_inputs((*form.inputs[:slot], value, *form.inputs[slot + 1 :]))


def _with_bias(form: Form, known: Sequence[np.ndarray]) -> Iterator[Form]:
    """A layer that has no bias with one."""
    if form.kind not in _BIASED:
        return
    slot = 3 if form.kind == "TRANSPOSE_CONV" else 2
    if len(form.inputs) > slot and form.inputs[slot]:
        return
    weight = form.constants.get(form.inputs[1])
    if weight is None:
        return
    name = f"{form.inputs[1]}/bias"
    for value in known:
        if value.ndim == 1 and value.dtype == weight.dtype and value.dtype.kind == "f":
            yield form.with_constant(name, value).with_inputs((*form.inputs[:slot], name))


def _without_bias(form: Form) -> Iterator[Form]:
    """A layer whose bias is zero: LiteRT's kernels want one."""
    bias = form.inputs[-1] if form.inputs else ""
    if form.kind in _BIASED and bias in form.constants and form.constants[bias].ndim == 1:
        yield form.with_constant(bias, np.zeros_like(form.constants[bias]))


def _with_constants(form: Form, known: Sequence[np.ndarray], integers: Sequence[int]) -> Iterator[Form]:
    """Other constants for operands: whole ones of the wanted graph first, then number by number."""
    for name, present in form.constants.items():
        for value in known:
            if value.size == present.size and value.dtype.kind == present.dtype.kind:
                fitting = value.astype(present.dtype).reshape(present.shape)
                if not np.array_equal(fitting, present):
                    yield form.with_constant(name, fitting)
            elif value.dtype.kind == present.dtype.kind and value.ndim == present.ndim == 1 and value.size <= SETTING:
                yield form.with_constant(name, value.astype(present.dtype))
    for name, present in form.constants.items():
        if present.size > SETTING // 4 or present.dtype.kind != "i":
            continue
        for index in range(present.size):
            for number in integers:
                if number != present.flat[index]:
                    changed = present.copy()
                    changed.flat[index] = number
                    yield form.with_constant(name, changed)


def _with_options(form: Form, integers: Sequence[int], floats: Sequence[float]) -> Iterator[Form]:
    if form.options is None:
        return
    module = schema()
    for name, present in vars(form.options).items():
        if name in _CHOICES and isinstance(present, int):
            numbers = vars(getattr(module, _CHOICES[name][0])).values()
            values: Sequence[Any] = [n for n in numbers if isinstance(n, int)]
        elif isinstance(present, bool):
            values = [not present]
        elif isinstance(present, int):
            values = sorted({*integers, -1, 0, 1, 2}, key=abs)
        elif isinstance(present, float):
            values = floats
        elif isinstance(present, np.ndarray):
            values = []  # baked shapes that an operand repeats
        else:
            values = []
        for value in values:
            if value != present:
                yield form.with_option(name, value)
    flags = [name for name, present in vars(form.options).items() if isinstance(present, bool)]
    if 1 < len(flags) <= _FLAGS:  # some go only together, such as the two of a resize
        for chosen in product((False, True), repeat=len(flags)):
            flipped = form
            for name, value in zip(flags, chosen, strict=True):
                flipped = flipped.with_option(name, value)
            yield flipped


def _exchanged(form: Form) -> Iterator[Form]:
    for family in _FAMILIES:
        if form.kind not in family:
            continue
        for kind in family:
            if kind != form.kind:
                options = options_of(kind)
                for name, value in vars(form.options).items() if form.options is not None else ():
                    if options is not None and hasattr(options, name):
                        setattr(options, name, value)
                yield Form(kind, options, form.inputs, form.constants)
    for value in form.inputs:
        if form.kind != "QUANTIZE" and value and value not in form.constants:
            yield Form("QUANTIZE", None, (value,))  # nothing is left of it but another scale


def options_of(kind: str) -> Any:
    """Options of an operator with every default, or None where it has none."""
    module = schema()
    name = _OPTIONS.get(kind, "".join(part.capitalize() for part in kind.split("_")) + "OptionsT")
    made = getattr(module, name or "", None)
    return None if made is None else made()
