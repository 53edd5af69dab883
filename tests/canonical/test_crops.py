from __future__ import annotations

import numpy as np
import pytest
from forms import constant, ints, normal, parse, settle
from rewrites import ops, rewrite

from onnxfix.canonical import is_isomorphic
from onnxfix.canonical.crops import CropTransposedConvs
from onnxfix.canonical.defaults import ExplicitAttributes

KERNEL = normal(3, 4, 3, 3)
END = 2**63 - 1


def convolved(attributes: str, rest: str = "y = Identity(t)", size: str = "5,6") -> str:
    return f"(float[N,3,{size}] x) => (float[N,4,h,w] y) {{ t = ConvTranspose <{attributes}> (x, k) {rest} }}"


def edges(attributes: str, **constants: np.ndarray) -> tuple[list[int], list[int]]:
    rest = "y = Slice(t, starts, ends, axes)" if constants else "y = Identity(t)"
    graph = rewrite(parse(convolved(attributes, rest), k=KERNEL, **constants), ExplicitAttributes(), CropTransposedConvs())
    assert "Slice" not in ops(graph)
    return list(graph[0].attributes.get_ints("pads")), list(graph[0].attributes.get_ints("output_padding"))


@pytest.mark.parametrize(
    ("attributes", "pads", "extra"),
    [
        ("strides = [2, 2], pads = [1, 1, 1, 1], output_padding = [1, 1]", [1, 1, 1, 1], [1, 1]),
        ("strides = [2, 2], pads = [1, 1, 0, 0]", [1, 1, 1, 1], [1, 1]),
        ("strides = [2, 2], pads = [0, 1, 1, 1], output_padding = [1, 0]", [0, 1, 0, 1], [0, 0]),
        ("strides = [2, 2], pads = [0, 0, 1, 1]", [0, 0, 1, 1], [0, 0]),
        ("strides = [1, 2], pads = [2, 2, 0, 1]", [2, 2, 0, 2], [0, 1]),
        ("strides = [3, 3], output_padding = [2, 1]", [0, 0, 0, 0], [2, 1]),
    ],
)
def test_padding_at_the_end_has_one_spelling(attributes: str, pads: list[int], extra: list[int]) -> None:
    assert edges(attributes) == (pads, extra)


@pytest.mark.parametrize(
    ("starts", "ends", "axes", "pads", "extra"),
    [
        (ints(1, 1), ints(END, END), ints(2, 3), [1, 1, 1, 1], [1, 1]),
        (ints(1), ints(-1), ints(3), [0, 1, 0, 1], [0, 0]),
        (ints(0, 1), ints(9, 12), ints(2, 3), [0, 1, 2, 1], [0, 0]),
    ],
)
def test_a_crop_is_padding(
    starts: np.ndarray, ends: np.ndarray, axes: np.ndarray, pads: list[int], extra: list[int]
) -> None:
    assert edges("strides = [2, 2]", starts=starts, ends=ends, axes=axes) == (pads, extra)


@pytest.mark.parametrize(
    ("starts", "ends", "axes"),
    [
        (ints(1), ints(END), ints(1)),
        (ints(3), ints(END), ints(2)),
        (ints(-2), ints(END), ints(2)),
    ],
)
def test_other_slices_stay(starts: np.ndarray, ends: np.ndarray, axes: np.ndarray) -> None:
    model = parse(
        "(float[N,3,H,6] x) => (float[N,c,h,w] y) { t = ConvTranspose <strides = [2, 2]> (x, k) "
        "y = Slice(t, starts, ends, axes) }", k=KERNEL, starts=starts, ends=ends, axes=axes,
    )
    assert "Slice" in ops(rewrite(model, ExplicitAttributes(), CropTransposedConvs(), batch=4))


def test_a_crop_of_an_unknown_size_counts_from_both_ends() -> None:
    cropped = parse(
        "(float[N,3,H,W] x) => (float[N,4,h,w] y) { t = ConvTranspose <strides = [2, 2]> (x, k) "
        "b = Add(t, c) y = Slice(b, starts, ends, axes) }",
        k=KERNEL, c=normal(4, 1, 1), starts=ints(1, 1), ends=ints(END, -1), axes=ints(2, 3),
    )
    padded = parse(
        "(float[N,3,H,W] x) => (float[N,4,h,w] y) { t = ConvTranspose <strides = [2, 2], pads = [1, 1, 1, 1], "
        "output_padding = [1, 0]> (x, k) y = Add(t, c) }", k=KERNEL, c=normal(4, 1, 1),
    )
    form = settle(cropped, batch=4)
    assert [n.op_type for n in form.proto.graph.node] == ["ConvTranspose"]
    np.testing.assert_array_equal(constant(form, "ConvTranspose", 1), KERNEL)
    assert is_isomorphic(cropped, padded)


def test_dilation_does_not_allow_more_output_padding_than_runtimes_take() -> None:
    model = parse(
        "(float[N,3,4,5] x) => (float[N,4,h,w] y) { y = ConvTranspose <pads = [1, 1, 1, 0], dilations = [2, 2]> (x, k) }",
        k=KERNEL,
    )
    (conv,) = settle(model).proto.graph.node
    assert {a.name: list(a.ints) for a in conv.attribute}["output_padding"] == [0, 0]
