"""Patches of the lowered graph become edits of the Keras model: only what is patched changes, and it runs the same."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import onnxfix
from onnxfix.errors import ExportError
from onnxfix.frameworks import adapter
from onnxfix.frameworks.keras_writing import with_changes
from onnxfix.surgeon.apply import apply
from onnxfix.surgeon.patch import ChangeBoundary, Patch, ReplaceRegion, SetAttribute, SetNode, SetParameter
from small_onnx import normal

keras = pytest.importorskip("keras")
layers = keras.layers
# Two runtimes' float32 on half a dozen layers, relative to the largest answer.
NOISE = 1e-5


def numbered(model: Any) -> Any:
    """The model with random weights, variances positive."""
    for k, variable in enumerate(model.variables):
        if variable.dtype == "float32":
            value = normal(*variable.shape, seed=k, scale=0.5)
            variable.assign(np.abs(value) + 0.5 if "variance" in variable.path else value)
    return model


def network() -> Any:
    x = keras.Input((12, 12, 3), name="image")
    y = layers.Conv2D(6, 3, strides=2, padding="same", name="first")(x)
    y = layers.BatchNormalization(name="norm")(y)
    y = layers.ReLU(max_value=6, name="bounded")(y)
    z = layers.DepthwiseConv2D(3, padding="same", activation="relu", name="depth")(y)
    z = layers.Dropout(0.5, name="drop")(z)
    y = layers.Subtract(name="less")([y, layers.LeakyReLU(negative_slope=0.2, name="leaky")(z)])
    a = keras.Input((6, 6, 6), name="inner")
    block = keras.Model(a, layers.Conv2D(4, 3, activation="tanh", name="deep")(a), name="block")
    y = keras.ops.multiply(block(y), 0.5)
    y = layers.GlobalAveragePooling2D(name="mean")(y)
    return numbered(keras.Model(x, layers.Dense(5, activation="softmax", name="labels")(y), name="net"))


@pytest.fixture(scope="module")
def target() -> onnxfix.Model:
    return onnxfix.load(network())


def node(model: onnxfix.Model, layer: str, op: str) -> onnx.NodeProto:
    (found,) = (n for n in model.proto.graph.node if n.op_type == op and model.layers.get(n.name) == layer)
    return found


def attribute(model: onnxfix.Model, layer: str, op: str, name: str, value: Any) -> SetAttribute:
    own = node(model, layer, op)
    before = next((helper.get_attribute_value(a) for a in own.attribute if a.name == name), None)
    return SetAttribute(own.name, name, value, before)


def constant(model: onnxfix.Model, name: str) -> np.ndarray:
    return next(numpy_helper.to_array(t) for t in model.proto.graph.initializer if t.name == name)


def parameter(model: onnxfix.Model, name: str, value: Any, readers: tuple[str, ...] = ()) -> SetParameter:
    before = constant(model, name)
    return SetParameter(name, np.broadcast_to(np.asarray(value, before.dtype), before.shape).copy(), before, readers)


def instead(model: onnxfix.Model, layer: str, op: str, by: str, **attributes: Any) -> SetNode:
    own = node(model, layer, op)
    return SetNode(own, helper.make_node(by, own.input[:1], own.output, own.name, **attributes))


def edited(model: onnxfix.Model, patches: Sequence[Patch]) -> Any:
    """The edited model, which answers what the patched graph does."""
    made = adapter(model.framework).edited(model, patches)
    patched = onnxfix.load(apply(model.proto, patches))
    feeds = {
        spec.name: normal(*(n if isinstance(n, int) else 3 for n in spec.shape), seed=9) for spec in patched.inputs
    }
    answers = keras.tree.flatten(made([*feeds.values()] if len(feeds) > 1 else next(iter(feeds.values()))))
    for expected, actual in zip(patched.run(feeds).values(), answers, strict=True):
        np.testing.assert_allclose(np.asarray(actual), expected, rtol=0, atol=NOISE * np.abs(expected).max())
    return made


def configs(model: Any) -> dict[str, Any]:
    return {layer.name: layer.get_config() for layer in model._flatten_layers(include_self=False) if not layer.get_config().get("layers")}


def changes(before: Any, after: Any) -> dict[str, Any]:
    """Layer -> (setting -> new value); None for a layer that is gone, its type for a new one."""
    old, new = configs(before), configs(after)
    own = {layer.name: type(layer).__name__ for layer in after._flatten_layers(include_self=False)}
    found: dict[str, Any] = {name: None for name in old if name not in new}
    for name, config in new.items():
        if name not in old:
            found[name] = own[name]
        elif config != old[name]:
            found[name] = {key: value for key, value in config.items() if old[name].get(key) != value}
    return found


def weights(model: Any) -> dict[str, np.ndarray]:
    """Those of layers, without the states of random generators; what a copy may prefix to their paths left out."""
    kept = [v for v in model.variables if v.dtype == "float32"]
    return {"/".join(v.path.split("/")[-2:]): np.asarray(v) for v in kept}


SETTINGS = {
    "strides": (lambda m: [attribute(m, "block/deep", "Conv", "strides", [2, 2])], {"deep": {"strides": (2, 2)}}),
    "dilation": (
        lambda m: [attribute(m, "depth", "Conv", "dilations", [2, 2]), attribute(m, "depth", "Conv", "pads", [2] * 4)],
        {"depth": {"dilation_rate": (2, 2)}},
    ),
    "padding": (
        lambda m: [attribute(m, "first", "Conv", "pads", [1, 1, 0, 0])],
        {"first": {"padding": "valid"}, "first_pad": "ZeroPadding2D"},
    ),
    "epsilon": (lambda m: [parameter(m, node_constant(m, "norm", "Add"), 0.01)], {"norm": {"epsilon": 0.01}}),
    "bound": (lambda m: [parameter(m, node(m, "bounded", "Clip").input[2], 4)], {"bounded": {"max_value": 4.0}}),
    "slope": (lambda m: [attribute(m, "leaky", "LeakyRelu", "alpha", 0.3)], {"leaky": {"negative_slope": 0.3}}),
    "activation": (lambda m: [instead(m, "depth", "Relu", "Sigmoid")], {"depth": {"activation": "sigmoid"}}),
    "activation that is no setting": (
        lambda m: [instead(m, "depth", "Relu", "Elu", alpha=0.3)], {"depth": {"activation": "linear"}, "depth_elu": "ELU"},
    ),
    "activation inside": (lambda m: [instead(m, "block/deep", "Tanh", "Relu")], {"deep": {"activation": "relu"}}),
    "softmax left out": (lambda m: [instead(m, "labels", "Softmax", "Identity")], {"labels": {"activation": "linear"}}),
    "layer left out": (lambda m: [instead(m, "bounded", "Clip", "Identity")], {"bounded": None}),
}  # fmt: skip


def node_constant(model: onnxfix.Model, layer: str, op: str) -> str:
    """The one single number that a layer's nodes of a type read."""
    own = {t.name for t in model.proto.graph.initializer if not np.prod(t.dims) > 1}
    (name,) = (
        value for n in model.proto.graph.node if n.op_type == op and model.layers.get(n.name) == layer
        for value in n.input if value in own
    )
    return name


