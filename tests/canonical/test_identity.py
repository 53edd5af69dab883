from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rewrites import normal, parse

from onnxfix.canonical import canonicalize, fingerprint, is_isomorphic
from onnxfix.runtime.session import Session

WEIGHTS = {
    "w1": normal(8, 3, 3, 3), "b1": normal(8), "w2": normal(8, 8, 3, 3, seed=1), "w3": normal(8, 8, 3, 3, seed=2),
    "w4": normal(8, 10), "six": np.float32(6), "zero": np.float32(0),
}
BODY = """{
    c1 = Conv <pads = [1, 1, 1, 1]> (x, w1, b1) r1 = Clip(c1, zero, six)
    c2 = Conv <pads = [1, 1, 1, 1]> (r1, w2) r2 = LeakyRelu <alpha = 0.1> (c2)
    c3 = Conv <pads = [1, 1, 1, 1]> (r1, w3) r3 = LeakyRelu <alpha = 0.1> (c3)
    s = Add(r2, r3) g = GlobalAveragePool(s) f = Flatten(g) l = MatMul(f, w4) y = Softmax(l)
}"""


def net(body: str = BODY, batch: str = "N", **changed: np.ndarray) -> onnx.ModelProto:
    return parse(f"(float[{batch},3,8,8] x) => (float[{batch},10] y) {body}", **{**WEIGHTS, **changed})


def renamed(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same model with other names everywhere, nodes stored in another valid order, operands of Add exchanged."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    names: dict[str, str] = {"": ""}
    graph = result.graph
    for item in [*graph.input, *graph.output, *graph.initializer]:
        item.name = names.setdefault(item.name, f"t{len(names)}")
    for node in graph.node:
        node.name = f"n{len(names)}"
        for values in (node.input, node.output):
            values[:] = [names.setdefault(v, f"t{len(names)}") for v in values]
        if node.op_type == "Add":
            node.input[:] = reversed(node.input)
    kept = list(graph.node)
    del graph.node[:]
    graph.node.extend([*kept[:2], *kept[4:6], *kept[2:4], *kept[6:]])
    tensors = list(graph.initializer)
    del graph.initializer[:]
    graph.initializer.extend(reversed(tensors))
    return result


def test_names_order_and_operand_order_do_not_count() -> None:
    assert fingerprint(net()) == fingerprint(renamed(net()))
    assert is_isomorphic(net(), renamed(net()), rtol=0, atol=0)


def test_fingerprint_is_the_same_everywhere() -> None:
    model = parse("(float[N,3] x) => (float[N,3] y) { y = Relu(x) }")
    assert fingerprint(model) == "68eca669cec3c7c2a0831f0de254bd5b"


@pytest.mark.parametrize("name", ["w1", "b1", "w2", "w4"])
def test_one_weight_off_by_one_percent_counts(name: str) -> None:
    value = WEIGHTS[name].copy()
    value.reshape(-1)[np.abs(value).argmax()] *= 1.01
    assert fingerprint(net()) != fingerprint(net(**{name: value}))
    assert not is_isomorphic(net(), net(**{name: value}))
    assert fingerprint(net(), weights=False) == fingerprint(net(**{name: value}), weights=False)
    assert is_isomorphic(net(), net(**{name: value}), weights=False)


def test_float_noise_does_not_count_but_half_precision_does() -> None:
    noisy = {k: (v * (1 + 3e-7 * normal(*v.shape, seed=5))).astype(np.float32) for k, v in WEIGHTS.items() if v.ndim}
    assert fingerprint(net()) != fingerprint(net(**noisy))
    assert is_isomorphic(net(), net(**noisy))
    assert not is_isomorphic(net(), net(w2=WEIGHTS["w2"].astype(np.float16).astype(np.float32)))


def test_weights_of_twin_branches_belong_to_their_branch() -> None:
    """Exchanging the kernels of the twins gives the same model; exchanging what follows one of them does not."""
    assert is_isomorphic(net(), net(w2=WEIGHTS["w3"], w3=WEIGHTS["w2"]), rtol=0, atol=0)
    steep = BODY.replace("0.1> (c2)", "0.2> (c2)")
    assert is_isomorphic(net(steep), net(BODY.replace("0.1> (c3)", "0.2> (c3)"), w2=WEIGHTS["w3"], w3=WEIGHTS["w2"]))
    assert not is_isomorphic(net(steep), net(steep, w2=WEIGHTS["w3"], w3=WEIGHTS["w2"]))
    assert is_isomorphic(net(steep), net(steep, w2=WEIGHTS["w3"], w3=WEIGHTS["w2"]), weights=False)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("pads = [1, 1, 1, 1]> (r1, w2)", "pads = [2, 2, 0, 0]> (r1, w2)"),
        ("alpha = 0.1> (c2)", "alpha = 0.101> (c2)"),
        ("r1 = Clip(c1, zero, six)", "r1 = Relu(c1)"),
        ("r1 = Clip(c1, zero, six)", "r1 = Clip(c1, zero, six2)"),
        ("s = Add(r2, r3)", "s = Sub(r2, r3)"),
        ("s = Add(r2, r3)", "s = Add(r2, r2)"),
        ("s = Add(r2, r3)", "u = Add(r2, r3) s = Sin(u)"),
        ("y = Softmax(l)", "y = Identity(l)"),
    ],
)
def test_structure_and_hyperparameters_count_even_without_weights(old: str, new: str) -> None:
    changed = net(BODY.replace(old, new), **({"six2": np.float32(6.1)} if "six2" in new else {}))
    for weights in (True, False):
        assert fingerprint(net(), weights) != fingerprint(changed, weights)
        assert not is_isomorphic(net(), changed, weights)


