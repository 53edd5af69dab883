from __future__ import annotations

import numpy as np
import pytest
from rewrites import parse, rewrite

from onnxfix.canonical.defaults import ExplicitAttributes
from onnxfix.canonical.resizes import SpellResizes
from onnxfix.runtime.session import Session

COORDINATES = ["half_pixel", "asymmetric", "pytorch_half_pixel", "align_corners"]
ROUNDINGS = ["floor", "ceil", "round_prefer_floor", "round_prefer_ceil"]


def spelled(mode, coordinates, rounding, **operands):
    scales = "scales" if "scales" in operands else ""
    sizes = ", sizes" if "sizes" in operands else ""
    model = parse(
        f"""(float[2,2,5,3] x, float[8] region) => (float[2,2,h,w] y) {{
            y = Resize <mode = "{mode}", coordinate_transformation_mode = "{coordinates}",
                        nearest_mode = "{rounding}"> (x, region, {scales}{sizes})
        }}""",
        **operands,
    )
    return rewrite(model, ExplicitAttributes(), SpellResizes())[0]


def enlarged(x, factor, coordinates, rounding):
    model = parse(
        f"""(float[1,1,7,1] x) => (float[1,1,h,1] y) {{
            y = Resize <mode = "nearest", coordinate_transformation_mode = "{coordinates}",
                        nearest_mode = "{rounding}"> (x, , scales)
        }}""",
        scales=np.array([1, 1, factor, 1], np.float32),
    )
    return Session(model).run({"x": x})["y"]


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("coordinates", COORDINATES)
@pytest.mark.parametrize("factors", [(2, 2), (3, 4), (1, 5)])
def test_elements_that_are_repeated_are_repeated_in_one_spelling(coordinates, rounding, factors):
    node = spelled("nearest", coordinates, rounding, scales=np.array([1, 1, *factors], np.float32))
    x = np.arange(7, dtype=np.float32).reshape(1, 1, 7, 1)
    repeats = all(np.array_equal(enlarged(x, factor, coordinates, rounding), np.repeat(x, factor, 2))
                  for factor in factors)
    is_plain = [node.attributes.get_string(n) for n in ("coordinate_transformation_mode", "nearest_mode")]
    # align_corners depends on the size, so that it is left alone, though it may repeat elements too.
    assert (is_plain == ["asymmetric", "floor"]) == (repeats and coordinates != "align_corners")
    assert node.inputs[1] is None


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize(("sizes", "whole"), [((10, 9), True), ((5, 6), True), ((9, 6), False), ((2, 3), False)])
def test_sizes_are_scales_where_these_are_whole(mode, sizes, whole):
    node = spelled(mode, "half_pixel", "floor", sizes=np.array([2, 2, *sizes]))
    assert (node.inputs[2] is not None) == whole


def test_rounding_counts_for_nearest_alone():
    node = spelled("linear", "half_pixel", "ceil", scales=np.array([1, 1, 1.5, 2], np.float32))
    assert node.attributes.get_string("nearest_mode") == "round_prefer_floor"
