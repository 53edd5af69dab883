from __future__ import annotations

import pytest
from forms import ops, parse, settle


@pytest.mark.parametrize(
    ("equation", "a", "b", "y"),
    [("aecd,abcd->acbe", "2,5,3,4", "2,6,3,4", "2,3,6,5"), ("acbe,aecd->abcd", "2,3,6,5", "2,5,3,4", "2,6,3,4"),
     ("bij,bjk->bik", "2,3,4", "2,4,5", "2,3,5"), ("ij,kj->ki", "3,4", "5,4", "5,3")],
)
def test_attention_products_are_matmuls(equation: str, a: str, b: str, y: str) -> None:
    model = parse(f'(float[{a}] a, float[{b}] b) => (float[{y}] y) {{ y = Einsum <equation = "{equation}"> (a, b) }}')
    found = ops(settle(model))
    assert "Einsum" not in found
    assert found.count("MatMul") == 1


@pytest.mark.parametrize(
    ("equation", "a", "b", "y"),
    [("ijk,ljk->il", "2,3,4", "5,3,4", "2,5"), ("ii,ij->ij", "3,3", "3,4", "3,4"), ("...ij,...jk->...ik", "2,3,4", "2,4,5", "2,3,5"),
     ("i,j->ij", "3", "4", "3,4")],
)
def test_other_sums_stay(equation: str, a: str, b: str, y: str) -> None:
    model = parse(f'(float[{a}] a, float[{b}] b) => (float[{y}] y) {{ y = Einsum <equation = "{equation}"> (a, b) }}')
    assert ops(settle(model)) == ["Einsum"]