def test_a_fixed_batch_is_the_same_graph() -> None:
    assert is_isomorphic(net(), net(batch="1"), rtol=0, atol=0)
    assert fingerprint(net()) != fingerprint(net(batch="1"))


def test_the_name_of_a_symbolic_batch_does_not_count() -> None:
    """tf2onnx names dimensions as onnx's shape inference names those it knows nothing about."""
    assert fingerprint(net()) == fingerprint(net(batch="unk__12"))


def channels_last(perm: str, height: int = 8) -> onnx.ModelProto:
    body = BODY.replace("(x, w1, b1)", "(t, w1, b1)").replace("{", f"{{ t = Transpose <perm = [{perm}]> (x)", 1)
    return parse(f"(float[N,{height},8,3] x) => (float[N,10] y) {body}", **WEIGHTS)


def test_layout_of_the_inputs_does_not_count_but_height_for_width_does() -> None:
    assert is_isomorphic(net(), channels_last("0, 3, 1, 2"), rtol=0, atol=0)
    assert not is_isomorphic(net(), channels_last("0, 3, 2, 1"))
    assert not is_isomorphic(channels_last("0, 3, 1, 2"), channels_last("0, 3, 2, 1"))


def test_order_of_inputs_and_outputs_counts() -> None:
    one = parse("(float[N,3] a, float[N,3] b) => (float[N,3] y) { y = Sub(a, b) }")
    two = parse("(float[N,3] a, float[N,3] b) => (float[N,3] y) { y = Sub(b, a) }")
    assert not is_isomorphic(one, two)
    one = parse("(float[N,3] a) => (float[N,3] y, float[N,3] z) { y = Relu(a) z = Sigmoid(a) }")
    two = parse("(float[N,3] a) => (float[N,3] y, float[N,3] z) { z = Relu(a) y = Sigmoid(a) }")
    assert not is_isomorphic(one, two)


def test_bodies_of_control_flow_are_compared() -> None:
    def branching(factor: str) -> onnx.ModelProto:
        return parse(
            f"""(bool c, float[N,3] x) => (float[N,3] y) {{
                r = Relu(x)
                y = If (c) <
                    then_branch = t () => (float[N,3] a) {{ k = Constant <value = float[3] {{1.0, 2.0, {factor}}}> () a = Mul(r, k) }},
                    else_branch = e () => (float[N,3] b) {{ b = Sin(x) }}
                >
            }}"""
        )

    assert is_isomorphic(branching("3.0"), branching("3.0000001"))
    assert fingerprint(branching("3.0")) == fingerprint(branching("3.0"))
    assert not is_isomorphic(branching("3.0"), branching("3.5"))


@settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30), st.sampled_from(["Add", "Mul", "Sub"])), min_size=1, max_size=12))
def test_any_graph_is_isomorphic_to_itself_written_in_another_order(recipe: list[tuple[int, int, str]]) -> None:
    def build(swap: bool) -> onnx.ModelProto:
        values = ["x", "z"]
        lines = []
        for k, (i, j, op) in enumerate(recipe):
            pair = [values[i % len(values)], values[j % len(values)]]
            if swap and op != "Sub":
                pair.reverse()
            lines.append(f"v{k} = {op}({pair[0]}, {pair[1]})")
            values.append(f"v{k}")
        lines.append(f"y = Sin({values[-1]})")
        return parse(f"(float[N,3] x, float[N,3] z) => (float[N,3] y) {{ {' '.join(lines)} }}")

    assert fingerprint(build(False)) == fingerprint(build(True))
    assert is_isomorphic(build(False), build(True))


def test_repeated_identical_blocks_are_matched_quickly() -> None:
    """Forty blocks of twin branches with equal weights: a search without refinement would try 2^40 orders."""
    lines, last = [], "x"
    for k in range(40):
        lines.append(f"a{k} = Gemm({last}, w, p) b{k} = Gemm({last}, w, q) s{k} = Tanh(a{k}) t{k} = Tanh(b{k}) m{k} = Add(s{k}, t{k})")
        last = f"m{k}"
    text = f"(float[N,4] x) => (float[N,4] {last}) {{ {' '.join(lines)} }}"
    one = parse(text, w=normal(4, 4), p=normal(4), q=normal(4, seed=1))
    two = parse(text, w=normal(4, 4), p=normal(4, seed=1), q=normal(4))
    assert is_isomorphic(one, two)
    assert is_isomorphic(one, parse(text, w=normal(4, 4), p=normal(4), q=normal(4, seed=2)), weights=False)
    assert not is_isomorphic(one, parse(text, w=normal(4, 4), p=normal(4), q=normal(4, seed=2)))


def test_operands_and_results_of_a_loop_have_names_of_their_own() -> None:
    model = parse(
        """(float[N,3] x) => (float[N,3] y, float[N,3] z) {
            y, z = Loop (trips, go, x, start) <body = b (int64 i, bool c, float[N,3] s, float[1,3] t) => (bool d, float[N,3] u, float[1,3] v) {
                d = Identity(c) u = Add(s, t) v = Sin(t)
            }>
        }""",
        trips=np.array(3), go=np.array(True), start=normal(1, 3),
    )
    canonical = canonicalize(model)
    (loop,) = canonical.graph.node
    assert not set(loop.output) & set(loop.input)
    x = {"x": normal(2, 3)}
    for one, two in zip(Session(model).run(x).values(), Session(canonical).run(x).values(), strict=True):
        np.testing.assert_array_equal(one, two)
