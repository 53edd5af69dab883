"""Find a value inside a graph by what it holds: an output that the target computes and does not give."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnxfix.align import GraphView
from onnxfix.diagnose.boundary.samples import Samples, distance
from onnxfix.errors import RuntimeFailure
from onnxfix.runtime.assembly import assemble
from onnxfix.runtime.session import Session

# A value that is no nearer than this to the output wanted is another one.
NEAR = 0.5


def hidden_output(view: GraphView, samples: Samples, wanted: Sequence[np.ndarray]) -> str | None:
    """The value of a lowered graph that is nearest to an output of the source, on the first feed.

    Args:
        view: The target's lowered graph.
        samples: The samples.
        wanted: The source's output, feed by feed.
    """
    names = [o for node in view.nodes.values() for o in node.output if o and o not in view.outputs]
    tensors = {t.name: t for t in view.proto.graph.initializer}
    inputs = {name: view.element_types[name] for name in view.inputs}
    try:
        session = Session(assemble(view.proto, view.nodes.values(), tensors, inputs, names))
        values = session.run(samples.target[0])
    except RuntimeFailure:
        return None
    best, least = None, NEAR
    for name, value in zip(names, values.values(), strict=True):
        if value.shape == wanted[0].shape and value.dtype.kind == wanted[0].dtype.kind:
            apart = distance([wanted[0]], [value])
            if apart < least:
                best, least = name, apart
    return best
