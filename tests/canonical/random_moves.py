"""Random steps that move, pick, join and repeat elements."""

from __future__ import annotations

import numpy as np
from random_elements import broadcast_constant
from random_graphs import Growing


def transpose(g: Growing) -> None:
    x = g.pick(ranks=(2, 3, 4, 5), kinds="f" if g.chance(0.9) else "fib")
    if x is None:
        return
    v = g.array(x)
    n = v.ndim
    if n > 2 and g.chance(0.7):
        p = [0, *range(2, n), 1] if g.chance(0.5) else [0, n - 1, *range(1, n - 1)]
    else:
        p = list(range(n))
        g.rng.shuffle(p)
    kw = {} if g.chance(0.05) else dict(perm=p)
    g.add("Transpose", [x], **kw)


def reshape(g: Growing) -> None:
    x = g.pick(kinds="f" if g.chance(0.9) else "fib")
    if x is None:
        return
    v = g.array(x)
    s = list(v.shape)
    r = g.rng.random()
    if r < 0.2:
        ax = g.rng.randint(0, v.ndim)
        g.add("Flatten", [x], axis=ax - v.ndim if g.chance(0.3) and ax < v.ndim else ax)
        return
    if r < 0.32:
        ones = [k for k, d in enumerate(s) if d == 1]
        if not ones:
            return
        if g.chance(0.2):
            g.reduced("Squeeze", x, None)
            return
        ax = [k for k in ones if g.chance(0.6)] or ones[:1]
        g.reduced("Squeeze", x, [g.signed(a, v.ndim) for a in ax])
        return
    if r < 0.47 and v.ndim < 5:
        m = g.rng.choice([1, 1, 2])
        ax = sorted(g.rng.sample(range(v.ndim + m), m))
        g.reduced("Unsqueeze", x, ax if g.chance(0.6) else [a - v.ndim - m for a in ax])
        return
    # split or merge
    t = list(s)
    for _ in range(g.rng.choice([1, 1, 2])):
        if g.chance(0.5) and len(t) > 1:
            k = g.rng.randint(0, len(t) - 2)
            t[k : k + 2] = [t[k] * t[k + 1]]
        elif t:
            k = g.rng.randint(0, len(t) - 1)
            f = [d for d in range(2, t[k]) if t[k] % d == 0]
            if f:
                d = g.rng.choice(f)
                t[k : k + 1] = [d, t[k] // d]
            elif len(t) < 5 and g.chance(0.5):
                t.insert(k, 1)
            elif t[k] == 1:
                del t[k]
    if len(t) > 5:
        return
    if g.chance(0.1):
        g.rng.shuffle(t)
    target = list(t)
    if target and g.chance(0.5) and 0 not in target:
        target[g.rng.randint(0, len(t) - 1) if g.chance(0.4) else 0] = -1
    for k, d in enumerate(target):
        if k < len(s) and d == s[k] and g.chance(0.3):
            target[k] = 0
    if g.chance(0.25) and v.ndim and target and (target[0] == s[0] or target[0] in (0, -1)):
        sh = g.add("Shape", [x])
        if not sh:
            return
        if g.chance(0.5):
            first = g.add("Gather", [sh[0], g.constant(np.array(0, np.int64))], axis=0)
            first = first and g.reduced("Unsqueeze", first[0], [0])
        else:
            first = g.add("Slice", [sh[0], g.ints(0), g.ints(1)])
        if not first:
            return
        rest = [(t[k] if d == 0 else d) for k, d in enumerate(target)][1:]
        if -1 in rest or g.chance(0.5) or not rest:
            rest = rest
        tgt = g.add("Concat", [first[0], g.ints(*rest)], axis=0) if rest else first
        if tgt:
            g.add("Reshape", [x, tgt[0]])
        return
    kw = {}
    if g.opset >= 14 and g.chance(0.05):
        kw["allowzero"] = 1
    g.add("Reshape", [x, g.ints(*target)], **kw)


def concat(g: Growing) -> None:
    x = g.pick(ranks=(1, 2, 3, 4), kinds="f" if g.chance(0.9) else "fib")
    if x is None:
        return
    v = g.array(x)
    ax = g.rng.randint(0, v.ndim - 1)
    parts = [x]
    for _ in range(g.rng.choice([1, 1, 2])):
        fits = [
            n
            for n, w in g.values.items()
            if w.dtype == v.dtype
            and w.ndim == v.ndim
            and all(a == b for k, (a, b) in enumerate(zip(w.shape, v.shape, strict=False)) if k != ax)
        ]
        if g.chance(0.3):
            s = list(v.shape)
            s[ax] = g.rng.choice([1, 2])
            parts.append(g.constant(g.random(s, v.dtype)))
        else:
            parts.append(g.rng.choice(fits))
    g.rng.shuffle(parts)
    g.add("Concat", parts, axis=g.signed(ax, v.ndim))


def split(g: Growing) -> None:
    x = g.pick(ranks=(1, 2, 3, 4), test=lambda v: v.ndim and max(v.shape) > 1)
    if x is None:
        return
    v = g.array(x)
    ax = g.rng.choice([k for k, d in enumerate(v.shape) if d > 1])
    d = v.shape[ax]
    if g.chance(0.5) and d % 2 == 0:
        if g.opset >= 18:
            g.add("Split", [x], outputs=2, axis=g.signed(ax, v.ndim), num_outputs=2)
        else:
            g.add("Split", [x], outputs=2, axis=g.signed(ax, v.ndim))
    else:
        c = g.rng.randint(0, d) if g.chance(0.1) else g.rng.randint(1, d - 1)
        g.add("Split", [x, g.ints(c, d - c)], outputs=2, axis=g.signed(ax, v.ndim))


def slice_axes(g: Growing) -> None:
    x = g.pick(ranks=(1, 2, 3, 4), kinds="f" if g.chance(0.9) else "fib")
    if x is None:
        return
    v = g.array(x)
    m = g.rng.choice([1, 1, 2])
    axes = g.rng.sample(range(v.ndim), min(m, v.ndim))
    st, en, sp = [], [], []
    for a in axes:
        d = v.shape[a]
        if g.chance(0.15):
            sp.append(g.rng.choice([-1, -2]))
            st.append(g.rng.choice([d - 1, -1, 2**31]))
            en.append(g.rng.choice([-d - 1, -(2**31), 0, -(2**63)]))
        else:
            sp.append(g.rng.choice([1, 1, 1, 2]))
            st.append(g.rng.choice([0, 0, 1, -2, -d, 1]))
            en.append(g.rng.choice([d, 2**63 - 1, 2**31 - 1, -1, d - 1, d + 3, 0 if g.chance(0.1) else d]))
    ins = [x, g.ints(*st), g.ints(*en)]
    if g.chance(0.9) or axes != list(range(len(axes))) or sp != [1] * len(sp):
        ins.append(g.ints(*[g.signed(a, v.ndim) for a in axes]))
        if sp != [1] * len(sp) or g.chance(0.3):
            ins.append(g.ints(*sp))
    g.add("Slice", ins)


def gather(g: Growing) -> None:
    x = g.pick(ranks=(1, 2, 3, 4), kinds="f" if g.chance(0.9) else "fib", test=lambda v: 0 not in v.shape)
    if x is None:
        return
    v = g.array(x)
    ax = g.rng.randint(0, v.ndim - 1)
    d = v.shape[ax]
    sh = g.rng.choice([(), (1,), (2,), (3,), (2, 2)])
    idx = g.noise.integers(-d, d, sh)
    if g.chance(0.3) and len(sh) == 1 and sh[0] <= d:
        idx = np.arange(sh[0])
    g.add(
        "Gather", [x, g.constant(np.asarray(idx, np.int64 if g.chance(0.7) else np.int32))], axis=g.signed(ax, v.ndim)
    )


def expand(g: Growing) -> None:
    x = g.pick(ranks=(0, 1, 2, 3, 4), kinds="f" if g.chance(0.9) else "fib")
    if x is None:
        return
    v = g.array(x)
    if g.chance(0.5):
        t = [g.rng.choice([d, 1]) if d != 1 else g.rng.choice([1, 1, 2]) for d in v.shape]
        if g.chance(0.2) and len(t) < 5:
            t.insert(0, g.rng.choice([1, 2]))
        g.add("Expand", [x, g.ints(*t)])
    elif v.ndim:
        g.add("Tile", [x, g.ints(*[g.rng.choice([1, 1, 2]) for _ in v.shape])])


def misc(g: Growing) -> None:
    r = g.rng.random()
    x = g.pick(ranks=(1, 2, 3, 4))
    if x is None:
        return
    v = g.array(x)
    ax = g.rng.randint(0, v.ndim - 1)
    if r < 0.2:
        g.add(g.rng.choice(["ArgMax", "ArgMin"]), [x], axis=g.signed(ax, v.ndim), keepdims=g.rng.choice([0, 1]))
    elif r < 0.35:
        g.add(
            "CumSum",
            [x, g.constant(np.array(ax, np.int64 if g.chance(0.5) else np.int32))],
            reverse=g.rng.choice([0, 1]),
            exclusive=g.rng.choice([0, 1]),
        )
    elif r < 0.45 and v.shape[ax] > 1:
        g.add("TopK", [x, g.ints(g.rng.randint(1, v.shape[ax]))], outputs=2, axis=g.signed(ax, v.ndim))
    elif r < 0.55 and v.ndim == 4:
        if g.chance(0.5):
            g.add("DepthToSpace", [x], blocksize=2, mode=g.rng.choice(["DCR", "CRD"]))
        else:
            g.add("SpaceToDepth", [x], blocksize=2)
    elif r < 0.65 and v.ndim >= 2 and v.size:
        g.add(
            "Einsum",
            [x, g.constant(g.random((v.shape[-1], 3)))],
            equation="...i,ij->...j" if g.chance(0.5) or v.ndim != 3 else "abc,cd->adb",
        )
    elif r < 0.72 and g.opset >= 14 and v.ndim >= 2:
        g.add("Trilu", [x], upper=g.rng.choice([0, 1]))
    elif r < 0.8:
        s = g.add("Shape", [x])
        if s and g.chance(0.6):
            g.add("Cast", s, to=1)
    elif r < 0.9:
        g.add(
            g.rng.choice(["Sum", "Mean", "Max", "Min"]),
            [x, x] if g.chance(0.3) else [x, g.constant(broadcast_constant(g, v)), x],
        )
    else:
        e = g.add("ConstantOfShape", [g.ints(*v.shape)])
        if e and v.dtype == np.float32:
            g.add("Add", [x, e[0]])
