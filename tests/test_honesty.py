"""What cannot be repaired, or cannot be shown, is said to be so and never called a success."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

import onnxfix
from onnxfix.cli import main
from onnxfix.errors import InputError
from small_onnx import images, network, normal, parse, value, with_value

DENSE = """
net (float[N, 3, 8, 8] image) => (float[N, 5] logits) {
    flat = Flatten <axis = 1> (image)
    hidden = Gemm (flat, first, first_bias)
    hidden_tanh = Tanh (hidden)
    logits = Gemm (hidden_tanh, last, last_bias)
}
"""


def dense(width: int, seed: int = 0) -> onnx.ModelProto:
    return parse(
        DENSE, first=normal(192, width, seed=seed, scale=0.1), first_bias=normal(width, seed=seed),
        last=normal(width, 5, seed=seed), last_bias=normal(5, seed=seed),
    )  # fmt: skip


@pytest.mark.parametrize("pair", [(network, lambda: dense(7)), (lambda: dense(16), lambda: dense(9, seed=4))])
def test_another_network_is_not_repaired(pair):
    source, target = (build() for build in pair)
    fix = onnxfix.repair(source, target, images())
    assert not fix.success
    assert not fix.patches
    assert fix.diagnosis.faults
    assert [item.fault for item in fix.unrepaired] == list(fix.diagnosis.faults)
    assert all("another network" in item.reason for item in fix.unrepaired)
    assert not fix.verified.equivalent


def test_the_same_network_with_all_weights_wrong_is_repaired():
    fix = onnxfix.repair(dense(9), dense(9, seed=4), images())
    assert fix.success


def test_another_network_ends_the_command_line_with_1(tmp_path):
    onnx.save(network(), tmp_path / "source.onnx")
    onnx.save(dense(7), tmp_path / "target.onnx")
    np.savez(tmp_path / "data.npz", image=images())
    files = [str(tmp_path / name) for name in ("source.onnx", "target.onnx", "data.npz", "fixed.onnx")]
    assert main(["repair", *files[:2], "--data", files[2], "-o", files[3], "-q"]) == 1
    assert not (tmp_path / "fixed.onnx").exists()


def blank(kind: str) -> tuple[onnx.ModelProto, np.ndarray]:
    if kind == "one sample again and again":
        return network(), np.repeat(images()[:1], 6, axis=0)
    if kind == "an answer of zeros alone":
        return with_value(network(), logits_weight=0 * value(network(), "logits_weight"),
                          logits_bias=0 * value(network(), "logits_bias")), images()[:1]
    return parse("net (float[N, 4] x) => (float[N, 4] y) { y = Sqrt (x) }"), -1 - np.abs(normal(6, 4))


@pytest.mark.parametrize("kind", ["one sample again and again", "an answer of zeros alone", "roots of negative numbers"])
def test_data_that_can_show_nothing_are_refused(kind, tmp_path):
    model, data = blank(kind)
    for verb in (onnxfix.compare, onnxfix.diagnose, onnxfix.repair):
        with pytest.raises(InputError, match="can show nothing") as caught:
            verb(model, model, data)
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="can show nothing"):
        onnxfix.convert(model, "onnx", tmp_path / "made.onnx", data)
    onnx.save(model, tmp_path / "model.onnx")
    np.save(tmp_path / "data.npy", data)
    path = str(tmp_path / "model.onnx")
    assert main(["diagnose", path, path, "--data", str(tmp_path / "data.npy"), "-q"]) == 2


def test_constant_answers_that_differ_between_the_models_show_that():
    model = network()
    other = with_value(model, logits_bias=value(model, "logits_bias") + np.float32(1))
    assert not onnxfix.compare(model, other, np.repeat(images()[:1], 6, axis=0)).equivalent


def test_a_single_sample_is_enough():
    assert onnxfix.diagnose(network(), network(), images()[:1]).comparison.equivalent
    wrong = with_value(network(), left_kernel=normal(4, 4, 3, 3, seed=77))
    fix = onnxfix.repair(network(), wrong, images()[:1])
    assert fix.success
    assert [fault.parameter for fault in fix.diagnosis.faults] == ["left_kernel"]
