"""TFLite files: what is loaded, lowered, run and written back."""

import sys

import numpy as np
import onnx
import pytest

import onnxfix
from onnxfix.errors import ExportError, LoadError, MissingDependencyError
from onnxfix.frameworks import Framework, adapter
from onnxfix.frameworks.flatbuffer import Flatbuffer, schema
from small_keras import FLOAT_NOISE, conv_net, disagreement, images, random_feeds, to_tflite

tf = pytest.importorskip("tensorflow")
pytest.importorskip("ai_edge_litert")


@pytest.fixture(scope="module")
def content():
    return to_tflite(conv_net())


@pytest.fixture(scope="module")
def model(content):
    return onnxfix.load(content)


def of_function(function, *specs):
    converter = tf.lite.TFLiteConverter.from_concrete_functions([tf.function(function).get_concrete_function(*specs)])
    return converter.convert()


def edited(content, edit):
    """The file with its object tree changed by ``edit`` and packed again."""
    import flatbuffers

    tree = schema().ModelT.InitFromPackedBuf(bytearray(content), 0)
    edit(tree)
    builder = flatbuffers.Builder(len(content))
    builder.Finish(tree.Pack(builder), b"TFL3")
    return bytes(builder.Output())


@pytest.mark.parametrize("name", ["ad01/ad01_fp32.tflite", "resnet8_cifar10/resnet8_float.tflite"])
def test_real_files_run_as_in_litert(shared_data, name):
    model = onnxfix.load(shared_data / "models" / name)
    assert disagreement(model, random_feeds(model)) <= FLOAT_NOISE
    assert set(model.parameters) == set(Flatbuffer(model.native, name).constants)


def test_bytes_are_a_model_with_its_own_names_and_free_batch(content, model):
    file = Flatbuffer(content, "it")
    assert model.framework is Framework.TFLITE
    assert [s.name for s in model.inputs] == [file.tensor_names[i] for i in file.graph.inputs]
    assert [s.name for s in model.outputs] == [file.tensor_names[i] for i in file.graph.outputs]
    assert model.inputs[0].shape == ("batch", 8, 8, 2)
    for batch in (1, 5):
        feeds = random_feeds(model, batch)
        assert disagreement(model, feeds) <= FLOAT_NOISE
        assert next(iter(model.run_native(feeds).values())).shape == (batch, 4)


def test_every_weight_is_an_initializer_verbatim(content, model):
    file = Flatbuffer(content, "it")
    floats = {name: file.value(c) for name, c in file.constants.items() if c.dtype == np.float32}
    lowered = {t.name: onnx.numpy_helper.to_array(t) for t in model.proto.graph.initializer}
    assert len(floats) == 6  # two convolutions and a dense layer, kernel and bias each
    for name, value in floats.items():
        assert model.parameters[name] == name
        np.testing.assert_array_equal(lowered[name], value)


def test_every_node_knows_its_operator(model):
    assert set(model.layers) == {node.name for node in model.proto.graph.node}
    kinds = {location.split("@")[0] for location in model.layers.values()}
    assert kinds == {"CONV_2D", "DEPTHWISE_CONV_2D", "MEAN", "FULLY_CONNECTED"}


def test_activations_are_the_lowered_graphs_values(model):
    feeds = random_feeds(model)
    native = model.activations(feeds)
    shown = onnx.ModelProto()
    shown.CopyFrom(model.proto)
    values = {output for node in shown.graph.node for output in node.output}
    inner = [name for name in native if name in values and name != model.outputs[0].name]
    assert len(inner) >= 3
    shown.graph.output.extend(
        onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, native[n].shape) for n in inner
    )
    lowered = onnxfix.load(shown).run(feeds)
    for name in inner:
        np.testing.assert_allclose(lowered[name], native[name], rtol=0, atol=FLOAT_NOISE * np.abs(native[name]).max())
    np.testing.assert_array_equal(native[model.outputs[0].name], model.run_native(feeds)[model.outputs[0].name])


def test_saving_a_changed_bias_changes_only_its_bytes(content, model, tmp_path):
    file = Flatbuffer(content, "it")
    bias = next(c for c in file.constants.values() if c.shape == (4,) and c.dtype == np.float32)
    path = tmp_path / "changed.tflite"
    adapter(Framework.TFLITE).save(model, {bias.name: file.value(bias) + 1}, path)
    written = path.read_bytes()
    assert len(written) == len(content)
    differing = [i for i, (a, b) in enumerate(zip(written, content, strict=True)) if a != b]
    assert bias.start <= differing[0] <= differing[-1] < bias.stop
    feeds = random_feeds(model)
    before, after = (next(iter(m.run_native(feeds).values())) for m in (model, onnxfix.load(path)))
    np.testing.assert_allclose(after, before + 1, rtol=1e-6)


