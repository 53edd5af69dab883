"""Activations that runtimes have in single precision only are written out for other elements."""

from __future__ import annotations

import numpy as np
import pytest
from forms import ops, parse, settle


@pytest.mark.parametrize(
    "op",
    ["Elu <alpha = 1.5>", "HardSwish", "LeakyRelu <alpha = 0.3>", "Mish", "Selu", "Softplus", "Softsign",
     "ThresholdedRelu <alpha = 0.7>"],
)
def test_activations_of_doubles_still_run(op: str) -> None:
    model = parse(f"(double[N,3,5] x) => (double[N,3,5] y) {{ y = {op} (x) }}", opset=18)
    assert op.split()[0] not in ops(settle(model))


@pytest.mark.parametrize("kind", ["double", "int64", "int32"])
def test_slopes_of_other_elements_than_floats_still_run(kind: str) -> None:
    slopes = np.array([2, 3, -1], kind.replace("double", "float64"))
    model = parse(f"({kind}[N,3] x) => ({kind}[N,3] y) {{ y = PRelu(x, s) }}", opset=18, s=slopes)
    assert "PRelu" not in ops(settle(model))


def test_relu_of_64_bit_integers_still_runs() -> None:
    assert ops(settle(parse("(int64[N,3] x) => (int64[N,3] y) { y = Relu(x) }", opset=18))) == ["Max"]


def test_chains_of_doubles_do_not_become_what_runtimes_lack() -> None:
    model = parse(
        """(double[N,3] x) => (double[N,3] y, double[N,3] z) {
            shifted = Add(x, three) gate = Clip(shifted, zero, six) gated = Mul(x, gate) y = Div(gated, six)
            e = Exp(x) f = Add(e, one) g = Log(f) h = Tanh(g) z = Mul(x, h) }""",
        zero=np.array(0.0), one=np.array(1.0), three=np.array(3.0), six=np.array(6.0),
    )
    assert {"HardSwish", "Mish"}.isdisjoint(ops(settle(model)))


def test_single_precision_keeps_them() -> None:
    assert ops(settle(parse("(float[N,3] x) => (float[N,3] y) { y = LeakyRelu(x) }", opset=18))) == ["LeakyRelu"]
