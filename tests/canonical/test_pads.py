from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from forms import settle
from rewrites import normal, ops, parse, rewrite

from onnxfix.canonical.defaults import ExplicitAttributes
from onnxfix.canonical.padded_reshapes import PadBehindReshape
from onnxfix.canonical.pads import FoldPads, MergePads, ResolveAutoPad, spatial_pads

ZERO_PAD = np.array([0, 0, 1, 0, 0, 0, 1, 2])


@pytest.mark.parametrize("mode", ["SAME_UPPER", "SAME_LOWER", "VALID"])
@pytest.mark.parametrize(("kernel", "stride", "dilation"), [(3, 2, 1), (2, 3, 1), (3, 1, 1), (4, 1, 1), (1, 2, 1)])
def test_auto_pad_becomes_pads(mode: str, kernel: int, stride: int, dilation: int) -> None:
    model = parse(
        f"""(float[N,3,7,8] x) => (float[N,4,h,w] y) {{
            y = Conv <auto_pad = "{mode}", strides = [{stride}, {stride}], dilations = [{dilation}, {dilation}]> (x, k)
        }}""",
        k=normal(4, 3, kernel, kernel),
    )
    graph = rewrite(model, ExplicitAttributes(), ResolveAutoPad())
    assert graph[0].attributes.get_string("auto_pad") == "NOTSET"
    assert len(graph[0].attributes.get_ints("pads")) == 4


@pytest.mark.parametrize("mode", ["SAME_UPPER", "SAME_LOWER"])
def test_auto_pad_of_transposed_convolutions_and_pools(mode: str) -> None:
    model = parse(
        f"""(float[N,3,7,8] x) => (float[N,4,14,16] y, float[N,3,4,4] z) {{
            y = ConvTranspose <auto_pad = "{mode}", strides = [2, 2]> (x, k)
            z = MaxPool <auto_pad = "{mode}", kernel_shape = [3, 3], strides = [2, 2]> (x)
        }}""",
        k=normal(3, 4, 3, 3),
    )
    graph = rewrite(model, ExplicitAttributes(), ResolveAutoPad())
    assert [n.attributes.get_string("auto_pad") for n in graph] == ["NOTSET", "NOTSET"]


def test_output_shape_of_a_transposed_convolution_becomes_pads() -> None:
    model = parse(
        """(float[N,3,7,8] x) => (float[N,4,14,15] y) {
            y = ConvTranspose <output_shape = [14, 15], strides = [2, 2]> (x, k)
        }""",
        k=normal(3, 4, 4, 4),
    )
    graph = rewrite(model, ExplicitAttributes(), ResolveAutoPad())
    assert "output_shape" not in graph[0].attributes
    assert len(graph[0].attributes.get_ints("pads")) == 4


def test_auto_pad_of_an_unknown_size_stays() -> None:
    model = parse(
        """(float[N,3,H,W] x) => (float[N,4,h,w] y) { y = Conv <auto_pad = "SAME_UPPER", strides = [2, 2]> (x, k) }""",
        k=normal(4, 3, 3, 3),
    )
    graph = rewrite(model, ExplicitAttributes(), ResolveAutoPad(), batch=6)
    assert graph[0].attributes.get_string("auto_pad") == "SAME_UPPER"


def padded(then: str, before: str = "a = Identity(x)") -> str:
    return f"(float[N,3,5,6] x) => (float[N,c,h,w] y) {{ {before} p = Pad(a, amounts, value) y = {then} }}"


POOL = "kernel_shape = [3, 3], strides = [2, 1]"


