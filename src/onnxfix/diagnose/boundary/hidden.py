"""Find a value inside a graph by what it holds: an output that the target computes and does not give."""

from __future__ import annotations

import numpy as np

from onnxfix.align import GraphView
from onnxfix.diagnose.boundary.matching_outputs import KIN, Output
from onnxfix.diagnose.boundary.samples import Samples, distance
from onnxfix.errors import RuntimeFailure
from onnxfix.runtime.assembly import assemble
from onnxfix.runtime.session import Session

# A value that is no nearer than this to the output wanted is another one.
NEAR = 0.5


def hidden_output(view: GraphView, samples: Samples, wanted: Output) -> str | None:
    """The value of a lowered graph that is an output of the source, on the first feed.

    The nearest one, where it is near; else the nearest of those that the same layer makes by the same op.

    Args:
        view: The target's lowered graph.
        samples: The samples.
        wanted: The source's output.
    """
    names = [o for node in view.nodes.values() for o in node.output if o and o not in view.outputs]
    tensors = {t.name: t for t in view.proto.graph.initializer}
    inputs = {name: view.element_types[name] for name in view.inputs}
    try:
        session = Session(assemble(view.proto, view.nodes.values(), tensors, inputs, names))
        values = session.run(samples.target[0])
    except RuntimeFailure:
        return None
    given = wanted.arrays[0]
    apart = {
        name: distance([given], [value])
        for name, value in zip(names, values.values(), strict=True)
        if value.shape == given.shape and value.dtype.kind == given.dtype.kind
    }
    near = [name for name in apart if apart[name] < NEAR] or [n for n in apart if _is_kin(view, n, wanted)]
    return min(near, key=apart.__getitem__, default=None)


def _is_kin(view: GraphView, value: str, wanted: Output) -> bool:
    """Whether a value is made by the same op as an output, behind a layer of the same weights."""
    source = wanted.tail.view
    if wanted.name not in source.producer:
        return False
    op = source.nodes[source.producer[wanted.name][0]].op_type
    ours, theirs = _weights_behind(source, wanted.name), _weights_behind(view, value)
    if view.nodes[view.producer[value][0]].op_type != op or ours is None or theirs is None:
        return False
    same = ours.shape == theirs.shape and np.isclose(ours, theirs, rtol=1e-3, atol=0).mean()
    return bool(same >= KIN)


def _weights_behind(view: GraphView, value: str) -> np.ndarray | None:
    """The largest constant of the nearest node behind a value that has one of two axes or more."""
    while value in view.producer:
        node = view.nodes[view.producer[value][0]]
        constants = [view.constant(v) for v in node.input if v and view.is_constant(v)]
        large = [c for c in constants if c.ndim >= 2 and c.size > 1]
        if large:
            return max(large, key=lambda c: c.size)
        value = next((v for v in node.input if v and not view.is_constant(v)), "")
    return None
