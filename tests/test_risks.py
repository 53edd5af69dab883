"""What the data hide is a risk and no fault; what changes nothing is neither."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper

from onnxfix import diagnose, repair

NET = """
<ir_version: 10, opset_import: ["": 19]>
net (float[N, 6] x, int64[N, 3] ids) => (float[N, 4] y) {
    h = Gemm <transB = 1> (x, w1, b1)
    c = Clip (h, low, high)
    words = Gather <axis = 0> (table, ids)
    mean = ReduceMean <keepdims = 0> (words, axes)
    l = LeakyRelu <alpha = 0.1> (mean)
    s = Add (c, l)
    y = Gemm <transB = 1> (s, w2, b2)
}
"""


def built(text: str = NET, **changed: np.ndarray) -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    values = {
        "w1": rng.standard_normal((5, 6)), "b1": rng.standard_normal(5), "low": np.array(-50.0),
        "high": np.array(60.0), "table": rng.uniform(0.1, 1, (9, 5)), "w2": rng.standard_normal((4, 5)),
        "b2": rng.standard_normal(4), **changed,
    }  # fmt: skip
    model = onnx.parser.parse_model(text)
    read = {v for node in model.graph.node for v in node.input}
    tensors = {k: np.asarray(v, np.float32) for k, v in values.items() if k in read} | {"axes": np.array([1])}
    model.graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in tensors.items())
    for node in model.graph.node:
        node.name = node.output[0]
    onnx.checker.check_model(model)
    return model


def data() -> dict[str, np.ndarray]:
    """Small numbers, and none of the last three rows of the table."""
    rng = np.random.default_rng(1)
    return {"x": rng.standard_normal((20, 6)).astype(np.float32), "ids": rng.integers(0, 6, (20, 3))}


def table() -> np.ndarray:
    changed = np.random.default_rng(0).uniform(0, 1, (9, 5))
    changed[:] = numpy_helper.to_array(next(t for t in built().graph.initializer if t.name == "table"))
    changed[7] = 5.0
    return changed


@pytest.mark.parametrize(
    ("target", "node"),
    [
        (built(high=np.array(30.0)), "c"),
        (built(NET.replace("c = Clip (h, low, high)", "c = Identity (h)")), "h"),
        (built(NET.replace("alpha = 0.1", "alpha = 0.3")), "l"),
        (built(table=table()), "words"),
    ],
)
def test_what_the_data_hide_is_a_risk(target, node):
    diagnosis = diagnose(built(), target, data())
    assert diagnosis.comparison.equivalent
    assert diagnosis.faults == ()
    (risk,) = diagnosis.risks
    assert node in risk.target_nodes
    assert risk.message.endswith("has no effect on these data.")
    assert risk.local_error > 1e-3
    assert diagnosis.to_dict()["risks"][0]["message"] == risk.message
    assert repair(built(), target, data()).success


@pytest.mark.parametrize(
    "text",
    [
        NET.replace("c = Clip (h, low, high)", "c0 = Min (h, high)\n    c = Max (c0, low)"),
        NET.replace("l = LeakyRelu <alpha = 0.1> (mean)", "l = LeakyRelu <alpha = 0.100000001> (mean)"),
    ],
)
def test_another_spelling_is_no_risk(text):
    diagnosis = diagnose(built(), built(text), data())
    assert diagnosis.faults == diagnosis.risks == ()


def test_a_fault_is_no_risk():
    diagnosis = diagnose(built(), built(high=np.array(0.5)), data())
    assert len(diagnosis.faults) == 1
    assert diagnosis.risks == ()
