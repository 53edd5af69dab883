"""The bodies of If, Loop and Scan come into normal form like any other graph."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from forms import constant, ints, normal, parse, settle

from onnxfix import is_isomorphic
from onnxfix.canonical.pipeline import NormalForm

_KERNEL = normal(4, 3, 3, 3)
_SCALE, _SHIFT, _MEAN = normal(4, seed=1), normal(4, seed=2), normal(4, seed=3)
_VARIANCE = np.abs(normal(4, seed=4)) + 0.5
_FEEDS = {"c": np.array(True), "x": normal(2, 3, 6, 6)}

_BRANCHED = """(bool c, float[N,3,6,6] x) => (float[N,4,6,6] y) {
  y = If (c) <
    then_branch = t () => (float[N,4,6,6] a) { %s },
    else_branch = e () => (float[N,4,6,6] b) { k = Conv<pads=[1,1,1,1]>(x, w)  b = Neg(k) }
  >
}"""


def _bodies(form: NormalForm) -> list[list[str]]:
    """The ops of each body, the outer ones first."""
    found, waiting = [], [form.proto.graph]
    while waiting:
        graph = waiting.pop(0)
        inner = [a.g for node in graph.node for a in node.attribute if a.type == onnx.AttributeProto.GRAPH]
        found += [[node.op_type for node in body.node] for body in inner]
        waiting += inner
    return found


def test_a_batch_norm_in_a_branch_folds_into_its_convolution() -> None:
    spelled = parse(_BRANCHED % "k = Conv<pads=[1,1,1,1]>(x, w)  a = BatchNormalization(k, s, o, m, v)",
                    w=_KERNEL, s=_SCALE, o=_SHIFT, m=_MEAN, v=_VARIANCE)
    gain = _SCALE / np.sqrt(_VARIANCE + 1e-5)
    folded = parse(_BRANCHED % "a = Conv<pads=[1,1,1,1]>(x, f, g)", w=_KERNEL,
                   f=_KERNEL * gain.reshape(-1, 1, 1, 1), g=_SHIFT - _MEAN * gain)
    forms = [settle(model, _FEEDS) for model in (spelled, folded)]
    assert _bodies(forms[0])[0] == ["Conv"]
    assert is_isomorphic(forms[0].proto, forms[1].proto)
    assert not is_isomorphic(forms[0].proto, settle(parse(_BRANCHED % "a = Conv<pads=[1,1,1,1]>(x, f, g)", w=_KERNEL,
                                                          f=_KERNEL, g=_SHIFT), _FEEDS).proto)


@pytest.mark.parametrize("flag", [True, False])
def test_each_branch_keeps_its_answers(flag: bool) -> None:
    model = parse(_BRANCHED % "k = Conv<pads=[1,1,1,1]>(x, w)  a = BatchNormalization(k, s, o, m, v)",
                  w=_KERNEL, s=_SCALE, o=_SHIFT, m=_MEAN, v=_VARIANCE)
    settle(model, {**_FEEDS, "c": np.array(flag)})


def test_the_origin_of_a_constant_folded_in_a_branch_names_its_parameters() -> None:
    form = settle(parse(_BRANCHED % "k = Conv<pads=[1,1,1,1]>(x, w)  a = BatchNormalization(k, s, o, m, v)",
                        w=_KERNEL, s=_SCALE, o=_SHIFT, m=_MEAN, v=_VARIANCE), _FEEDS)
    assert any("'s'" in repr(origin) and "'w'" in repr(origin) for origin in form.origins.values())


_LOOP = """(int64 n, float[2,3] x) => (float[2,3] y) {
  t = Constant<value = bool {1}>()
  y = Loop (n, t, x) <
    body = l (int64 i, bool going, float[2,3] h) => (bool again, float[2,3] next)
    { again = Identity(going)  %s }
  >
}"""


def test_dense_chains_in_a_loop_are_one_spelling() -> None:
    kernel, bias = normal(3, 3), normal(3)
    feeds = {"n": np.array(3), "x": normal(2, 3)}
    spellings = [
        ("p = MatMul(h, w)  q = Add(p, b)  next = Tanh(q)", {"w": kernel, "b": bias}),
        ("q = Gemm<transB=1>(h, w, b)  next = Tanh(q)", {"w": kernel.T.copy(), "b": bias}),
        ("q = Gemm(h, w)  r = Add(b, q)  s = Identity(r)  next = Tanh(s)", {"w": kernel, "b": bias}),
    ]
    forms = [settle(parse(_LOOP % text, **constants), feeds).proto for text, constants in spellings]
    assert all(is_isomorphic(forms[0], form) for form in forms[1:])


def test_a_branch_in_a_loop_is_normal_too() -> None:
    inner = """z = If (going) <
      then_branch = t () => (float[2,3] a) { p = Mul(h, two)  q = Mul(p, two)  a = Dropout(q) },
      else_branch = e () => (float[2,3] b) { b = Neg(h) } >  next = Relu(z)"""
    form = settle(parse(_LOOP % inner, two=np.array(2, np.float32)), {"n": np.array(3), "x": normal(2, 3)})
    assert ["Mul"] in _bodies(form)
    assert np.float32(4) in [onnx.numpy_helper.to_array(t) for t in form.proto.graph.initializer]


def test_a_scan_with_a_captured_value() -> None:
    text = """(float[2,3] h, float[5,2,3] x, float[2,3] k) => (float[2,3] y, float[5,2,3] z) {
      y, z = Scan<num_scan_inputs=1, body = s (float[2,3] a, float[2,3] r) => (float[2,3] next, float[2,3] out) {
        m = Mul(r, k)  p = Add(a, m)  q = Reshape(p, flat)  u = Reshape(q, back)  next = Tanh(u)  out = Identity(u)
      }>(h, x)
    }"""
    form = settle(parse(text, flat=ints(6), back=ints(2, 3)))
    assert _bodies(form) == [["Mul", "Add", "Tanh"]] or _bodies(form) == [["Mul", "Add", "Tanh", "Identity"]]


def test_a_carried_value_that_grows_is_not_taken_for_its_first_size() -> None:
    text = """(int64 n, float[2,3] x) => (float[M,3] y) {
      t = Constant<value = bool {1}>()
      y = Loop (n, t, x) <
        body = l (int64 i, bool going, float[K,3] h) => (bool again, float[L,3] next) {
          again = Identity(going)  s = Shape<end=1>(h)  e = Concat<axis=0>(s, three)  w = Expand(one, e)
          p = Add(h, w)  next = Concat<axis=0>(p, p)
        }
      >
    }"""
    settle(parse(text, one=np.array([[1]], np.float32), three=ints(3)), {"n": np.array(3), "x": normal(2, 3)})


def test_a_constant_result_of_a_branch_stays() -> None:
    text = """(bool c, float[2,3] x) => (float[2,3] y) {
      y = If (c) <
        then_branch = t () => (float[2,3] a) { p = Mul(k, k)  a = Add(p, k) },
        else_branch = e () => (float[2,3] b) { p = Mul(x, k)  b = Identity(p) }
      >
    }"""
    settle(parse(text, k=normal(2, 3)), {"c": np.array(True), "x": normal(2, 3)})


def test_a_constant_operand_is_read_in_the_body() -> None:
    form = settle(parse(_LOOP % "p = Div(h, d)  next = Sub(p, o)", d=normal(3) + 4, o=normal(3)),
                  {"n": np.array(2), "x": normal(2, 3)})
    assert "Div" not in _bodies(form)[0]
    assert "Sub" not in _bodies(form)[0]
    assert constant(form, "Loop", 1).all()


@pytest.mark.parametrize("order", ["p, q", "q, p"])
def test_captured_values_are_ordered_by_what_makes_them(order: str) -> None:
    text = """(int64 n, float[2,3] x) => (float[2,3] y) {
      t = Constant<value = bool {1}>()  p = Sin(x)  q = Exp(x)
      y = Loop (n, t, x) <
        body = l (int64 i, bool going, float[2,3] h) => (bool again, float[2,3] next)
        { again = Identity(going)  s = Mul(%s)  next = Add(h, s) }
      >
    }"""
    feeds = {"n": np.array(2), "x": normal(2, 3)}
    form = settle(parse(text % order), feeds)
    assert form.proto.SerializeToString(deterministic=True) == settle(
        parse(text % "p, q"), feeds).proto.SerializeToString(deterministic=True)
