"""PyTorch sources that take other sizes than the one they were traced on."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import onnxfix
from onnxfix.errors import InputError

torch = pytest.importorskip("torch", reason="PyTorch is not installed")


class Pooled(torch.nn.Module):
    def __init__(self, size: int | tuple[int | None, int]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = torch.nn.Conv2d(3, 4, 3, padding=1)
        self.pool = torch.nn.AdaptiveAvgPool2d(size)

    def forward(self, x):
        return self.pool(torch.relu(self.conv(x)))


def frozen(module: Pooled, kernel: int) -> onnx.ModelProto:
    """What converters make of an adaptive pool: windows of the size that it had on the example."""
    nodes = [
        helper.make_node("Conv", ["x", "k", "b"], ["c"], "conv", pads=[1] * 4),
        helper.make_node("Relu", ["c"], ["r"], "relu"),
        helper.make_node("AveragePool", ["r"], ["y"], "pool", kernel_shape=[kernel] * 2, strides=[kernel] * 2),
    ]
    tensors = [
        numpy_helper.from_array(tensor.detach().numpy(), name)
        for name, tensor in (("k", module.conv.weight), ("b", module.conv.bias))
    ]
    infos = [helper.make_tensor_value_info(n, 1, [1, c, f"h{n}", f"w{n}"]) for n, c in (("x", 3), ("y", 4))]
    graph = helper.make_graph(nodes, "frozen", infos[:1], infos[1:], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def feeds(*sizes: tuple[int, int]) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    return [{"x": rng.normal(size=(1, 3, *size)).astype(np.float32)} for size in sizes]


def test_a_pool_frozen_to_the_size_of_the_example_is_found_and_repaired():
    module = Pooled(2).eval()
    source = onnxfix.load(module, inputs=(torch.zeros(1, 3, 16, 16),))
    fix = onnxfix.repair(source, frozen(module, 8), feeds((16, 16), (32, 32), (24, 20)), holdout=feeds((28, 12), (14, 18)))
    assert [str(fault.kind) for fault in fix.diagnosis.faults] == ["input_dimensions"]
    assert fix.diagnosis.faults[0].target_nodes[0] == "pool"
    assert fix.success
    assert fix.verified.max_rel <= 1e-5


def test_a_program_exported_for_one_size_takes_others_where_its_operators_do():
    module = Pooled(2).eval()
    program = torch.export.export(module, (torch.zeros(1, 3, 16, 16),))
    fix = onnxfix.repair(program, frozen(module, 8), feeds((16, 16), (32, 32), (24, 20)), holdout=feeds((28, 12)))
    assert [str(fault.kind) for fault in fix.diagnosis.faults] == ["input_dimensions"]
    assert fix.success
    assert fix.verified.max_rel <= 1e-5


@pytest.mark.parametrize("size", [2, 3, (None, 3)])
def test_adaptive_pools_follow_the_size(size):
    from onnxfix.frameworks.torch_resizing import with_free_sizes

    module = Pooled(size).eval()
    source = onnxfix.load(module, inputs=(torch.zeros(1, 3, 16, 16),))
    resized = with_free_sizes(source, feeds((16, 16), (11, 9)))
    assert resized is not None
    [feed] = feeds((13, 17))
    with torch.no_grad():
        wanted = module(torch.from_numpy(feed["x"])).numpy()
    np.testing.assert_allclose(next(iter(resized.run(feed).values())), wanted, rtol=1e-4, atol=1e-6)


def test_a_source_that_takes_one_size_only_is_not_made_to_take_others():
    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 5)).eval()
    source = onnxfix.load(module, inputs=(torch.zeros(2, 3, 4, 4),))
    with pytest.raises(InputError, match="shape"):
        onnxfix.diagnose(source, source, feeds((5, 5)))
