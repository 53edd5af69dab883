"""Patches written into TFLite files in place: what is edited, and that nothing else is."""

import io
import zipfile

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import onnxfix
from onnxfix.errors import ExportError
from onnxfix.frameworks import Framework, adapter
from onnxfix.frameworks.flatbuffer import Flatbuffer, schema
from onnxfix.frameworks.flatbuffer_editing import FlatbufferEditor
from onnxfix.frameworks.tflite_editing import reconciled
from onnxfix.surgeon.apply import apply
from onnxfix.surgeon.patch import ChangeBoundary, SetAttribute, SetNode, SetParameter
from onnxfix.testing import inject
from small_keras import conv_net, images, to_tflite
from tflite_files import changes, check_valid, of_function, operators, quantized, spread

tf = pytest.importorskip("tensorflow")

# Float32 sums of at most a hundred products, in two orders.
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(scope="module")
def content():
    return to_tflite(conv_net())


@pytest.fixture(scope="module")
def model(content):
    return onnxfix.load(content)


@pytest.fixture(scope="module")
def small_ints():
    return onnxfix.load(quantized(conv_net(), images(32)))


def node(model, op_type, which=0):
    return [n for n in model.proto.graph.node if n.op_type == op_type][which]


def setting(n, name):
    return next((helper.get_attribute_value(a) for a in n.attribute if a.name == name), None)


def changed(n, op_type=None, inputs=None, **attributes):
    """The patch that makes another node of one."""
    fresh = onnx.NodeProto()
    fresh.CopyFrom(n)
    fresh.op_type = op_type or n.op_type
    fresh.input[:] = inputs or n.input
    if op_type:
        del fresh.attribute[:]
    kept = [a for a in fresh.attribute if a.name not in attributes]
    del fresh.attribute[:]
    fresh.attribute.extend([*kept, *(helper.make_attribute(k, v) for k, v in attributes.items())])
    return SetNode(n, fresh)


