"""LSTM, GRU and RNN cells, recognised from the sum that one step computes.

With ``a(g)`` short for ``x W_g + h R_g + b_g``:

- LSTM: ``c' = s(a(f)) c + s(a(i)) u(a(g))``, ``h' = s(a(o)) v(c')``
- GRU: ``h' = s(a(z)) h + (1 - s(a(z))) u(n)`` with ``n = x W_n + b_n + s(a(r)) (h R_n + d)`` (linear before reset) or
  ``n = x W_n + b_n + (s(a(r)) h) R_n``; where z weighs the new part instead, ``s(a) = 1 - s(-a)``
- RNN: ``h' = u(a)``

where s is the sigmoid, u and v are tanh or relu. A first step from states of zeros lacks the terms that they would
give.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from onnxfix.canonical.cell_algebra import Factor, Gate, Product, Rows, State, Sum, Vector

# Gates in the order of ONNX.
ORDER = {"LSTM": "iofg", "GRU": "zrn", "RNN": "h"}
# What a new part may go through.
SCALED = ("Tanh", "Relu")


@dataclass(frozen=True)
class Linear:
    """``x W + h R + b``, and for GRU the ``d`` that is added before the reset gate."""

    kernel: tuple[tuple[float, Product], ...] = ()
    recurrent: tuple[tuple[float, Product], ...] = ()
    bias: tuple[tuple[float, Vector], ...] = ()
    inner: tuple[tuple[float, Vector], ...] = ()


@dataclass(frozen=True)
class Cell:
    """One step.

    Attributes:
        op: LSTM, GRU or RNN.
        gates: What goes into each gate, by its letter; a first step from zeros may lack one.
        size: How many columns a state has.
        source: The rows that it reads from the sequence.
        hidden: The hidden state that it starts from; None where that is zero.
        memory: LSTM's other state.
        after: GRU: whether the reset gate is applied after the product; None where that cannot be seen.
        activations: The activations of the gates, as ONNX lists them.
        update: LSTM: what the new memory is.
    """

    op: str
    gates: dict[str, Linear]
    size: int
    source: Rows
    hidden: Rows | None = None
    memory: Rows | None = None
    after: bool | None = None
    activations: tuple[str, ...] = field(default=())
    update: Sum | None = None


def lstm(value: Sum, size: int, paired: dict[Rows, Rows]) -> Cell | None:
    """Read ``h'`` as an LSTM step; ``paired`` says which hidden state goes with a memory."""
    outer = _pair(value)
    if outer is None:
        return None
    (o, t), new = outer, dict(outer[1].inner)
    gates = {"o": o}
    memory: Rows | None = None
    for term, c in new.items():
        activations = [f for f in term if isinstance(f, Gate)]
        states = [f for f in term if isinstance(f, State)]
        if c != 1.0 or len(term) != 2 or len(term) != len(activations) + len(states):
            return None
        if states and "f" not in gates and activations and activations[0].op == "Sigmoid" and _whole(states[0], size):
            gates["f"], memory = activations[0], states[0].rows
            continue
        found = _pair(frozenset({(term, c)}))
        if found is None or "g" in gates:
            return None
        gates["i"], gates["g"] = found
    if "g" not in gates:
        return None
    linear = _linears({name: gate.inner for name, gate in gates.items()},
                      None if memory is None else paired.get(memory), size)
    if linear is None:
        return None
    return Cell("LSTM", linear[0], size, linear[1], linear[2], memory,
                activations=("Sigmoid", gates["g"].op, t.op), update=t.inner)


def _pair(value: Sum) -> tuple[Gate, Gate] | None:
    """``sigmoid(a) * u(b)`` and nothing else."""
    if len(value) != 1:
        return None
    ((term, c),) = value
    gates = [f for f in term if isinstance(f, Gate)]
    if c != 1.0 or len(term) != 2 or len(gates) != 2:
        return None
    gates.sort(key=lambda gate: gate.op != "Sigmoid")
    first, second = gates
    return (first, second) if first.op == "Sigmoid" and second.op in SCALED else None


def gru(value: Sum, size: int) -> Cell | None:
    """Read ``h'`` as a GRU step."""
    found = _mixed(dict(value), size)
    if found is None:
        return None
    z, n, hidden, flipped = found
    plain, reset, after = _reset(n.inner, hidden, size)
    if plain is None:
        return None
    parts = {"z": z.inner, **({} if reset is None else {"r": reset.inner})}
    linear = _linears(parts, hidden, size)
    new = _linear(plain, hidden, size)
    if linear is None or new is None or new[1] is None or new[1] != linear[1] or (after and new[0].recurrent):
        return None
    gates = linear[0]
    if flipped:
        gates["z"] = _negated(gates["z"])
    if after:
        inner = _linear(frozenset(
            (tuple(f for f in term if f != reset), c) for term, c in n.inner if reset in term), hidden, size)
        if inner is None or inner[1] is not None or inner[0].inner:
            return None
        gates["n"] = Linear(new[0].kernel, inner[0].recurrent, new[0].bias, inner[0].bias)
    else:
        gates["n"] = new[0]
    return Cell("GRU", gates, size, linear[1], hidden, after=after, activations=("Sigmoid", n.op))


