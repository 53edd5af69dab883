"""Which class of the target is which class of the source: by what they answer, and by the weights that make them.

No solver for assignment problems is needed (networkx has none without SciPy): a class has its nearest counterpart,
and a map that is not one to one is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from onnxfix.align import GraphView

# Numbers per class that are compared at most.
_POINTS = 4096
# Rows of weights that differ by less are the same row, and half of the rows must be found.
_SAME_ROW = 0.05
_MAJORITY = 0.5
# Single numbers agree by chance sooner than rows do.
_MOST = 0.75
_BETWEEN = frozenset(
    {"Softmax", "LogSoftmax", "Sigmoid", "Reshape", "Transpose", "Gather", "Slice", "Pad", "Concat", "Squeeze",
     "Unsqueeze", "Identity", "Cast", "Flatten", "Relu", "Clip", "Tanh", "LeakyRelu"}
)  # fmt: skip


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


def kinship(ours: LastLayer | None, theirs: LastLayer | None) -> float | None:
    """Share of the source's rows of weights that the target's layer has, too, 0..1; None where one has no layer."""
    if ours is None or theirs is None:
        return None
    if ours.rows.shape[1] != theirs.rows.shape[1]:
        return 0.0
    apart = _squared_distances(ours.rows, theirs.rows).min(axis=1)
    return float(np.mean(apart <= _SAME_ROW**2 * (ours.rows * ours.rows).sum(axis=1)))


def label_maps(
    ours: Sequence[np.ndarray],
    theirs: Sequence[np.ndarray],
    layers: tuple[LastLayer | None, LastLayer | None],
    orders: tuple[np.ndarray | None, np.ndarray | None],
) -> Iterator[tuple[np.ndarray, bool]]:
    """Indices that pick the source's classes from the target's, and whether the graphs themselves tell so.

    What classes answer tells them apart only where the target has more of them, or moves them about as the source does
    not: wrong weights can make one class answer much like another.

    Args:
        ours: The source's output, feed by feed, classes along axis 1.
        theirs: The target's, of the same shape but for the classes.
        layers: The last layers of source and target.
        orders: Which class of the last layer each class of the outputs is.
    """
    a, b = _classes(ours, 1), _classes(theirs, 1)
    surplus = len(b) - len(a)
    by_graph = _by_graph(layers, orders, (len(a), len(b)))
    if by_graph is not None:
        yield by_graph, True
        return
    mine, yours = orders
    moved = mine is not None and yours is not None and not np.array_equal(mine, yours)
    if moved or surplus:
        by_answers = _nearest(a, b)
        if by_answers is not None:
            yield by_answers, False
    if surplus > 0:
        yield np.arange(surplus, len(b)), False
        yield np.arange(len(a)), False


def _by_graph(
    layers: tuple[LastLayer | None, LastLayer | None],
    orders: tuple[np.ndarray | None, np.ndarray | None],
    sizes: tuple[int, int],
) -> np.ndarray | None:
    """The map that follows from the rows of both last layers and from what is done with their classes since."""
    mine, yours = layers
    if mine is None or yours is None:
        return None
    a, b = (np.arange(len(x.rows)) if o is None else o for x, o in zip((mine, yours), orders, strict=True))
    if (len(a), len(b)) != sizes or a.min() < 0:
        return None
    same = kinship(mine, yours) or 0.0
    rows = _by_weights(mine, yours)
    if rows is None:
        rows = np.arange(len(mine.rows)) if same >= _MAJORITY and mine.rows.shape == yours.rows.shape else None
    if rows is None:
        return None
    place = {int(c): k for k, c in enumerate(b) if c >= 0}
    wanted = [place.get(int(rows[c])) for c in a]
    return None if None in wanted else np.asarray(wanted, np.int64)


def _by_weights(mine: LastLayer, yours: LastLayer) -> np.ndarray | None:
    """The order in which the target's last layer has the source's rows, where its bias is in that order, too.

    Where the bias is the same for all classes it does not tell, and a wrong weight is the plainer explanation.
    """
    if mine.rows.shape[1] != yours.rows.shape[1]:
        return None
    index = _nearest(mine.rows, yours.rows)
    if index is None:
        return None
    apart = np.abs(yours.rows[index] - mine.rows).max(axis=1) / np.abs(mine.rows).max(axis=1)
    if np.mean(apart < _SAME_ROW) < _MAJORITY:
        return None
    same = np.isclose(yours.bias[index], mine.bias, rtol=_SAME_ROW, atol=_SAME_ROW * np.abs(mine.bias).max())
    plain = np.array_equal(index, np.arange(len(index)))
    return index if plain or (np.ptp(mine.bias) > 0 and same.mean() >= _MOST) else None


def _classes(arrays: Sequence[np.ndarray], axis: int) -> np.ndarray:
    """One row per class, over samples and places."""
    rows = [np.moveaxis(array, axis, 0).reshape(array.shape[axis], -1) for array in arrays]
    whole = np.concatenate(rows, axis=1).astype(np.float64)
    return whole[:, :: max(1, whole.shape[1] // _POINTS)]


def _nearest(a: np.ndarray, b: np.ndarray) -> np.ndarray | None:
    """The nearest row of ``b`` for each row of ``a``; None where two rows want the same one."""
    if a.shape[1] != b.shape[1]:
        return None
    index = _squared_distances(a, b).argmin(axis=1)
    return index if len(set(index.tolist())) == len(index) else None



def _squared_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.asarray((a * a).sum(1)[:, None] + (b * b).sum(1)[None] - 2 * a @ b.T)
