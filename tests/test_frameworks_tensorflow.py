"""TensorFlow functions, SavedModels and frozen graphs: what is loaded, lowered, run and written back."""

import numpy as np
import onnx
import pytest

import onnxfix
from onnxfix.errors import ExportError, LoadError
from onnxfix.frameworks import Framework, adapter
from small_keras import FLOAT_NOISE, conv_net, disagreement, images, random_feeds

tf = pytest.importorskip("tensorflow")


class Net(tf.Module):
    """Two variables and a captured constant."""

    def __init__(self):
        super().__init__()
        rng = np.random.default_rng(1)
        self.kernel = tf.Variable(rng.standard_normal((3, 3, 2, 4)).astype(np.float32), name="kernel")
        self.bias = tf.Variable(rng.standard_normal(4).astype(np.float32), name="bias")
        self.scale = tf.constant(rng.standard_normal(4).astype(np.float32))

    @tf.function(input_signature=[tf.TensorSpec([None, 8, 8, 2], tf.float32, name="image")])
    def __call__(self, image):
        features = tf.nn.relu(tf.nn.conv2d(image, self.kernel, 2, "SAME") + self.bias) * self.scale
        return {"pooled": tf.reduce_mean(features, [1, 2]), "features": features}


@pytest.fixture(scope="module")
def net():
    return Net()


@pytest.fixture(scope="module")
def saved(net, tmp_path_factory):
    path = tmp_path_factory.mktemp("tensorflow") / "saved"
    tf.saved_model.save(net, str(path), signatures=net.__call__)
    return path


@pytest.fixture(scope="module")
def frozen(net, tmp_path_factory):
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    function = convert_variables_to_constants_v2(net.__call__.get_concrete_function())
    path = tmp_path_factory.mktemp("tensorflow") / "frozen.pb"
    path.write_bytes(function.graph.as_graph_def().SerializeToString())
    return path


@pytest.fixture(params=["function", "concrete", "saved", "loaded", "saved_model.pb"])
def source(request, net, saved):
    return {
        "function": lambda: net.__call__,
        "concrete": net.__call__.get_concrete_function,
        "saved": lambda: saved,
        "loaded": lambda: tf.saved_model.load(str(saved)),
        "saved_model.pb": lambda: saved / "saved_model.pb",
    }[request.param]()


def test_every_source_keeps_names_variables_and_free_batch(net, source):
    model = onnxfix.load(source)
    assert model.framework is Framework.TENSORFLOW
    assert [(s.name, s.shape) for s in model.inputs] == [("image", ("batch", 8, 8, 2))]
    assert [s.name for s in model.outputs] == ["features", "pooled"]
    lowered = {t.name: onnx.numpy_helper.to_array(t) for t in model.proto.graph.initializer}
    for variable in (net.kernel, net.bias):
        name = variable.name.split(":")[0]
        assert model.parameters[name] == name
        np.testing.assert_array_equal(lowered[name], variable.numpy())
    assert any(np.array_equal(lowered[name], net.scale) for name in model.parameters)
    for batch in (1, 4):
        assert disagreement(model, random_feeds(model, batch)) <= FLOAT_NOISE


def test_a_frozen_graph_keeps_its_constants(net, frozen):
    model = onnxfix.load(frozen)
    assert [s.name for s in model.inputs] == ["image"]
    values = {t.name: onnx.numpy_helper.to_array(t) for t in model.proto.graph.initializer}
    for weight in (net.kernel, net.bias, net.scale):
        assert sum(np.array_equal(values[name], weight) for name in model.parameters) == 1
    assert disagreement(model, random_feeds(model)) <= FLOAT_NOISE


def test_a_keras_model_exported_as_saved_model(tmp_path):
    net = conv_net()
    net.export(str(tmp_path / "exported"), verbose=False)
    model = onnxfix.load(tmp_path / "exported")
    feeds = {model.inputs[0].name: images()}
    assert disagreement(model, feeds) <= FLOAT_NOISE
    np.testing.assert_allclose(next(iter(model.run(feeds).values())), net.predict_on_batch(images()), rtol=1e-4, atol=1e-6)
    assert len(model.parameters) >= len(net.variables)


def test_a_saved_model_whose_objects_no_longer_load(net, saved, tmp_path):
    from tensorflow.core.protobuf import saved_model_pb2

    old = tmp_path / "old"
    for path in saved.rglob("*"):
        if path.is_file():
            (old / path.relative_to(saved)).parent.mkdir(parents=True, exist_ok=True)
            (old / path.relative_to(saved)).write_bytes(path.read_bytes())
    content = saved_model_pb2.SavedModel.FromString((old / "saved_model.pb").read_bytes())
    for node in content.meta_graphs[0].object_graph_def.nodes:
        if node.HasField("function"):
            node.function.concrete_functions[:] = ["__inference_of_another_age"]
    (old / "saved_model.pb").write_bytes(content.SerializeToString())
    with pytest.raises(Exception, match="another_age"):
        tf.saved_model.load(str(old))

    model, whole = onnxfix.load(old), onnxfix.load(saved)
    assert [s.name for s in model.inputs] == ["image"]
    assert disagreement(model, random_feeds(model)) <= FLOAT_NOISE
    feeds = random_feeds(model)
    for name, value in whole.run_native(feeds).items():
        np.testing.assert_array_equal(model.run_native(feeds)[name], value)
    values = [onnx.numpy_helper.to_array(t) for t in model.proto.graph.initializer if t.name in model.parameters]
    assert any(np.array_equal(value, net.kernel) for value in values)


