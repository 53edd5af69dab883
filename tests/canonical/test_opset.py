from __future__ import annotations

import numpy as np
import onnx
import pytest
from forms import constant, ints, normal, ops, parse, settle

from onnxfix.canonical import normal_form
from onnxfix.errors import CanonicalizationError


@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax", "Hardmax"])
@pytest.mark.parametrize("axis", [0, 1, 2, -1])
def test_softmax_before_opset_13_works_on_the_flattened_matrix(op: str, axis: int) -> None:
    model = parse(f"(float[2,3,4] x) => (float[2,3,4] y) {{ y = {op} <axis = {axis}> (x) }}", opset=11)
    form = settle(model)
    assert ops(form) == ([op] if axis in (2, -1) else ["Reshape", op, "Reshape"])


@pytest.mark.parametrize(
    ("opset", "body", "shape"),
    [
        (9, "y = Clip <min = -1.0, max = 2.0> (x)", "2,3,4,5"),
        (10, "y = Pad <pads = [0, 0, 1, 0, 0, 0, 0, 2], value = 1.5> (x)", "2,3,5,7"),
        (9, "y = Slice <starts = [1, -3], ends = [3, 5], axes = [1, 3]> (x)", "2,2,4,3"),
        (11, "y = ReduceMean <axes = [2], keepdims = 0> (x)", "2,3,5"),
        (11, "y = ReduceSum <axes = [1, 2]> (x)", "2,1,1,5"),
        (13, "y = ReduceL2 <axes = [-1], keepdims = 0> (x)", "2,3,4"),
        (11, "u = Unsqueeze <axes = [0]> (x) y = Squeeze <axes = [0]> (u)", "2,3,4,5"),
        (11, "a, y = Split <axis = 1, split = [1, 2]> (x)", "2,2,4,5"),
        (11, "a, y = Split <axis = 2> (x)", "2,3,2,5"),
        (10, "y = Dropout <ratio = 0.3> (x)", "2,3,4,5"),
        (9, "y = Upsample <mode = \"nearest\"> (x, s)", "2,3,8,15"),
        (10, "y = Resize <mode = \"linear\"> (x, s)", "2,3,8,15"),
        (9, "v, i = TopK <axis = 3> (x, k) y = Identity(v)", "2,3,4,2"),
        (16, "y = GridSample <mode = \"bilinear\"> (x, g)", "2,3,2,2"),
    ],
)
def test_older_spellings_keep_their_meaning(opset: int, body: str, shape: str) -> None:
    if "TopK" in body:
        opset = 10
    model = parse(
        f"(float[2,3,4,5] x) => (float[{shape}] y) {{ {body} }}", opset=opset,
        s=np.array([1, 1, 2, 3], np.float32), k=ints(2), g=np.clip(normal(2, 2, 2, 2), -1, 1),
    )
    form = settle(model)
    assert form.proto.opset_import[0].version == 21


def test_newer_opset_without_newer_meaning_comes_down() -> None:
    model = parse("(float[N,3] x) => (float[N,3] y) { y = Relu(x) }", opset=22)
    older = parse("(float[N,3] x) => (float[N,3] y) { y = Relu(x) }", opset=13)
    assert settle(model).proto == settle(older).proto


def test_ops_that_only_a_newer_opset_has_keep_it() -> None:
    text = "(double[N,3] x) => (double[N,3] y) { y = RMSNormalization <axis = -1> (x, s) }"
    model = parse(text, opset=23, s=normal(3).astype(np.float64))
    model.ir_version = 11
    assert normal_form(model).proto.opset_import[0].version == 23


def test_functions_are_inlined_and_stand_for_their_call() -> None:
    text = """<ir_version: 8, opset_import: ["" : 18, "mine" : 1]>
    g (float[N,3] x) => (float[N,3] y) { [first] t = mine.twice(x) [second] y = mine.twice(t) }
    <domain: "mine", opset_import: ["" : 18]> twice (a) => (b) { c = Sigmoid(a) b = Add(c, a) }"""
    form = settle(onnx.parser.parse_model(text))
    assert ops(form) == ["Sigmoid", "Add"] * 2
    assert set(form.provenance.values()) == {("first",), ("second",)}


def test_scan_over_a_batch_of_sequences_is_a_scan_in_a_scan() -> None:
    body = """s (float[3] a, float[3] r) => (float[3] next, float[3] out) {
        next = Add(a, r) out = Mul(next, r) }"""
    model = onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["" : 8]> g (float[N,3] i, float[N,5,3] x) => (float[N,3] y, float[N,5,3] z) {{
            y, z = Scan <num_scan_inputs = 1, directions = [1], body = {body}> ("", i, x) }}"""
    )
    (scan,) = settle(model).proto.graph.node
    (inner,) = next(a.g for a in scan.attribute if a.name == "body").node
    assert (scan.op_type, inner.op_type) == ("Scan", "Scan")


def test_scan_with_lengths_is_refused_by_name() -> None:
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 8]> g (float[2,3] i, int64[2] n, float[2,5,3] x) => (float[2,3] y) {
            [sums] y = Scan <num_scan_inputs = 1, body = s (float[3] a, float[3] r) => (float[3] next) {
                next = Add(a, r) }> (n, i, x) }"""
    )
    with pytest.raises(CanonicalizationError, match="sums: Scan of opset 8 with sequence_lens"):
        normal_form(model)


def test_training_batch_norm_is_refused_by_name() -> None:
    model = parse(
        "(float[N,3,4] x) => (float[N,3,4] y, float[3] m) { [bn] y, m, v, s, t = BatchNormalization (x, g, g, g, g) }",
        opset=9, g=np.ones(3, np.float32),
    )
    with pytest.raises(CanonicalizationError, match="bn is a BatchNormalization in training mode"):
        normal_form(model)


def test_group_norm_parameters_per_group_are_spread_to_channels() -> None:
    text = """<ir_version: 8, opset_import: ["" : 18]> g (float[2,6,4] x) => (float[2,6,4] y)
    <float[2] s = {1.0, 2.0}, float[2] b = {3.0, 4.0}> { y = GroupNormalization <num_groups = 2> (x, s, b) }"""
    form = normal_form(onnx.parser.parse_model(text))
    np.testing.assert_array_equal(constant(form, "GroupNormalization", 1), np.float32([1, 1, 1, 2, 2, 2]))
