"""Keras models and files: what is loaded, lowered, run and written back."""

import json
import shutil
import zipfile

import numpy as np
import onnx
import pytest

import onnxfix
from onnxfix.errors import ExportError, LoadError, LoweringError
from onnxfix.frameworks import Framework, adapter
from small_keras import FLOAT_NOISE, conv_net, disagreement, images, random_feeds

keras = pytest.importorskip("keras")
h5py = pytest.importorskip("h5py")
pytest.importorskip("tensorflow")


@pytest.fixture(scope="module")
def net():
    return conv_net()


@pytest.fixture(scope="module")
def files(net, tmp_path_factory):
    folder = tmp_path_factory.mktemp("keras")
    for suffix in ("keras", "h5"):
        net.save(folder / f"net.{suffix}")
    return folder


def with_config(path, target, edit):
    """A copy of a Keras file with its model configuration changed by ``edit``."""
    if path.suffix == ".h5":
        shutil.copyfile(path, target)
        with h5py.File(target, "r+") as file:
            config = json.loads(file.attrs["model_config"])
            edit(config)
            file.attrs["model_config"] = json.dumps(config)
        return target
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name == "config.json":
                config = json.loads(content)
                edit(config)
                content = json.dumps(config)
            new.writestr(name, content)
    return target


def logits_bias(model):
    return next(name for name in model.parameters if name.endswith("logits/bias"))


def layer(config, name):
    return next(part for part in config["config"]["layers"] if part["config"]["name"] == name)


@pytest.mark.parametrize("name", ["ad01/ad01.h5", "resnet8_cifar10/resnet8.h5"])
def test_real_files_run_as_in_keras(shared_data, name):
    model = onnxfix.load(shared_data / "models" / name)
    assert disagreement(model, random_feeds(model)) <= FLOAT_NOISE
    assert set(model.parameters.values()) == {v.path for v in model.native.variables}


@pytest.mark.parametrize("source", ["memory", "net.keras", "net.h5"])
def test_every_source_keeps_names_variables_and_free_batch(net, files, source):
    model = onnxfix.load(net if source == "memory" else files / source)
    assert model.framework is Framework.KERAS
    assert [(s.name, s.shape) for s in model.inputs] == [("image", ("batch", 8, 8, 2))]
    assert [s.name for s in model.outputs] == ["logits"]
    lowered = {t.name: onnx.numpy_helper.to_array(t) for t in model.proto.graph.initializer}
    assert len(model.native.variables) == len(net.variables)
    for variable in model.native.variables:
        assert model.parameters[variable.path] == variable.path
        np.testing.assert_array_equal(lowered[variable.path], np.asarray(variable))
    for batch in (1, 4):
        assert disagreement(model, random_feeds(model, batch)) <= FLOAT_NOISE


def test_every_node_knows_its_layer(net):
    model = onnxfix.load(net)
    assert set(model.layers) == {node.name for node in model.proto.graph.node}
    owners = {node.op_type: model.layers[node.name] for node in model.proto.graph.node}
    assert set(model.layers.values()) <= {part.name for part in net.layers}
    assert owners["Conv"] == "depthwise"  # the later of the two convolutions
    assert owners["MatMul"] == "logits"


def test_activations_are_layer_outputs(net):
    x = images()
    found = onnxfix.load(net).activations({"image": x})
    assert set(found) == {part.name for part in net.layers}
    up_to_relu = keras.Model(net.inputs, net.get_layer("stem_relu").output)
    np.testing.assert_allclose(found["stem_relu"], up_to_relu.predict_on_batch(x), rtol=1e-6)
    np.testing.assert_allclose(found["logits"], net.predict_on_batch(x), rtol=1e-5)


def test_the_model_is_left_as_it_was(net):
    before = [np.array(v) for v in net.variables]
    model = onnxfix.load(net)
    model.activations({"image": images()})
    changed = adapter(Framework.KERAS).with_parameters(model, {logits_bias(model): np.ones(4, np.float32)})
    for variable, value in zip(net.variables, before, strict=True):
        np.testing.assert_array_equal(variable, value)
    assert all("call" not in vars(part) for part in net.layers)
    np.testing.assert_array_equal(changed.get_layer("logits").bias, np.ones(4))
    np.testing.assert_array_equal(changed.get_layer("stem").kernel, net.get_layer("stem").kernel)


def test_several_inputs_outputs_and_an_inner_model():
    inner = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="deep")], name="inner")
    left, right = keras.Input((4,), name="left"), keras.Input((4,), name="right")
    both = keras.layers.Add(name="both")([inner(left), inner(right)])
    scaled = keras.layers.Rescaling(2.0, name="scaled")(both)
    model = onnxfix.load(keras.Model([right, left], [scaled, both, both]))
    assert [s.name for s in model.inputs] == ["right", "left"]
    assert len({s.name for s in model.outputs}) == 3
    assert disagreement(model, random_feeds(model)) <= FLOAT_NOISE
    assert "inner/deep" in set(model.layers.values())
    outputs = list(model.run(random_feeds(model)).values())
    np.testing.assert_allclose(outputs[0], 2 * outputs[1], rtol=1e-6)


