"""Random models inside an If or a Loop: the same answers, and a fixed point."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from random_graphs import session
from random_models import random_model
from test_random_graphs import differs, feeds_for, noise

from onnxfix.canonical import normal_form


def _inside(model: onnx.ModelProto, op: str) -> onnx.ModelProto:
    """A model that computes all its nodes in a body, which reads its inputs and weights from around it."""
    graph, names = model.graph, [f"out_{k}" for k in range(len(model.graph.output))]
    constants = {"always": np.array(True), "never": np.array(0), "times": np.array(2)}
    body = helper.make_graph(graph.node, "body", [], graph.output)
    nodes = [helper.make_node("Size", [graph.input[0].name], ["size"]),
             helper.make_node("Greater", ["size", "never"], ["condition"])]
    if op == "Loop":
        body.input.append(helper.make_tensor_value_info("step", TensorProto.INT64, []))
        body.input.append(helper.make_tensor_value_info("going", TensorProto.BOOL, []))
        body.node.append(helper.make_node("Identity", ["going"], ["again"]))
        body.output.insert(0, helper.make_tensor_value_info("again", TensorProto.BOOL, []))
        nodes.append(helper.make_node("Loop", ["times", "condition"], names, body=body))
    else:
        other = helper.make_graph([], "other", [], [])
        for output, name in zip(graph.output, names, strict=True):
            empty = helper.make_tensor(name, output.type.tensor_type.elem_type, [0], [])
            other.node.append(helper.make_node("Constant", [], [f"{name}_else"], value=empty))
            other.output.append(helper.make_tensor_value_info(f"{name}_else", empty.data_type, [0]))
        nodes.append(helper.make_node("If", ["condition"], names, then_branch=body, else_branch=other))
    outputs = [helper.make_tensor_value_info(name, output.type.tensor_type.elem_type, None)
               for name, output in zip(names, graph.output, strict=True)]
    weights = [*graph.initializer, *(numpy_helper.from_array(v, k) for k, v in constants.items())]
    return helper.make_model(helper.make_graph(nodes, "g", graph.input, outputs, weights),
                             opset_imports=model.opset_import, ir_version=model.ir_version)


@pytest.mark.parametrize("op", ["If", "Loop"])
def test_random_models_in_a_body_keep_their_answers(op: str) -> None:
    judged = 0
    for seed in range(24):
        plain = random_model(seed).model()
        model, rng = _inside(plain, op), np.random.default_rng(seed)
        made = {name for node in plain.graph.node for name in node.output}
        if not all(output.name in made for output in plain.graph.output):
            continue  # a body cannot return what is not its own
        feeds = feeds_for(plain, rng, "normal", 2)
        try:
            wanted = session(model).run(None, feeds)
        except Exception:  # onnxruntime's exceptions have no common base; what it refuses has no answers to keep
            continue
        form = normal_form(model).proto
        found = session(form).run(None, feeds)
        moves = noise(model, feeds, wanted, rng)
        assert not any(map(differs, wanted, found, moves)), seed
        assert normal_form(form).proto.SerializeToString(deterministic=True) == form.SerializeToString(
            deterministic=True), seed
        judged += 1
    assert judged > 12