def test_activations_by_tensor_name_include_the_outputs(saved):
    model = onnxfix.load(saved)
    feeds = random_feeds(model)
    found = model.activations(feeds)
    for name, value in model.run_native(feeds).items():
        np.testing.assert_allclose(found[name], value, rtol=1e-6)
    relu = next(value for name, value in found.items() if name.split("/")[-1].startswith("Relu"))
    assert relu.shape == (3, 4, 4, 4)
    assert relu.min() == 0.0


def test_every_node_knows_its_operator(saved):
    model = onnxfix.load(saved)
    assert set(model.layers) == {node.name for node in model.proto.graph.node}
    assert any(owner.endswith("Conv2D") for owner in model.layers.values())


IDS = np.array([2, -1, 0, 2, -1], np.int32)
ROWS = np.random.default_rng(0).standard_normal((5, 3)).astype(np.float32)


@pytest.mark.parametrize(
    ("function", "arrays"),
    [
        (tf.math.floormod, [np.array([-7, 7, -7, -8, 0], np.int32), np.array([3, -3, -3, 4, 5], np.int32)]),
        (tf.math.floordiv, [np.array([-7, 7, -7, -8, 0], np.int64), np.array([3, -3, -3, 4, 5], np.int64)]),
        (tf.math.floormod, [np.array([-7.5, 7.5], np.float32), np.array([2.0, -2.0], np.float32)]),
        (lambda ids: tf.one_hot(ids, 3), [np.array([[0, -1], [2, 5]], np.int32)]),
        (lambda ids: tf.one_hot(ids, 3, on_value=7, off_value=2, axis=0), [np.array([0, -1, 2, 5], np.int64)]),
        (lambda ids, rows: tf.math.unsorted_segment_sum(rows, ids, 4), [IDS, ROWS]),
        (lambda ids, rows: tf.math.unsorted_segment_max(rows, ids, 4), [IDS, ROWS]),
        (lambda ids, rows: tf.math.unsorted_segment_min(rows, ids, 4), [IDS, ROWS]),
        (lambda ids, rows: tf.math.unsorted_segment_prod(rows, ids, 4), [IDS, ROWS]),
        (lambda ids, rows: tf.scatter_nd(ids[:, None], rows, [4, 3]), [np.array([1, 3, 1, 1, 0], np.int32), ROWS]),
        (lambda x: tf.quantization.quantize_and_dequantize_v2(x, 0, 0, num_bits=4, range_given=False), [ROWS]),
        (lambda x: tf.quantization.quantize_and_dequantize_v2(x, -0.7, 0.9, num_bits=3, range_given=True), [ROWS]),
        (lambda x: tf.quantization.quantize_and_dequantize_v2(
            x, [0.0] * 3, [0.0] * 3, num_bits=5, axis=1, narrow_range=True, range_given=False), [ROWS]),
        (lambda x: tf.quantization.quantize_and_dequantize_v2(
            x, 0, 0, num_bits=4, signed_input=False, range_given=False, round_mode="HALF_UP"), [np.abs(ROWS)]),
        (lambda x: tf.compat.v1.image.resize_nearest_neighbor(x, [5, 7], half_pixel_centers=True),
         [np.arange(24, dtype=np.float32).reshape(1, 4, 3, 2)]),
        (tf.math.erfc, [ROWS]),
    ],
    ids=["floormod", "floordiv", "floormod-float", "one_hot", "one_hot-int", "segment_sum", "segment_max", "segment_min",
         "segment_prod", "scatter_nd", "qdq4", "qdq3-given", "qdq5-axis",
         "qdq4-unsigned", "resize-nearest", "erfc"],
)
def test_operators_that_tf2onnx_lowers_wrongly(function, arrays):
    specs = [tf.TensorSpec(a.shape, a.dtype) for a in arrays]
    model = onnxfix.load(tf.function(function).get_concrete_function(*specs))
    feeds = dict(zip((s.name for s in model.inputs), arrays, strict=True))
    lowered, native = (next(iter(run(feeds).values())) for run in (model.run, model.run_native))
    assert lowered.dtype == native.dtype
    # max and min of an empty segment are the type's limits; everything else is a few float operations
    np.testing.assert_allclose(lowered, native, rtol=1e-6, atol=1e-6)