@pytest.mark.parametrize("what", SETTINGS)
def test_a_setting_becomes_that_of_the_layer_and_nothing_else_changes(target: onnxfix.Model, what: str) -> None:
    patches, expected = SETTINGS[what]
    made = edited(target, patches(target))
    assert changes(target.native, made) == expected
    before, after = weights(target.native), weights(made)
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[name], after[name]) for name in before)
    assert made.name == "net" and made.output_names == ["labels"]


def test_the_model_itself_stays_as_it_is(target: onnxfix.Model) -> None:
    before = (target.native.get_config(), weights(target.native))
    edited(target, [instead(target, "depth", "Relu", "Sigmoid"), parameter(target, "labels/bias", 0.5)])
    assert before[0] == target.native.get_config()
    assert all(np.array_equal(value, before[1][name]) for name, value in weights(target.native).items())


def test_weights_and_settings_change_together(target: onnxfix.Model) -> None:
    made = edited(target, [parameter(target, "depth/kernel", 0.25), instead(target, "depth", "Relu", "Tanh"),
                           parameter(target, "labels/bias", 0.5)])
    before, after = weights(target.native), weights(made)
    assert {name for name in before if not np.array_equal(before[name], after[name])} == {"depth/kernel", "labels/bias"}
    assert changes(target.native, made) == {"depth": {"activation": "tanh"}}