def test_what_cannot_be_written_in_place_is_refused(model, tmp_path):
    tflite = adapter(Framework.TFLITE)
    name = next(n for n in model.parameters)
    with pytest.raises(ExportError, match="cannot take"):
        tflite.with_parameters(model, {name: np.zeros((1, 2, 3), np.float32)})
    with pytest.raises(ExportError, match=r"no_such.*\.onnx"):
        tflite.with_parameters(model, {"no_such": np.zeros(1, np.float32)})
    with pytest.raises(ExportError, match=r"\.tflite or \.onnx"):
        tflite.save(model, {}, tmp_path / "model.pb")


def test_tensors_of_one_buffer_cannot_part(content):
    def share(tree):
        graph = tree.subgraphs[0]
        first = next(t for t in graph.tensors if t.buffer and np.size(tree.buffers[t.buffer].data) == 24)
        twin = schema().TensorT()
        twin.__dict__.update(first.__dict__)
        twin.name = b"twin"
        graph.tensors.append(twin)
        share.names = (first.name.decode(), "twin")

    model = onnxfix.load(edited(content, share))
    old = Flatbuffer(model.native, "it")
    one, two = (old.constants[name] for name in share.names)
    assert one.buffer == two.buffer
    value = old.value(one)
    with pytest.raises(ExportError, match="one buffer"):
        adapter(Framework.TFLITE).with_parameters(model, {one.name: value + 1, two.name: value + 2})
    with pytest.raises(ExportError, match="one buffer"):
        adapter(Framework.TFLITE).with_parameters(model, {one.name: value + 1})
    both = adapter(Framework.TFLITE).with_parameters(model, {one.name: value + 1, two.name: value + 1})
    np.testing.assert_array_equal(Flatbuffer(both, "it").value(two), value + 1)


