"""Random steps that work element by element or along axes."""

from __future__ import annotations

import numpy as np
from random_graphs import Growing

UNARY = (
    "Relu",
    "Sigmoid",
    "Tanh",
    "Abs",
    "Neg",
    "Exp",
    "Softplus",
    "Erf",
    "Sqrt",
    "Reciprocal",
    "HardSwish",
    "HardSigmoid",
    "LeakyRelu",
    "Elu",
    "Selu",
    "Softsign",
    "Floor",
    "Ceil",
    "Sign",
    "Identity",
    "Dropout",
    "Log",
    "Mish",
    "ThresholdedRelu",
    "Round",
)


def unary(g: Growing) -> None:
    x = g.pick()
    if x is None:
        return
    op = g.rng.choice(
        UNARY if g.array(x).dtype == np.float32 else ("Relu", "Abs", "Neg", "Sqrt", "Exp", "Floor", "Identity")
    )
    kw = {}
    if op == "HardSigmoid" and g.chance(0.5):
        kw = dict(alpha=1 / 6, beta=0.5)
    if op == "LeakyRelu":
        kw = dict(alpha=g.rng.choice([0.01, 0.3]))
    g.add(op, [x], **kw)


def broadcast_constant(g: Growing, v: np.ndarray) -> np.ndarray:
    """A constant that broadcasts against a value in one of the usual ways."""
    s = v.shape
    kind = g.rng.choice(["scalar", "one", "chan", "last", "full", "ones", "rand"])
    if kind == "scalar":
        sh = ()
    elif kind == "one":
        sh = (1,)
    elif kind == "ones":
        sh = (1,) * v.ndim
    elif kind == "chan" and v.ndim >= 2:
        sh = (s[1],) + (1,) * (v.ndim - 2)
        sh = sh if g.chance(0.5) else (1, *sh)
    elif kind == "last" and v.ndim:
        sh = (s[-1],)
    elif kind == "full":
        sh = s
    else:
        sh = tuple(d if g.chance(0.5) else 1 for d in s)[g.rng.randint(0, v.ndim) :]
    if g.chance(0.1) and kind in ("scalar", "one", "ones"):
        return np.full(sh, g.rng.choice([0, 1, -1, 2, 0.5, 6, 3, -np.inf if g.chance(0.02) else 1]), v.dtype)
    c = g.random(sh, v.dtype)
    if g.chance(0.3):
        c = np.abs(c) + np.array(1, c.dtype)
    return c


def binary_const(g: Growing) -> None:
    x = g.pick(kinds="f" if g.chance(0.85) else "fi")
    if x is None:
        return
    v = g.array(x)
    op = g.rng.choice(["Add", "Mul", "Sub", "Div", "Mul", "Add", "Max", "Min", "Pow", "PRelu", "Mod"])
    c = broadcast_constant(g, v)
    if op == "Pow":
        c = np.array(g.rng.choice([2, 3, 0.5, 1, -1]), v.dtype)
    if op == "Div" and v.dtype.kind != "f":
        c = np.abs(c) + np.array(1, c.dtype)
    if op == "PRelu" and v.dtype != np.float32:
        return
    if op == "Mod":
        if v.dtype.kind == "f":
            return
        c = np.abs(c) + np.array(1, c.dtype)
    cs = g.constant(c)
    pair = [x, cs] if op in ("Pow", "PRelu", "Mod") or g.chance(0.7) else [cs, x]
    g.add(op, pair)


def binary(g: Growing) -> None:
    x = g.pick(kinds="f" if g.chance(0.9) else "iu")
    if x is None:
        return
    v = g.array(x)

    def fits(w):
        if w.dtype != v.dtype:
            return False
        try:
            np.broadcast_shapes(w.shape, v.shape)
            return True
        except ValueError:
            return False

    y = g.pick(kinds="fiu", test=fits) if g.chance(0.3) else None
    cand = [n for n, w in g.values.items() if fits(w)]
    y = y or g.rng.choice(cand)
    pair = [x, y] if g.chance(0.5) else [y, x]
    g.add(g.rng.choice(["Add", "Mul", "Sub", "Div", "Max", "Min", "Add", "Mul"]), pair)


def clip(g: Growing) -> None:
    x = g.pick(kinds="f" if g.chance(0.85) else "fi")
    if x is None:
        return
    v = g.array(x)
    def num(n):
        return g.constant(np.array(n, v.dtype))
    r = g.rng.random()
    if r < 0.5:
        g.add("Clip", [x, g.rng.choice([num(0), num(-1), "", num(1)]), g.rng.choice([num(6), num(1), "", num(0)])])
    elif r < 0.75:
        g.add("Min", [x, g.constant(np.full(g.rng.choice([(), (1,)]), g.rng.choice([6, 1, 0]), v.dtype))])
    else:
        g.add("Max", [x, g.constant(np.full(g.rng.choice([(), (1,)]), g.rng.choice([0, -1, 1]), v.dtype))])


