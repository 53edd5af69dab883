"""The study's benchmark on a network of three layers: what it plants is found and repaired, in both preparations."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

import onnxfix
from small_onnx import normal, parse

NET = """net (float[N, 3, 9, 9] x) => (float[N, 6] y) {
    a = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (x, k, b) r = Clip(a, low, high)
    p = AveragePool <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (r)
    m = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (p, k2, b2) q = Relu(m) s = Add(p, q)
    g = GlobalAveragePool(s) f = Flatten(g) z = Gemm <transB = 1> (f, w, c) y = Softmax(z) }"""


def photographs(count: int) -> np.ndarray:
    """Noise of some colour, so that labels vary."""
    random = np.random.default_rng(0)
    return (random.uniform(0, 1, (count, 9, 9, 3)) * 255 * random.integers(0, 2, (count, 1, 1, 3))).astype(np.float32)


def network() -> onnxfix.Model:
    return onnxfix.load(parse(
        NET, k=normal(8, 3, 3, 3), b=normal(8), k2=normal(8, 8, 3, 3, seed=1, scale=0.3), b2=normal(8, seed=1),
        w=normal(6, 8, seed=2), c=normal(6, seed=3), low=np.float32(0), high=np.float32(2),
    ))  # fmt: skip


@pytest.fixture
def study(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    before = set(sys.modules)
    import study

    yield study
    for name in set(sys.modules) - before:  # benchmarks' modules have plain names
        if getattr(sys.modules[name], "__file__", None) and "benchmarks" in str(sys.modules[name].__file__):
            del sys.modules[name]


def test_a_case_is_planted_found_and_repaired_in_both_preparations(study):
    case = study.Case("MobileNetV2", "pytorch", "keras", weights=2, attributes=2, edits=1, layout=True)
    photos = photographs(24)
    lines = list(study.judge(case, network(), network(), photos[:12], photos[12:], study.WAYS, 0))
    for line in lines:
        assert study.passed(line), line
        assert line["labels"] > 1
    assert max(line["before"] for line in lines) > 0
    assert [line["planted"] for line in lines] == [6, 7]
    assert lines[1]["asked"] == "2 weights, 2 attributes, 1 graph edits, tensor layout, preprocessing"


def test_a_case_whose_target_has_another_size_is_freed(study):
    case = study.Case("ResNet101", "tflite", "keras", dimensions=True)
    photos = photographs(16)
    [line] = study.judge(case, network(), network(), photos[:8], photos[8:], ["target"], 0)
    assert study.passed(line), line
    assert line["planted"] == 2 and line["before"] is None
