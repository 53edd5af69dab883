"""Random layers: convolutions, pools, dense and recurrent ones, resizes."""

from __future__ import annotations

import numpy as np
from random_graphs import Growing


def conv(g: Growing) -> None:
    x = g.pick(ranks=(3, 4, 4, 5), test=lambda v: v.dtype == np.float32 and 0 < v.shape[1] <= 12 and v.size)
    if x is None:
        return
    v = g.array(x)
    n = v.ndim - 2
    cin = v.shape[1]
    group = g.rng.choice([1, 1, 1, cin] + [d for d in (2, 3) if cin and cin % d == 0]) or 1
    cout = group * g.rng.choice([1, 2, 3]) if group > 1 else g.rng.choice([1, 2, 3, 4, 5])
    k = [g.rng.choice([1, 1, 2, 3]) for _ in range(n)]
    transpose = g.chance(0.2)
    kw = {}
    if g.chance(0.5):
        kw["strides"] = [g.rng.choice([1, 2, 2]) for _ in range(n)]
    if g.chance(0.2):
        kw["dilations"] = [g.rng.choice([1, 2]) for _ in range(n)]
    r = g.rng.random()
    if r < 0.4:
        kw["pads"] = [g.rng.choice([0, 1, 1, 2]) for _ in range(2 * n)]
    elif r < 0.6:
        kw["auto_pad"] = g.rng.choice(["SAME_UPPER", "SAME_LOWER", "VALID", "NOTSET"])
    if group != 1 or g.chance(0.3):
        kw["group"] = group
    if g.chance(0.5):
        kw["kernel_shape"] = k
    if transpose:
        w = g.random((cin, max(1, cout // group), *k))
        co = max(1, cout // group) * group
        if g.chance(0.2) and "strides" in kw:
            kw["output_padding"] = [g.rng.randint(0, s - 1) for s in kw["strides"]]
    else:
        w = g.random((cout, cin // group if group else cin, *k))
        co = cout
    w = (w * 0.6).astype(np.float32)
    ins = [x, g.constant(w)]
    if g.chance(0.5):
        ins.append(g.constant(g.random((co,))))
    g.add("ConvTranspose" if transpose else "Conv", ins, **kw)


def pool(g: Growing) -> None:
    x = g.pick(ranks=(3, 4, 4, 5), test=lambda v: v.dtype == np.float32 and v.size)
    if x is None:
        return
    v = g.array(x)
    n = v.ndim - 2
    op = g.rng.choice(
        ["MaxPool", "AveragePool", "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "LpPool"]
    )
    if op.startswith("Global"):
        g.add(op, [x])
        return
    k = [g.rng.choice([1, 2, 2, 3]) for _ in range(n)]
    if g.chance(0.15):
        k = list(v.shape[2:])
    k = [min(a, b) for a, b in zip(k, v.shape[2:], strict=False)]
    kw = dict(kernel_shape=k)
    if g.chance(0.6):
        kw["strides"] = [g.rng.choice([1, 2, 3]) for _ in range(n)]
    if g.chance(0.2) and (op == "MaxPool" or g.opset >= 19):
        kw["dilations"] = [g.rng.choice([1, 2]) for _ in range(n)]
    r = g.rng.random()
    if r < 0.4:
        kw["pads"] = [g.rng.choice([0, 0, 1]) for _ in range(2 * n)]
    elif r < 0.55:
        kw["auto_pad"] = g.rng.choice(["SAME_UPPER", "SAME_LOWER", "VALID"])
    if g.chance(0.2) and op != "LpPool":
        kw["ceil_mode"] = 1
    if op == "AveragePool" and g.chance(0.4):
        kw["count_include_pad"] = 1
    if op == "MaxPool" and g.chance(0.06):
        g.add(op, [x], outputs=2, **kw)
        return
    g.add(op, [x], **kw)


def pad(g: Growing) -> None:
    x = g.pick(ranks=(1, 2, 3, 4), kinds="f" if g.chance(0.9) else "fi")
    if x is None:
        return
    v = g.array(x)
    n = v.ndim
    p = [0] * (2 * n)
    for k in range(n):
        if k >= n - 2 or g.chance(0.15):
            p[k] = g.rng.choice([0, 0, 1, 2, -1 if g.chance(0.2) else 1])
            p[n + k] = g.rng.choice([0, 1, 1, 2])
    kw = {}
    if g.chance(0.2):
        kw["mode"] = g.rng.choice(["reflect", "edge", "constant"])
    ins = [x, g.ints(*p)]
    if g.chance(0.4):
        ins.append(
            g.constant(
                np.array(
                    g.rng.choice([0, 0, 1, -1, -np.inf if g.chance(0.05) else 0]) if v.dtype.kind == "f" else 1, v.dtype
                )
            )
        )
    g.add("Pad", ins, **kw)


def dense(g: Growing) -> None:
    x = g.pick(ranks=(2, 3, 4), test=lambda v: v.dtype in (np.float32, np.float64) and 0 < v.shape[-1] <= 40)
    if x is None:
        return
    v = g.array(x)
    o = g.rng.choice([1, 2, 3, 5])
    scale = 1 / np.sqrt(v.shape[-1])
    if v.ndim == 2 and g.chance(0.5):
        ta, tb = (g.chance(0.15), g.chance(0.5))
        k = v.shape[0] if ta else v.shape[1]
        m = v.shape[1] if ta else v.shape[0]
        w = g.random((o, k) if tb else (k, o), v.dtype) * np.array(scale, v.dtype)
        ins = [x, g.constant(w)]
        if g.chance(0.7):
            ins.append(g.constant(g.random(g.rng.choice([(o,), (1, o), (), (1,), (m, 1), (m, o)]), v.dtype)))
        kw = {}
        if g.chance(0.3):
            kw["alpha"] = g.rng.choice([0.5, 2.0, 1.0, 0.0])
        if g.chance(0.3):
            kw["beta"] = g.rng.choice([0.5, 2.0, 1.0, 0.0])
        g.add("Gemm", ins, transA=int(ta), transB=int(tb), **kw)
        return
    r = g.rng.random()
    if r < 0.15 and v.ndim >= 2:
        w = g.random((o, v.shape[-2]), v.dtype) * np.array(0.5, v.dtype)
        g.add("MatMul", [g.constant(w), x])
        return
    if r < 0.3:
        sh = (v.shape[-1],)
    elif r < 0.4 and v.ndim > 2:
        sh = (*v.shape[:-2], v.shape[-1], o)
    elif r < 0.45:
        sh = (1, v.shape[-1], o)
    else:
        sh = (v.shape[-1], o)
    out = g.add("MatMul", [x, g.constant(g.random(sh, v.dtype) * np.array(scale, v.dtype))])
    if out and g.chance(0.5):
        b = g.random((g.array(out[0]).shape[-1],) if g.array(out[0]).ndim else (), v.dtype)
        g.add("Add", [out[0], g.constant(b)] if g.chance(0.5) else [g.constant(b), out[0]])


def matmul_with_itself(g: Growing) -> None:
    x = g.pick(ranks=(2, 3, 4), test=lambda v: v.size > 0)
    if x is None:
        return
    v = g.array(x)
    t = list(range(v.ndim))
    t[-1], t[-2] = t[-2], t[-1]
    y = g.add("Transpose", [x], perm=t)
    if not y:
        return
    z = g.add("MatMul", [x, y[0]] if g.chance(0.7) else [y[0], x])
    if z and g.chance(0.5):
        g.add("Softmax", z, axis=-1)


def resize(g: Growing) -> None:
    x = g.pick(ranks=(3, 4), test=lambda v: v.dtype == np.float32 and v.size)
    if x is None:
        return
    v = g.array(x)
    n = v.ndim - 2
    kw = dict(mode=g.rng.choice(["nearest", "linear", "nearest", "cubic" if n == 2 else "nearest"]))
    if g.chance(0.7):
        kw["coordinate_transformation_mode"] = g.rng.choice(
            ["asymmetric", "half_pixel", "align_corners", "pytorch_half_pixel"]
        )
    if kw["mode"] == "nearest" and g.chance(0.6):
        kw["nearest_mode"] = g.rng.choice(["floor", "round_prefer_floor", "ceil", "round_prefer_ceil"])
    if g.chance(0.5):
        sc = [1, 1] + [g.rng.choice([1, 2, 0.5, 1.5]) for _ in range(n)]
        g.add("Resize", [x, "", g.constant(np.array(sc, np.float32))], **kw)
    else:
        g.add(
            "Resize",
            [x, "", "", g.ints(*v.shape[:2], *[g.rng.choice([d, 2 * d, max(1, d - 1)]) for d in v.shape[2:]])],
            **kw,
        )


def recurrent(g: Growing) -> None:
    x = g.pick(ranks=(3,), test=lambda v: v.dtype == np.float32 and v.size and v.shape[-1] < 20)
    if x is None:
        return
    v = g.array(x)
    op = g.rng.choice(["LSTM", "GRU", "RNN"])
    q = dict(LSTM=4, GRU=3, RNN=1)[op]
    h = g.rng.choice([1, 2, 3])
    dr = g.rng.choice(["forward", "reverse", "bidirectional"])
    d = 2 if dr == "bidirectional" else 1
    lay = int(g.chance(0.08)) if g.opset >= 14 else 0
    T, B = (v.shape[1], v.shape[0]) if lay else v.shape[:2]
    ins = [
        x,
        g.constant(g.random((d, q * h, v.shape[2])) * np.float32(0.5)),
        g.constant(g.random((d, q * h, h)) * np.float32(0.5)),
    ]
    ins.append(g.constant(g.random((d, 2 * q * h))) if g.chance(0.7) else "")
    ins.append(g.constant(np.full((B,), T, np.int32)) if g.chance(0.15) else "")

    def st():
        sh = (B, d, h) if lay else (d, B, h)
        return g.constant(np.zeros(sh, np.float32) if g.chance(0.6) else g.random(sh)) if g.chance(0.4) else ""

    ins.append(st())
    if op == "LSTM":
        ins.append(st())
        if g.chance(0.1):
            ins.append(g.constant(g.random((d, 3 * h))))
    while ins[-1] == "":
        ins.pop()
    kw = dict(hidden_size=h, direction=dr)
    if lay:
        kw["layout"] = 1
    if op == "GRU" and g.chance(0.5):
        kw["linear_before_reset"] = 1
    if g.chance(0.2):
        kw["activations"] = {
            "LSTM": ["Sigmoid", "Tanh", "Tanh"],
            "GRU": ["Sigmoid", "Tanh"],
            "RNN": [g.rng.choice(["Tanh", "Relu"])],
        }[op] * d
    if g.chance(0.05):
        kw["clip"] = 1.0
    y = g.add(op, ins, outputs=g.rng.choice([1, 1, 2]), **kw)
    if y and g.chance(0.6) and not lay:
        if d == 1:
            g.reduced("Squeeze", y[0], [1])
        else:
            t = g.add("Transpose", [y[0]], perm=[0, 2, 1, 3])
            if t:
                g.add("Reshape", [t[0], g.ints(0, 0, -1)])
