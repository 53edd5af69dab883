"""Plant conversion faults in a model, reproducibly, and say where they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from onnxfix.errors import OnnxFixError, RuntimeFailure
from onnxfix.model import Model, load
from onnxfix.testing.faults import REGISTRY, FaultOperator, Graph, Site, Unfit
from onnxfix.testing.faults.operator import Candidate
from onnxfix.testing.visibility import Feeds, Outputs, difference, doubled, random_batches, run_all, same_form

# A fault below this share of the output's range drowns in the float noise of another evaluation order.
VISIBLE = 1e-5


class InjectionError(OnnxFixError):
    """A fault cannot be planted in a model."""


@dataclass(frozen=True, eq=False)
class Injection:
    """A model with planted faults.

    Attributes:
        model: The faulty model.
        sites: Ground truth, one entry per guilty node or parameter.
        operator: Which operator planted them.
        seed: The seed that reproduces them.
        changes: How far each fault moves the outputs on the data, in their planting order, as a share of an output's
            range; infinite where an output is no longer finite.
    """

    model: onnx.ModelProto
    sites: tuple[Site, ...]
    operator: str
    seed: int
    changes: tuple[float, ...] = ()

    @property
    def visible(self) -> bool:
        """Whether the data show every fault: each moves some output by more than 1e-5 of its range."""
        return all(change > VISIBLE for change in self.changes)

    def to_dict(self) -> dict[str, Any]:
        """The ground truth as plain JSON data."""
        return {
            "operator": self.operator,
            "seed": self.seed,
            "visible": self.visible,
            "changes": [change if np.isfinite(change) else None for change in self.changes],
            "sites": [
                {
                    "kind": str(site.kind),
                    "node": site.node,
                    "parameter": site.parameter,
                    "also": list(site.also),
                    "expected": site.expected,
                    "actual": site.actual,
                    "description": site.description,
                }
                for site in self.sites
            ],
        }

    def __repr__(self) -> str:
        return f"Injection({self.operator}, seed={self.seed}: {'; '.join(s.description for s in self.sites)})"


def operators() -> tuple[str, ...]:
    """The names of all fault operators."""
    return tuple(REGISTRY)


def inject(
    model: Model | onnx.ModelProto | str | Path,
    operator: str,
    *,
    seed: int = 0,
    count: int = 1,
    node: str | None = None,
    data: Sequence[Feeds] | None = None,
    visible: bool = True,
) -> Injection:
    """Plant ``count`` faults of one kind in a copy of a model.

    Every fault is checked: the faulty model passes the ONNX checker, runs in onnxruntime with the same output shapes
    and finite outputs (an overflow aside), and each fault changes some output by more than 1e-5 of that output's range.
    A place where that fails is passed over. Other nodes that share a changed initializer keep the old value.

    Args:
        model: A model, or a path to one of any framework; it is left as it is. Nodes without a
            name of their own get one.
        operator: One of :func:`operators`.
        seed: Chooses places and values; the same seed gives the same faults.
        count: How many places to spoil.
        node: Only at this node.
        data: Feeds to judge visibility on; random ones when None.
        visible: Whether every fault must show on the data. Without it hidden faults are planted, too; a diagnosis
            reports these as risks. ``Injection.visible`` says what came out.

    Returns:
        The faulty model and the ground truth.

    Raises:
        InjectionError: no such operator, or fewer than ``count`` places fit, or the model fails on ``data``.
        InputError: the model accepts no random input, and ``data`` is None.

    Example:
        >>> faulty = inject("classifier.onnx", "zero_bias", seed=3)     # doctest: +SKIP
        >>> faulty.sites[0].parameter                                   # doctest: +SKIP
        'conv1.bias'
    """
    if operator not in REGISTRY:
        raise InjectionError(f"there is no fault operator {operator}: choose one of {', '.join(REGISTRY)}.")
    clean = model if isinstance(model, onnx.ModelProto) else load(model).proto
    faulty = _with_node_names(clean)
    rng = np.random.default_rng(seed)
    batches = [dict(feeds) for feeds in data] if data else random_batches(faulty, rng)
    if REGISTRY[operator].reforms and not data:
        batches = doubled(faulty, batches)
    planting = _Planting(REGISTRY[operator], faulty, batches, threshold=VISIBLE if visible else -1.0)
    for candidate in planting.order(rng, node):
        if planting.planted < count:
            planting.attempt(candidate, rng)
    if planting.planted < count:
        where = f"node {node}" if node else f"{len(faulty.graph.node)} nodes"
        raise InjectionError(
            f"{operator} fits {planting.planted} places of {where}, not {count}: {planting.refusals()}."
        )
    return Injection(planting.model, tuple(planting.sites), operator, seed, tuple(planting.changes))


class _Planting:
    """One run of an operator over a model: tries candidates, keeps what is valid and visible."""

    def __init__(
        self,
        operator: FaultOperator,
        model: onnx.ModelProto,
        batches: list[dict[str, np.ndarray]],
        *,
        threshold: float = VISIBLE,
    ) -> None:
        self.operator = operator
        self.model = model
        self.sites: list[Site] = []
        self.changes: list[float] = []
        self._threshold = threshold
        self.planted = 0
        self._batches = batches
        try:
            self._outputs: list[Outputs] = run_all(model, batches)
        except RuntimeFailure as failure:
            raise InjectionError(f"the model fails on the data before anything is planted: {failure}") from failure
        self._used: set[str] = set()
        self._refused: list[str] = []

    def order(self, rng: np.random.Generator, node: str | None) -> list[Candidate]:
        """The candidates in the order in which they are tried."""
        candidates = self.operator.candidates(Graph(self.model))
        if node is not None:
            candidates = [candidate for candidate in candidates if candidate[0] == node]
        return [candidates[index] for index in rng.permutation(len(candidates))]

    def attempt(self, candidate: Candidate, rng: np.random.Generator) -> None:
        """Plant one fault if it is valid and visible there."""
        if self._used.intersection(candidate):
            return
        trial = onnx.ModelProto()
        trial.CopyFrom(self.model)
        graph = Graph(trial)
        try:
            sites = self.operator.apply(graph, candidate, rng)
            graph.prune_constants()
            onnx.checker.check_model(trial)
            outputs = self._run(trial)
        except (Unfit, RuntimeFailure, onnx.checker.ValidationError) as refusal:
            self._refused.append(f"{candidate[0]}: {str(refusal).splitlines()[0]}")
            return
        change = np.inf if self._is_reformed(outputs) else difference(self._outputs, outputs)
        if change <= self._threshold or not self._is_sane(change, outputs):
            self._refused.append(f"{candidate[0]}: it changes the outputs by {change:.1g}")
            return
        self.model, self._outputs = trial, outputs
        self.sites += sites
        self.changes.append(change)
        self.planted += 1
        self._used.update(name for name in candidate if name in graph.nodes or name == candidate[0])

    def _run(self, trial: onnx.ModelProto) -> list[Outputs]:
        """The outputs of each batch; none where the fault is that the model does not take such batches."""
        try:
            return run_all(trial, self._batches)
        except RuntimeFailure:
            if not self.operator.reforms:
                raise
            return []

    def _is_reformed(self, outputs: list[Outputs]) -> bool:
        """Whether there are other outputs than before, or the same in another order, or none."""
        if not self.operator.reforms:
            return False
        names = [list(batch) for batch in self._outputs]
        return [list(batch) for batch in outputs] != names

    def _is_sane(self, change: float, outputs: list[Outputs]) -> bool:
        """Outputs of the same form, and finite unless the operator is about that."""
        if self.operator.reforms or change < np.inf:
            return True
        return not self.operator.finite and same_form(self._outputs, outputs)

    def refusals(self) -> str:
        """Why places were passed over, the first few."""
        return "; ".join(self._refused[:3]) or "no place of the right kind"


def _with_node_names(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which every node of the main graph has a name of its own."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    taken: set[str] = set()
    for number, node in enumerate(copy.graph.node):
        if not node.name or node.name in taken:
            node.name = f"{node.op_type}_{number}"
            while node.name in taken:
                node.name += "_"
        taken.add(node.name)
    return copy
