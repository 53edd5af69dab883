from __future__ import annotations

import onnx
from rewrites import ops, parse, rewrite

from onnxfix.canonical.casts import SpellCasts
from onnxfix.canonical.concats import FlattenConcats


def test_nested_concatenations_become_one() -> None:
    model = parse(
        """(float[N,3] x) => (float[N,12] y) {
            r = Relu(x) i = Concat <axis = 1> (r, x) y = Concat <axis = -1> (x, i, r)
        }"""
    )
    assert ops(rewrite(model, FlattenConcats())) == ["Relu", "Concat", "Concat"]  # axes 1 and -1 are not spelled alike
    model.graph.node[2].attribute[0].i = 1
    assert ops(rewrite(model, FlattenConcats())) == ["Relu", "Concat"]


def test_concatenations_that_others_read_stay() -> None:
    model = parse(
        """(float[N,3] x) => (float[N,9] y, float[N,6] i) { i = Concat <axis = 1> (x, x) y = Concat <axis = 1> (x, i) }"""
    )
    assert ops(rewrite(model, FlattenConcats())) == ["Concat", "Concat"]


def test_cast_like_is_cast() -> None:
    (cast,) = rewrite(parse("(float[N,3] x, int32[N] l) => (int32[N,3] y) { y = CastLike(x, l) }"), SpellCasts())
    assert (cast.op_type, cast.attributes.get_int("to")) == ("Cast", onnx.TensorProto.INT32)
