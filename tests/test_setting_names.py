"""The node that a wrong setting is named at: the one that reads it, however the op is spelled."""

from __future__ import annotations

import numpy as np
import pytest

import onnxfix
from small_onnx import normal, parse

LAYER = "a = Conv <kernel_shape = [3, 3]> (x, k, b)"
PLAIN = f"net (float[N, 3, 8, 8] x) => (float[N, 4, 6, 6] y) {{ {LAYER} y = Clip(a, low, high) }}"
SPELLINGS = {
    "minimum, then maximum": (f"{{ {LAYER} m = Min(a, high) y = Max(m, low) }}", "node_m"),
    "maximum, then minimum": (f"{{ {LAYER} m = Max(a, low) y = Min(m, high) }}", "node_y"),
    "bounds cast like the data": (f"{{ {LAYER} u = CastLike(high, a) y = Clip(a, low, u) }}", "node_y"),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_wrong_bound_is_named_at_the_node_that_applies_it(spelling):
    body, guilty = SPELLINGS[spelling]
    weights = {"k": normal(4, 3, 3, 3), "b": normal(4), "low": np.float32(0)}
    source = parse(PLAIN, **weights, high=np.float32(2))
    target = parse(f"net (float[N, 3, 8, 8] x) => (float[N, 4, 6, 6] y) {body}", **weights, high=np.float32(1))
    [fault] = onnxfix.diagnose(source, target, normal(8, 3, 8, 8)).faults
    assert (fault.kind, fault.parameter, fault.target_nodes[:1]) == ("hyperparameters", "high", (guilty,))
