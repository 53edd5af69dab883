from __future__ import annotations

import numpy as np
import pytest
from rewrites import ops, parse, rewrite

from onnxfix.canonical.rewriting import array
from onnxfix.canonical.slices import SpellSlices

END = 2**63 - 1
CONSTANTS = {
    "sizes": np.array([1, 3, 2]), "two": np.array([2]), "last": np.array([-1]), "most": np.array([END]),
    "first": np.array([0]), "back": np.array([-3]), "down": np.array([-7]), "index": np.array(1), "chunk": np.array(4),
    "one": np.array([1]),
}


def sliced(body: str, out: str = "float[N,a,b] y"):
    words = set(body.replace("(", " ").replace(")", " ").replace(",", " ").split())
    model = parse(f"(float[N,5,6] x) => ({out}) {{ {body} }}", **{k: v for k, v in CONSTANTS.items() if k in words})
    return rewrite(model, SpellSlices(), SpellSlices())


@pytest.mark.parametrize(
    "body", ["y, z, w = Split <axis = -1> (x, sizes)", "y, z, w = Split <axis = 1, num_outputs = 3> (x)"]
)
def test_split_is_slices(body: str) -> None:
    assert ops(sliced(body, "float[N,a,b] y, float[N,c,d] z, float[N,e,f] w")) == ["Slice"] * 3


@pytest.mark.parametrize("how", ["sizes", "chunk"])
def test_pieces_of_sequences_are_slices(how: str) -> None:
    assert ops(sliced(f"s = SplitToSequence <axis = 2> (x, {how}) y = SequenceAt(s, index)")) == ["Slice"]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("y = Slice(x, two, most, last)", ([2], [END], [2], [1])),
        ("y = Slice(x, back, last, last, two)", ([3], [4], [2], [2])),
        ("y = Slice(x, last, down, two, last)", ([-1], [-7], [2], [-1])),
        ("y = Slice(x, one, most)", ([1], [END], [0], [1])),
        ("a = Slice(x, two, most, last) y = Slice(a, first, two, one)", ([0, 2], [2, END], [1, 2], [1, 1])),
    ],
)
def test_slices_are_spelled_out(body: str, expected: tuple[list[int], ...]) -> None:
    (node,) = sliced(body)
    assert tuple(array(v).tolist() for v in node.inputs[1:]) == expected


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("a = Slice(x, one, most, last) y = Slice(a, one, two, last)", ([2], [3], [2], [1])),
        ("a = Slice(x, one, most, last, two) y = Slice(a, one, most, last, two)", ([3], [END], [2], [4])),
        ("a = Slice(x, back, last, last) y = Slice(a, last, most, last)", ([4], [5], [2], [1])),
    ],
)
def test_slices_of_one_axis_are_composed(body: str, expected: tuple[list[int], ...]) -> None:
    (node,) = sliced(body)
    assert tuple(array(v).tolist() for v in node.inputs[1:]) == expected


def test_slices_of_an_open_axis_are_not_composed() -> None:
    assert ops(sliced("a = Slice(x, one, most) y = Slice(a, first, one)")) == ["Slice", "Slice"]
