"""Run passes in turn until none of them changes the model any more."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from onnxfix.canonical.body_forms import canonicalize_bodies
from onnxfix.canonical.inference import infer_graph, is_settled, refresh
from onnxfix.canonical.rewriting import SPILL
from onnxfix.errors import CanonicalizationError

# Far more rounds than any model needs; reaching it means that two passes undo each other.
_ROUNDS = 40


def settle(model: ir.Model, passes: Sequence[ir.passes.InPlacePass]) -> bool:
    """Run all passes, and those on the bodies of control flow, until none of them changes anything.

    Returns:
        Whether a pass changed the model.

    Raises:
        CanonicalizationError: the passes never come to rest.
    """
    modified = _settle_graph(model, passes)
    for _ in range(_ROUNDS):
        if not canonicalize_bodies(model, lambda body: settle(body, passes)):
            return modified
        modified = True
        _settle_graph(model, passes)
    raise CanonicalizationError("the normal form does not settle: bodies of control flow still change.")


def _settle_graph(model: ir.Model, passes: Sequence[ir.passes.InPlacePass]) -> bool:
    """Run all passes on the main graph, round after round, until a round changes nothing.

    A pass that left the model as it was is not run again before another pass has changed something.
    """
    modified = False
    state = 0  # counts the changes
    rested: dict[int, int] = {}  # pass -> the state that it had nothing to change in
    for _ in range(_ROUNDS):
        if refresh(model.graph):
            state += 1
        changed: list[str] = []
        for number, step in enumerate(passes):
            if rested.get(number) == state:
                continue
            if _modifies(step, model):
                state += 1
                changed.append(type(step).__name__)
            else:
                rested[number] = state
        if changed:
            modified = True
            continue
        if is_settled(model.graph) or not infer_graph(model):
            return modified
        state += 1
    raise CanonicalizationError(f"the normal form does not settle: {', '.join(changed)} still change the model.")


def _modifies(step: ir.passes.InPlacePass, model: ir.Model) -> bool:
    modified = step(model).modified
    if SPILL in model.graph.meta:
        model.graph.meta[SPILL].release()
    return modified
