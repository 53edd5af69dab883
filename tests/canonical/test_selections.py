from __future__ import annotations

import pytest
from forms import ops, parse, settle


def settled(body: str, kind: str = "float", result: str = "float") -> list[str]:
    model = parse(f"({kind}[N,4] x, {kind}[N,4] z, {kind}[N,4] w, bool[N,4] m) => ({result}[N,4] y) {{ {body} }}")
    return ops(settle(model))


@pytest.mark.parametrize(
    ("body", "kind", "result", "expected"),
    [
        ("y = Less(x, z)", "float", "bool", ["Greater"]),
        ("y = LessOrEqual(x, z)", "int64", "bool", ["GreaterOrEqual"]),
        ("n = Not(m) y = Where(n, x, z)", "float", "float", ["Where"]),
        ("n = Not(m) k = Not(n) y = Where(k, x, z)", "float", "float", ["Where"]),
        ("r = Relu(x) y = Where(m, r, r)", "float", "float", ["Relu"]),
        ("a = Max(x, z) y = Max(w, a)", "float", "float", ["Max"]),
        ("a = Min(x, z) y = Min(a, w)", "int64", "int64", ["Min"]),
        ("a = Min(x, z) y = Max(a, w)", "float", "float", ["Min", "Max"]),
        ("a = Cast <to = 11> (x) b = Cast <to = 1> (a) y = Relu(b)", "float", "float", ["Relu"]),
        ("a = Cast <to = 7> (x) y = Cast <to = 1> (a)", "int32", "float", ["Cast"]),
        ("a = Cast <to = 1> (m) y = Cast <to = 7> (a)", "float", "int64", ["Cast"]),
        ("a = Cast <to = 10> (x) y = Cast <to = 1> (a)", "float", "float", ["Cast", "Cast"]),
        ("a = Cast <to = 1> (x) y = Cast <to = 7> (a)", "int64", "int64", ["Cast", "Cast"]),
        ("a = Cast <to = 11> (x) y = Cast <to = 6> (a)", "float", "int32", ["Cast", "Cast"]),
        ("a = Cast <to = 9> (x) y = Cast <to = 1> (a)", "float", "float", ["Cast", "Cast"]),
    ],
)
def test_selections_and_casts_have_one_spelling(body: str, kind: str, result: str, expected: list[str]) -> None:
    assert settled(body, kind, result) == expected


def test_a_choice_that_makes_the_value_larger_stays() -> None:
    model = parse("(float[1,4] x, bool[3,4] m) => (float[3,4] y) { y = Where(m, x, x) }")
    assert ops(settle(model)) == ["Where"]