def test_a_subclassed_model_that_was_called():
    class Twice(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = keras.layers.Dense(4, name="shared")

        def call(self, x, training=None):
            return self.dense(self.dense(x))

    subclassed = Twice()
    with pytest.raises(LoweringError, match="has not been built"):
        onnxfix.load(subclassed)
    subclassed(np.zeros((1, 4), np.float32))
    model = onnxfix.load(subclassed)
    assert disagreement(model, random_feeds(model)) <= FLOAT_NOISE
    assert set(model.layers.values()) == {"shared"}
    assert model.inputs[0].shape == ("batch", 4)


@pytest.mark.parametrize(
    "part",
    [
        lambda: keras.layers.Conv2D(4, 3, groups=2, name="grouped"),
        lambda: keras.layers.Conv2DTranspose(3, 3, strides=2, padding="same"),
        lambda: keras.layers.Conv2DTranspose(3, 2, strides=3, padding="same"),
        lambda: keras.layers.UpSampling2D(2, interpolation="nearest"),
        lambda: keras.layers.Resizing(5, 7, interpolation="bilinear"),
        lambda: keras.layers.TimeDistributed(keras.layers.GRU(3)),
        lambda: keras.layers.TimeDistributed(keras.layers.LSTM(3)),
        lambda: keras.layers.Dropout(0.5),
        lambda: keras.layers.LayerNormalization(axis=-1),
    ],
    ids=["grouped", "transposed", "sparse", "nearest", "bilinear", "gru", "lstm", "dropout", "layernorm"],
)
def test_layers_that_are_hard_to_lower(part):
    keras.utils.set_random_seed(0)
    model = onnxfix.load(keras.Sequential([keras.Input((6, 6, 2)), keras.layers.Dense(4), part()]))
    assert disagreement(model, random_feeds(model)) <= FLOAT_NOISE


def test_a_deep_network_keeps_all_its_variables():
    net = keras.applications.MobileNetV2(weights=None, alpha=0.35, input_shape=(32, 32, 3), classes=10)
    model = onnxfix.load(net)
    assert len(model.parameters) == len(net.variables) == 262
    assert disagreement(model, random_feeds(model)) <= FLOAT_NOISE


def test_old_configuration_keys_are_forgiven(net, files, tmp_path):
    def age(config):
        layer(config, "depthwise")["config"]["groups"] = 1
        layer(config, "pool")["config"]["time_major"] = False
        layer(config, "stem")["config"]["dtype"] = {"class_name": "Policy", "config": {"name": "float32"}}

    for name in ("net.h5", "net.keras"):
        old = with_config(files / name, tmp_path / name, age)
        model = onnxfix.load(old)
        np.testing.assert_array_equal(model.run_native({"image": images()})["logits"], net.predict_on_batch(images()))


def test_an_hdf5_file_named_keras_is_what_old_keras_wrote(files, tmp_path):
    shutil.copyfile(files / "net.h5", tmp_path / "old.keras")
    assert onnxfix.load(tmp_path / "old.keras").outputs[0].name == "logits"


@pytest.mark.parametrize("suffix", ["keras", "h5"])
def test_code_in_a_file_is_never_run(tmp_path, suffix):
    mark = tmp_path / "executed"
    code = eval(f"lambda x: (__import__('pathlib').Path({str(mark)!r}).touch(), x)[1]")
    path = tmp_path / f"lambda.{suffix}"
    keras.Sequential([keras.Input((2,)), keras.layers.Lambda(code, output_shape=(2,))]).save(path)
    mark.unlink(missing_ok=True)
    with pytest.raises(LoadError, match="Lambda layer that carries Python code"):
        onnxfix.load(path)
    assert not mark.exists()


@pytest.mark.parametrize("name", ["net.h5", "net.keras"])
@pytest.mark.parametrize("part", [0.1, 0.5, 0.95])
def test_a_truncated_file_is_one_clear_sentence(files, tmp_path, name, part):
    content = (files / name).read_bytes()
    path = tmp_path / name
    path.write_bytes(content[: int(part * len(content))])
    with pytest.raises(LoadError, match=path.name):
        onnxfix.load(path)


def test_files_that_hold_something_else(net, files, tmp_path):
    net.save_weights(tmp_path / "only.weights.h5")
    with pytest.raises(LoadError, match="holds weights but no model"):
        onnxfix.load(tmp_path / "only.weights.h5")
    shutil.copyfile(files / "net.keras", tmp_path / "zip.h5")
    with pytest.raises(LoadError, match=r"it is a Keras archive; rename it to \.keras"):
        onnxfix.load(tmp_path / "zip.h5")
    (tmp_path / "text.keras").write_text("no model at all")
    with pytest.raises(LoadError, match="it is a text file"):
        onnxfix.load(tmp_path / "text.keras")
    own = {"class_name": "MyActivation", "module": "my.package", "registered_name": "my>MyActivation"}
    custom = with_config(
        files / "net.keras", tmp_path / "custom.keras", lambda config: layer(config, "stem_relu").update(own)
    )
    with pytest.raises(LoadError, match="custom class MyActivation"):
        onnxfix.load(custom)


def contents(path):
    """Every dataset of a Keras file by name."""
    if path.suffix == ".keras":
        with zipfile.ZipFile(path) as archive:
            archive.extract("model.weights.h5", path.parent / path.stem)
        path = path.parent / path.stem / "model.weights.h5"
    found = {}
    with h5py.File(path) as file:
        file.visititems(lambda name, item: found.update({name: item[()]} if isinstance(item, h5py.Dataset) else {}))
    return found


@pytest.mark.parametrize("name", ["net.h5", "net.keras"])
def test_saving_replaces_weights_in_a_copy_of_the_file(files, tmp_path, name):
    source = with_config(files / name, tmp_path / f"source{name[3:]}", lambda config: config.update(note="kept"))
    model = onnxfix.load(source)
    target = tmp_path / f"target{name[3:]}"
    bias = np.array([1, 2, 3, 4], np.float32)
    adapter(Framework.KERAS).save(model, {logits_bias(model): bias}, target)
    before, after = contents(source), contents(target)
    assert before.keys() == after.keys()
    changed = [key for key in before if not np.array_equal(before[key], after[key])]
    assert len(changed) == 1
    np.testing.assert_array_equal(after[changed[0]], bias)
    with_config(target, tmp_path / f"read{name[3:]}", lambda config: config["note"] == "kept" or pytest.fail("lost"))
    np.testing.assert_array_equal(onnxfix.load(target).native.get_layer("logits").bias, bias)


def test_saving_in_the_other_format_goes_through_keras(files, tmp_path):
    model = onnxfix.load(files / "net.h5")
    bias = np.array([1, 2, 3, 4], np.float32)
    adapter(Framework.KERAS).save(model, {logits_bias(model): bias}, tmp_path / "new.keras")
    np.testing.assert_array_equal(onnxfix.load(tmp_path / "new.keras").native.get_layer("logits").bias, bias)


def test_what_cannot_be_written_is_refused(net, tmp_path):
    model = onnxfix.load(net)
    with pytest.raises(ExportError, match="cannot take"):
        adapter(Framework.KERAS).with_parameters(model, {logits_bias(model): np.zeros(5, np.float32)})
    with pytest.raises(ExportError, match="no variable nowhere/bias"):
        adapter(Framework.KERAS).with_parameters(model, {"nowhere/bias": np.zeros(5, np.float32)})
    with pytest.raises(ExportError, match=r"\.keras, \.h5 or \.onnx"):
        adapter(Framework.KERAS).save(model, {}, tmp_path / "model.tflite")


def test_functions_that_tf2onnx_does_not_know_are_lowered_exactly():
    """Near zero, log(1 + x) and exp(x) - 1 lose all digits; far from it nothing may overflow into NaN."""
    x = keras.Input((7,))
    model = keras.Model(x, [keras.ops.log1p(keras.ops.abs(x)), keras.ops.expm1(x)])
    values = np.array([[0.0, 1e-7, -3e-5, 0.4, -0.7, 2.0, -80.0], [1e-30, -1e-3, 5.0, 50.0, 87.0, 1e30, -1e30]], np.float32)
    values[1, 5] = np.float32(88.0)
    lowered = onnxfix.load(model)
    expected = [np.log1p(np.abs(values)), np.expm1(values)]
    for want, got in zip(expected, lowered.run({lowered.inputs[0].name: values}).values(), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-6, atol=0)  # eight units in the last place


def test_the_first_largest_is_found_although_zeros_have_signs():
    x = keras.Input((6,))
    lowered = onnxfix.load(keras.Model(x, keras.ops.argmax(x, axis=-1)))
    values = np.array([[-1, -0.0, 0.0, -2, 0.0, -1], [3, 1, 4, 4, 2, 0]], np.float32)
    (got,) = lowered.run({lowered.inputs[0].name: values}).values()
    (want,) = lowered.run_native({lowered.inputs[0].name: values}).values()
    np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(got, [2, 2])


def test_boundaries_belong_to_the_bucket_above_them():
    model = keras.Sequential([keras.Input((5,)), keras.layers.Discretization(bin_boundaries=[-1.0, 0.0, 2.5])])
    lowered = onnxfix.load(model)
    values = np.array([[-3, -1, -0.5, 0, 2.5], [2.4, 100, -1.5, 1, 0]], np.float32)
    (got,) = lowered.run({lowered.inputs[0].name: values}).values()
    np.testing.assert_array_equal(got, [[0, 1, 1, 2, 3], [2, 3, 0, 2, 2]])
