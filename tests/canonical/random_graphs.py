"""Random models: each node is run as it is added, and kept only if onnxruntime takes it and its values stay in bounds."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper, numpy_helper

_OPSETS = (13, 17, 18, 21)
_LARGEST = 4096  # elements of any value


class Growing:
    """A model that grows node by node, with the value of everything in it for one set of inputs.

    Args:
        rng: Makes every choice.
    """

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.opset = rng.choice(_OPSETS)
        self.batch = rng.choice([1, 2, 2, 3])
        self.symbolic = rng.random() < 0.4
        self.inputs: list[str] = []
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, np.ndarray] = {}
        self.values: dict[str, np.ndarray] = {}
        self.noise = np.random.default_rng(rng.getrandbits(32))

    def chance(self, probability: float) -> bool:
        return self.rng.random() < probability

    def input(self, shape: Sequence[int], dtype: type = np.float32) -> str:
        name = f"x{len(self.inputs)}"
        self.inputs.append(name)
        self.values[name] = self.random(shape, dtype)
        return name

    def random(self, shape: Sequence[int], dtype: type | np.dtype = np.float32) -> np.ndarray:
        kind = np.dtype(dtype).kind
        if kind == "f":
            value = self.noise.standard_normal(shape) * (1.0 if len(shape) < 3 else 0.7)
            if self.chance(0.15):
                value = np.round(value * 2) / 2
            return value.astype(dtype)
        if kind == "b":
            return self.noise.random(shape) < 0.5
        low = 0 if kind == "u" else -5
        return self.noise.integers(low, 6, shape).astype(dtype)

    def constant(self, value: np.ndarray) -> str:
        value = np.asarray(value)
        for name, old in self.constants.items():
            if self.chance(0.3) and old.dtype == value.dtype and old.shape == value.shape and (old == value).all():
                return name
        name = f"c{len(self.constants)}"
        self.constants[name] = value
        if self.chance(0.05):
            copy = f"k{len(self.nodes)}"
            self.nodes.append(helper.make_node("Identity", [name], [copy]))
            self.values[copy] = value
            return copy
        return name

    def ints(self, *numbers: int) -> str:
        return self.constant(np.array(numbers, np.int64))

    def array(self, name: str) -> np.ndarray:
        return self.values[name] if name in self.values else self.constants[name]

    def pick(
        self, *, ranks: Sequence[int] | None = None, kinds: str = "f", test: Callable[[np.ndarray], bool] | None = None
    ) -> str | None:
        """A value that fits, recent ones more often."""
        fitting = [
            n
            for n, v in self.values.items()
            if v.dtype.kind in kinds and (ranks is None or v.ndim in ranks) and (test is None or test(v))
        ]
        if not fitting:
            return None
        if self.chance(0.7):
            return fitting[-1]
        return self.rng.choice(fitting[-5:] if self.chance(0.5) else fitting)

    def add(self, op: str, inputs: Sequence[str], outputs: int = 1, **attributes: object) -> list[str] | None:
        names = [f"v{len(self.nodes)}_{k}" for k in range(outputs)]
        node = helper.make_node(op, inputs, names, name=f"n{len(self.nodes)}", **attributes)
        results = run_node(node, {n: self.array(n) for n in inputs if n}, self.opset)
        if results is None or any(not self.sane(r) for r in results):
            return None
        if (
            any(r.size == 0 or 1 for r in results)
            and any(self.array(n).size == 0 for n in inputs if n)
            and op not in ("Shape", "Reshape", "Concat", "Slice", "Identity", "Transpose")
        ) and not agrees(node, {n: self.array(n) for n in inputs if n}, results, self.opset):
            return None
        self.nodes.append(node)
        self.values.update(zip(names, results, strict=True))
        return names

    @staticmethod
    def sane(value: np.ndarray) -> bool:
        if not isinstance(value, np.ndarray) or value.size > _LARGEST or value.dtype.kind not in "fiub":
            return False
        if value.dtype.kind == "f" and value.size:
            return bool(np.isfinite(value).all() and np.abs(value).max() < 1e4)
        return True

    def reduced(self, op: str, value: str, axes: Sequence[int] | None, **attributes: object) -> list[str] | None:
        since = 13 if op in ("ReduceSum", "Squeeze", "Unsqueeze") else 18
        if axes is None:
            return self.add(op, [value], **attributes)
        if self.opset >= since:
            return self.add(op, [value, self.ints(*axes)], **attributes)
        return self.add(op, [value], axes=list(axes), **attributes)

    def signed(self, axis: int, rank: int) -> int:
        return axis - rank if self.chance(0.5) else axis

    def model(self) -> onnx.ModelProto:
        read = {name for node in self.nodes for name in node.input}
        made = [name for node in self.nodes for name in node.output if name in self.values]
        outputs = [name for name in made if name not in read and name[0] == "v"]
        extra = [name for name in made if name in read and name[0] == "v"]
        if extra and self.chance(0.25):
            outputs.append(self.rng.choice(extra))
        if self.chance(0.05):
            outputs.append(self.rng.choice(self.inputs))
        if not outputs:
            outputs = [made[-1]] if made else [self.inputs[0]]
        self.rng.shuffle(outputs)
        graph = helper.make_graph(
            self.nodes,
            "random",
            [self.declared(name, symbolic=self.symbolic) for name in self.inputs],
            [self.declared(name, symbolic=False, open_=self.symbolic or self.chance(0.3)) for name in outputs],
            [numpy_helper.from_array(v, k) for k, v in self.constants.items() if k in read],
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=8)

    def declared(self, name: str, symbolic: bool, open_: bool = False) -> onnx.ValueInfoProto:
        value = self.values[name]
        shape: list[object] | None = list(value.shape)
        if symbolic and shape and shape[0] == self.batch:
            shape[0] = "N"
        if open_:
            shape = None if self.chance(0.5) else [f"{name}_{k}" for k in range(value.ndim)]
        return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), shape)


def session(model: onnx.ModelProto) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def run_node(node: onnx.NodeProto, feeds: dict[str, np.ndarray], opset: int) -> list[np.ndarray] | None:
    inputs = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape) for n, v in feeds.items()
    ]
    outputs = [onnx.ValueInfoProto(name=name) for name in node.output if name]
    graph = helper.make_graph([node], "one", inputs, outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    try:
        return session(model).run(None, feeds)
    except Exception:  # onnxruntime's exceptions have no common base; a refused node is simply not added
        return None


def agrees(node: onnx.NodeProto, feeds: dict[str, np.ndarray], results: list[np.ndarray], opset: int) -> bool:
    """Whether the shapes are those that onnx infers: onnxruntime has its own ideas of some empty results."""
    inputs = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape) for n, v in feeds.items()
    ]
    small = [numpy_helper.from_array(v, n) for n, v in feeds.items() if v.dtype == np.int64 and v.ndim == 1]
    outs = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(r.dtype), r.shape)
        for n, r in zip(node.output, results, strict=False)
    ]
    graph = helper.make_graph([node], "one", inputs, outs, small)
    try:
        onnx.checker.check_model(
            helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8), full_check=True
        )
    except Exception:
        return False
    return True
