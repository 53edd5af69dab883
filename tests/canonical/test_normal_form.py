"""What the normal form promises as a whole: structure alone decides, values are kept, real conversions survive."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from forms import normal, ops, parse, random_feeds, settle
from hypothesis import given, settings
from hypothesis import strategies as st

import onnxfix
from onnxfix.canonical import canonicalize, normal_form
from onnxfix.runtime.session import Session

NET = """(float[N,3,8,8] x) => (float[N,5] y) {
    [stem] a = Conv <pads = [1, 1, 1, 1]> (x, w1)
    [norm] b = BatchNormalization (a, g, h, m, v)
    [act] c = Relu(b)
    [left] d = Conv <pads = [1, 1, 1, 1]> (c, w2)
    [right] e = Conv <pads = [1, 1, 1, 1]> (c, w3)
    [gate] s = Sigmoid(e)
    [mix] f = Mul(s, d)
    [skip] r = Add(f, c)
    [pool] p = GlobalAveragePool(r)
    [flat] q = Flatten(p)
    [head] y = MatMul(q, k)
}"""
WEIGHTS = {
    "w1": normal(4, 3, 3, 3), "g": normal(4, seed=1), "h": normal(4, seed=2), "m": normal(4, seed=3),
    "v": np.abs(normal(4, seed=4)) + 1, "w2": normal(4, 4, 3, 3, seed=5), "w3": normal(4, 4, 3, 3, seed=6),
    "k": normal(4, 5),
}


def disguised(model: onnx.ModelProto, seed: int) -> onnx.ModelProto:
    """The same model: opaque names, nodes in another valid order, operands of commutative ops swapped."""
    rng = random.Random(seed)
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    kept = {v.name for v in (*copy.graph.input, *copy.graph.output)} | {""}
    names: dict[str, str] = {}
    for node in copy.graph.node:
        node.name = f"n{rng.random()}"
        if node.op_type in ("Mul", "Add") and rng.random() < 0.5:
            node.input[:] = list(reversed(node.input))
        for side in (node.input, node.output):
            side[:] = [v if v in kept else names.setdefault(v, f"v{rng.random()}") for v in side]
    for tensor in copy.graph.initializer:
        tensor.name = names[tensor.name]
    ready = {v.name for v in copy.graph.input} | {t.name for t in copy.graph.initializer} | {""}
    waiting, order = list(copy.graph.node), []
    while waiting:
        node = rng.choice([n for n in waiting if set(n.input) <= ready])
        waiting.remove(node)
        order.append(node)
        ready |= set(node.output)
    del copy.graph.node[:]
    copy.graph.node.extend(order)
    return copy


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 10**6))
def test_names_and_storage_order_do_not_matter(seed: int) -> None:
    model = parse(NET, **WEIGHTS)
    assert canonicalize(disguised(model, seed)).SerializeToString() == canonicalize(model).SerializeToString()


def test_weight_values_do_not_decide_the_order_of_operands() -> None:
    names = [[n.name for n in canonicalize(parse(NET, **{**WEIGHTS, "w3": 100 * WEIGHTS["w3"] * sign})).graph.node]
             for sign in (0, 1, -1)]
    assert names[0] == names[1] == names[2]


def test_nodes_remember_what_they_came_from() -> None:
    form = settle(parse(NET, **WEIGHTS))
    assert ops(form) == ["Conv", "Relu", "Conv", "Sigmoid", "Conv", "Mul", "Add", "GlobalAveragePool", "Reshape", "Gemm"]
    assert form.provenance["conv_0"] == ("stem", "norm")
    assert form.provenance["gemm_0"] == ("head",)
    assert set(form.parameters) == set(WEIGHTS)


def test_each_kind_of_model_comes_back_as_its_kind() -> None:
    model = parse(NET, **WEIGHTS)
    canonical = canonicalize(model)
    assert isinstance(canonicalize(ir.serde.deserialize_model(model)), ir.Model)
    wrapped = canonicalize(onnxfix.load(model))
    assert wrapped.proto.SerializeToString() == canonical.SerializeToString()
    feeds = random_feeds(model, 2)
    np.testing.assert_array_equal(wrapped.run(feeds)["y"], Session(canonical).run(feeds)["y"])


def test_outputs_that_are_inputs_constants_or_each_other_keep_their_names() -> None:
    model = parse(
        """(float[N,3] x) => (float[2] c, float[N,3] y, float[2] d, float[N,3] z, float[N,3] t) {
            c = Constant <value: tensor = float[2] {1, 2}> () y = Identity(x) d = Add(c, c) z = Relu(x) t = Identity(z) }"""
    )
    assert sorted(ops(settle(model))) == ["Identity", "Identity", "Identity", "Identity", "Relu"]


def test_captured_values_stay_valid_inside_control_flow() -> None:
    model = parse(
        """(float[N,3] x, bool flag) => (float[N,3] y) {
            i = Identity(x) k = Constant <value_float = 2.0> () d = Dropout(i)
            t = If (flag) <then_branch = left () => (float[N,3] u) { u = Mul(d, k) },
                           else_branch = right () => (float[N,3] v) { w = Relu(d) v = Add(w, i) }>
            y = Relu(t) }"""
    )
    for flag in (True, False):
        form = settle(model, {"x": normal(2, 3), "flag": np.array(flag)})
    assert ops(form) == ["If", "Relu"]


def test_zeroed_bias_is_a_difference_of_values_only() -> None:
    text = "(float[N,2,3] x) => (float[N,2,4] y) { m = MatMul(x, w) y = Add(m, b) }"
    given_, zeroed = (normal_form(parse(text, w=normal(3, 4), b=b)) for b in (normal(4), np.zeros(4, np.float32)))
    assert ops(given_) == ops(zeroed) == ["MatMul", "Add"]


def test_random_nodes_are_not_merged_and_equal_ones_are() -> None:
    model = parse(
        """(float[2,3] x) => (float[2,3] y) {
            a = RandomNormalLike(x) b = RandomNormalLike(x) c = Sub(a, b) r = Relu(x) s = Relu(x) t = Mul(r, s) y = Add(t, c) }"""
    )
    found = ops(normal_form(model))
    assert found.count("RandomNormalLike") == 2
    assert found.count("Relu") == 1


CASES = ("t2o_dyn_fpn", "t2o_ts13_net_densenet", "t2o_ts17_window_attn", "k2o_export_pools", "tf2o_op15_topk_score",
         "opt_onnxsim_ts17_net_lstmcls", "t2o_ts20_dws_hswish", "l2o_k_net_tcn")


@pytest.mark.parametrize("case", CASES)
def test_real_conversions_keep_their_answers(shared_data: Path, case: str) -> None:
    folder = shared_data / "clean_conversions" / case
    model = onnx.load(folder / "target.onnx")
    data = np.load(folder / "data.npz")
    names = [i.name for i in model.graph.input]
    samples = [k for k in data.files if "__" not in k]
    settle(model, {name: data[name if name in data.files else key] for name, key in zip(names, samples, strict=True)})
