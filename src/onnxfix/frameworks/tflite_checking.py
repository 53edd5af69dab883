"""Whether an edited TFLite file is in order: its operators, and what it lowers to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx

from onnxfix.errors import ExportError


def ordered(operators: Sequence[Any]) -> list[Any]:
    """The operators in an order in which each reads only what is there; those in order stay where they are."""
    makers = {int(i): number for number, op in enumerate(operators) for i in op.outputs}
    placed: list[Any] = []
    done: set[int] = set()

    for first in range(len(operators)):
        pending = [first]
        while pending:
            number = pending[-1]
            before = [
                makers[int(i)] for i in operators[number].inputs
                if makers.get(int(i), number) != number and makers[int(i)] not in done
            ]  # fmt: skip
            if number not in done and before:
                if len(pending) > len(operators):
                    raise ExportError("the operators would read each other's results in a circle")
                pending += before
                continue
            pending.pop()
            if number not in done:
                done.add(number)
                placed.append(operators[number])
    return placed


def refuse_another(made: onnx.ModelProto, wanted: onnx.ModelProto) -> None:
    """Refuse a file that does not lower to the patched graph."""
    from onnxfix.canonical.identity import is_isomorphic
    from onnxfix.frameworks.agreement import disagreement
    from onnxfix.frameworks.example_inputs import accepted_feeds
    from onnxfix.model import Model

    one, two = (Model(proto=proto, native=proto) for proto in (made, wanted))
    for ours, theirs in ((one.inputs, two.inputs), (one.outputs, two.outputs)):
        if [s.name for s in ours] != [s.name for s in theirs]:
            raise ExportError(f"the edited file has {[s.name for s in ours]} where {[s.name for s in theirs]} is meant")
    if is_isomorphic(one, two):
        return
    for feeds in accepted_feeds(two, None, batches=(1,)):
        problem = disagreement(two.run(feeds), one.run(feeds))
        if problem:
            raise ExportError(f"the edited file computes something else than the patched graph ({problem})")
