"""Small ONNX networks, broken copies of them, and what every repair must keep."""

from __future__ import annotations

import json

import numpy as np
import onnx
import onnx.parser
from onnx import numpy_helper

import onnxfix
from onnxfix.surgeon.apply import replayed
from onnxfix.surgeon.patch import patch_from_dict

# What a float32 network of some ten layers, evaluated in another order, stays below (100 ulp of the output's range).
NOISE = 1e-5

NETWORK = """
net (float[N, 3, 8, 8] image) => (float[N, 5] logits) {
    stem = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (image, stem_kernel, stem_bias)
    stem_relu = Relu (stem)
    left = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (stem_relu, left_kernel, left_bias)
    left_clip = Clip (left, zero, six)
    right = Conv <kernel_shape = [1, 1]> (left_clip, right_kernel, right_bias)
    residual = Add (right, stem_relu)
    edges = Sub (residual, left_clip)
    both = Concat <axis = 1> (edges, residual)
    pooled = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (both)
    gate = Sigmoid (pooled)
    flat = Flatten <axis = 1> (gate)
    hidden = Gemm <transB = 1> (flat, hidden_weight, hidden_bias)
    hidden_tanh = Tanh (hidden)
    logits = Gemm <transB = 1> (hidden_tanh, logits_weight, logits_bias)
}
"""


def parse(text: str, opset: int = 17, **constants: np.ndarray) -> onnx.ModelProto:
    """A model in onnx's text form; nodes are named after their first output, constants become initializers."""
    model = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["": {opset}]> {text}')
    for name, value in constants.items():
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    for node in model.graph.node:
        node.name = f"node_{node.output[0]}"
    onnx.checker.check_model(model, full_check=True)
    return model


def normal(*shape: int, seed: int = 0, scale: float = 1.0) -> np.ndarray:
    """Standard normal float32 numbers times ``scale``."""
    return (scale * np.random.default_rng([seed, *shape]).standard_normal(shape)).astype(np.float32)


def network() -> onnx.ModelProto:
    """Convolutions, a residual, a branch, a pool, two dense layers on 3x8x8 inputs."""
    return parse(
        NETWORK,
        stem_kernel=normal(4, 3, 3, 3, scale=0.3), stem_bias=normal(4, seed=1, scale=0.3),
        left_kernel=normal(4, 4, 3, 3, scale=0.3), left_bias=normal(4, seed=2, scale=0.3),
        right_kernel=normal(4, 4, 1, 1, scale=0.5), right_bias=normal(4, seed=3, scale=0.3),
        hidden_weight=normal(6, 128, scale=0.2), hidden_bias=normal(6, seed=4),
        logits_weight=normal(5, 6), logits_bias=normal(5, seed=5),
        zero=np.float32(0), six=np.float32(1.5),
    )  # fmt: skip


def images(count: int = 20, seed: int = 0) -> np.ndarray:
    """Inputs of :func:`network`."""
    return normal(count, 3, 8, 8, seed=seed)


def copied(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy to break."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


def node(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    """The node that makes a value."""
    return next(n for n in model.graph.node if name in n.output)


def value(model: onnx.ModelProto, name: str) -> np.ndarray:
    """The content of an initializer."""
    return numpy_helper.to_array(next(t for t in model.graph.initializer if t.name == name))


def with_value(model: onnx.ModelProto, **changed: np.ndarray) -> onnx.ModelProto:
    """A copy with other initializers."""
    copy = copied(model)
    for tensor in copy.graph.initializer:
        if tensor.name in changed:
            tensor.CopyFrom(numpy_helper.from_array(np.asarray(changed.pop(tensor.name)), tensor.name))
    assert not changed
    return copy


def with_attribute(model: onnx.ModelProto, output: str, **changed: object) -> onnx.ModelProto:
    """A copy in which the node that makes ``output`` has other attributes."""
    copy = copied(model)
    own = node(copy, output)
    kept = [a for a in own.attribute if a.name not in changed]
    del own.attribute[:]
    own.attribute.extend([*kept, *(onnx.helper.make_attribute(k, v) for k, v in changed.items())])
    onnx.checker.check_model(copy, full_check=True)
    return copy


def without_node(model: onnx.ModelProto, output: str) -> onnx.ModelProto:
    """A copy in which readers of ``output`` read what the node that made it read first."""
    copy = copied(model)
    gone = node(copy, output)
    for other in copy.graph.node:
        other.input[:] = [gone.input[0] if v == output else v for v in other.input]
    copy.graph.node.remove(gone)
    onnx.checker.check_model(copy, full_check=True)
    return copy


def with_node_after(model: onnx.ModelProto, output: str, op: str, *operands: np.ndarray, **attributes: object) -> onnx.ModelProto:
    """A copy in which all that reads ``output`` reads it through a further node, ``node_extra``."""
    copy = copied(model)
    for other in copy.graph.node:
        other.input[:] = ["extra" if v == output else v for v in other.input]
    names = [f"extra_{k}" for k in range(len(operands))]
    copy.graph.initializer.extend(numpy_helper.from_array(v, n) for v, n in zip(operands, names, strict=True))
    position = list(copy.graph.node).index(node(copy, output))
    added = onnx.helper.make_node(op, [output, *names], ["extra"], "node_extra", **attributes)
    copy.graph.node.insert(position + 1, added)
    onnx.checker.check_model(copy, full_check=True)
    return copy


def summary(faults) -> list[tuple[str, str, str | None]]:
    """(kind, first guilty node, parameter) of each fault, in ranked order."""
    return [(str(f.kind), f.target_nodes[0], f.parameter) for f in faults]


def repaired(source, target, data, **options) -> onnxfix.Repair:
    """Repair; check the proof, that patches are data that can be replayed, and that the target is left alone."""
    theirs = onnxfix.load(target)
    before = theirs.proto.SerializeToString(deterministic=True)
    fix = onnxfix.repair(source, theirs, data, **options)
    assert theirs.proto.SerializeToString(deterministic=True) == before
    assert fix.success
    assert fix.unrepaired == ()
    assert fix.after.max_rel <= NOISE
    assert fix.verified.max_rel <= NOISE
    again = [patch_from_dict(json.loads(json.dumps(patch.to_dict()))) for patch in fix.patches]
    expected = fix.model.proto.SerializeToString(deterministic=True)
    assert replayed(theirs.proto, fix.patches).SerializeToString(deterministic=True) == expected
    assert replayed(theirs.proto, again).SerializeToString(deterministic=True) == expected
    json.dumps(fix.to_dict())
    return fix
