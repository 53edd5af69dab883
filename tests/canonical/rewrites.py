"""Runs one pass on a small model and holds it to the contract of every pass: same answers, origins that still evaluate."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir

from onnxfix.canonical.inference import infer_graph
from onnxfix.canonical.ingest import ingest
from onnxfix.canonical.origins import evaluate
from onnxfix.canonical.rewriting import origin_of
from onnxfix.runtime.session import Session


def parse(text: str, **constants: np.ndarray) -> onnx.ModelProto:
    """A model from onnx's text form: ``(float[N,3] x) => (float[N,3] y) { y = Relu(x) }``, constants by name."""
    model = onnx.parser.parse_model('<ir_version: 10, opset_import: ["" : 22]> g ' + text)
    for name, value in constants.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
    onnx.checker.check_model(model, full_check=True)
    return model


def rewrite(model: onnx.ModelProto, *passes: ir.passes.InPlacePass, batch: int = 2) -> ir.Graph:
    """Run passes; check that answers on random data, negative values included, and origins are unchanged."""
    graph_model = ingest(model)
    infer_graph(graph_model)
    for single in passes:
        single(graph_model)
    result = ir.serde.serialize_model(graph_model)
    onnx.checker.check_model(result, full_check=True)
    feeds = random_feeds(model, batch)
    before, after = Session(model).run(feeds), Session(result).run(feeds)
    assert list(before) == list(after)
    for name, wanted in before.items():
        assert after[name].shape == wanted.shape
        # float32 sums of at most a few hundred terms in another order
        np.testing.assert_allclose(after[name], wanted, rtol=2e-5, atol=2e-5 * max(1.0, float(np.abs(wanted).max())))
    parameters = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    for value in graph_model.graph.initializers.values():
        np.testing.assert_array_equal(evaluate(origin_of(value), parameters), value.const_value.numpy())
    return graph_model.graph


def random_feeds(model: onnx.ModelProto, batch: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(7)
    feeds = {}
    for value in model.graph.input:
        tensor = value.type.tensor_type
        shape = [d.dim_value or batch for d in tensor.shape.dim]
        feeds[value.name] = (3 * rng.standard_normal(shape)).astype(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type))
    return feeds


def ops(graph: ir.Graph) -> list[str]:
    return [node.op_type for node in graph]


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)
