"""The few edits of the caller's own graph that explain a piece which is built otherwise than the source's.

An op that does not belong there seldom stays alone in the normal form: a Mul applied twice is folded into the kernel in
front of it, a Pad in between keeps a batch norm from being folded. What is seen there is several wrong weights and
missing ops; what happened is one op too many. So the piece of the *lowered* graph behind neighbouring findings is cut
out, one edit at a time is tried on it (an op left out, an op exchanged, operands swapped), and the normal form of the
edited piece is compared with the source's. An edit is believed only if it makes the ops agree.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from onnxfix.align import Alignment
from onnxfix.align.graph import GraphView, attributes
from onnxfix.diagnose.compensation import between, clusters, touched
from onnxfix.diagnose.differences import close
from onnxfix.diagnose.excerpt import Excerpts
from onnxfix.diagnose.finding import Finding
from onnxfix.diagnose.naming import MOVERS
from onnxfix.errors import OnnxFixError
from onnxfix.model import Model

# Pieces of more lowered nodes than this are not searched: each trial normalises the whole piece.
LARGEST = 60
# Trials on one piece, edits of it, and nodes left out by one edit.
MOST_TRIALS = 200
MOST_EDITS = 3
LONGEST = 4
# Families of ops that take the same operands, of which a converter may have chosen the wrong one.
FAMILIES = (
    ("Add", "Mul", "Sub", "Div", "Max", "Min", "Pow"),
    ("Relu", "Elu", "Sigmoid", "Tanh", "Softplus", "Softsign", "HardSwish", "Gelu", "Selu", "LeakyRelu", "Mish", "Erf",
     "Exp", "Sqrt", "Abs", "Neg", "Sin", "Cos", "Floor", "Ceil", "Round", "Sign", "Reciprocal", "Log",
     "HardSigmoid"),
    ("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL2", "ReduceL1"),
    ("MaxPool", "AveragePool"), ("GlobalAveragePool", "GlobalMaxPool"), ("ArgMax", "ArgMin"),
    ("Less", "LessOrEqual", "Greater", "GreaterOrEqual"), ("And", "Or", "Xor"),
)
ORDERED = frozenset({"Sub", "Div", "Pow", "MatMul", "Less", "LessOrEqual", "Greater", "GreaterOrEqual", "Concat"})


@dataclass(frozen=True, eq=False)
class Edit:
    """One change of a lowered node.

    Attributes:
        previous: The node as it is.
        value: The node as it should be; an Identity where it should not be there.
        names: The nodes that do not belong there or are the wrong ones.
        findings: The findings that it explains, with others of the same piece.
    """

    previous: onnx.NodeProto
    value: onnx.NodeProto
    names: tuple[str, ...]
    findings: tuple[Finding, ...]


def edits(
    target: Model, alignment: Alignment, findings: Sequence[Finding], doubtful: Iterable[Finding]
) -> tuple[Edit, ...]:
    """The edits that explain findings better than the findings do.

    Args:
        target: The target.
        alignment: The source's and the target's.
        findings: All findings.
        doubtful: Those that an edit may explain.
    """
    wanted = set(doubtful)
    excerpts = Excerpts(target)
    found: list[Edit] = []
    # Wrong constants have one op each behind them; ops too many may show in several places around them.
    near = [cluster for cluster in clusters(alignment, findings) if any(not f.region.matched for f in cluster)]
    alone = [[f] for f in findings if not any(f in cluster for cluster in near)]
    for cluster in (*near, *alone):
        if wanted.isdisjoint(cluster):
            continue
        piece = _piece(target, alignment, excerpts, cluster)
        if piece is not None:
            found.extend(_Search(excerpts, *piece, tuple(cluster)).run())
    return tuple(found)


def _piece(
    target: Model, alignment: Alignment, excerpts: Excerpts, cluster: Sequence[Finding]
) -> tuple[set[str], _Content] | None:
    """The lowered nodes behind a cluster and its neighbours, and what the source has in their place."""
    theirs: set[str] = set()
    ours: set[str] = set()
    for finding in cluster:
        nodes = touched(alignment, finding.region)
        theirs |= nodes[0]
        ours |= nodes[1]
    for _ in range(3):
        theirs, ours = _closed(alignment, theirs, ours)
        lowered = {n for name in theirs for n in target.normal_form.provenance.get(name, ())}
        lowered = excerpts.connected(lowered & excerpts.nodes.keys())
        if not lowered or len(lowered) > LARGEST:
            return None
        own = _Content.of(alignment.target, theirs)
        cut = _content(excerpts.cut(lowered))
        if cut is not None and cut.distance(own) == (0, 0):
            return lowered, _Content.of(alignment.source, ours)
        theirs = theirs.union(*(_neighbours(alignment.target, name) for name in theirs))
    return None


def _closed(alignment: Alignment, theirs: set[str], ours: set[str]) -> tuple[set[str], set[str]]:
    partners = {s: t for t, s in alignment.nodes.items()}
    while True:
        size = len(theirs), len(ours)
        theirs, ours = between(alignment.target, theirs), between(alignment.source, ours)
        theirs = theirs | {partners[s] for s in ours if s in partners}
        ours = ours | {alignment.nodes[t] for t in theirs if t in alignment.nodes}
        if (len(theirs), len(ours)) == size or len(theirs) > LARGEST:
            return theirs, ours


def _neighbours(view: GraphView, name: str) -> set[str]:
    return {*view.digraph.predecessors(name), *view.digraph.successors(name)}


class _Content:
    """What a canonical piece is made of, in whatever order and layout: its ops and its constants."""

    def __init__(self, ops: Counter[str], constants: list[np.ndarray]) -> None:
        self.ops, self.constants = ops, constants

    @classmethod
    def of(cls, view: GraphView, names: Iterable[str]) -> _Content:
        """The content of some nodes of a canonical graph."""
        nodes = [view.nodes[name] for name in names if view.nodes[name].op_type not in MOVERS]
        constants = [view.constant(v) for node in nodes for v in node.input if v and view.is_constant(v)]
        return cls(Counter(map(_spelling, nodes)), constants)

    def distance(self, other: _Content) -> tuple[int, int]:
        """Ops that only one has, and constants that the other has no like of."""
        ops = sum(((self.ops - other.ops) + (other.ops - self.ops)).values())
        left = list(other.constants)
        unlike = 0
        for constant in self.constants:
            twin = next((k for k, c in enumerate(left) if _alike(c, constant)), None)
            if twin is None:
                unlike += 1
            else:
                left.pop(twin)
        return ops, unlike


def _spelling(node: onnx.NodeProto) -> str:
    return f"{node.op_type} {sorted(attributes(node).items(), key=lambda item: item[0])!r}"


def _alike(a: np.ndarray, b: np.ndarray) -> bool:
    """The same values; small differences are those of folding, which is done in another order here and there."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if a.dtype.kind != "f" or close(a, b):
        return close(a, b)
    peak = float(np.abs(a).max(initial=0.0))
    return bool(np.isfinite(peak) and np.allclose(a, b, rtol=1e-5, atol=1e-6 * peak))