def test_integer_floor_division_and_modulo_of_negatives():
    spec = tf.TensorSpec([None, 4], tf.int32)
    model = onnxfix.load(of_function(lambda a, b: (tf.math.floordiv(a, b), tf.math.floormod(a, b)), spec, spec))
    a = np.array([[-7, 7, -7, 7], [-8, 8, 0, -1]], np.int32)
    b = np.array([[3, -3, -3, 3], [4, -5, 3, 2]], np.int32)
    feeds = dict(zip((s.name for s in model.inputs), (a, b), strict=True))
    for run in (model.run, model.run_native):
        found = list(run(feeds).values())
        assert any(np.array_equal(value, a // b) for value in found)
        assert any(np.array_equal(value, a % b) for value in found)


def test_embedding_lookup_gathers_rows():
    table = tf.constant(np.random.default_rng(2).normal(size=(7, 3)).astype(np.float32))

    def look_up(tree):
        """The converter writes GATHER(table, ids); litert-torch writes EMBEDDING_LOOKUP(ids, table)."""
        gather = next(o for o in tree.subgraphs[0].operators if len(o.inputs) == 2)
        code = tree.operatorCodes[gather.opcodeIndex]
        code.builtinCode = code.deprecatedBuiltinCode = schema().BuiltinOperator.EMBEDDING_LOOKUP
        gather.inputs = gather.inputs[::-1]
        gather.builtinOptions, gather.builtinOptionsType = None, 0

    gathering = of_function(lambda ids: tf.gather(table, ids), tf.TensorSpec([4], tf.int32))
    model = onnxfix.load(edited(gathering, look_up))
    feeds = {model.inputs[0].name: np.array([6, 0, 0, 3], np.int32)}
    native, lowered = (next(iter(run(feeds).values())) for run in (model.run_native, model.run))
    np.testing.assert_array_equal(lowered, native)
    np.testing.assert_array_equal(native, table.numpy()[[6, 0, 0, 3]])


def test_operator_options_that_tf2onnx_misreads(content):
    probabilities = of_function(tf.nn.softmax, tf.TensorSpec([2, 5], tf.float32))

    def set_beta(tree):
        tree.subgraphs[0].operators[0].builtinOptions.beta = 2.5

    def clip_output(tree):
        last = tree.subgraphs[0].operators[-1]
        last.builtinOptions.fusedActivationFunction = schema().ActivationFunctionType.RELU_N1_TO_1

    sharp = onnxfix.load(edited(probabilities, set_beta))
    assert disagreement(sharp, random_feeds(sharp)) <= FLOAT_NOISE
    clipped = onnxfix.load(edited(content, clip_output))
    feeds = {clipped.inputs[0].name: 20 * images()}
    assert disagreement(clipped, feeds) <= FLOAT_NOISE
    assert np.abs(next(iter(clipped.run(feeds).values()))).max() == 1.0


@pytest.mark.parametrize("approximate", [False, True])
def test_gelu(approximate):
    spec = tf.TensorSpec([None, 5], tf.float32)
    model = onnxfix.load(of_function(lambda x: tf.nn.gelu(x, approximate=approximate), spec))
    assert disagreement(model, random_feeds(model)) <= FLOAT_NOISE


def test_flattening_dense_layer_keeps_its_bias():
    def dense(x):
        return tf.matmul(tf.reshape(x, [-1, 6]), tf.reshape(tf.range(18.0), [6, 3])) + tf.constant([1.0, 2.0, 3.0])

    def flatten_inside(tree):
        """Let FULLY_CONNECTED itself flatten its rank-3 input, which converters of old wrote."""
        graph = tree.subgraphs[0]
        graph.operators = [graph.operators[-1]]
        graph.operators[0].inputs[0] = graph.inputs[0]

    model = onnxfix.load(edited(of_function(dense, tf.TensorSpec([2, 2, 3], tf.float32)), flatten_inside))
    assert disagreement(model, random_feeds(model)) <= FLOAT_NOISE


def test_repeated_tensor_names_are_told_apart(content):
    def rename(tree):
        for tensor in tree.subgraphs[0].tensors:
            tensor.name = b"tensor"

    model = onnxfix.load(edited(content, rename))
    assert disagreement(model, random_feeds(model)) <= FLOAT_NOISE
    assert len(model.parameters) == len(onnxfix.load(content).parameters)


@pytest.mark.parametrize("part", [0.0, 0.02, 0.3, 0.7, 0.99, 0.999])
def test_a_truncated_file_is_one_clear_sentence(content, tmp_path, part):
    path = tmp_path / "cut.tflite"
    path.write_bytes(content[: 8 + int(part * (len(content) - 8))])
    with pytest.raises(LoadError, match=r"cut\.tflite is a damaged TFLite file"):
        onnxfix.load(path)


def test_no_truncation_is_taken_for_a_model(content):
    # every cut near the front, where the tables lie, and a sample of the rest
    for length in [*range(8, 400, 7), *range(400, len(content), 173)]:
        with pytest.raises(LoadError, match="damaged"):
            Flatbuffer(content[:length], "it")


@pytest.mark.parametrize(
    ("start", "is_really"),
    [
        (b"\x89HDF\r\n\x1a\n" + b"\0" * 64, r"an HDF5 file; rename it to \.h5"),
        (b"just some text, no model\n", "a text file"),
        (b"", "an empty file"),
        (b"\x93\x01\xff\xfe" * 32, "a file of no known model format"),
    ],
)
def test_a_file_whose_suffix_lies_says_what_it_is(tmp_path, start, is_really):
    path = tmp_path / "a.tflite"
    path.write_bytes(start)
    with pytest.raises(LoadError, match=f"is not a TFLite file: it is {is_really}"):
        onnxfix.load(path)


def test_an_onnx_file_named_tflite_is_not_loaded_silently(model, tmp_path):
    path = tmp_path / "a.tflite"
    onnx.save_model(model.proto, str(path))
    with pytest.raises(LoadError, match=r"it is an ONNX model; rename it to \.onnx"):
        onnxfix.load(path)


def test_a_tflite_file_without_suffix_is_recognised(content, tmp_path):
    path = tmp_path / "model.bin"
    path.write_bytes(content)
    assert onnxfix.load(path).framework is Framework.TFLITE


def test_a_missing_tensorflow_names_the_install(content, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'onnxfix\[tflite\]'"):
        onnxfix.load(content)


def test_loading_and_running_is_silent(content, capfd, recwarn):
    model = onnxfix.load(content)
    model.run_native(random_feeds(model))
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""
    assert not recwarn.list
