"""The test cases that onnx ships for backends, with the inputs of each."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnx.backend.test
import onnxruntime as ort
from onnx import numpy_helper

_DATA = Path(onnx.backend.test.__file__).parent / "data"
# onnx's own defaults for cases that state no tolerance.
_RTOL, _ATOL = 1e-3, 1e-7


@dataclass(frozen=True, eq=False)
class Case:
    """One model of onnx's backend tests, with inputs and what they should give.

    Attributes:
        name: The name of the test.
        model: The model.
        feeds: Input name -> array, or list of arrays for a sequence.
        expected: The outputs in order; None where the package states none.
        rtol: Relative tolerance of the test itself.
        atol: Absolute tolerance of the test itself.
    """

    name: str
    model: onnx.ModelProto
    feeds: dict[str, object]
    expected: list[object] | None
    rtol: float = _RTOL
    atol: float = _ATOL


@cache
def cases() -> tuple[Case, ...]:
    """All cases: node tests, and simple, PyTorch and light models."""
    return (*_nodes(), *_folders(), *_light())


def _nodes() -> Iterator[Case]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # making the expected values overflows here and there
        from onnx.backend.test.case.node import collect_testcases

        found = collect_testcases(None)
    for case in found:
        for inputs, outputs in case.data_sets:
            names = [value.name for value in case.model.graph.input]
            feeds = {name: _plain(value) for name, value in zip(names, inputs, strict=False)}
            yield Case(case.name, case.model, feeds, [_plain(v) for v in outputs], case.rtol, case.atol)


def _folders() -> Iterator[Case]:
    for kind in ("simple", "pytorch-operator", "pytorch-converted"):
        for path in sorted((_DATA / kind).glob("*/model.onnx")):
            model = onnx.load(path)
            for data in sorted(path.parent.glob("test_data_set_*")):
                inputs = [_read(data / f"input_{k}.pb", value) for k, value in enumerate(model.graph.input)]
                outputs = [_read(data / f"output_{k}.pb", value) for k, value in enumerate(model.graph.output)]
                names = [value.name for value in model.graph.input]
                feeds = {name: value for name, value in zip(names, inputs, strict=True) if value is not None}
                yield Case(f"{kind}/{path.parent.name}/{data.name}", model, feeds, outputs)


def _light() -> Iterator[Case]:
    """Published networks with made-up weights; their inputs are not in the package."""
    for path in sorted((_DATA / "light").glob("*.onnx")):
        model = onnx.load(path)
        constants = {tensor.name for tensor in model.graph.initializer}
        feeds = {
            value.name: np.random.default_rng(3).standard_normal(
                [dim.dim_value or 1 for dim in value.type.tensor_type.shape.dim]
            ).astype(np.float32)
            for value in model.graph.input if value.name not in constants
        }
        yield Case(f"light/{path.stem}", model, feeds, None)


def _read(path: Path, value: onnx.ValueInfoProto) -> object:
    if not path.exists():
        return None
    content = path.read_bytes()
    if value.type.HasField("sequence_type"):
        return numpy_helper.to_list(onnx.SequenceProto.FromString(content))
    if value.type.HasField("optional_type"):
        return numpy_helper.to_optional(onnx.OptionalProto.FromString(content))
    return numpy_helper.to_array(onnx.TensorProto.FromString(content))


def _plain(value: object) -> object:
    if isinstance(value, onnx.TensorProto):
        return numpy_helper.to_array(value)
    return np.asarray(value) if isinstance(value, np.generic) else value


def bound(case: Case) -> onnx.ModelProto | None:
    """The model with all its inputs but the first as initializers, or None if there are none that can be.

    Whole networks and the definitions of ops written out have theirs bound in other cases: None for these, too.
    """
    if case.name.startswith("light/") or case.name.endswith("_expanded"):
        return None
    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    taken = {tensor.name for tensor in model.graph.initializer}
    for value in list(model.graph.input)[1:]:
        content = case.feeds.get(value.name)
        if value.name in taken or not isinstance(content, np.ndarray):
            continue
        tensor = numpy_helper.from_array(content, value.name)
        if tensor.data_type == value.type.tensor_type.elem_type:
            model.graph.initializer.append(tensor)
            model.graph.input.remove(value)
    return model if len(model.graph.input) < len(case.model.graph.input) else None


def run(model: onnx.ModelProto, feeds: dict[str, object]) -> list[object]:
    """The outputs of onnxruntime with every optimisation off, on one thread."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {i.name: feeds[i.name] for i in session.get_inputs() if i.name in feeds})
