"""Are two models the same? Fingerprints (equal normal forms) and isomorphism (equal up to float noise)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from onnxfix.canonical.coloring import (
    Color,
    Coloring,
    boundary,
    content,
    digest,
    exact,
    is_weight,
    kind,
)
from onnxfix.canonical.matching import Matcher
from onnxfix.canonical.topology import (
    Operand,
    Topology,
    Vertex,
    same_layout,
    topology,
    without_adapters,
    without_unread,
)

if TYPE_CHECKING:
    from onnxfix.canonical.pipeline import NormalForm
    from onnxfix.model import Model

_VERSION = b"onnxfix normal form 1"


def fingerprint(model: Any, weights: bool = True) -> str:
    """A hash of a model's normal form, equal iff the normal forms are equal.

    It depends on nothing but the graph: not on names, the order in which nodes are stored, the machine, or the Python
    version. Input and output shapes, dtypes and order count, their names do not.

    Args:
        model: Anything :func:`onnxfix.load` takes.
        weights: Whether the values of the weights count. If not, only their shapes and dtypes do (models of one
            architecture share a fingerprint); hyperparameters (axes, pads, clip bounds, shapes) always count.

    Returns:
        A hexadecimal string of 32 digits.

    Example:
        >>> onnxfix.fingerprint("a.onnx") == onnxfix.fingerprint("a_renamed.onnx")        # doctest: +SKIP
        True
    """
    form = _canonical(model)  # held while its constants are read
    return _fingerprint(topology(form.proto), weights).hex()


def is_isomorphic(a: Any, b: Any, weights: bool = True, rtol: float = 1e-4, atol: float = 1e-5) -> bool:
    """Whether two models are the same graph: ops, attributes, connections and (up to tolerance) constants.

    Not counted as differences: names; inputs that nothing reads; integer inputs of 32 or 64 bits; layout of inputs and
    outputs (channels first or last: Transposes at the boundary); a batch dimension that is fixed in one model and
    symbolic in the other; Reshape targets that mean the same; the order of the operands of commutative ops.

    Args:
        a: Anything :func:`onnxfix.load` takes.
        b: The same.
        weights: Whether weights are compared; if not, only their shapes and dtypes are (same architecture).
        rtol: Allowed difference of float constants relative to each element; also of float attributes.
        atol: Allowed difference of float constants relative to the greatest element of the constant. Two constants
            agree where ``|a - b| <= atol * max|b| + rtol * |b|``, whichever of the two is taken for ``b``: folding
            batch norm in another order costs about 1e-7 relative to the greatest element.

    Example:
        >>> onnxfix.is_isomorphic("net.keras", "net.tflite")                              # doctest: +SKIP
        True
    """
    from onnxfix.model import load

    one, two = load(a), load(b)
    first, second = topology(one.normal_form.proto), topology(two.normal_form.proto)
    if _fingerprint(first, weights) == _fingerprint(second, weights):
        return True
    if isomorphic(first, second, weights=weights, rtol=rtol, atol=atol):
        return True
    bound = _of_one_batch(one, two, first, second)
    return bound is not None and isomorphic(*bound, weights=weights, rtol=rtol, atol=atol)


def _of_one_batch(one: Model, two: Model, first: Topology, second: Topology) -> tuple[Topology, Topology] | None:
    """Both models with the batch that one of them fixes; None where that changes neither.

    A known batch lets shapes be known that are computed otherwise, and dimensions of size one be moved freely.
    """
    from onnxfix.canonical.pipeline import normal_form

    batches = [_batch(graph) for graph in (first, second)]
    fixed = next((batch for batch in batches if isinstance(batch, int)), None)
    if fixed is None or all(isinstance(batch, int) for batch in batches):
        return None
    graphs = [
        graph if isinstance(batch, int) else topology(normal_form(model.proto, batch=fixed).proto)
        for model, graph, batch in zip((one, two), (first, second), batches, strict=True)
    ]
    return graphs[0], graphs[1]


def _batch(graph: Topology) -> int | str | None:
    """The first dimension that all inputs share; None if they do not, or it is unknown."""
    found = {spec.shape[0] if spec.shape else None for spec in without_unread(graph).inputs}
    return found.pop() if len(found) == 1 else None


def isomorphic(first: Topology, second: Topology, *, weights: bool, rtol: float, atol: float) -> bool:
    """:func:`is_isomorphic` on graphs that are already in normal form."""
    first, second = without_unread(first), without_unread(second)
    one, two = without_adapters(first), without_adapters(second)
    if len(one.entries) != len(two.entries) or len(one.exits) != len(two.exits):
        return False
    if not all(same_layout(p, q, entry=True) for p, q in zip(one.entries, two.entries, strict=True)):
        return False
    if not all(same_layout(p, q, entry=False) for p, q in zip(one.exits, two.exits, strict=True)):
        return False
    if any(p.kind != q.kind for p, q in zip(first.inputs, second.inputs, strict=True)):
        return False
    return Matcher(one.graph, two.graph, weights=weights, rtol=rtol, atol=atol).match()


def _canonical(model: Any) -> NormalForm:
    from onnxfix.model import load

    return load(model).normal_form


def _fingerprint(graph: Topology, weights: bool) -> Color:
    symbols: dict[str, int] = {}
    entry = [digest(b"input", str(k).encode(), boundary(spec, symbols)) for k, spec in enumerate(graph.inputs)]

    def constant(_: Topology, operand: Operand, vertex: Vertex, slot: int) -> Color:
        return label(operand, not weights and is_weight(graph.constants[operand.index], vertex, slot))

    known: dict[tuple[int, bool], Color] = {}

    def label(operand: Operand, shape_only: bool) -> Color:
        key = (operand.index, shape_only)
        if key not in known:
            value = graph.constants[operand.index]
            known[key] = digest(kind(value)) if shape_only else content(value)
        return known[key]

    colors = Coloring(
        graph, constant=constant, attribute=exact, body=lambda body: _fingerprint(body, weights), entry=entry
    )
    results = [
        label(operand, not weights) if operand.kind == "constant" else colors.operand(operand, 0, 0)
        for operand in graph.outputs
    ]
    types = [boundary(spec, symbols) for spec in graph.results]
    return digest(_VERSION, *entry, *results, *types, *sorted(colors.colors))

