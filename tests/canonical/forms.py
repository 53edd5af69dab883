"""Small models in onnx's text form, and the contract that every normal form keeps."""

from __future__ import annotations

import numpy as np
import onnx

from onnxfix.canonical import normal_form
from onnxfix.canonical.origins import evaluate
from onnxfix.canonical.pipeline import NormalForm
from onnxfix.runtime.session import Session


def parse(text: str, opset: int = 21, **constants: np.ndarray) -> onnx.ModelProto:
    """``(float[N,3] x) => (float[N,3] y) { y = Relu(x) }``; constants become initializers by name."""
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}]> g ' + text)
    for name, value in constants.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
    onnx.checker.check_model(model)
    return model


def settle(model: onnx.ModelProto, feeds: dict[str, np.ndarray] | None = None, batch: int = 2) -> NormalForm:
    """Normalise; check answers, boundary, origins, provenance and idempotence."""
    before = model.SerializeToString(deterministic=True)
    form = normal_form(model)
    assert model.SerializeToString(deterministic=True) == before
    onnx.checker.check_model(form.proto, full_check=True)
    assert [o.name for o in form.proto.graph.output] == [o.name for o in model.graph.output]
    assert [i.name for i in form.proto.graph.input] == [
        i.name for i in model.graph.input if i.name not in {t.name for t in model.graph.initializer}
    ]
    given = random_feeds(form.proto, batch) if feeds is None else feeds
    wanted, found = Session(model).run(given), Session(form.proto).run(given)
    for name, value in wanted.items():
        assert found[name].shape == value.shape
        assert found[name].dtype == value.dtype
        # float32 sums of at most a few hundred terms in another order
        np.testing.assert_allclose(found[name], value, rtol=2e-5, atol=2e-5 * float(np.abs(value).max(initial=0.0)))
    for tensor in form.proto.graph.initializer:
        constant = evaluate(form.origins[tensor.name], form.parameters)
        np.testing.assert_array_equal(constant, onnx.numpy_helper.to_array(tensor))
    assert all(form.provenance[node.name] for node in form.proto.graph.node)
    again = normal_form(form.proto).proto
    assert again.SerializeToString(deterministic=True) == form.proto.SerializeToString(deterministic=True)
    return form


def random_feeds(model: onnx.ModelProto, batch: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(5)
    feeds = {}
    for value in model.graph.input:
        tensor = value.type.tensor_type
        shape = [d.dim_value or batch for d in tensor.shape.dim]
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
        feeds[value.name] = (3 * rng.standard_normal(shape)).astype(dtype)
    return feeds


def ops(form: NormalForm) -> list[str]:
    return [node.op_type for node in form.proto.graph.node]


def constant(form: NormalForm, op: str, slot: int) -> np.ndarray:
    """An operand of the only node of an op type."""
    (node,) = (n for n in form.proto.graph.node if n.op_type == op)
    (tensor,) = (t for t in form.proto.graph.initializer if t.name == node.input[slot])
    return onnx.numpy_helper.to_array(tensor)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)