@pytest.mark.parametrize(
    ("then", "before", "value", "folded"),
    [
        ("Conv <pads = [0, 1, 1, 0]> (p, k)", "a = Identity(x)", 0.0, True),
        ("Conv(p, k)", "a = Identity(x)", 1.0, False),
        (f"MaxPool <{POOL}> (p)", "a = Identity(x)", 0.0, False),
        (f"MaxPool <{POOL}> (p)", "a = Relu(x)", 0.0, True),
        (f"MaxPool <{POOL}> (p)", "r = Relu(x) s = Sigmoid(x) a = Add(r, s)", 0.0, True),
        (f"MaxPool <{POOL}> (p)", "a = Identity(x)", -np.inf, True),
        (f"MaxPool <{POOL}> (p)", "a = Identity(x)", float(np.finfo(np.float32).min), True),
        ("MaxPool <kernel_shape = [2, 2]> (p)", "a = Relu(x)", 0.0, False),
        (f"AveragePool <{POOL}> (p)", "a = Identity(x)", 0.0, True),
        (f"AveragePool <{POOL}, pads = [1, 1, 1, 1]> (p)", "a = Identity(x)", 0.0, False),
    ],
)
def test_padding_is_folded_only_where_the_node_pads_alike(then: str, before: str, value: float, folded: bool) -> None:
    model = parse(padded(then, before), amounts=ZERO_PAD, value=np.float32(value), k=normal(4, 3, 3, 3))
    if "Conv" not in then:
        del model.graph.initializer[-1]
    assert ("Pad" not in ops(rewrite(model, ExplicitAttributes(), FoldPads()))) == folded


def test_padding_of_other_axes_is_not_folded() -> None:
    model = parse(
        "(float[N,3,5,6] x) => (float[N,4,h,w] y) { p = Pad(x, amounts) y = Conv(p, k) }",
        amounts=np.array([0, 1, 1, 0, 0, 0, 1, 2]), k=normal(4, 4, 3, 3),
    )
    assert "Pad" in ops(rewrite(model, ExplicitAttributes(), FoldPads()))


def test_paddings_in_a_row_become_one() -> None:
    model = parse(
        "(float[N,3,5,6] x) => (float[N,3,h,w] y) { p = Pad(x, a) y = Pad(p, b, , axes) }",
        a=ZERO_PAD, b=np.array([1, 2]), axes=np.array([-1]),
    )
    assert ops(rewrite(model, MergePads())) == ["Pad"]


@pytest.mark.parametrize(
    ("pads", "shape", "target", "moved"),
    [
        ([0, 2, 1, 0, 0, 0, 3, 0], "N,5,4,1", [0, 1, 7, 8], True),
        ([0, 0, 2, 1, 0, 0, 0, 3], "N,1,5,4", [0, 1, 7, 8], True),
        ([0, 2, 0, 0, 0, 1, 0, 0], "N,4,1,7", [0, 1, 7, 7], True),
        ([0, 2, 1, 0, 0, 0, 3, 0], "N,5,4,2", [0, 1, 7, 16], False),
        ([0, 0, 0, 2, 0, 0, 0, 3], "N,4,7,1", [0, 6, 4, 7], False),
    ],
)
def test_a_pad_goes_behind_a_reshape_that_only_places_ones(pads, shape, target, moved) -> None:
    model = parse(
        f"""(float[{shape}] x) => (float[N,2,h,w] y) {{
            padded = Pad (x, pads)
            placed = Reshape (padded, target)
            y = Conv (placed, k)
        }}""",
        pads=np.array(pads), target=np.array(target), k=normal(2, target[1], 2, 2),
    )  # fmt: skip
    graph = rewrite(model, ExplicitAttributes(), PadBehindReshape(), FoldPads())
    assert ops(graph) == (["Reshape", "Conv"] if moved else ["Pad", "Reshape", "Conv"])


@pytest.mark.parametrize("kernel", [(2, 3), (1, 1), (1, 3)])
@pytest.mark.parametrize("extra", [0, 1])
def test_same_padding_of_a_transposed_convolution_gives_the_size_that_runtimes_give(
    kernel: tuple[int, int], extra: int
) -> None:
    model = parse(
        f"""(float[N,3,6,5] x) => (float[N,2,h,w] y) {{
            y = ConvTranspose <auto_pad = "SAME_LOWER", output_padding = [{extra}, {extra}], strides = [2, 2]> (x, k)
        }}""",
        k=normal(3, 2, *kernel),
    )
    settle(model)


@pytest.mark.parametrize(("amounts", "expected"), [([1, 1, 1, 1], None), ([0, 0, 1, 2, 0, 0, 3, 4], [1, 2, 3, 4])])
def test_a_pad_that_contradicts_its_tensor_is_read_as_none(amounts, expected):
    given = ir.Value(name="p", const_value=ir.tensor(np.array(amounts)))
    x = ir.Value(name="x", shape=ir.Shape([1, 2, 5, 5]))
    pad = ir.node("Pad", [x, given])
    ir.Graph([x], pad.outputs, nodes=[pad], initializers=[given])
    assert spatial_pads(pad) == expected
