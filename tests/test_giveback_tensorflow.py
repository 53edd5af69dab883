"""Patches in TensorFlow's own files: the difference is the patch, and nothing else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from onnx import helper, numpy_helper

import onnxfix
from onnxfix.errors import ExportError
from onnxfix.frameworks import Framework, adapter
from onnxfix.model import Model
from onnxfix.surgeon.apply import apply
from onnxfix.surgeon.patch import Patch, ReplaceRegion, SetAttribute, SetNode, SetParameter

tf = pytest.importorskip("tensorflow")

IMAGES = np.random.default_rng(0).standard_normal((6, 8, 8, 3)).astype(np.float32)
# Float32 sums of at most a few hundred products, in two orders.
CLOSE = {"rtol": 0.0, "atol": 2e-5}


class Net(tf.Module):
    def __init__(self, folder: Path) -> None:
        super().__init__()
        rng = np.random.default_rng(1)
        self.kernel = tf.Variable(rng.standard_normal((3, 3, 3, 4)).astype(np.float32), name="kernel")
        self.bias = tf.Variable(np.zeros(4, np.float32), name="bias")
        self.scale = tf.Variable(np.zeros(4, np.float32), name="scale")
        vocabulary = folder / "labels.txt"
        vocabulary.write_text("one\ntwo\n")
        self.labels = tf.saved_model.Asset(str(vocabulary))

    @tf.function(input_signature=[tf.TensorSpec([None, 8, 8, 3], tf.float32, "image")])
    def serve(self, image):
        h = tf.nn.conv2d(tf.pad(image, [[0, 0], [1, 1], [1, 1], [0, 0]]), self.kernel, 1, "VALID", name="conv")
        h = tf.nn.leaky_relu(tf.nn.bias_add(h, self.bias), alpha=0.3, name="leak")
        return {"scores": tf.reduce_mean(tf.tanh(h, name="bend"), [1, 2]) + self.scale}

    @tf.function(input_signature=[tf.TensorSpec([None, 4], tf.float32, "x")])
    def other(self, x):
        return {"doubled": 2.0 * x + self.bias}


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    net = Net(folder)
    signatures = {"serving_default": net.serve, "other": net.other}
    tf.saved_model.save(net, str(folder / "model"), signatures=signatures)
    return folder / "model"


@pytest.fixture(scope="module")
def frozen(saved) -> Path:
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    root = tf.saved_model.load(str(saved))
    function = root.signatures["serving_default"]
    graph = convert_variables_to_constants_v2(function).graph.as_graph_def()
    (saved.parent / "model.pb").write_bytes(graph.SerializeToString())
    return saved.parent / "model.pb"


def node(model: Model, op: str):
    return next(node for node in model.proto.graph.node if node.op_type == op)


def value_of(model: Model, name: str) -> np.ndarray:
    return numpy_helper.to_array(next(t for t in model.proto.graph.initializer if t.name == name))


def leak(model: Model) -> list[Patch]:
    return [SetAttribute(node(model, "LeakyRelu").name, "alpha", 0.75, 0.3)]


def bias(model: Model) -> list[Patch]:
    return [SetParameter("bias", np.arange(4, dtype=np.float32), value_of(model, "bias"))]


def without_tanh(model: Model) -> list[Patch]:
    tanh = node(model, "Tanh")
    return [SetNode(tanh, helper.make_node("Identity", [tanh.input[0]], [tanh.output[0]], name=tanh.name))]


def with_sigmoid(model: Model) -> list[Patch]:
    value = node(model, "Tanh").output[0]
    readers = [(n.name, k) for n in model.proto.graph.node for k, v in enumerate(n.input) if v == value]
    new = helper.make_node("Sigmoid", [value], ["put/in"], name="put/in")
    return [ReplaceRegion((), (new,), {}, dict.fromkeys(readers, "put/in"), lowered=True)]


def written(model: Model, patches: list[Patch], path: Path) -> Path:
    """The patched model as a file that computes what the patched lowered graph computes."""
    own = adapter(Framework.TENSORFLOW)
    own.write(model, own.edited(model, patches), path)
    name = model.inputs[0].name
    want = replace(model, proto=apply(model.proto, patches)).run({name: IMAGES})
    again = onnxfix.load(path)
    got = again.run_native({again.inputs[0].name: IMAGES})
    for expected, actual, before in zip(
        want.values(), got.values(), model.run({name: IMAGES}).values(), strict=True
    ):
        assert np.abs(expected - before).max() > 1e-3  # the patch does something
        np.testing.assert_allclose(actual, expected, **CLOSE)
    return path


def variables(folder: Path) -> dict[str, np.ndarray]:
    reader = tf.train.load_checkpoint(str(folder / "variables" / "variables"))
    return {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}


def functions(folder: Path) -> dict[tuple[str, str], bytes]:
    from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

    (meta,) = SavedModel.FromString((folder / "saved_model.pb").read_bytes()).meta_graphs
    library = meta.graph_def.library.function
    return {(f.signature.name, n.name): n.SerializeToString(deterministic=True) for f in library for n in f.node_def}


def changed(before: dict, after: dict) -> set:
    assert before.keys() == after.keys()
    return {name for name in before if np.any(before[name] != after[name])}


def test_a_variable_of_a_saved_model(saved, tmp_path):
    """The two zero vectors are told apart, though they hold the same numbers."""
    path = written(onnxfix.load(saved), bias(onnxfix.load(saved)), tmp_path / "new")
    assert changed(variables(saved), variables(path)) == {"bias/.ATTRIBUTES/VARIABLE_VALUE"}
    assert (path / "saved_model.pb").read_bytes() == (saved / "saved_model.pb").read_bytes()
    assert (path / "assets" / "labels.txt").read_text() == "one\ntwo\n"


def test_an_attribute_of_a_saved_model(saved, tmp_path):
    path = written(onnxfix.load(saved), leak(onnxfix.load(saved)), tmp_path / "new")
    assert {name for _, name in changed(functions(saved), functions(path))} == {"leak"}
    for file in ("variables/variables.index", "variables/variables.data-00000-of-00001", "assets/labels.txt"):
        assert (path / file).read_bytes() == (saved / file).read_bytes()
    x = tf.constant(np.ones((1, 4), np.float32))
    np.testing.assert_array_equal(tf.saved_model.load(str(path)).signatures["other"](x=x)["doubled"], 2 * np.ones((1, 4)))


@pytest.mark.parametrize("patches", [without_tanh, with_sigmoid])
def test_other_operators_in_a_saved_model(patches, saved, tmp_path):
    """The signature gets another function; the other signature, the variables and the assets stay."""
    model = onnxfix.load(saved)
    path = written(model, patches(model), tmp_path / "new")
    root = tf.saved_model.load(str(path))
    assert set(root.signatures) == {"serving_default", "other"}
    assert set(root.signatures["serving_default"].structured_outputs) == {"scores"}
    old = {name: value for name, value in variables(saved).items() if not name.startswith("_")}
    new = variables(path)
    assert all(np.array_equal(value, new[name]) for name, value in old.items())
    assert (path / "assets" / "labels.txt").read_text() == "one\ntwo\n"


def test_an_attribute_of_a_frozen_graph(frozen, tmp_path):
    model = onnxfix.load(frozen)
    path = written(model, leak(model), tmp_path / "new.pb")
    before, after = (tf.compat.v1.GraphDef.FromString(p.read_bytes()) for p in (frozen, path))
    changed_ones = [a.name for a, b in zip(before.node, after.node, strict=True) if a != b]
    assert [name.rsplit("/", 1)[-1] for name in changed_ones] == ["leak"]


@pytest.mark.parametrize("patches", [without_tanh, with_sigmoid])
def test_other_operators_in_a_frozen_graph(patches, frozen, tmp_path):
    model = onnxfix.load(frozen)
    path = written(model, patches(model), tmp_path / "new.pb")
    before, after = ({n.name: n for n in tf.compat.v1.GraphDef.FromString(p.read_bytes()).node} for p in (frozen, path))
    same = {name for name, n in before.items() if after.get(name) == n}
    assert {name.rsplit("/", 1)[-1] for name in before.keys() - same} <= {"bend", "Mean"}


def test_functions_in_memory_stay_functions(saved):
    root = tf.saved_model.load(str(saved))
    function = root.signatures["serving_default"]
    model = onnxfix.load(function)
    native = adapter(Framework.TENSORFLOW).edited(model, without_tanh(model))
    want = apply(model.proto, without_tanh(model))
    got = replace(model, native=native, proto=want)
    feeds = {model.inputs[0].name: IMAGES}
    np.testing.assert_allclose(got.run_native(feeds)["scores"], got.run(feeds)["scores"], **CLOSE)
    assert model.native.function is function


def test_a_value_of_another_shape_is_refused(saved):
    model = onnxfix.load(saved)
    with pytest.raises(ExportError, match="cannot take"):
        adapter(Framework.TENSORFLOW).edited(model, [SetParameter("bias", np.zeros(3, np.float32), np.zeros(4))])
