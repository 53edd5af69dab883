"""Many faults at once, planted with the operators of ``onnxfix.testing``: as many as a case of the study had.

Faults of one kind are spread over all places of that kind. Weights come before biases; an attribute is a window's pads
or dilations, an activation's bounds or slope, a pool's way to count or a pad's fill; a graph edit is an activation or a
summand that is missing, replaced or too many. Each place is used once for each operator.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from study_cases import Case

from onnxfix import FaultKind
from onnxfix.runtime.session import Session
from onnxfix.testing import Site
from onnxfix.testing.faults import REGISTRY, Graph, Unfit
from onnxfix.testing.faults.boundary import output_type

ATTRIBUTES = ("change_clip_bound", "shift_pads", "count_include_pad", "change_stride_dilation", "pad_value",
              "change_alpha", "bn_epsilon")
EDITS = ("remove_activation", "replace_activation", "exchange_op", "drop_residual", "insert_mul")
_BOUNDING = frozenset({"change_clip_bound", "replace_activation"})  # seen only where something reaches the bound
OTHER_SIZES = 8  # pixels by which a frozen input is larger


class NotPlanted(Exception):
    """A model with the faults in it does not run: the case is no case."""


@dataclass
class Planting:
    """A graph that faults are being planted in.

    Attributes:
        graph: The target, edited in place.
        random: What chooses places and values.
        sites: Where faults are.
        asked: How many of each kind were asked for.
        edited: Nodes that an attribute or the graph was changed at.
        peaks: Largest element of each value that something clips, in the clean conversion.
    """

    graph: Graph
    random: np.random.Generator
    sites: list[Site] = field(default_factory=list)
    asked: dict[str, int] = field(default_factory=dict)
    edited: set[str] = field(default_factory=set)
    peaks: dict[str, float] = field(default_factory=dict)

    def several(self, kind: str, count: int, attempts: Iterable[Callable[[], tuple[Site, ...]]]) -> None:
        """Attempt after attempt until there are as many faults as asked for, or no attempts left."""
        self.asked[kind] = count
        planted = 0
        for attempt in attempts:
            if planted == count:
                break
            try:
                self.sites += attempt()
            except Unfit:
                continue
            planted += 1


def plant(case: Case, target: onnx.ModelProto, feeds: Mapping[str, np.ndarray], seed: int) -> tuple[
    onnx.ModelProto, tuple[Site, ...]
]:
    """The faults of a case in its clean conversion.

    Args:
        case: Which faults, how many of them.
        target: The clean conversion; it is left as it is.
        feeds: What it runs on.
        seed: Seed of places and values.

    Returns:
        The faulty model, and where the faults are: fewer than asked for where the model has fewer such places.

    Raises:
        NotPlanted: the faulty model does not run, or gives other shapes or numbers that are not finite.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(target)
    for number, node in enumerate(copy.graph.node):
        node.name = node.name or f"{node.op_type}_{number}"
    planting = Planting(Graph(copy), np.random.default_rng(seed), peaks=_peaks(copy, feeds))
    planting.several("weights", case.weights, _roundings(planting))
    planting.several("attributes", case.attributes, _attributes(planting))
    planting.several("graph edits", case.edits, _edits(planting))
    if case.layout:
        planting.several("layout", 1, _at_input(planting, "transpose_input"))
    planting.graph.prune_constants()
    _check(target, copy, feeds)
    if case.dimensions:
        planting.sites.append(_other_size(planting.graph))
    return copy, tuple(planting.sites)


def _roundings(planting: Planting) -> Iterable[Callable[[], tuple[Site, ...]]]:
    """Weights that went through float16, in any order; then biases, through bfloat16: less would drown in noise."""
    operator = REGISTRY["round_weights_fp16"]
    for candidate in _shuffled(planting, operator.candidates(planting.graph)):
        yield lambda c=candidate: operator.apply(planting.graph, c, planting.random)
    biased = [node.name for node in planting.graph.data_nodes("Conv", "Gemm") if len(node.input) > 2]
    for name in _shuffled(planting, [(name,) for name in biased]):
        yield lambda n=name[0]: _rounded_bias(planting.graph, n)


def _rounded_bias(graph: Graph, name: str) -> tuple[Site, ...]:
    node = graph.nodes[name]
    bias = graph.parameter(node, 2)
    if bias is None:
        raise Unfit(f"the bias of {name} is computed")
    rounded = bias.value.astype(ml_dtypes.bfloat16).astype(bias.value.dtype)
    if np.array_equal(rounded, bias.value):
        raise Unfit(f"the bias of {name} would stay as it is")
    parameter = graph.set_parameter(node, 2, rounded)
    return (Site(name, parameter, FaultKind.WEIGHTS, f"rounded to bfloat16 the bias of {name}"),)