def written(model, *patches, close=CLOSE):
    """The file with patches, checked: other readers take it, and in LiteRT it computes the patched graph."""
    data = adapter(Framework.TFLITE).edited(model, patches)
    check_valid(data)
    again = onnxfix.load(data)
    wanted = onnxfix.load(apply(model.proto, patches))
    assert [s.name for s in again.inputs] == [s.name for s in wanted.inputs]
    rng = np.random.default_rng(1)
    feeds = {s.name: rng.standard_normal([d if isinstance(d, int) else 1 for d in s.shape]) for s in wanted.inputs}
    feeds = {s.name: feeds[s.name].astype(s.dtype) for s in wanted.inputs}
    expected, actual = wanted.run(feeds), again.run_native(feeds)
    assert list(actual) == list(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(actual[name], value, **close)
    return data


def test_a_number_that_has_a_place_is_the_only_byte_that_changes(content, model):
    clip = next(n for n in model.proto.graph.node if n.op_type in ("Clip", "Min"))
    front, differing = changes(content, written(model, changed(clip, "Relu", list(clip.input[:1]))))
    assert (front, len(differing)) == (0, 1)


def test_strides_are_options(content, model):
    conv = node(model, "Conv")
    data = written(model, SetAttribute(conv.name, "strides", [1, 1], setting(conv, "strides")),
                   SetAttribute(conv.name, "pads", [1, 1, 1, 1], setting(conv, "pads")))  # fmt: skip
    front, differing = changes(content, data)
    assert operators(data) == operators(content)
    assert front == 0
    # Both strides, and the height and width of the tensors behind.
    assert 2 <= len(differing) <= 2 + 2 * len(Flatbuffer(content, "it").graph.tensors)


def test_pads_that_no_option_means_are_an_operator(content, model):
    depthwise = node(model, "Conv", 1)
    data = written(model, SetAttribute(depthwise.name, "pads", [2, 1, 0, 1], setting(depthwise, "pads")))
    assert operators(data) == [*operators(content)[:1], "PAD", *operators(content)[1:]]
    assert data.endswith(content), "the old file stays as it was behind what is new"


def test_another_activation_and_none_at_all(content, model):
    clip = next(n for n in model.proto.graph.node if n.op_type in ("Clip", "Min"))
    bent = written(model, changed(clip, "LeakyRelu", list(clip.input[:1]), alpha=0.1))
    assert "LEAKY_RELU" in operators(bent)
    none = written(model, changed(clip, "Identity", list(clip.input[:1])))
    assert operators(none) == operators(content)


def test_a_new_input_scale_and_a_label_map_leave_the_signature(content, model):
    x, y = model.proto.graph.input[0], model.proto.graph.output[0]
    scale = ChangeBoundary(
        "scale", added=(helper.make_node("Mul", [x.name, "by"], [f"{x.name}/scaled"], "scaling"),),
        constants={"by": np.array([2.0, 0.5], np.float32)}, renamed={x.name: f"{x.name}/scaled"},
    )  # fmt: skip
    labels = ChangeBoundary(
        "labels", added=(helper.make_node("Gather", [f"{y.name}/raw", "order"], [y.name], "labels", axis=1),),
        constants={"order": np.array([2, 0, 3, 1])}, renamed={y.name: f"{y.name}/raw"}, outputs=(y,),
        previous_outputs=(y,),
    )  # fmt: skip
    data = written(model, scale, labels)
    old, new = Flatbuffer(content, "it"), Flatbuffer(data, "it")
    assert operators(data) == ["MUL", *operators(content), "GATHER"]
    for file in (old, new):
        (signature,) = file.model.signatureDefs
        assert [e.tensorIndex for e in signature.inputs] == list(file.graph.inputs)
        assert [e.tensorIndex for e in signature.outputs] == list(file.graph.outputs)
    runner = tf.lite.Interpreter(model_content=data).get_signature_runner("serving_default")
    assert next(iter(runner(image=images(1)).values())).shape == (1, 4)


def test_a_fixed_batch_is_opened_and_what_follows_with_it(model):
    def sized(info, batch):
        fresh = onnx.ValueInfoProto()
        fresh.CopyFrom(info)
        dim = fresh.type.tensor_type.shape.dim[0]
        dim.Clear()
        if isinstance(batch, int):
            dim.dim_value = batch
        else:
            dim.dim_param = batch
        return fresh

    def batch_of(model, size):
        ends = [tuple(i) for i in (model.proto.graph.input, model.proto.graph.output)]
        after = [tuple(sized(i, size) for i in infos) for infos in ends]
        return ChangeBoundary("batch", after[0], after[1], ends[0], ends[1])

    fixed = onnxfix.load(written(model, batch_of(model, 1)))
    assert fixed.inputs[0].shape[0] == 1
    opened = onnxfix.load(written(fixed, batch_of(fixed, "batch")))
    feeds = {opened.inputs[0].name: images(5)}
    answers = [next(iter(m.run_native(feeds).values())) for m in (opened, model)]
    np.testing.assert_allclose(*answers, **CLOSE)
    assert isinstance(opened.outputs[0].shape[0], str)


def test_one_reader_of_a_shared_constant_gets_a_copy():
    shared = np.random.default_rng(0).standard_normal((4, 4)).astype(np.float32)
    matrix = tf.constant(shared)
    data = of_function(lambda x: tf.tanh(x @ matrix) @ matrix, tf.TensorSpec([1, 4]))
    model = onnxfix.load(data)
    name = next(t.name for t in model.proto.graph.initializer if list(t.dims) == [4, 4])
    reader = [n.name for n in model.proto.graph.node if name in n.input][-1]
    stored = numpy_helper.to_array(next(t for t in model.proto.graph.initializer if t.name == name))
    front, differing = changes(data, written(model, SetParameter(name, stored + 1, stored, (reader,))))
    assert front
    assert len(differing) == 1, "the one operator reads another tensor"


CASES = {
    "softmax_axis_scale": (lambda x: tf.nn.softmax(x), "Softmax", "LogSoftmax", {"axis": -1}),
    "leaky_alpha": (lambda x: tf.nn.leaky_relu(x, 0.2), "LeakyRelu", None, {"alpha": 0.05}),
    "mean_axes": (lambda x: tf.reduce_max(x, [1], keepdims=True), "ReduceMax", "ReduceMin", {"keepdims": 1}),
    "keepdims_away": (lambda x: tf.reshape(tf.reduce_max(x, [1], keepdims=True), [1, 24]), "ReduceMax", None, {}),
    "pool_size": (lambda x: tf.nn.max_pool2d(x, 2, 1, "VALID"), "MaxPool", None, {"kernel_shape": [2, 1]}),
    "pool_kind": (lambda x: tf.nn.max_pool2d(x, 2, 1, "VALID"), "MaxPool", "AveragePool",
                  {"kernel_shape": [2, 2], "strides": [1, 1]}),
    "transposed": (lambda x: tf.transpose(x, [0, 2, 1, 3]), "Transpose", None, {"perm": [0, 2, 3, 1]}),
    "align_corners": (lambda x: tf.image.resize(x, [8, 10]), "Resize", None,
                      {"coordinate_transformation_mode": "align_corners"}),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_operator_options_and_operands(name):
    function, op_type, becomes, attributes = CASES[name]
    model = onnxfix.load(of_function(function, tf.TensorSpec([1, 4, 6, 4])))
    old = node(model, op_type)
    inputs = list(old.input[:1]) if becomes in ("LogSoftmax", "AveragePool") else None
    data = written(model, changed(old, becomes, inputs, **attributes))
    assert len(operators(data)) == len(operators(model.native))
    assert changes(model.native, data)[0] <= 1024


def test_operands_are_exchanged():
    model = onnxfix.load(of_function(lambda x, y: x - tf.tanh(y), tf.TensorSpec([1, 4]), tf.TensorSpec([1, 4])))
    sub = node(model, "Sub")
    swapped = written(model, changed(sub, inputs=[sub.input[1], sub.input[0]]))
    assert changes(model.native, swapped) == (0, changes(model.native, swapped)[1])
    assert len(changes(model.native, swapped)[1]) == 2
    added = written(model, changed(sub, "Add"))
    assert "ADD" in operators(added)


def test_an_operator_is_left_out():
    model = onnxfix.load(of_function(lambda x: tf.tanh(tf.exp(tf.abs(x))), tf.TensorSpec([1, 4])))
    middle = written(model, changed(node(model, "Exp"), "Identity"))
    assert operators(middle) == ["ABS", "TANH"]
    last = written(model, changed(node(model, "Tanh"), "Identity"))
    assert operators(last) == ["ABS", "EXP"]
    first = written(model, changed(node(model, "Abs"), "Identity"))
    assert operators(first) == ["EXP", "TANH"]


def test_scales_of_weights_go_into_the_quantization_table(small_ints):
    model = small_ints
    kernels = {t.name for t in model.proto.graph.initializer if len(t.dims) == 4}
    weight = next(n for n in model.proto.graph.node if n.op_type == "DequantizeLinear" and n.input[0] in kernels)
    scale = next(t for t in model.proto.graph.initializer if t.name == weight.input[1])
    value = numpy_helper.to_array(scale)
    data = adapter(Framework.TFLITE).edited(model, [SetParameter(scale.name, 2 * value, value)])
    check_valid(data)
    file = Flatbuffer(data, "it")
    tensor = file.graph.tensors[file.tensor_names.index(weight.input[0])]
    np.testing.assert_array_equal(tensor.quantization.scale, 2 * value)
    # The layer's bias counts in steps of the input's scale times the weight's, so it is told in the new ones.
    before, after = (Flatbuffer(d, "it") for d in (model.native, data))
    moved = [c for c in after.constants if (after.value(after.constants[c]) != before.value(before.constants[c])).any()]
    (bias,) = moved
    old, new = (f.value(f.constants[bias]).astype(np.float64) for f in (before, after))
    np.testing.assert_allclose(2 * new, old, rtol=0, atol=1.0)
    assert len(data) == len(model.native)


def test_pads_of_a_quantized_convolution(small_ints):
    depthwise = node(small_ints, "Conv", 1)
    patch = SetAttribute(depthwise.name, "pads", [2, 0, 1, 1], setting(depthwise, "pads"))
    data = written(small_ints, patch, close={"rtol": 0, "atol": 1.0})
    assert operators(data).count("PAD") == operators(small_ints.native).count("PAD") + 1
    assert "DEQUANTIZE" not in operators(data)


def with_labels(content):
    """A file with an archive behind the flatbuffer, as TensorFlow's metadata writer appends it."""
    file = io.BytesIO(content)
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("labels.txt", "cat\ndog\n")
    return file.getvalue()


def test_labels_behind_the_flatbuffer_stay_readable(content):
    packed = with_labels(content)
    model = onnxfix.load(packed)
    depthwise = node(model, "Conv", 1)
    data = written(model, SetAttribute(depthwise.name, "pads", [2, 0, 1, 1], setting(depthwise, "pads")))
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert archive.read("labels.txt") == b"cat\ndog\n"
        (entry,) = archive.infolist()
        assert data[entry.header_offset : entry.header_offset + 4] == b"PK\x03\x04"
    front, differing = changes(packed, data)
    assert front
    assert sum(k >= len(content) for k in differing) <= 8, "only the archive's two offsets are others"


def test_data_outside_of_the_flatbuffer_is_refused(content):
    import flatbuffers

    tree = schema().ModelT.InitFromPackedBuf(bytearray(content), 0)
    tree.buffers[-1].offset, tree.buffers[-1].size = 4096, 16
    builder = flatbuffers.Builder(len(content))
    builder.Finish(tree.Pack(builder), b"TFL3")
    with pytest.raises(ExportError, match="outside of its flatbuffer"):
        FlatbufferEditor(Flatbuffer(bytes(builder.Output()), "it"))


def test_what_tflite_has_no_operator_for_is_refused(model):
    conv = node(model, "Conv")
    with pytest.raises(ExportError, match="cannot be told"):
        adapter(Framework.TFLITE).edited(model, [changed(conv, "Det", list(conv.input[:1]))])


@pytest.mark.parametrize("operator", ["drop_bias", "shift_pads", "remove_activation", "scale_input"])
def test_a_fault_in_the_file_is_repaired_in_the_file(content, model, operator, tmp_path):
    faulty = reconciled(model, inject(model, operator, seed=2).model)
    assert faulty != content
    fix = onnxfix.repair(conv_net(), faulty, {"image": images(48)})
    assert fix.success
    path = tmp_path / "fixed.tflite"
    result = fix.save(path)
    assert result.how == "in place", result.reason
    front, differing = changes(faulty, path.read_bytes())
    assert front <= 2048
    assert len(differing) <= 64
    check_valid(path.read_bytes())


@pytest.mark.parametrize("name", ["resnet8_cifar10/resnet8_float.tflite", "mobilenet_v2_imagenet_int8.tflite"])
def test_real_files_keep_what_is_not_edited(shared_data, name):
    content = (shared_data / "models" / name).read_bytes()
    model = onnxfix.load(content)
    conv = node(model, "Conv", 3)
    data = adapter(Framework.TFLITE).edited(model, [SetAttribute(conv.name, "dilations", [2, 2], [1, 1])])
    check_valid(data, max(1.0, spread(content)))
    front, differing = changes(content, data)
    assert front <= 16384
    old, new = Flatbuffer(content, "it"), Flatbuffer(data, "it")
    assert [m.name for m in new.model.metadata] == [m.name for m in old.model.metadata]
    archive = content.find(b"PK\x03\x04")
    shapes = 8 * len(old.graph.tensors)
    assert sum(archive < 0 or k < archive for k in differing) <= shapes
