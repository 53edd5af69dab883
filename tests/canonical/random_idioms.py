"""What exporters spell out, and quantized values."""

from __future__ import annotations

import numpy as np
from random_graphs import Growing


def idiom(g: Growing) -> None:
    """An activation or a norm as a chain of simple ops."""
    r = g.rng.random()
    x = g.pick(test=lambda v: v.dtype == np.float32)
    if x is None:
        return
    v = g.array(x)
    def k(n):
        return g.constant(np.array(n, np.float32))

    def seq(*steps):
        y = x
        for op, *rest in steps:
            ins = [y if q == "." else (x if q == "x" else q) for q in rest]
            z = g.add(op, ins)
            if not z:
                return None
            y = z[0]
        return y

    if r < 0.15:
        seq(("Add", ".", k(3)), ("Clip", ".", k(0), k(6)), ("Mul", ".", "x"), ("Div", ".", k(6)))
    elif r < 0.25:
        seq(("Add", ".", k(3)), ("Clip", ".", k(0), k(6)), ("Mul", ".", k(1 / 6)), ("Mul", "x", "."))
    elif r < 0.4:
        seq(("Div", ".", k(np.sqrt(2))), ("Erf", "."), ("Add", ".", k(1)), ("Mul", "x", "."), ("Mul", ".", k(0.5)))
    elif r < 0.5:
        seq(("Sigmoid", "."), ("Mul", "x", "."))
    elif r < 0.6:
        seq(("Softplus", "."), ("Tanh", "."), ("Mul", "x", "."))
    elif r < 0.75 and v.ndim > 1 and v.size:
        dict(axes=[-1], keepdims=1)
        m = g.reduced("ReduceMean", x, [-1], keepdims=1)
        if not m:
            return
        d = g.add("Sub", [x, m[0]])
        s = d and (g.add("Pow", [d[0], k(2)]) if g.chance(0.5) else g.add("Mul", [d[0], d[0]]))
        q = s and g.reduced("ReduceMean", s[0], [-1], keepdims=1)
        e = q and g.add("Add", [q[0], k(1e-2)])
        t = e and g.add("Sqrt", e)
        o = t and g.add("Div", [d[0], t[0]])
        o = o and g.add("Mul", [o[0], g.constant(g.random((v.shape[-1],)))])
        o and g.add("Add", [o[0], g.constant(g.random((v.shape[-1],)))])
    elif r < 0.85:
        seq(("Neg", "."), ("Exp", "."), ("Add", ".", k(1)), ("Reciprocal", "."))
    elif r < 0.92:
        seq(("Relu", "."), ("Min", ".", k(6)))
    elif v.ndim == 4:
        p = g.add("Transpose", [x], perm=[0, 2, 3, 1])
        q = p and g.add(g.rng.choice(["Relu", "Sigmoid"]), p)
        q and g.add("Transpose", q, perm=[0, 3, 1, 2])


def quantized(g: Growing) -> None:
    x = g.pick(test=lambda v: v.dtype == np.float32)
    if x is None:
        return
    qdt = g.rng.choice([np.int8, np.uint8])
    v = g.array(x)
    axis = None
    if g.chance(0.2) and v.ndim > 1:
        axis = 1
    sc = np.full((v.shape[1],) if axis else g.rng.choice([(), (1,)]), g.rng.choice([0.05, 0.1, 0.03]), np.float32)
    sc = g.constant(sc)
    shp = g.array(sc).shape
    zp = (
        g.constant(np.full(shp, g.rng.choice([0, 3, -2 if qdt == np.int8 else 128]), qdt))
        if g.chance(0.8) or qdt == np.int8
        else None
    )
    kw = {} if axis is None else dict(axis=g.signed(1, v.ndim))
    q = g.add("QuantizeLinear", [x, sc] + ([zp] if zp else []), **kw)
    if q is None:
        return
    if g.chance(0.3):
        s = g.array(q[0])
        r = (
            g.add("Transpose", q, perm=g.rng.sample(range(s.ndim), s.ndim))
            if axis is None and s.ndim and g.chance(0.5)
            else (g.add("Reshape", [q[0], g.ints(-1)]) if axis is None else q)
        )
        q = r or q
    g.add("DequantizeLinear", [q[0], sc] + ([zp] if zp else []), **kw)
