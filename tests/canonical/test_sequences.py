from __future__ import annotations

import pytest
from rewrites import normal, ops, parse, rewrite

from onnxfix.canonical.sequences import SqueezeConvs


@pytest.mark.parametrize(
    ("shape", "kernel", "attributes"),
    [
        ("N,4,1,9", (6, 4, 1, 3), "pads = [0, 2, 0, 0], dilations = [1, 2], strides = [3, 1]"),
        ("N,4,9,1", (6, 2, 3, 1), "pads = [1, 0, 1, 0], group = 2, strides = [2, 1]"),
    ],
)
def test_maps_of_height_or_width_one_are_sequences(shape: str, kernel: tuple[int, ...], attributes: str) -> None:
    model = parse(
        f"(float[{shape}] x) => (float[N,6,h,w] y) {{ y = Conv <{attributes}> (x, k, b) }}", k=normal(*kernel), b=normal(6)
    )
    graph = rewrite(model, SqueezeConvs())
    assert ops(graph) == ["Reshape", "Conv", "Reshape"]
    assert len(graph[1].attributes.get_ints("kernel_shape")) == 1


@pytest.mark.parametrize(
    ("shape", "kernel", "pads"),
    [("N,4,1,9", (6, 4, 3, 3), "1, 1, 1, 1"), ("N,4,1,9", (6, 4, 1, 3), "1, 1, 0, 1"), ("N,4,2,9", (6, 4, 1, 3), "0, 0, 0, 0")],
)
def test_other_maps_stay(shape: str, kernel: tuple[int, ...], pads: str) -> None:
    model = parse(f"(float[{shape}] x) => (float[N,6,h,w] y) {{ y = Conv <pads = [{pads}]> (x, k) }}", k=normal(*kernel))
    assert ops(rewrite(model, SqueezeConvs())) == ["Conv"]