def test_operands_change_places(target: onnxfix.Model) -> None:
    own = node(target, "less", "Sub")
    made = edited(target, [SetNode(own, helper.make_node("Sub", own.input[::-1], own.output, own.name))])
    assert changes(target.native, made) == {}


def test_operations_that_are_no_layers_change_too(target: onnxfix.Model) -> None:
    (half,) = (n for n in target.proto.graph.node if n.op_type == "Mul" and target.layers.get(n.name) == "mean")
    made = edited(target, [parameter(target, half.input[1], 0.25)])
    assert list(changes(target.native, made).values()) == ["Rescaling"]


def test_a_preparation_is_put_before_and_a_label_map_behind(target: onnxfix.Model) -> None:
    before = ChangeBoundary(
        "scale", added=(helper.make_node("Mul", ["image", "k"], ["image/ready"], "scaled"),
                        helper.make_node("Gather", ["image/ready", "c"], ["image/turned"], "turned", axis=3)),
        constants={"k": np.float32(1 / 127.5), "c": np.array([2, 1, 0])}, renamed={"image": "image/turned"},
    )  # fmt: skip
    info = target.proto.graph.output[0]
    behind = ChangeBoundary(
        "labels", outputs=(info,), previous_outputs=(info,), constants={"o": np.array([4, 0, 1, 3, 2])},
        added=(helper.make_node("Gather", ["labels/raw", "o"], ["labels"], "ordered", axis=1),),
        renamed={"labels": "labels/raw"},
    )
    made = edited(target, [before, behind])
    assert changes(target.native, made) == {"scaled_mul": "Rescaling"}
    assert weights(made).keys() == weights(target.native).keys()


def test_an_output_is_exposed_and_dropped_again(target: onnxfix.Model) -> None:
    info = target.proto.graph.output[0]
    (inner,) = node(target, "leaky", "LeakyRelu").output
    more = helper.make_tensor_value_info(inner, 1, ["batch", 6, 6, 6])
    made = edited(target, [ChangeBoundary("expose", outputs=(more, info), previous_outputs=(info,))])
    assert made.output_names == ["leaky", "labels"]
    both = onnxfix.load(made)
    outputs = tuple(both.proto.graph.output)
    made = edited(both, [ChangeBoundary("drop", outputs=outputs[1:], previous_outputs=outputs)])
    assert made.output_names == ["labels"]


def test_a_fixed_batch_is_opened_inner_models_included() -> None:
    x = keras.Input(batch_shape=(1, 8, 8, 3), name="image")
    a = keras.Input(batch_shape=(1, 8, 8, 3), name="a")
    block = keras.Model(a, layers.Conv2D(2, 3, name="c")(a), name="block")
    fixed = onnxfix.load(numbered(keras.Model(x, layers.Dense(3, name="d")(layers.GlobalMaxPooling2D(name="f")(block(x))))))
    was, will = fixed.proto.graph.input[0], helper.make_tensor_value_info("image", 1, ["batch", 8, 8, 3])
    made = edited(fixed, [ChangeBoundary("batch", inputs=(will,), previous_inputs=(was,))])
    assert made.input_shape == (None, 8, 8, 3)
    assert made.get_layer("block").input_shape == (None, 8, 8, 3)
    assert sorted(weights(made)) == sorted(weights(fixed.native))


def test_a_shared_layer_changes_where_it_is_meant_to() -> None:
    x, shared = keras.Input((6,), name="x"), layers.Dense(6, activation="tanh", name="d")
    twice = onnxfix.load(numbered(keras.Model(x, shared(shared(x)))))
    second = [n.name for n in twice.proto.graph.node if "d/kernel" in n.input][1]
    made = edited(twice, [parameter(twice, "d/kernel", 0.5, (second,))])
    assert changes(twice.native, made) == {"d_1": "Dense"}
    assert np.array_equal(weights(made)["d/kernel"], constant(twice, "d/kernel"))


