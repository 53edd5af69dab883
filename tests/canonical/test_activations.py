from __future__ import annotations

import numpy as np
import pytest
from rewrites import ops, parse, rewrite

from onnxfix.canonical.activations import RecognizeActivations
from onnxfix.canonical.arithmetic import SpellArithmetic
from onnxfix.canonical.clipping import SpellClips
from onnxfix.canonical.rewriting import array

NUMBERS = {
    "zero": np.float32(0), "half": np.float32(0.5), "one": np.float32(1), "two": np.float32(2), "three": np.float32(3),
    "four": np.float32(4), "six": np.float32(6), "sixth": np.float32(1 / 6), "root": np.float32(np.sqrt(2)),
    "rsqrt": np.float32(np.sqrt(0.5)), "cubic": np.float32(0.044715), "tanh_scale": np.float32(np.sqrt(2 / np.pi)),
    "lots": np.finfo(np.float32).max, "vector": np.ones(3, np.float32), "column": np.full((1,), 6, np.float32),
}


def small(body: str):
    words = set(body.replace("(", " ").replace(")", " ").replace(",", " ").split())
    return parse(
        f"(float[N,4,3] x) => (float[N,4,3] y) {{ {body} }}", **{k: v for k, v in NUMBERS.items() if k in words}
    )


def forms(body: str) -> list[str]:
    return ops(rewrite(small(body), SpellArithmetic(), SpellClips(), RecognizeActivations()))


@pytest.mark.parametrize(
    ("body", "low", "high"),
    [
        ("r = Relu(x) y = Min(r, six)", 0, 6),
        ("m = Min(six, x) y = Max(m, zero)", 0, 6),
        ("y = Clip(x, zero, six)", 0, 6),
        ("y = Max(x, two)", 2, None),
        ("y = Min(x, column)", None, 6),
        ("a = Clip(x, zero, two) y = Clip(a, three, six)", 3, 2 + 1),
        ("a = Clip(x, one, six) y = Clip(a, zero, four)", 1, 4),
    ],
)
def test_clips_have_one_spelling(body: str, low: float | None, high: float | None) -> None:
    (clip,) = rewrite(small(body), SpellClips(), SpellClips())
    found = [array(v) for v in clip.inputs[1:]] + [None]
    assert clip.op_type == "Clip"
    assert all(v is None or v.shape == () for v in found)
    assert (found[0], found[1]) == (low, high)


@pytest.mark.parametrize(
    "body", ["y = Clip(x, zero)", "y = Max(zero, x)", "y = Clip(x, zero, lots)", "r = Relu(x) y = Relu(r)", "r = Relu(x) y = Clip(r, zero, lots)"]
)
def test_clip_at_zero_is_relu(body: str) -> None:
    assert ops(rewrite(small(body), SpellClips(), SpellClips())) == ["Relu"]


def test_clips_by_vectors_stay() -> None:
    assert ops(rewrite(small("y = Max(x, vector)"), SpellClips())) == ["Max"]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("a = Add(x, three) c = Clip(a, zero, six) m = Mul(x, c) y = Div(m, six)", "HardSwish"),
        ("a = Add(x, three) c = Clip(a, zero, six) s = Mul(c, sixth) y = Mul(s, x)", "HardSwish"),
        ("h = HardSigmoid <alpha = 0.16666667, beta = 0.5> (x) y = Mul(x, h)", "HardSwish"),
        ("d = Div(x, root) e = Erf(d) a = Add(e, one) m = Mul(x, a) y = Mul(m, half)", "Gelu"),
        ("d = Mul(x, rsqrt) e = Erf(d) a = Add(one, e) h = Mul(half, x) y = Mul(h, a)", "Gelu"),
        ("d = Mul(x, rsqrt) e = Erf(d) a = Add(one, e) h = Mul(half, a) y = Mul(h, x)", "Gelu"),
        ("n = Neg(x) d = Mul(n, rsqrt) e = Erf(d) a = Sub(one, e) h = Mul(half, a) y = Mul(h, x)", "Gelu"),
        ("p = Pow(x, three) c = Mul(p, cubic) s = Add(x, c) u = Mul(s, tanh_scale) t = Tanh(u) a = Add(t, one) h = Mul(half, x) y = Mul(h, a)", "Gelu"),
        ("q = Mul(x, x) p = Mul(q, x) c = Mul(p, cubic) s = Add(x, c) u = Mul(s, tanh_scale) t = Tanh(u) a = Add(t, one) h = Mul(half, a) y = Mul(x, h)", "Gelu"),
        ("s = Softplus(x) t = Tanh(s) y = Mul(t, x)", "Mish"),
        ("n = Neg(x) e = Exp(n) a = Add(e, one) y = Div(one, a)", "Sigmoid"),
    ],
)
def test_activations_are_recognized(body: str, expected: str) -> None:
    assert forms(body) == [expected]


@pytest.mark.parametrize(
    "body",
    [
        "a = Add(x, three) c = Clip(a, zero, six) y = Div(c, six)",
        "a = Add(three, x) r = Relu(a) c = Min(r, six) y = Mul(sixth, c)",
        "y = HardSigmoid <alpha = 0.16666667, beta = 0.5> (x)",
        "y = HardSigmoid(x)",
        "m = Mul(x, sixth) a = Add(m, half) y = Clip(a, zero, one)",
    ],
)
def test_hard_sigmoids_are_clips_of_an_affine_map(body: str) -> None:
    assert forms(body) == ["Mul", "Add", "Clip"]


@pytest.mark.parametrize(
    "body",
    [
        "a = Add(x, two) c = Clip(a, zero, six) y = Div(c, six)",
        "a = Add(x, three) c = Clip(a, zero, four) m = Mul(x, c) y = Div(m, six)",
        "d = Div(x, two) e = Erf(d) a = Add(e, one) m = Mul(x, a) y = Mul(m, half)",
        "d = Div(x, root) e = Erf(d) a = Add(e, two) m = Mul(x, a) y = Mul(m, half)",
        "a = Add(x, vector) e = Exp(a) l = Add(e, one) y = Log(l)",
    ],
)
def test_near_misses_are_left(body: str) -> None:
    assert not {"HardSigmoid", "HardSwish", "Gelu", "Softplus"} & set(forms(body))
