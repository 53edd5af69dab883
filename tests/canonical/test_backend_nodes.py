"""Every test that onnx ships for backends gives the same answers after canonicalization, which is then a fixed point.

The judge is onnxruntime with its optimisations off. What it cannot run is judged by the outputs that the test states,
where it runs the normal form, and otherwise only held to settle and be a fixed point.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import pytest
from backend_cases import Case, bound, cases, run

from onnxfix.canonical import normal_form

SHARDS = 8
# Random by definition: no two runs agree.
_RANDOM = ("test_bernoulli", "test_randomuniform", "test_randomnormal", "test_training_dropout", "test_multinomial")


def deviation(wanted: object, found: object, case: Case) -> str | None:
    """What differs between two outputs, or None."""
    if isinstance(wanted, list | tuple):
        if not isinstance(found, list | tuple) or len(wanted) != len(found):
            return "another number of elements"
        return next((d for d in (deviation(w, f, case) for w, f in zip(wanted, found, strict=True)) if d), None)
    if wanted is None or isinstance(wanted, dict):
        return None if wanted == found else "another value"
    one, two = np.asarray(wanted), np.asarray(found)
    if one.dtype.isbuiltin != 1 and one.dtype.itemsize == two.dtype.itemsize:
        one = one.view(two.dtype)  # onnxruntime gives the bits of float8 and the like
    if one.dtype != two.dtype or one.shape != two.shape:
        return f"{one.dtype}{list(one.shape)} became {two.dtype}{list(two.shape)}"
    if one.dtype.kind in "OSU":
        return None if (one == two).all() else "other texts"
    if one.dtype.kind in "biu":
        return None if np.array_equal(one, two) else "other numbers"
    wide = np.complex128 if one.dtype.kind == "c" else np.float64
    near = np.isclose(two.astype(wide), one.astype(wide), rtol=case.rtol, atol=case.atol, equal_nan=True)
    return None if near.all() else f"{(~near).sum()} of {near.size} elements differ"


def outcome(case: Case, model: onnx.ModelProto) -> tuple[str, str | None]:
    """How a model was judged, and what is wrong with its normal form."""
    try:
        wanted, judge = run(model, case.feeds), "onnxruntime"
    except Exception:  # onnxruntime's exceptions have no common base; what it cannot run it cannot judge
        wanted, judge = case.expected, "the test's own outputs"
    form = normal_form(model).proto
    if normal_form(form).proto.SerializeToString(deterministic=True) != form.SerializeToString(deterministic=True):
        return judge, "not a fixed point"
    if [o.name for o in form.graph.output] != [o.name for o in model.graph.output]:
        return judge, "other outputs"
    if case.name.startswith(_RANDOM):
        return "random", None
    try:
        found = run(form, case.feeds)
    except Exception as error:  # as above
        return ("nobody", None) if judge != "onnxruntime" else (judge, f"does not run any more: {error}")
    return (judge, None if wanted is None else deviation(wanted, found, case))


@pytest.mark.parametrize("shard", range(SHARDS))
def test_backend_tests_keep_their_answers(shard: int) -> None:
    judges, wrong = Counter(), []
    for case in cases()[shard::SHARDS]:
        for variant, model in (("", case.model), (" with constants", bound(case))):
            if model is None:
                continue
            judge, problem = outcome(case, model)
            judges[judge] += 1
            if problem is not None:
                wrong.append(f"{case.name}{variant}: {problem}")
    assert not wrong, "\n".join(wrong)
    assert judges["onnxruntime"] > 0.7 * judges.total(), judges