def test_weights_of_recurrent_layers_are_taken_back_to_their_own_order() -> None:
    x = keras.Input((5, 4), name="x")
    model = onnxfix.load(numbered(keras.Model(x, layers.Bidirectional(layers.LSTM(3, name="l"), name="both")(x))))
    (lstm,) = (n for n in model.proto.graph.node if n.op_type == "LSTM")
    value = constant(model, lstm.input[1]).copy()
    value[1, 3, 2] += 1  # of the backward direction
    made = edited(model, [parameter(model, lstm.input[1], value)])
    pairs = [(old.path, np.asarray(old) != np.asarray(new))
             for old, new in zip(model.native.variables, made.variables, strict=True)]
    ((path, differs),) = (pair for pair in pairs if pair[1].any())
    assert path == "both/backward_l/lstm_cell/kernel" and np.count_nonzero(differs) == 1


def sequential() -> Any:
    return numbered(keras.Sequential([
        keras.Input((8, 8, 3), name="image"), layers.Conv2D(4, 3, activation="relu", name="c"),
        layers.BatchNormalization(name="n"), layers.MaxPooling2D(name="p"), layers.Flatten(name="f"),
        layers.Dense(3, name="d"),
    ], name="chain"))  # fmt: skip


def test_a_sequential_model_stays_one_where_it_can() -> None:
    model = onnxfix.load(sequential())
    made = edited(model, [attribute(model, "c", "Conv", "dilations", [1, 1]), instead(model, "c", "Relu", "Tanh")])
    assert isinstance(made, keras.Sequential) and made.name == "chain"
    assert changes(model.native, made) == {"c": {"activation": "tanh"}}
    kept = node(model, "f", "Reshape")
    between = helper.make_node("Transpose", [kept.input[0]], ["turned"], "turn", perm=[0, 2, 1, 3])
    made = edited(model, [ReplaceRegion((), (between,), {}, {(kept.name, 0): "turned"}, lowered=True)])
    assert isinstance(made, keras.Sequential) and changes(model.native, made) == {"p_transpose": "Permute"}


def test_what_is_code_is_refused_and_says_so() -> None:
    class Net(keras.Model):
        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            self.d = layers.Dense(3, activation="relu", name="d")

        def call(self, x: Any, training: bool | None = None) -> Any:
            return self.d(x)

    native = Net(name="coded")
    native(np.zeros((1, 4), np.float32))
    model = onnxfix.load(native)
    (relu,) = (n for n in model.proto.graph.node if n.op_type == "Relu")
    with pytest.raises(ExportError, match="the code of its class"):
        adapter(model.framework).edited(model, [SetNode(relu, helper.make_node("Tanh", relu.input, relu.output, relu.name))])


def written(target: onnxfix.Model, patches: Sequence[Patch], path: Path) -> Any:
    own = adapter(target.framework)
    own.write(target, own.edited(target, patches), path)
    return keras.models.load_model(path, compile=False)