def _mixed(terms: dict[tuple[Factor, ...], float], size: int) -> tuple[Gate, Gate, Rows | None, bool] | None:
    """Update gate, new part and state of ``z h + (1 - z) n``; the last says that z weighs the new part instead."""
    hidden: Rows | None = None
    states = {f.rows for term in terms for f in term if isinstance(f, State) and _whole(f, size)}
    if len(states) > 1 or any(isinstance(f, State) and not _whole(f, size) for term in terms for f in term):
        return None
    hidden = next(iter(states), None)
    gates = {f for term in terms for f in term if isinstance(f, Gate)}
    updates = [gate for gate in gates if gate.op == "Sigmoid"]
    news = [gate for gate in gates if gate.op in SCALED]
    if len(gates) != 2 or len(updates) != 1 or len(news) != 1:
        return None
    z, n = updates[0], news[0]

    def has(c: float, *factors: Factor) -> bool:
        return any(d == c and len(term) == len(factors) and set(term) == set(factors) for term, d in terms.items())

    h = None if hidden is None else State(hidden, 0, size)
    if has(1.0, n) and has(-1.0, n, z) and len(terms) == (2 if h is None else 3) and (h is None or has(1.0, h, z)):
        return z, n, hidden, False
    if has(1.0, n, z) and len(terms) == (1 if h is None else 3) and (h is None or (has(1.0, h) and has(-1.0, h, z))):
        return z, n, hidden, True
    return None


def _reset(inner: Sum, hidden: Rows | None, size: int) -> tuple[Sum | None, Gate | None, bool | None]:
    """What of the new part is not reset, the reset gate, and whether it is applied after the product."""
    gates = {f for term, _ in inner for f in term if isinstance(f, Gate)}
    if len(gates) > 1:
        return None, None, None
    if gates:
        (reset,) = gates
        plain = frozenset((term, c) for term, c in inner if reset not in term)
        return (plain, reset, True) if reset.op == "Sigmoid" else (None, None, None)
    for term, _ in inner:
        product = term[0] if len(term) == 1 else None
        if isinstance(product, Product) and not isinstance(product.rows, Rows):
            ((factors, c),) = product.rows
            states = [f for f in factors if isinstance(f, State)]
            found = [f for f in factors if isinstance(f, Gate)]
            if c != 1.0 or states[0].rows != hidden or not _whole(states[0], size) or found[0].op != "Sigmoid":
                return None, None, None
            return inner, found[0], False
    return (inner, None, None) if hidden is None else (None, None, None)


def rnn(value: Sum, size: int, hidden: Rows | None) -> Cell | None:
    """Read ``h'`` as an RNN step from a known state."""
    if len(value) != 1:
        return None
    ((term, c),) = value
    gate = term[0] if len(term) == 1 else None
    if c != 1.0 or not isinstance(gate, Gate) or gate.op not in SCALED:
        return None
    found = _linear(gate.inner, hidden, size)
    if found is None or found[1] is None or (hidden is not None and not found[0].recurrent):
        return None
    return Cell("RNN", {"h": found[0]}, size, found[1], hidden, activations=(gate.op,))


def rows_of(value: Sum) -> list[Rows]:
    """The rows that the only gate of a sum reads."""
    gates = [f for term, _ in value for f in term if isinstance(f, Gate)]
    found = {f.rows for gate in gates[:1] for term, _ in gate.inner for f in term if isinstance(f, Product)}
    return [rows for rows in found if isinstance(rows, Rows)]


def _whole(state: State, size: int) -> bool:
    return (state.start, state.stop) == (0, size)


def _linears(
    sums: dict[str, Sum], hidden: Rows | None, size: int
) -> tuple[dict[str, Linear], Rows, Rows | None] | None:
    """Each gate's sum taken apart, the rows that all of them read, and the state."""
    if hidden is None:
        rows = {f.rows for inner in sums.values() for term, _ in inner for f in term
                if isinstance(f, Product) and isinstance(f.rows, Rows)}
        if len(rows) == 2:  # a first step from a given state: the sequence is what is read at a place
            loose = [r for r in rows if r.place is None]
            hidden = loose[0] if len(loose) == 1 else None
    found = {name: _linear(inner, hidden, size) for name, inner in sums.items()}
    gates, sources = {}, set()
    for name, parts in found.items():
        if parts is None or parts[1] is None:
            return None
        gates[name] = parts[0]
        sources.add(parts[1])
    return (gates, sources.pop(), hidden) if len(sources) == 1 else None


def _linear(inner: Sum, hidden: Rows | None, size: int) -> tuple[Linear, Rows | None] | None:
    """A sum taken apart into the parts of x, of h and of neither, and the rows of x."""
    kernel: list[tuple[float, Product]] = []
    recurrent: list[tuple[float, Product]] = []
    bias: list[tuple[float, Vector]] = []
    for term, c in inner:
        factor = term[0] if len(term) == 1 else None
        if isinstance(factor, Vector):
            bias.append((c, factor))
        elif not isinstance(factor, Product):
            return None
        elif factor.rows == hidden or not isinstance(factor.rows, Rows):
            recurrent.append((c, factor))
        else:
            kernel.append((c, factor))
    sources = {product.rows for _, product in kernel if isinstance(product.rows, Rows)}
    if len(kernel) > 1 or len(recurrent) > 1 or any(p.inner != size for _, p in recurrent):
        return None
    bias.sort(key=lambda part: (part[1].value.name or "", part[1].start))
    return Linear(tuple(kernel), tuple(recurrent), tuple(bias)), next(iter(sources), None)


def _negated(linear: Linear) -> Linear:
    return Linear(tuple((-c, p) for c, p in linear.kernel), tuple((-c, p) for c, p in linear.recurrent),
                  tuple((-c, v) for c, v in linear.bias))
