"""Origins: a constant knows how it was made, and which parameter would make it another one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxfix.canonical.origins import (
    Apply,
    Literal,
    NotInvertible,
    Parameter,
    apply,
    describe,
    evaluate,
    invert,
    parameters_of,
)
from onnxfix.errors import CanonicalizationError

X = Parameter("x")


def op(name, *operands, output=0, **attributes):
    return Apply(name, tuple(Literal(o) if isinstance(o, np.ndarray) else o for o in operands), attributes, output)


def ints(*values):
    return np.array(values, np.int64)


class Growing:
    """An expression over ``x`` that grows step by step, with what it is for the old and for the new ``x``."""

    def __init__(self, draw, rng):
        self.draw, self.rng = draw, rng
        shape = tuple(draw(st.lists(st.integers(1, 4), min_size=1, max_size=3)))
        self.parameters = {"x": self.signed(shape)}
        self.origin, self.old, self.new = X, self.parameters["x"], self.signed(shape)
        self.wanted_x = self.new

    def signed(self, shape):
        """Magnitudes 0.5 to 2: nothing to divide by is small."""
        return self.rng.choice([-1.0, 1.0], shape) * self.rng.uniform(0.5, 2.0, shape)

    def wrap(self, name, *, before=(), after=(), **attributes):
        operands = [Literal(v) if isinstance(v, np.ndarray) else v for v in before]
        trailing = [Literal(v) if isinstance(v, np.ndarray) else v for v in after]
        fixed = [[evaluate(o, self.parameters) for o in side] for side in (operands, trailing)]
        self.old = apply(name, [*fixed[0], self.old, *fixed[1]], attributes)[0]
        self.new = apply(name, [*fixed[0], self.new, *fixed[1]], attributes)[0]
        self.origin = Apply(name, (*operands, self.origin, *trailing), attributes)

    def other(self):
        """Another operand: of the same shape, smaller, or such that it repeats ``x``."""
        shape = list(self.old.shape)
        kind = self.draw(st.sampled_from(["same", "smaller", "larger"]))
        if kind == "smaller":
            shape = [1 if self.draw(st.booleans()) else d for d in shape][self.draw(st.integers(0, len(shape))) :]
        if kind == "larger":
            shape = [self.draw(st.integers(1, 3)), *(3 if d == 1 else d for d in shape)]
        name = f"other{len(self.parameters)}"
        self.parameters[name] = self.signed(tuple(shape))
        return Parameter(name)

    def arithmetic(self):
        name = self.draw(st.sampled_from(["Add", "Sub", "Mul", "Div"]))
        first = self.draw(st.booleans())
        other = self.other()
        if name == "Div" and first and not self.invertible():
            return
        self.wrap(name, before=[other] if first else [], after=[] if first else [other])

    def invertible(self):
        return min(np.abs(self.old).min(), np.abs(self.new).min()) > 0.05

    def unary(self):
        name = self.draw(st.sampled_from(["Neg", "Reciprocal", "Sqrt", "Identity"]))
        if name == "Reciprocal" and not self.invertible():
            return
        if name == "Sqrt" and min(self.old.min(), self.new.min()) <= 0:
            return
        self.wrap(name)

    def reorder(self):
        rank = self.old.ndim
        match self.draw(st.sampled_from(["transpose", "flatten", "unsqueeze", "squeeze"])):
            case "transpose":
                self.wrap("Transpose", perm=list(self.draw(st.permutations(range(rank)))))
            case "flatten":
                self.wrap("Reshape", after=[ints(-1)])
            case "unsqueeze" if rank < 4:
                self.wrap("Unsqueeze", after=[ints(self.draw(st.integers(0, rank)))])
            case "squeeze" if rank > 1 and 1 in self.old.shape:
                self.wrap("Squeeze", after=[ints(self.old.shape.index(1))])

    def concat(self):
        axis = self.draw(st.integers(0, self.old.ndim - 1))
        beside = self.signed(tuple(2 if k == axis else d for k, d in enumerate(self.old.shape)))
        first = self.draw(st.booleans())
        self.wrap("Concat", before=[beside] if first else [], after=[] if first else [beside], axis=axis)


@st.composite
def expressions(draw):
    growing = Growing(draw, np.random.default_rng(draw(st.integers(0, 2**32 - 1))))
    steps = [growing.arithmetic, growing.unary, growing.reorder, growing.concat]
    for step in draw(st.lists(st.sampled_from(steps), min_size=1, max_size=6)):
        if growing.old.ndim <= 4 and growing.old.size <= 2000:
            step()
    return growing


@given(expressions())
@settings(max_examples=150, deadline=None)
def test_inverting_an_expression_finds_the_parameter_that_it_was_made_with(growing):
    # All in double precision: six steps on numbers between 0.05 and some hundred keep ten digits.
    found = invert(growing.origin, "x", growing.new, growing.parameters)
    np.testing.assert_allclose(found, growing.wanted_x, rtol=1e-8, atol=1e-8)
    again = evaluate(growing.origin, {**growing.parameters, "x": found})
    np.testing.assert_allclose(again, growing.new, rtol=1e-8, atol=1e-8)


@given(expressions())
@settings(max_examples=50, deadline=None)
def test_inverting_what_an_expression_is_changes_nothing(growing):
    assert parameters_of(growing.origin)[0] == "x" or "x" in parameters_of(growing.origin)
    np.testing.assert_array_equal(evaluate(growing.origin, growing.parameters), growing.old)
    found = invert(growing.origin, "x", growing.old, growing.parameters)
    np.testing.assert_allclose(found, growing.parameters["x"], rtol=1e-8, atol=1e-8)


FOLDED = {
    "kernel": (3, 3, 2, 4), "bias": (4,), "gamma": (4,), "beta": (4,), "mean": (4,), "variance": (4,),
}


def folded():
    """A Keras convolution with batch norm, folded: weight and bias."""
    root = op("Sqrt", op("Add", Parameter("variance"), np.array(1e-3, np.float32)))
    factor = op("Div", Parameter("gamma"), root)
    weight = op("Mul", op("Transpose", Parameter("kernel"), perm=[3, 2, 0, 1]), op("Reshape", factor, ints(-1, 1, 1, 1)))
    shift = op("Mul", op("Sub", Parameter("bias"), Parameter("mean")), factor)
    return weight, op("Add", shift, Parameter("beta"))


def folded_parameters(seed):
    rng = np.random.default_rng(seed)
    return {
        name: rng.uniform(0.5, 1.5, shape).astype(np.float32) if name in ("gamma", "variance")
        else rng.standard_normal(shape).astype(np.float32)
        for name, shape in FOLDED.items()
    }


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("which", "name"),
    [(0, "kernel"), (0, "gamma"), (0, "variance"), (1, "bias"), (1, "gamma"), (1, "beta"), (1, "mean"), (1, "variance")],
)
def test_each_parameter_behind_a_folded_batch_norm_can_be_solved_for(which, name, seed):
    origin = folded()[which]
    parameters, other = folded_parameters(seed), folded_parameters(seed + 100)
    wanted = evaluate(origin, {**parameters, name: other[name]})
    found = invert(origin, name, wanted, parameters)
    assert found.dtype == np.float32
    assert found.shape == FOLDED[name]
    # A float32 rounding in each of six ops, and what subtracting the other terms takes: 20 roundings of the range.
    np.testing.assert_allclose(found, other[name], atol=20 * 2.0**-24 * np.abs(wanted).max() / 0.4, rtol=2e-5)


def test_parameters_are_listed_once_in_order_of_appearance():
    weight, bias = folded()
    assert parameters_of(weight) == ("kernel", "gamma", "variance")
    assert parameters_of(bias) == ("bias", "mean", "gamma", "variance", "beta")
    assert parameters_of(op("Add", X, X)) == ("x",)
    assert parameters_of(Literal(np.ones(2))) == ()


def test_an_origin_reads_as_a_formula():
    assert describe(folded()[0]) == (
        "Mul(Transpose(kernel), Reshape(Div(gamma, Sqrt(Add(variance, 0.001))), [-1  1  1  1]))"
    )


def test_what_is_not_picked_keeps_its_value():
    current = {"x": np.arange(6, dtype=np.float32)}
    sliced = op("Slice", X, ints(1), ints(3))
    np.testing.assert_array_equal(invert(sliced, "x", np.array([8, 9], np.float32), current), [0, 8, 9, 3, 4, 5])
    gathered = op("Gather", X, ints(4, 0), axis=0)
    np.testing.assert_array_equal(invert(gathered, "x", np.array([8, 9], np.float32), current), [9, 1, 2, 3, 8, 5])
    half = op("Split", X, ints(2, 4), axis=0, output=1)
    np.testing.assert_array_equal(invert(half, "x", np.full(4, 7, np.float32), current), [0, 1, 7, 7, 7, 7])


def test_a_value_behind_a_scale_of_zero_keeps_its_value():
    current = {"x": np.array([3.0, 5.0], np.float32)}
    scaled = op("Mul", X, np.array([0.0, 2.0], np.float32))
    np.testing.assert_array_equal(invert(scaled, "x", np.array([0.0, 8.0], np.float32), current), [3.0, 4.0])


def test_a_cast_parameter_is_given_back_in_its_own_type():
    current = {"x": np.array([1.0, 2.0], np.float16)}
    found = invert(op("Cast", X, to=1), "x", np.array([0.5, 0.25], np.float32), current)
    assert found.dtype == np.float16
    np.testing.assert_array_equal(found, [0.5, 0.25])


ONES = np.ones((2, 3), np.float32)
REFUSALS = {
    "a scale of zero": (op("Mul", X, np.array([[1.0], [0.0]], np.float32)), ONES, (2, 3), "scale is zero"),
    "a divisor that would be infinite": (op("Div", ONES, X), np.zeros((2, 3), np.float32), (2, 3), "scale is zero"),
    "copies that disagree": (
        op("Add", X, ONES), np.arange(6, dtype=np.float32).reshape(2, 3), (3,), "differ where the parameter is broadcast"
    ),
    "factors that disagree": (
        op("Mul", X, ONES), np.arange(6, dtype=np.float32).reshape(2, 3), (3,), "differ where the parameter is broadcast"
    ),
    "expanded copies that disagree": (
        op("Expand", X, ints(2, 3)), np.arange(6, dtype=np.float32).reshape(2, 3), (3,), "is broadcast"
    ),
    "a negative root": (op("Sqrt", X), -ONES, (2, 3), "cannot be negative"),
    "an element picked twice": (op("Gather", X, ints(1, 1), axis=0), ONES, (2, 3), "picks an element twice"),
    "an op without an inverse": (op("Exp", X), ONES, (2, 3), "Exp has no inverse"),
    "a parameter that occurs twice": (op("Mul", X, X), ONES, (2, 3), "occurs 2 times"),
    "a parameter that does not occur": (op("Neg", ONES), -ONES, (2, 3), "does not occur|occurs 0 times"),
    "another size": (X, np.ones(5, np.float32), (2, 3), "x has 6 values, 5 are wanted"),
    "a shape that does not fit": (op("Reshape", X, ints(3, 2)), np.ones(5, np.float32), (2, 3), r"shape \[5\]"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_has_no_inverse_is_refused_with_a_reason(case):
    origin, wanted, shape, reason = REFUSALS[case]
    parameters = {"x": np.full(shape, 2.0, np.float32)}
    with pytest.raises(NotInvertible, match=reason):
        invert(origin, "x", wanted, parameters)


def test_an_index_cannot_be_solved_for():
    parameters = {"x": ints(0, 2)}
    with pytest.raises(NotInvertible, match="index operand of Gather"):
        invert(op("Gather", np.arange(3.0), X, axis=0), "x", np.array([1.0, 2.0]), parameters)
    with pytest.raises(NotInvertible, match="shape operand of Reshape"):
        invert(op("Reshape", np.arange(2.0), X), "x", np.array([1.0, 2.0]), {"x": ints(2)})


@pytest.mark.parametrize(
    ("name", "operands"),
    [
        ("MatMul", (np.ones((2, 3)), np.ones((2, 3)))),
        ("Reshape", (np.ones(6), np.array([4, 2]))),
        ("Add", (np.ones(6), np.ones(5))),
    ],
)
def test_an_op_that_fails_on_its_operands_says_so(name, operands):
    with pytest.raises(CanonicalizationError, match=f"cannot evaluate {name}"):
        evaluate(op(name, *operands), {})
