"""Laws of the normal form on random models: same answers, same boundary, a fixed point, structure alone, true origins."""

from __future__ import annotations

import random

import numpy as np
import onnx
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onnx import numpy_helper
from random_graphs import session
from random_models import random_model
from test_normal_form import disguised

from onnxfix.canonical import normal_form
from onnxfix.canonical.origins import evaluate

KINDS = ("normal", "negative", "zeros", "large", "halves", "another batch")
# Largest number of float32, which onnxruntime's Clip without a bound makes of infinity.
_LARGEST = 3.4e38


def feeds_for(model: onnx.ModelProto, rng: np.random.Generator, kind: str, batch: int) -> dict[str, np.ndarray]:
    feeds = {}
    for value in model.graph.input:
        tensor = value.type.tensor_type
        dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type))
        shape = [(batch + 3 if kind == "another batch" else batch) if d.dim_param else d.dim_value for d in tensor.shape.dim]
        if dtype.kind != "f":
            feeds[value.name] = rng.integers(-5, 6, shape).astype(dtype)
            continue
        content = rng.standard_normal(shape)
        changed = {"negative": -np.abs(content), "zeros": 0 * content, "large": 8 * content,
                   "halves": np.round(2 * content) / 2}.get(kind, content)
        feeds[value.name] = changed.astype(dtype)
    return feeds


def noise(model: onnx.ModelProto, feeds: dict[str, np.ndarray], wanted: list[np.ndarray], rng: np.random.Generator) -> list[np.ndarray]:
    """How much each output moves when weights and inputs move by a unit or two in the last place."""

    def shaken(value: np.ndarray) -> np.ndarray:
        if value.dtype.kind != "f":
            return value
        moved = (value * (1 + 2e-7 * rng.choice([-1, 1], value.shape))).astype(value.dtype)
        return np.where(np.isfinite(value), moved, value)

    found = [np.zeros(w.shape) for w in wanted]
    for _ in range(4):
        other = onnx.ModelProto()
        other.CopyFrom(model)
        for tensor in other.graph.initializer:
            tensor.CopyFrom(numpy_helper.from_array(shaken(numpy_helper.to_array(tensor)), tensor.name))
        results = session(other).run(None, {name: shaken(value) for name, value in feeds.items()})
        for k, (one, two) in enumerate(zip(wanted, results, strict=True)):
            with np.errstate(invalid="ignore"):
                moved = np.abs(one.astype(np.float64) - two.astype(np.float64))
            found[k] = np.maximum(found[k], np.nan_to_num(moved, nan=0.0, posinf=np.inf))
    return found


def differs(wanted: np.ndarray, found: np.ndarray, moves: np.ndarray) -> bool:
    """Whether an output is another one, by more than reassociation and thirty times its own noise explain."""
    if wanted.dtype != found.dtype or wanted.shape != found.shape:
        return True
    if wanted.dtype.kind != "f":
        return bool(((wanted != found) & (moves == 0)).any())
    one, two = wanted.astype(np.float64), found.astype(np.float64)
    sound = np.abs(one) < _LARGEST  # what overflows or has no value may do so in another way
    if not sound.any():
        return False
    scale = np.abs(one[sound]).max()
    # onnxruntime's Sigmoid is exact to 2e-7 of its range, not of its value.
    allowed = 2e-7 + 1e-5 * scale + 2e-5 * np.abs(one[sound]) + 30 * moves[sound]
    return not bool((np.abs(two[sound] - one[sound]) <= allowed).all())


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=400, deadline=None, derandomize=True, database=None)
def test_random_models_keep_every_law(seed: int) -> None:
    growing = random_model(seed)
    model, rng = growing.model(), np.random.default_rng(seed)
    try:
        before = session(model)
    except Exception:  # onnxruntime's exceptions have no common base; what it refuses has no answers to keep
        assume(False)
    form = normal_form(model)
    after = session(form.proto)
    assert [v.name for v in form.proto.graph.output] == [v.name for v in model.graph.output]
    assert [(v.name, v.type) for v in form.proto.graph.input] == [(v.name, v.type) for v in model.graph.input]
    for kind in KINDS:
        feeds = feeds_for(model, rng, kind, growing.batch)
        try:
            wanted = before.run(None, feeds)
        except Exception:  # as above: a target or window that only one batch fits
            continue
        found = after.run(None, feeds)
        if any(differs(w, f, np.zeros(w.shape)) for w, f in zip(wanted, found, strict=True)):
            moves = noise(model, feeds, wanted, rng)
            wrong = [v.name for v, w, f, m in zip(model.graph.output, wanted, found, moves, strict=True) if differs(w, f, m)]
            assert not wrong, f"{wrong} differ on {kind} inputs"
    for tensor in form.proto.graph.initializer:
        constant = evaluate(form.origins[tensor.name], form.parameters)
        np.testing.assert_array_equal(constant, numpy_helper.to_array(tensor))
    written = form.proto.SerializeToString(deterministic=True)
    assert normal_form(form.proto).proto.SerializeToString(deterministic=True) == written
    other = disguised(model, random.Random(seed).randrange(2**32))
    assert normal_form(other).proto.SerializeToString(deterministic=True) == written


