"""Which class of the target is which class of the source: by what they answer, and by the weights that make them.

No solver for assignment problems is needed (networkx has none without SciPy): a class has its nearest counterpart,
and a map that is not one to one is refused.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from onnxfix.align import GraphView

# Numbers per class that are compared at most.
_POINTS = 4096
# Rows of weights that differ by less are the same row, and most of the rows must be found.
_SAME_ROW = 0.05
_MAJORITY = 0.8
_BETWEEN = frozenset({"Softmax", "LogSoftmax", "Sigmoid", "Reshape", "Transpose", "Gather", "Slice", "Pad", "Concat",
                      "Squeeze", "Unsqueeze", "Identity", "Cast", "Flatten"})  # fmt: skip
_MOVING = frozenset({"Transpose", "Gather", "Slice", "Pad", "Concat"})


@dataclass(frozen=True, eq=False)
class LastLayer:
    """The layer that makes the numbers of an output: one row of weights per class, and its bias.

    Attributes:
        rows: Weights, one row per class.
        bias: One number per class.
        op: Op type.
        constants: Names of weight and bias.
    """

    rows: np.ndarray
    bias: np.ndarray
    op: str = ""
    constants: tuple[str, ...] = ()

    def reordered(self, view: GraphView, index: np.ndarray) -> dict[str, np.ndarray]:
        """Its constants with the classes in another order."""
        weight, *bias = self.constants
        axis = 1 if self.op == "Gemm" else 0
        found = {weight: view.constant(weight).take(index, axis)}
        return found | {name: view.constant(name).take(index, -1) for name in bias}


def last_layer(view: GraphView, output: str) -> LastLayer | None:
    """The last dense layer or convolution before an output of a normal form; None where there is none nearby."""
    value = output
    while value in view.producer:
        node = view.nodes[view.producer[value][0]]
        if node.op_type in ("Gemm", "Conv") and view.is_constant(node.input[1]):
            weight = view.constant(node.input[1])
            rows = weight.T if node.op_type == "Gemm" else weight.reshape(weight.shape[0], -1)
            biased = len(node.input) > 2 and view.is_constant(node.input[2])
            bias = view.constant(node.input[2]).reshape(-1) if biased else np.zeros(len(rows))
            if len(bias) != len(rows):
                return None
            names = tuple(node.input[1 : 3 if biased else 2])
            return LastLayer(rows.astype(np.float64), bias.astype(np.float64), node.op_type, names)
        if node.op_type not in _BETWEEN:
            return None
        value = node.input[0]
    return None


def class_movers(view: GraphView, output: str) -> Counter[str]:
    """How often each op that moves classes or axes about stands between the last layer and an output."""
    found: Counter[str] = Counter()
    value = output
    while value in view.producer:
        node = view.nodes[view.producer[value][0]]
        if node.op_type not in _BETWEEN:
            break
        if node.op_type in _MOVING:
            found[node.op_type] += 1
        value = next((v for v in node.input if v and not view.is_constant(v)), "")
    return found


def label_maps(
    ours: Sequence[np.ndarray],
    theirs: Sequence[np.ndarray],
    axis: int,
    layers: tuple[LastLayer | None, ...],
    *,
    moved: bool,
) -> Iterator[np.ndarray]:
    """Indices that pick the source's classes from the target's, all for which there is evidence.

    What classes answer tells them apart where the graphs move them about in different ways, or one has more of them;
    else only the weights that make them do, since wrong weights can make one class answer much like another.

    Args:
        ours: The source's output, feed by feed.
        theirs: The target's, of the same shape but for ``axis``.
        axis: The axis of the classes.
        layers: The last layers of source and target.
        moved: Whether the target moves classes about as the source does not.
    """
    a, b = _classes(ours, axis), _classes(theirs, axis)
    surplus = len(b) - len(a)
    by_weights = _by_weights(layers, (len(a), len(b)))
    if by_weights is not None:
        yield by_weights
    if moved or surplus:
        by_answers = _nearest(a, b)
        if by_answers is not None:
            yield by_answers
    if surplus > 0:
        yield np.arange(surplus, len(b))
        yield np.arange(len(a))


def _by_weights(layers: tuple[LastLayer | None, ...], sizes: tuple[int, int]) -> np.ndarray | None:
    """The order in which the target's last layer has the source's rows, where its bias is in that order, too.

    Where the bias is the same for all classes it does not tell, and a wrong weight is the plainer explanation.
    """
    mine, yours = layers
    if mine is None or yours is None or (len(mine.rows), len(yours.rows)) != sizes:
        return None
    if mine.rows.shape[1] != yours.rows.shape[1]:
        return None
    index = _nearest(mine.rows, yours.rows)
    if index is None:
        return None
    apart = np.abs(yours.rows[index] - mine.rows).max(axis=1) / np.abs(mine.rows).max(axis=1)
    if np.mean(apart < _SAME_ROW) < _MAJORITY:
        return None
    same = np.isclose(yours.bias[index], mine.bias, rtol=_SAME_ROW, atol=_SAME_ROW * np.abs(mine.bias).max())
    return index if np.ptp(mine.bias) > 0 and same.mean() >= _MAJORITY else None


def _classes(arrays: Sequence[np.ndarray], axis: int) -> np.ndarray:
    """One row per class, over samples and places."""
    rows = [np.moveaxis(array, axis, 0).reshape(array.shape[axis], -1) for array in arrays]
    whole = np.concatenate(rows, axis=1).astype(np.float64)
    return whole[:, :: max(1, whole.shape[1] // _POINTS)]


def _nearest(a: np.ndarray, b: np.ndarray) -> np.ndarray | None:
    """The nearest row of ``b`` for each row of ``a``; None where two rows want the same one."""
    if a.shape[1] != b.shape[1]:
        return None
    apart = (a * a).sum(1)[:, None] + (b * b).sum(1)[None] - 2 * a @ b.T
    index = apart.argmin(axis=1)
    return index if len(set(index.tolist())) == len(index) else None