def _attributes(planting: Planting) -> Iterable[Callable[[], tuple[Site, ...]]]:
    """One attribute after another of every node that has any; a second one of the same node last."""
    found = [(operator, candidate) for operator in ATTRIBUTES
             for candidate in REGISTRY[operator].candidates(planting.graph)]
    order = _shuffled(planting, found)
    for again in (False, True):
        for operator, candidate in order:
            if (candidate[0] in planting.edited) == again:
                yield lambda o=operator, c=candidate: _edited(planting, o, c)


def _edits(planting: Planting) -> Iterable[Callable[[], tuple[Site, ...]]]:
    """Edits by turns, each at a node where nothing else was changed but weights."""
    turns = [_shuffled(planting, REGISTRY[operator].candidates(planting.graph)) for operator in EDITS]
    for place in range(max(map(len, turns))):
        for operator, candidates in zip(EDITS, turns, strict=True):
            if place < len(candidates):
                yield lambda o=operator, c=candidates[place]: _edited(planting, o, c, alone=True)


def _edited(planting: Planting, operator: str, candidate: tuple[str, ...], alone: bool = False) -> tuple[Site, ...]:
    name = candidate[0]
    if name not in planting.graph.nodes or f"{operator} {name}" in planting.edited:
        raise Unfit(f"{name} was spoilt already")
    if alone and planting.edited.intersection({name, *_around(planting.graph, name)}):
        raise Unfit(f"{name} is next to a fault")
    if operator in _BOUNDING and not _reached(planting, name):
        raise Unfit(f"nothing reaches the bound of {name}")
    sites = REGISTRY[operator].apply(planting.graph, candidate, planting.random)
    planting.edited |= {name, f"{operator} {name}"}
    if alone:
        planting.edited.update(name for site in sites for name in (site.node, *site.also))
    return sites


def _peaks(target: onnx.ModelProto, feeds: Mapping[str, np.ndarray]) -> dict[str, float]:
    """What the clips are given, one largest element each."""
    clips = [node for node in target.graph.node if node.op_type in ("Clip", "Min")]
    if not clips:
        return {}
    copy = onnx.ModelProto()
    copy.CopyFrom(target)
    known = {tensor.name for tensor in copy.graph.initializer} | {info.name for info in copy.graph.output}
    wanted = dict.fromkeys(value for node in clips for value in node.input if value and value not in known)
    copy.graph.output.extend(onnx.helper.make_empty_tensor_value_info(value) for value in wanted)
    values = Session(copy).run(dict(feeds))
    return {value: float(values[value].max()) for value in wanted}


def _reached(planting: Planting, name: str) -> bool:
    """Whether a clip's upper bound matters even if it is a fifth lower."""
    node = planting.graph.nodes[name]
    bounds = [p.value.item() for k in range(len(node.input)) if (p := planting.graph.parameter(node, k)) is not None
              and p.value.size == 1]
    peaks = [planting.peaks[value] for value in node.input if value in planting.peaks]
    return not bounds or not peaks or max(peaks) > 0.8 * max(bounds)


def _around(graph: Graph, name: str) -> set[str]:
    node = graph.nodes[name]
    return {n for value in node.input for n in graph.computed_by(value)} | set(graph.read_by(node.output[0]))


def _at_input(planting: Planting, operator: str) -> Iterable[Callable[[], tuple[Site, ...]]]:
    for candidate in REGISTRY[operator].candidates(planting.graph):
        yield lambda c=candidate: REGISTRY[operator].apply(planting.graph, c, planting.random)


def _other_size(graph: Graph) -> Site:
    """The input is declared larger than it is, and all outputs of any size."""
    info = graph.graph.input[0]
    shape = [dim.dim_value or None for dim in info.type.tensor_type.shape.dim]
    wrong: list[int | str | None] = [s if s is None or s <= 3 else s + OTHER_SIZES for s in shape]
    output_type(info, wrong)
    readers = graph.read_by(info.name)
    done = f"fixed the size of {info.name} to {wrong}"
    return Site(readers[0], info.name, FaultKind.INPUT_DIMENSIONS, done, readers[1:])


def _shuffled(planting: Planting, things: list[Any]) -> list[Any]:
    return [things[index] for index in planting.random.permutation(len(things))]


def _check(clean: onnx.ModelProto, faulty: onnx.ModelProto, feeds: Mapping[str, np.ndarray]) -> None:
    expected, actual = (list(Session(model).run(dict(feeds)).values()) for model in (clean, faulty))
    if any(a.shape != b.shape or not np.isfinite(b).all() for a, b in zip(expected, actual, strict=True)):
        raise NotPlanted("the faulty model gives other shapes, or numbers that are not finite")