def _content(piece: onnx.ModelProto | None) -> _Content | None:
    if piece is None:
        return None
    from onnxfix.canonical.pipeline import normal_form  # its import costs more than all else here

    try:
        view = GraphView(normal_form(piece).proto)
    except OnnxFixError:
        return None
    return _Content.of(view, view.nodes)


class _Search:
    """Looks for the edits that bring one piece closest to what the source has."""

    def __init__(
        self, excerpts: Excerpts, lowered: set[str], wanted: _Content, findings: tuple[Finding, ...]
    ) -> None:
        self._excerpts, self._lowered, self._wanted, self._findings = excerpts, lowered, wanted, findings
        self._changed: dict[str, onnx.NodeProto] = {}
        # From the end: of two equal nodes in a row, the second is the one too many.
        self._nodes = [node for name, node in reversed(excerpts.nodes.items()) if name in lowered]

    def run(self) -> list[Edit]:
        """The edits; none where ops still differ after them. Each makes a wrong op or constant right and none wrong."""
        distance, trials = self._tried({}), 0
        made: list[Edit] = []
        while distance is not None and distance != (0, 0) and len(made) < MOST_EDITS:
            best: tuple[tuple[int, int], Edit] | None = None
            for edit in self._candidates():
                trials += 1
                if trials > MOST_TRIALS:
                    return []
                tried = self._tried({edit.value.name: edit.value})
                if tried is not None and tried < distance and (best is None or tried < best[0]):
                    best = tried, edit
                if tried == (0, 0):
                    break
            if best is None:
                break
            distance = best[0]
            made.append(best[1])
            self._changed[best[1].value.name] = best[1].value
        return made if distance is not None and distance[0] == 0 else []

    def _tried(self, change: Mapping[str, onnx.NodeProto]) -> tuple[int, int] | None:
        content = _content(self._excerpts.cut(self._lowered, {**self._changed, **change}))
        return None if content is None else self._wanted.distance(content)

    def _candidates(self) -> Iterator[Edit]:
        wanted = {spelling.partition(" ")[0] for spelling in self._wanted.ops}
        for node in self._nodes:
            name = node.name
            if name in self._changed or len(node.output) != 1 or node.output[0] not in self._excerpts.variable:
                continue
            for value, passed in self._earlier(node):
                yield self._edit(node, exchanged(node, "Identity", [value]), passed)
            family = next((f for f in FAMILIES if node.op_type in f), ())
            for other in family:
                known = other in wanted or other in ("Mul", "Add", "Sub", "Div")
                if other != node.op_type and known and self._excerpts.takes(other, len(node.input)):
                    yield self._edit(node, exchanged(node, other, node.input), (name,))
            if node.op_type in ORDERED and len(node.input) == 2:
                swapped = exchanged(node, node.op_type, reversed(node.input))
                yield self._edit(node, swapped, (name,))

    def _edit(self, node: onnx.NodeProto, value: onnx.NodeProto, names: tuple[str, ...]) -> Edit:
        return Edit(node, value, names, self._findings)

    def _earlier(self, node: onnx.NodeProto) -> Iterator[tuple[str, tuple[str, ...]]]:
        """Values in front of a node that could take the place of its result, and the nodes passed on the way."""
        goal = self._excerpts.types.get(node.output[0])
        pending: list[tuple[onnx.NodeProto, tuple[str, ...]]] = [(node, (node.name,))]
        while pending:
            current, passed = pending.pop(0)
            for value in dict.fromkeys(current.input):
                if value not in self._excerpts.variable:
                    continue
                if goal is not None and _fits(self._excerpts.types.get(value), goal):
                    yield value, passed
                maker = self._excerpts.maker.get(value)
                single = len(self._excerpts.readers.get(value, ())) == 1
                if maker is not None and maker.name in self._lowered and single and len(passed) < LONGEST:
                    pending.append((maker, (maker.name, *passed)))


def _fits(kind: onnx.TypeProto | None, goal: onnx.TypeProto) -> bool:
    """Whether a value of one type can stand where the other is wanted."""
    if kind is None or kind.tensor_type.elem_type != goal.tensor_type.elem_type:
        return False
    return [_dim(d) for d in kind.tensor_type.shape.dim] == [_dim(d) for d in goal.tensor_type.shape.dim]


def _dim(dim: onnx.TensorShapeProto.Dimension) -> int | str:
    return dim.dim_value if dim.HasField("dim_value") else dim.dim_param


def exchanged(node: onnx.NodeProto, op: str, inputs: Iterable[str]) -> onnx.NodeProto:
    """A node in the place of another: its name and result, the attributes that the op knows."""
    made = onnx.NodeProto()
    made.CopyFrom(node)
    made.op_type = op
    made.input[:] = list(inputs)
    known = onnx.defs.get_schema(op).attributes
    kept = [a for a in node.attribute if a.name in known]
    del made.attribute[:]
    made.attribute.extend(kept)
    return made