def members(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_an_archive_differs_in_the_patch_alone(target: onnxfix.Model, tmp_path: Path) -> None:
    native = network()
    native.compile("adam", "mse")
    native.save(tmp_path / "net.keras")
    model = onnxfix.load(tmp_path / "net.keras")
    made = written(model, [instead(model, "depth", "Relu", "Tanh")], tmp_path / "fixed.keras")
    before, after = members(tmp_path / "net.keras"), members(tmp_path / "fixed.keras")
    assert {name for name in before if before[name] != after[name]} == {"config.json"}
    assert after["config.json"].decode() == json.dumps(json.loads(
        before["config.json"].decode().replace('"activation": "relu"', '"activation": "tanh"')))
    assert changes(native, made) == {"depth": {"activation": "tanh"}}
    made = written(model, [parameter(model, "labels/bias", 0.5)], tmp_path / "weights.keras")
    after = members(tmp_path / "weights.keras")
    assert {name for name in before if before[name] != after[name]} == {"model.weights.h5"}
    written(model, [instead(model, "bounded", "Clip", "Identity")], tmp_path / "less.keras")
    assert members(tmp_path / "less.keras")["metadata.json"] == before["metadata.json"]


def test_a_legacy_file_differs_in_the_patch_alone(tmp_path: Path) -> None:
    import h5py

    sequential().save(tmp_path / "net.h5")
    model = onnxfix.load(tmp_path / "net.h5")
    (bias,) = (name for name in model.parameters if name.endswith("d/bias"))
    written(model, [instead(model, "c", "Relu", "Tanh"), parameter(model, bias, 0.5)], tmp_path / "fixed.h5")

    def content(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
        found: dict[str, Any] = {}
        with h5py.File(path, "r") as file:
            file.visititems(lambda name, item: found.update({name: item[()]}) if isinstance(item, h5py.Dataset) else None)
            return found, dict(file.attrs)

    (before, notes), (after, own) = content(tmp_path / "net.h5"), content(tmp_path / "fixed.h5")
    assert before.keys() == after.keys() and notes.keys() == own.keys()
    assert [name.split("/")[-2:] for name in before if not np.array_equal(before[name], after[name])] == [["d", "bias"]]
    assert [name for name in notes if notes[name] != own[name]] == ["model_config"]
    first, second = json.loads(notes["model_config"]), json.loads(own["model_config"])
    first["config"]["layers"][1]["config"]["activation"] = "tanh"
    assert first == second


def test_a_legacy_file_holds_layers_alone(tmp_path: Path) -> None:
    sequential().save(tmp_path / "net.h5")
    model = onnxfix.load(tmp_path / "net.h5")
    own = adapter(model.framework)
    made = own.edited(model, [instead(model, "c", "Relu", "Sin")])
    with pytest.raises(ExportError, match=r"legacy \.h5 files hold layers only.*sin"):
        own.write(model, made, tmp_path / "fixed.h5")
    made = written(model, [instead(model, "c", "Relu", "LeakyRelu", alpha=0.4)], tmp_path / "fixed.h5")
    assert changes(model.native, made) == {"c": {"activation": "linear"}, "c_leakyrelu": "LeakyReLU"}


def test_a_layer_that_did_nothing_does_what_is_put_in_behind_it() -> None:
    x = keras.Input((4,), name="x")
    y = layers.Dense(4, name="a")(x)
    model = onnxfix.load(numbered(keras.Model(x, layers.Dense(3, name="b")(layers.Activation("linear", name="idle")(y)))))
    reader = next(n for n in model.proto.graph.node if "b/kernel" in n.input)
    put = helper.make_node("Tanh", [reader.input[0]], ["t"], "put")
    made = edited(model, [ReplaceRegion((), (put,), {}, {(reader.name, 0): "t"}, lowered=True)])
    assert changes(model.native, made) == {"idle": {"activation": "tanh"}}


def test_a_softmax_put_in_behind_a_dense_layer_is_its_activation() -> None:
    x = keras.Input((4,), name="x")
    model = onnxfix.load(numbered(keras.Model(x, layers.Dense(3, name="b")(x))))
    info = model.proto.graph.output[0]
    put = helper.make_node("Softmax", ["b/raw"], ["b"], "put", axis=-1)
    patch = ChangeBoundary("softmax", outputs=(info,), previous_outputs=(info,), added=(put,), renamed={"b": "b/raw"})
    assert changes(model.native, edited(model, [patch])) == {"b": {"activation": "softmax"}}


def test_a_model_may_be_deeper_than_python_nests_calls() -> None:
    x = y = keras.Input((2,), name="x")
    for k in range(300):
        y = layers.Add(name=f"s{k}")([y, y]) if k < 30 else layers.Activation("relu", name=f"a{k}")(y)
    model = onnxfix.load(keras.Model(x, y))
    made = edited(model, [instead(model, "a40", "Relu", "Tanh")])
    assert changes(model.native, made) == {"a40": {"activation": "tanh"}}


def test_files_of_older_versions_keep_their_words() -> None:
    old = {"class_name": "Model", "config": {"layers": [
        {"class_name": "Conv2D", "config": {"name": "c", "strides": [1, 1], "data_format": "channels_last"}, "name": "c"}]}}
    before = {"class_name": "Functional", "module": "keras", "config": {"layers": [
        {"module": "keras.layers", "config": {"name": "c", "strides": [1, 1], "groups": 1}}]}}
    after = json.loads(json.dumps(before).replace("[1, 1]", "[2, 2]"))
    made = json.loads(json.dumps(old).replace("[1, 1]", "[2, 2]"))
    assert with_changes(old, before, after) == made
    assert with_changes(old, before, before) is old
