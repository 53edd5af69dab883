"""Training mode in a target is a fault of its own; what is wrong besides is still found."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper

from onnxfix import FaultKind, diagnose, repair
from onnxfix.surgeon.apply import apply

SOURCE = """
<ir_version: 10, opset_import: ["": 19]>
net (float[N, 3, 6, 6] x) => (float[N, 4] y) {
    c = Conv <kernel_shape = [3, 3]> (x, kernel)
    n = BatchNormalization (c, gamma, beta, mean, variance)
    r = Relu (n)
    p = GlobalAveragePool (r)
    f = Flatten (p)
    y = Gemm (f, dense, bias)
}
"""
TRAINING = {"n = BatchNormalization (c,": "n, m, v = BatchNormalization <training_mode = 1> (c,"}
DROPPING = {"y = Gemm (f,": "d = Dropout <seed = 1> (f, ratio, active)\n    y = Gemm (d,"}


def built(*changes: dict[str, str], **constants: np.ndarray) -> onnx.ModelProto:
    text = SOURCE
    for change in changes:
        for old, new in change.items():
            text = text.replace(old, new)
    model = onnx.parser.parse_model(text)
    rng = np.random.default_rng(0)
    values = {
        "kernel": rng.standard_normal((4, 3, 3, 3)), "gamma": rng.uniform(0.5, 2, 4), "beta": rng.standard_normal(4),
        "mean": rng.standard_normal(4), "variance": rng.uniform(5, 50, 4), "dense": rng.standard_normal((4, 4)),
        "bias": rng.standard_normal(4), **constants,
    }  # fmt: skip
    tensors = {k: np.asarray(v, np.float32) for k, v in values.items()}
    tensors |= {"ratio": np.array(0.5, np.float32), "active": np.array(True)}
    read = {v for node in model.graph.node for v in node.input}
    model.graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in tensors.items() if k in read)
    for node in model.graph.node:
        node.name = node.output[0]
    onnx.checker.check_model(model)
    return model


def data() -> np.ndarray:
    return np.random.default_rng(1).standard_normal((20, 3, 6, 6)).astype(np.float32)


@pytest.mark.parametrize(("change", "node"), [(TRAINING, "n"), (DROPPING, "d")])
def test_a_node_in_training_mode_is_switched_to_inference(change, node, tmp_path):
    target = built(change)
    fix = repair(built(), target, data())
    (fault,) = fix.diagnosis.faults
    assert (fault.kind, fault.target_nodes[0], fault.parameter) == (FaultKind.MODE, node, "training_mode")
    assert fix.success
    assert fix.verified.max_rel < 1e-6
    assert apply(target, fix.patches).SerializeToString() == fix.model.proto.SerializeToString()
    assert [f.kind for f in diagnose(built(), target, data()).faults] == [FaultKind.MODE]
    assert (fault.reproducer(tmp_path / "shown") / "model.onnx").exists()


def test_other_faults_beside_it_are_found():
    target = built(TRAINING, DROPPING, bias=np.zeros(4))
    fix = repair(built(), target, data())
    assert [f.kind for f in fix.diagnosis.faults] == [FaultKind.MODE, FaultKind.MODE, FaultKind.WEIGHTS]
    assert fix.success


def test_running_statistics_that_were_never_kept_come_from_the_source():
    target = built(TRAINING, mean=np.zeros(4), variance=np.ones(4))
    fix = repair(built(), target, data())
    assert fix.diagnosis.faults[0].kind == FaultKind.MODE
    assert fix.success
    assert fix.verified.max_rel < 1e-5


def test_a_source_that_trains_is_taken_at_its_word():
    assert diagnose(built(TRAINING), built(TRAINING), data()).faults == ()
