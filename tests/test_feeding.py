"""Data that source and target are fed in ways of their own: whether the target wants them so, and what to do if not."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

import onnxfix
from onnxfix.diagnose.boundary.feeding import fitted
from onnxfix.inputs import Inputs, Preparation
from onnxfix.surgeon.apply import replayed
from onnxfix.surgeon.patch import patch_from_dict
from onnxfix.testing import inject
from small_onnx import normal, parse

NET = """net (float[N, 3, 8, 8] x) => (float[N, 4] y) {
    a = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (x, k, b) r = Relu(a)
    m = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (r, k2, b2) q = Relu(m)
    g = GlobalAveragePool(q) f = Flatten(g) z = Gemm <transB = 1> (f, w, c) y = Softmax(z) }"""
LAST = """net (float[N, 8, 8, 3] x) => (float[N, 4] y) {
    t = Transpose <perm = [0, 3, 1, 2]> (x)
    a = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (t, k, b) r = Relu(a)
    m = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (r, k2, b2) q = Relu(m)
    g = GlobalAveragePool(q) f = Flatten(g) z = Gemm <transB = 1> (f, w, c) y = Softmax(z) }"""
SIGNED = Preparation(scale=1 / 127.5, mean=(1.0,))
TORCHVISION = Preparation(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
CAFFE = Preparation(scale=1.0, mean=(103.939, 116.779, 123.68), order="BGR")
# Two roundings of float32 for each of the two preparations and the map between them, through three layers.
CLOSE = 1e-5


def net(text: str = NET) -> onnx.ModelProto:
    return parse(
        text, k=normal(8, 3, 3, 3), b=normal(8), k2=normal(8, 8, 3, 3, scale=0.3), b2=normal(8),
        w=normal(4, 8, scale=0.5), c=normal(4),
    )  # fmt: skip


def pixels(count: int = 24, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 8, 8, 3)).astype(np.float32)


def fed(way: Preparation, seed: int = 0) -> Inputs:
    return Inputs(pixels(seed=seed), source_preprocess=SIGNED, target_preprocess=way)


@pytest.mark.parametrize("text", [NET, LAST])
@pytest.mark.parametrize("way", [TORCHVISION, CAFFE, Preparation(), Preparation(scale=1.0)])
def test_a_target_that_is_fed_its_frameworks_way_learns_to_take_it(way, text):
    repair = onnxfix.repair(net(), net(text), fed(way), holdout=fed(way, seed=1))
    [fault] = repair.diagnosis.faults
    assert (fault.kind, fault.parameter) == ("preprocessing", "x")
    assert "tf (-1..1)" in fault.message
    assert repair.success and repair.verified.max_rel < CLOSE and not repair.before.equivalent
    assert onnxfix.compare(net(), repair.model, fed(way, seed=2)).max_rel < CLOSE


def test_a_target_that_wants_its_own_way_is_left_alone():
    scaled = onnxfix.repair(net(), net(), fed(TORCHVISION)).model.proto
    assert onnxfix.diagnose(net(), scaled, fed(TORCHVISION)).faults == ()


def test_what_is_wrong_inside_is_found_all_the_same():
    faulty = net()
    sites = []
    for operator in ("perturb_weight", "remove_activation", "transpose_input"):
        injection = inject(faulty, operator, seed=1)
        faulty, sites = injection.model, [*sites, *injection.sites]
    repair = onnxfix.repair(net(), faulty, fed(CAFFE), holdout=fed(CAFFE, seed=1))
    assert repair.success and repair.verified.max_rel < CLOSE
    kinds = {str(site.kind) for site in sites} | {"preprocessing"}
    assert {str(fault.kind) for fault in repair.diagnosis.faults} == kinds
    patches = [patch_from_dict(patch.to_dict()) for patch in repair.patches]
    assert replayed(faulty, patches).SerializeToString() == repair.model.proto.SerializeToString()


def test_a_size_that_is_fixed_wrongly_does_not_hide_the_preparation():
    frozen = net()
    frozen.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 11
    repair = onnxfix.repair(net(), frozen, fed(TORCHVISION))
    assert {str(fault.kind) for fault in repair.diagnosis.faults} == {"preprocessing", "input_dimensions"}
    assert repair.success and repair.verified.max_rel < CLOSE


def test_preparations_without_a_map_between_them_are_not_explained_away():
    def blurred(pictures: np.ndarray) -> np.ndarray:
        return (SIGNED(pictures) + SIGNED(np.roll(pictures, 1, axis=1))) / 2

    repair = onnxfix.repair(net(), net(), Inputs(pixels(), source_preprocess=SIGNED, target_preprocess=blurred))
    assert not repair.success


def test_a_map_of_channels_is_read_off_the_data():
    x = normal(5, 3, 4, 4)
    one = fitted(x, 2 * x - 1)
    assert one is not None and one.scale.size == 1 and one.picks_nothing()
    turned = fitted(x, x[:, ::-1] * np.float32([1, 2, 3]).reshape(3, 1, 1))
    assert turned is not None and turned.takes[1].tolist() == [2, 1, 0]
    np.testing.assert_allclose(turned.scale.reshape(-1), [1, 2, 3], rtol=1e-6)
    assert fitted(x, x**2) is None
    assert fitted(np.ones_like(x), x) is None