def test_functions_that_are_inlined_everywhere_are_not_lowered_by_themselves(tmp_path):
    """Their kernels have no shape there, on which tf2onnx stumbles."""
    kernel = tf.Variable(np.random.default_rng(3).normal(size=(3, 3, 4, 2)).astype(np.float32))

    @tf.function(jit_compile=True)
    def convolve(x, weights):
        return tf.nn.conv2d(x, weights, 1, "SAME")

    class Module(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None, 5, 5, 4], tf.float32)])
        def serve(self, x):
            return {"y": tf.nn.relu(convolve(x, kernel))}

    module = Module()
    module.kernel = kernel
    tf.saved_model.save(module, str(tmp_path / "saved"), signatures=module.serve)
    model = onnxfix.load(tmp_path / "saved")
    feeds = random_feeds(model)
    for name, value in model.run_native(feeds).items():
        np.testing.assert_allclose(model.run(feeds)[name], value, rtol=1e-5, atol=1e-5)


def test_a_real_wrong_conversions_source_lowers_right(shared_data):
    folder = shared_data / "converter_bugs" / "tf2onnx_floormod_negative"
    model = onnxfix.load(folder / "source_saved_model")
    data = np.load(folder / "data.npz")
    for key in data.files:
        assert disagreement(model, {"idx": data[key]}) <= FLOAT_NOISE


def test_a_function_without_signature_takes_example_inputs(net):
    function = tf.function(lambda x, y: x @ tf.constant(np.eye(3, dtype=np.float32)) + y)
    with pytest.raises(LoadError, match="inputs="):
        onnxfix.load(function)
    x = ROWS
    model = onnxfix.load(function, inputs=(x, x))
    assert [s.name for s in model.inputs] == ["x", "y"]
    assert disagreement(model, {"x": x[:2], "y": x[:2]}) <= FLOAT_NOISE


def test_files_that_hold_no_tensorflow_model(saved, frozen, tmp_path):
    with pytest.raises(LoadError, match=r"is a directory but no SavedModel \(no saved_model\.pb inside\)"):
        onnxfix.load(tmp_path)
    model = onnxfix.load(frozen)
    onnx.save_model(model.proto, str(tmp_path / "onnx.pb"))
    with pytest.raises(LoadError, match=r"it is an ONNX model; rename it to \.onnx"):
        onnxfix.load(tmp_path / "onnx.pb")
    (tmp_path / "text.pb").write_text("node { name: 'x' }")
    with pytest.raises(LoadError, match="it is a text file"):
        onnxfix.load(tmp_path / "text.pb")
    with tf.Graph().as_default() as graph:
        x = tf.compat.v1.placeholder(tf.float32, [None, 2], name="x")
        tf.matmul(x, tf.compat.v1.get_variable("w", [2, 2]), name="y")
    (tmp_path / "variables.pb").write_bytes(graph.as_graph_def().SerializeToString())
    with pytest.raises(LoadError, match="freeze it"):
        onnxfix.load(tmp_path / "variables.pb")


@pytest.mark.parametrize("part", [0.05, 0.3, 0.6, 0.95])
def test_truncated_files_are_one_clear_sentence(saved, frozen, tmp_path, part):
    content = frozen.read_bytes()
    (tmp_path / "cut.pb").write_bytes(content[: int(part * len(content))])
    with pytest.raises(LoadError, match=r"cut\.pb"):
        onnxfix.load(tmp_path / "cut.pb")
    content = (saved / "saved_model.pb").read_bytes()
    (tmp_path / "saved_model.pb").write_bytes(content[: int(part * len(content))])
    with pytest.raises(LoadError, match=tmp_path.name):
        onnxfix.load(tmp_path)


def test_a_saved_model_without_its_variables(saved, tmp_path):
    (tmp_path / "saved_model.pb").write_bytes((saved / "saved_model.pb").read_bytes())
    with pytest.raises(LoadError, match="TensorFlow cannot load"):
        onnxfix.load(tmp_path)


def test_a_frozen_graph_is_written_back_constant_by_constant(net, frozen, tmp_path):
    model = onnxfix.load(frozen)
    values = {t.name: onnx.numpy_helper.to_array(t) for t in model.proto.graph.initializer}
    bias = next(name for name in model.parameters if np.array_equal(values[name], net.bias))
    target = tmp_path / "changed.pb"
    adapter(Framework.TENSORFLOW).save(model, {bias: net.bias.numpy() + 1}, target)
    before, after = (tf.compat.v1.GraphDef.FromString(path.read_bytes()) for path in (frozen, target))
    changed = [a.name for a, b in zip(before.node, after.node, strict=True) if a != b]
    assert changed == [bias]
    reloaded = onnxfix.load(target)
    assert disagreement(reloaded, random_feeds(reloaded)) <= FLOAT_NOISE
    again = {t.name: onnx.numpy_helper.to_array(t) for t in reloaded.proto.graph.initializer}
    np.testing.assert_array_equal(again[bias], net.bias.numpy() + 1)
    with pytest.raises(ExportError, match="cannot take"):
        adapter(Framework.TENSORFLOW).with_parameters(model, {bias: np.zeros(3, np.float32)})
