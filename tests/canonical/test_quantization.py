"""Quantized graphs end in one spelling, and not one integer changes."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from forms import constant, ints, ops, parse, settle

from onnxfix.canonical import canonicalize, normal_form
from onnxfix.runtime.session import Session

SCALE = np.array(0.05, np.float32)
HEAD = "(float[N,3,4] x) => (float[N,3,4] y)"


def written(model: onnx.ModelProto) -> bytes:
    return canonicalize(model).SerializeToString(deterministic=True)


SPELLINGS = {
    "one element": ("q = QuantizeLinear(x, s) y = DequantizeLinear(q, s)", {"s": SCALE.reshape(1)}),
    "an axis": ("q = QuantizeLinear <axis = -1> (x, s) y = DequantizeLinear <axis = 0> (q, s)", {"s": SCALE}),
    "zeros": ("q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z)", {"s": SCALE, "z": np.array([0], np.uint8)}),
    "a type": ("q = QuantizeLinear <output_dtype = 2> (x, s) y = DequantizeLinear(q, s)", {"s": SCALE}),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_spellings_of_one_quantizer_are_one(spelling: str) -> None:
    plain = parse(f"{HEAD} {{ q = QuantizeLinear(x, s) y = DequantizeLinear(q, s) }}", s=SCALE)
    body, constants = SPELLINGS[spelling]
    model = parse(f"{HEAD} {{ {body} }}", **constants)
    settle(model)
    assert written(model) == written(plain)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.uint16])
@pytest.mark.parametrize("scale", [1e-20, 0.1, 1 / 3, 0.0078431, 77.7])
def test_quantizing_again_changes_no_integer(dtype: type, scale: float) -> None:
    zero = np.array(3, dtype)
    model = parse(
        "(float[N] x) => (float[N] y) { q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z)"
        " r = QuantizeLinear(d, s, z) y = DequantizeLinear(r, s, z) }", s=np.array(scale, np.float32), z=zero,
    )
    every = np.arange(np.iinfo(dtype).min, np.iinfo(dtype).max + 1, dtype=np.float32)
    feeds = {"x": (every - 3) * np.float32(scale)}
    form = normal_form(model)
    assert ops(form) == ["QuantizeLinear", "DequantizeLinear"]
    np.testing.assert_array_equal(Session(form.proto).run(feeds)["y"], Session(model).run(feeds)["y"])


def test_another_scale_is_another_rounding() -> None:
    model = parse(
        f"{HEAD} {{ q = QuantizeLinear(x, s) d = DequantizeLinear(q, s) r = QuantizeLinear(d, t) y = DequantizeLinear(r, t) }}",
        s=SCALE, t=SCALE * np.float32(1.5),
    )
    assert len(ops(settle(model))) == 4


def test_moving_a_dequantized_kernel_moves_its_integers() -> None:
    kernel = np.arange(-27, 27, dtype=np.int8).reshape(1, 3, 3, 6)
    model = parse(
        """(float[N,3,8,8] x) => (float[N,6,6,6] y) {
            w = DequantizeLinear <axis = 3> (k, s) r = Reshape(w, t) v = Transpose <perm = [3, 1, 0, 2]> (r)
            y = Conv <group = 3> (x, v) }""",
        k=kernel, s=np.linspace(0.01, 0.06, 6, dtype=np.float32), t=ints(3, 1, 3, 6),
    )
    form = settle(model)
    assert ops(form) == ["DequantizeLinear", "Conv"]
    moved = constant(form, "DequantizeLinear", 0)
    np.testing.assert_array_equal(moved, kernel.reshape(3, 1, 3, 6).transpose(3, 1, 0, 2))


def test_a_kernel_whose_quantized_axis_is_split_stays() -> None:
    model = parse(
        "(float[N,3] x) => (float[N,2] y) { w = DequantizeLinear <axis = 0> (k, s) r = Reshape(w, t) y = MatMul(x, r) }",
        k=np.arange(6, dtype=np.int8), s=np.linspace(0.01, 0.06, 6, dtype=np.float32), t=ints(3, 2),
    )
    assert "Reshape" in ops(settle(model))


def test_one_dequantizer_for_each_reader_is_one() -> None:
    model = parse(
        f"{HEAD} {{ q = QuantizeLinear(x, s) a = DequantizeLinear(q, s) b = DequantizeLinear(q, s)"
        " c = Sigmoid(a) y = Mul(c, b) }", s=SCALE,
    )
    assert ops(settle(model)).count("DequantizeLinear") == 1


def test_quantizers_go_before_a_reshape() -> None:
    model = parse(
        "(float[2,3,4] x) => (float[2,12] y) { f = Reshape(x, t) q = QuantizeLinear(f, s) y = DequantizeLinear(q, s) }",
        s=SCALE, t=ints(2, 12),
    )
    assert ops(settle(model)) == ["QuantizeLinear", "DequantizeLinear", "Reshape"]
