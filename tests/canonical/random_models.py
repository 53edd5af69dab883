"""Random models over the ops that the canonicalizer knows."""

from __future__ import annotations

import random

import numpy as np
from random_elements import binary, binary_const, cast, clip, norm, reduce, softmax, unary, where
from random_graphs import Growing
from random_idioms import idiom, quantized
from random_layers import conv, dense, matmul_with_itself, pad, pool, recurrent, resize
from random_moves import concat, expand, gather, misc, reshape, slice_axes, split, transpose

# Steps and how often each is taken, relative to the others.
_WEIGHTS = {
    unary: 3, binary_const: 6, binary: 4, conv: 6, pool: 3, pad: 2, dense: 5, matmul_with_itself: 1, transpose: 6,
    reshape: 7, concat: 3, split: 2, slice_axes: 3, gather: 2, reduce: 4, softmax: 2, norm: 4, clip: 3, where: 2,
    cast: 2, resize: 1, expand: 2, recurrent: 1, misc: 2, idiom: 2, quantized: 1,
}
# Shapes of inputs behind the batch.
_SHAPES = ((3, 6, 6), (4, 5, 5), (6, 6, 4), (5, 4), (4, 8), (6,), (3, 7), (2, 3, 4, 4), (), (1, 4, 4), (4, 1, 6), (3, 1, 1))


def random_model(seed: int) -> Growing:
    """A model of one or two inputs and at most a dozen steps, some of which come to nothing."""
    rng = random.Random(seed)
    growing = Growing(rng)
    for _ in range(rng.choice([1, 1, 1, 2])):
        shape = (growing.batch, *rng.choice(_SHAPES))
        if rng.random() < 0.03:
            shape = (*shape[:-1], 0)
        growing.input(shape, np.float32 if rng.random() < 0.9 else rng.choice([np.float64, np.int64]))
    for step in rng.choices(list(_WEIGHTS), list(_WEIGHTS.values()), k=rng.randint(2, 12)):
        step(growing)
    return growing
