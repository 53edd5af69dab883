"""Instance norms and group norms, however they are spelled, are one op."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from forms import constant, ints, normal, ops, parse, settle

import onnxfix
from onnxfix.canonical import is_isomorphic

SCALE, SHIFT = normal(4), normal(4, seed=1)
STATISTICS = """
    m = ReduceMean(x, axes) d = Sub(x, m) q = Mul(d, d) v = ReduceMean(q, axes) e = Add(v, eps) s = Sqrt(e)
"""


def spelled(rest: str, shape: str, axes: tuple[int, ...], **constants: np.ndarray) -> onnx.ModelProto:
    return parse(f"(float[{shape}] x) => (float[{shape}] y) {{ {STATISTICS} {rest} }}",
                 axes=ints(*axes), eps=np.float32(1e-3), **constants)


@pytest.mark.parametrize(
    "rest",
    [
        "n = Div(d, s) w = Mul(n, g) y = Add(w, b)",
        "w = Mul(d, g) n = Div(w, s) y = Add(n, b)",
        "r = Reciprocal(s) w = Mul(d, g) n = Mul(r, w) y = Add(n, b)",
        "r = Reciprocal(s) i = Mul(r, g) p = Mul(x, i) z = Mul(m, i) t = Sub(b, z) y = Add(p, t)",
    ],
)
@pytest.mark.parametrize("size", ["5,6", "H,W"])
def test_instance_norms_are_recognized(rest: str, size: str) -> None:
    first = spelled(rest, f"N,4,{size}", (2, 3), g=SCALE.reshape(4, 1, 1), b=SHIFT.reshape(4, 1, 1))
    form = settle(first, batch=3)
    assert ops(form) == ["InstanceNormalization"]
    np.testing.assert_array_equal(constant(form, "InstanceNormalization", 1), SCALE)
    np.testing.assert_array_equal(constant(form, "InstanceNormalization", 2), SHIFT)
    op = parse(f"(float[N,4,{size}] x) => (float[N,4,{size}] y) {{ y = InstanceNormalization <epsilon = 0.001> (x, g, b) }}",
               g=SCALE, b=SHIFT)
    assert is_isomorphic(first, op)
    last = settle(spelled(rest, f"N,{size},4", (1, 2), g=SCALE, b=SHIFT), batch=3)
    assert ops(last) == ["Transpose", "InstanceNormalization", "Transpose"]


def test_a_layer_norm_over_the_map_scales_and_shifts_behind_it() -> None:
    gain, shift = normal(5, 6), normal(5, 6, seed=1)
    chain = spelled("n = Div(d, s) w = Mul(n, g) y = Add(w, b)", "N,4,5,6", (2, 3), g=gain, b=shift)
    op = parse("(float[N,4,5,6] x) => (float[N,4,5,6] y) "
               "{ y = LayerNormalization <axis = 2, epsilon = 0.001> (x, g, b) }", g=gain, b=shift)
    assert ops(settle(op)) == ["InstanceNormalization", "Mul", "Add"]
    assert is_isomorphic(chain, op)


def test_half_the_map_is_no_instance() -> None:
    assert "InstanceNormalization" not in ops(settle(spelled("y = Div(d, s)", "N,4,5,6", (2,))))


def test_a_scale_that_varies_along_the_map_stays_outside() -> None:
    model = parse("(float[N,4,5,4] x) => (float[N,4,5,4] y) { n = InstanceNormalization(x, g, b) y = Mul(n, w) }",
                  g=SCALE, b=SHIFT, w=normal(4, seed=2))
    assert ops(settle(model)) == ["InstanceNormalization", "Mul"]


GROUPED = "(float[N,4,5,6] x) => (float[N,4,5,6] y) { "


@pytest.mark.parametrize(
    "body",
    [
        "r = Reshape(x, merged) n = InstanceNormalization <epsilon = 0.001> (r, ones, zeros) z = Reshape(n, back) "
        "w = Mul(z, g) y = Add(w, b)",
        "r = Reshape(x, split) m = ReduceMean(r, axes) d = Sub(r, m) q = Mul(d, d) v = ReduceMean(q, axes) "
        "e = Add(v, eps) s = Sqrt(e) k = Reciprocal(s) i = Mul(k, inner) p = Mul(r, i) z = Mul(m, i) "
        "t = Sub(shift, z) h = Add(p, t) y = Reshape(h, back)",
    ],
)
def test_group_norms_are_recognized(body: str) -> None:
    given = {
        "merged": ints(0, 2, -1), "split": ints(0, 2, 2, 5, 6), "back": ints(0, 4, 5, 6), "axes": ints(2, 3, 4),
        "ones": np.ones(2, np.float32), "zeros": np.zeros(2, np.float32), "eps": np.float32(1e-3),
        "g": SCALE.reshape(4, 1, 1), "b": SHIFT.reshape(4, 1, 1), "inner": SCALE.reshape(2, 2, 1, 1),
        "shift": SHIFT.reshape(2, 2, 1, 1),
    }
    words = set(body.replace("(", " ").replace(")", " ").replace(",", " ").split())
    chain = parse(GROUPED + body + " }", **{k: v for k, v in given.items() if k in words})
    op = parse(GROUPED + "y = GroupNormalization <num_groups = 2, epsilon = 0.001> (x, g, b) }", g=SCALE, b=SHIFT)
    assert ops(settle(chain)) == ["GroupNormalization"]
    assert is_isomorphic(chain, op)


def test_a_group_norm_of_single_channels_is_an_instance_norm() -> None:
    model = parse(GROUPED + "y = GroupNormalization <num_groups = 4> (x, g, b) }", g=SCALE, b=SHIFT)
    assert ops(settle(model)) == ["InstanceNormalization"]


def test_a_reshape_to_another_shape_is_no_group_norm() -> None:
    model = parse("(float[N,4,5,6] x) => (float[N,4,6,5] y) { r = Reshape(x, merged) "
                  "n = InstanceNormalization(r, g, b) y = Reshape(n, back) }",
                  merged=ints(0, 2, -1), back=ints(0, 4, 6, 5), g=SCALE[:2], b=SHIFT[:2])
    assert "GroupNormalization" not in ops(settle(model))


def test_what_a_converter_spells_out_is_the_same_network(shared_data) -> None:
    folder = shared_data / "clean_conversions" / "o2l_instnorm_reflect"
    assert onnxfix.is_isomorphic(folder / "source.onnx", folder / "target.tflite")