def where(g: Growing) -> None:
    x = g.pick()
    if x is None:
        return
    v = g.array(x)
    c = g.add(
        g.rng.choice(["Greater", "Less", "GreaterOrEqual", "LessOrEqual", "Equal"]),
        [x, g.constant(np.array(g.rng.choice([0, 0.5, -0.3]), v.dtype) if g.chance(0.7) else broadcast_constant(g, v))],
    )
    if not c:
        return
    if g.chance(0.2):
        c = g.add("Not", c)
    r = g.rng.random()
    if r < 0.3:
        ins = [c[0], x, g.constant(broadcast_constant(g, v))]
    elif r < 0.6:
        ins = [c[0], g.constant(broadcast_constant(g, v)), x]
    elif r < 0.8:
        f = [n for n, w in g.values.items() if w.dtype == v.dtype and w.shape == v.shape]
        ins = [c[0], x, g.rng.choice(f)]
    else:
        g.add("Cast", c, to=1)
        return
    g.add("Where", ins)


def cast(g: Growing) -> None:
    x = g.pick(kinds="fibu")
    if x is None:
        return
    v = g.array(x)
    to = g.rng.choice([1, 1, 6, 7, 9, 11, 10, 3 if v.dtype.kind != "f" else 1])
    if to == 10:
        y = g.add("Cast", [x], to=10)
        if y:
            g.add("Cast", y, to=1)
        return
    if v.dtype.kind == "f" and to in (6, 7):
        y = g.add("Round", [x])
        if y is None:
            return
        x = y[0]
    y = g.add("Cast", [x], to=to)
    if y and to != 1:
        g.add("Cast", y, to=1)


def softmax(g: Growing) -> None:
    x = g.pick(ranks=(1, 2, 3, 4))
    if x is None:
        return
    v = g.array(x)
    ax = g.rng.randint(0, v.ndim - 1)
    g.add(g.rng.choice(["Softmax", "Softmax", "LogSoftmax", "Hardmax"]), [x], axis=g.signed(ax, v.ndim))


def norm(g: Growing) -> None:
    op = g.rng.choice(
        [
            "BatchNormalization",
            "BatchNormalization",
            "LayerNormalization",
            "InstanceNormalization",
            "LpNormalization",
            "LRN",
            "GroupNormalization",
        ]
    )
    x = g.pick(ranks=(2, 3, 4), test=lambda v: v.dtype == np.float32 and v.size and v.shape[1] > 0)
    if x is None:
        return
    v = g.array(x)
    c = v.shape[1]
    if op == "BatchNormalization":
        g.add(
            op,
            [x]
            + [g.constant(q) for q in (g.random((c,)), g.random((c,)), g.random((c,)), np.abs(g.random((c,))) + 0.3)],
            **({} if g.chance(0.5) else dict(epsilon=1e-3)),
        )
    elif op == "LayerNormalization" and g.opset >= 17:
        ax = g.rng.randint(1, v.ndim - 1) if g.chance(0.3) else v.ndim - 1
        ins = [x, g.constant(g.random(v.shape[ax:]))]
        if g.chance(0.7):
            ins.append(g.constant(g.random(v.shape[ax:])))
        g.add(op, ins, axis=g.signed(ax, v.ndim), epsilon=1e-3)
    elif op == "InstanceNormalization" and v.ndim > 2:
        g.add(op, [x, g.constant(g.random((c,))), g.constant(g.random((c,)))], epsilon=1e-2)
    elif op == "LpNormalization":
        g.add(op, [x], axis=g.rng.choice([1, -1]), p=g.rng.choice([1, 2]))
    elif op == "LRN" and v.ndim == 4:
        g.add(op, [x], size=3, alpha=0.1)
    elif op == "GroupNormalization" and g.opset >= 18 and v.ndim > 2:
        n = g.rng.choice([d for d in (1, 2, 3, 4) if c % d == 0])
        m = c if g.opset >= 21 else n
        g.add(op, [x, g.constant(g.random((m,))), g.constant(g.random((m,)))], num_groups=n, epsilon=1e-2)


def reduce(g: Growing) -> None:
    x = g.pick(ranks=(1, 2, 3, 4), test=lambda v: v.dtype == np.float32 or g.chance(0.3))
    if x is None:
        return
    v = g.array(x)
    op = g.rng.choice(
        [
            "ReduceMean",
            "ReduceMean",
            "ReduceSum",
            "ReduceMax",
            "ReduceMin",
            "ReduceL2",
            "ReduceL1",
            "ReduceProd",
            "ReduceSumSquare",
            "ReduceLogSumExp",
        ]
    )
    kw = {} if g.chance(0.3) else dict(keepdims=g.rng.choice([0, 1]))
    if g.chance(0.15):
        g.reduced(op, x, None, **kw)
        return
    axes = g.rng.sample(range(v.ndim), g.rng.randint(1, v.ndim))
    if v.ndim == 4 and g.chance(0.3):
        axes = [2, 3]
    if v.ndim == 4 and g.chance(0.2):
        axes = [1, 2]
    g.reduced(op, x, [g.signed(a, v.ndim) for a in axes], **kw)
