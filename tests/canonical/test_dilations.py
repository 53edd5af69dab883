"""Dilated convolutions spelled as space to batch."""

from __future__ import annotations

import pytest
from forms import normal, parse, settle

SPELLED = """(float[N, 4, 12, 12] x) => (float[N, 6, H, W] y) {{ t = Transpose <perm = [1, 0, 2, 3]> (x)
    s = SpaceToDepth <blocksize = {split}> (t) u = Transpose <perm = [1, 0, 2, 3]> (s)
    c = Conv <kernel_shape = [3, 3], group = {group}, pads = [1, 0, 1, 0], strides = [{stride}, {stride}]> (u, w, b)
    v = Transpose <perm = [1, 0, 2, 3]> (c) d = DepthToSpace <blocksize = {join}, mode = "{mode}"> (v)
    y = Transpose <perm = [1, 0, 2, 3]> (d) }}"""


def spelled(split: int = 2, join: int = 2, mode: str = "DCR", stride: int = 1, group: int = 2):
    text = SPELLED.format(split=split, join=join, mode=mode, stride=stride, group=group)
    return parse(text, w=normal(6, 4 // group, 3, 3), b=normal(6))


@pytest.mark.parametrize(("split", "group"), [(2, 1), (3, 2)])
def test_space_to_batch_around_a_convolution_is_its_dilation(split, group):
    [conv] = settle(spelled(split, split, group=group)).proto.graph.node
    attributes = {a.name: list(a.ints) for a in conv.attribute if a.ints}
    assert conv.op_type == "Conv"
    assert attributes["dilations"] == [split, split]
    assert attributes["pads"] == [split, 0, split, 0]


@pytest.mark.parametrize("other", [{"mode": "CRD"}, {"stride": 2}])
def test_what_is_not_put_together_as_it_was_taken_apart_stays(other):
    assert "SpaceToDepth" in {node.op_type for node in settle(spelled(**other)).proto.graph.node}
