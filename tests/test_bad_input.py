"""Bad input: one clear sentence on standard error, exit code 2, and nothing written."""

import random
import shutil
import sys
import zipfile

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnxfix
from onnxfix.cli import main
from onnxfix.errors import ExportError, LoadError, OnnxFixError

VERBS = {
    "compare": ["compare", "{source}", "{target}", "--data", "{data}", "--json", "result.json"],
    "diagnose": ["diagnose", "{source}", "{target}", "--data", "{data}", "--json", "result.json"],
    "repair": ["repair", "{source}", "{target}", "--data", "{data}", "-o", "fixed.onnx", "--report", "r.html"],
}


def dense(width=4, name="x", dtype=TensorProto.FLOAT, weight=1.0):
    """A dense layer on ``[n, width]``; an integer input is cast first."""
    nodes = [
        helper.make_node("Cast", [name], ["f"], name="cast", to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["f", "w"], ["y"], name="mm"),
    ]
    kernel = np.full((width, 3), weight, np.float32) * np.arange(1, 4, dtype=np.float32)
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info(name, dtype, ["n", width])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])], [numpy_helper.from_array(kernel, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory with a good model (good.onnx) and good data (good.npz)."""
    onnx.save(dense(), tmp_path / "good.onnx")
    np.savez(tmp_path / "good.npz", x=np.linspace(-1, 1, 24, dtype=np.float32).reshape(6, 4))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(folder, capsys, call):
    """Run ``call``; check that it is refused in one sentence and writes nothing; return the sentence."""
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    code = main(call)
    captured = capsys.readouterr()
    assert code == 2, captured
    assert captured.err.startswith("onnxfix: ")
    assert captured.err.count("\n") == 1
    assert captured.err.endswith(".\n")
    assert "Traceback" not in captured.err
    assert "internal error" not in captured.err
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    return captured.err


def call(verb, source="good.onnx", target="good.onnx", data="good.npz"):
    return [part.format(source=source, target=target, data=data) for part in VERBS[verb]]


@pytest.mark.parametrize("verb", VERBS)
def test_missing_files_are_named(folder, capsys, verb):
    assert "gone.onnx does not exist" in refused(folder, capsys, call(verb, source="gone.onnx"))
    assert "gone.tflite does not exist" in refused(folder, capsys, call(verb, target="gone.tflite"))
    assert "gone.npz does not exist" in refused(folder, capsys, call(verb, data="gone.npz"))


def test_inspect_and_canonicalize_refuse_missing_files(folder, capsys):
    assert "gone.onnx does not exist" in refused(folder, capsys, ["inspect", "gone.onnx"])
    assert "gone.onnx does not exist" in refused(folder, capsys, ["canonicalize", "gone.onnx", "-o", "out.onnx"])


def test_a_directory_that_is_no_savedmodel(folder, capsys):
    (folder / "empty").mkdir()
    (folder / "full").mkdir()
    (folder / "full" / "readme.txt").write_text("no model")
    for name in ("empty", "full"):
        assert name in refused(folder, capsys, call("compare", target=name))


@pytest.mark.parametrize("suffix", ["onnx", "pt", "pt2", "keras", "h5", "hdf5", "pb", "tflite"])
@pytest.mark.parametrize("content", ["garbage", "text", "empty"])
def test_garbage_in_every_format(folder, capsys, suffix, content):
    bytes_of = {"garbage": np.random.default_rng(0).bytes(4096), "text": b"this is no model\n" * 40, "empty": b""}
    (folder / f"bad.{suffix}").write_bytes(bytes_of[content])
    assert f"bad.{suffix}" in refused(folder, capsys, call("compare", target=f"bad.{suffix}"))


@pytest.mark.parametrize("keep", [0.3, 0.9])
@pytest.mark.parametrize("suffix", ["onnx", "pt", "pt2", "keras", "h5", "tflite"])
def test_truncated_files_in_every_format(folder, capsys, suffix, keep, whole_files):
    content = whole_files[suffix].read_bytes()
    (folder / f"cut.{suffix}").write_bytes(content[: int(len(content) * keep)])
    assert f"cut.{suffix}" in refused(folder, capsys, call("compare", target=f"cut.{suffix}"))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("suffix", ["pt", "pt2", "keras", "h5", "tflite"])
def test_damaged_bytes_raise_nothing_but_our_own_errors(suffix, seed, whole_files, tmp_path):
    """Bytes overwritten, lost and doubled at random: a model that loads, or one clear sentence."""
    draw = random.Random(seed)
    content = bytearray(whole_files[suffix].read_bytes())
    for _ in range(draw.choice([1, 2, 4])):
        at = draw.randrange(len(content))
        change = draw.randrange(3)
        if change == 0:
            content[at] ^= 1 << draw.randrange(8)
        elif change == 1:
            content[at : at + 4] = draw.choice([bytes(4), b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f"])
        else:
            del content[at : at + draw.choice([1, 4, 16])]
    path = tmp_path / f"damaged.{suffix}"
    path.write_bytes(content)
    try:
        damaged = onnxfix.load(path, np.ones((2, 4), np.float32) if suffix in ("pt", "pt2") else None)
        onnxfix.fingerprint(damaged)
    except OnnxFixError as error:
        assert "\n" not in str(error)
        assert str(error).endswith(".")


def test_a_keras_archive_with_a_flipped_bit_is_damaged(whole_files, tmp_path):
    content = bytearray(whole_files["keras"].read_bytes())
    content[content.index(b"\x89HDF") + 1000] ^= 1
    path = tmp_path / "flipped.keras"
    path.write_bytes(content)
    with pytest.raises(LoadError, match=r"flipped\.keras"):
        onnxfix.load(path)


@pytest.fixture(scope="module")
def whole_files(tmp_path_factory):
    """A complete small model file of every format."""
    torch, keras = pytest.importorskip("torch"), pytest.importorskip("keras")
    tf = pytest.importorskip("tensorflow")
    folder = tmp_path_factory.mktemp("whole")
    onnx.save(dense(), folder / "m.onnx")
    layer = torch.nn.Linear(4, 3).eval()
    torch.jit.trace(layer, torch.ones(2, 4)).save(folder / "m.pt")
    torch.export.save(torch.export.export(layer, (torch.ones(2, 4),)), folder / "m.pt2")
    net = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    net.save(folder / "m.keras")
    net.save(folder / "m.h5")
    (folder / "m.tflite").write_bytes(tf.lite.TFLiteConverter.from_keras_model(net).convert())
    return {path.suffix[1:]: path for path in folder.iterdir()}


@pytest.mark.parametrize(
    "real, claimed", [("onnx", "tflite"), ("onnx", "h5"), ("onnx", "keras"), ("onnx", "pt"), ("tflite", "onnx"),
                      ("keras", "onnx"), ("h5", "tflite"), ("pt", "onnx"), ("tflite", "pb")],
)
def test_an_extension_that_lies(folder, capsys, real, claimed, whole_files):
    shutil.copy(whole_files[real], folder / f"liar.{claimed}")
    assert f"liar.{claimed}" in refused(folder, capsys, call("compare", target=f"liar.{claimed}"))


def test_zip_files_that_are_no_models(folder, capsys):
    for suffix in ("keras", "pt", "pt2"):
        with zipfile.ZipFile(folder / f"zip.{suffix}", "w") as file:
            file.writestr("hello.txt", "no model")
        assert f"zip.{suffix}" in refused(folder, capsys, call("compare", target=f"zip.{suffix}"))


def test_other_files_are_no_models(folder, capsys):
    (folder / "notes.txt").write_text("no model")
    assert "notes.txt" in refused(folder, capsys, call("compare", source="notes.txt"))


@pytest.mark.parametrize("verb", VERBS)
def test_inputs_that_cannot_be_matched_name_the_shapes_of_both(folder, capsys, verb):
    onnx.save(dense(width=7, name="other"), folder / "wide.onnx")
    sentence = refused(folder, capsys, call(verb, target="wide.onnx"))
    assert "x: float32[n, 4]" in sentence
    assert "other: float32[n, 7]" in sentence


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize(
    "arrays, message",
    [
        ({}, "data are empty"),
        ({"x": np.zeros((0, 4), np.float32)}, "data for input x are empty"),
        ({"x": np.where(np.eye(6, 4) > 0, np.nan, 1).astype(np.float32)}, "NaN at index [0, 0]"),
        ({"x": np.full((2, 4), np.inf, np.float32)}, "infinity at index [0, 0]"),
        ({"x": np.ones((6, 5), np.float32)}, "shape [6, 5], but the model expects x: float32[n, 4]"),
        ({"x": np.ones((6, 4, 1, 1), np.float32)}, "shape [6, 4, 1, 1]"),
        ({"x": np.array([["a"] * 4])}, "expects float32"),
        ({"x": np.ones((2, 4), np.complex64)}, "expects float32"),
    ],
    ids=["no-arrays", "no-samples", "nan", "inf", "width", "rank", "text", "complex"],
)
def test_unusable_data(folder, capsys, verb, arrays, message):
    np.savez(folder / "bad.npz", **arrays)
    assert message in refused(folder, capsys, call(verb, data="bad.npz"))


def test_fractions_for_an_integer_input(folder, capsys):
    onnx.save(dense(name="ids", dtype=TensorProto.INT64), folder / "ids.onnx")
    np.savez(folder / "bad.npz", ids=np.full((2, 4), 0.5))
    sentence = refused(folder, capsys, call("compare", "ids.onnx", "ids.onnx", "bad.npz"))
    assert "float64, but the model expects int64" in sentence


def test_data_files_of_no_use(folder, capsys):
    (folder / "cut.npz").write_bytes((folder / "good.npz").read_bytes()[:100])
    np.savez(folder / "pickled.npz", x=np.array([{}, []], dtype=object))
    (folder / "photos").mkdir()
    for data in ("cut.npz", "pickled.npz", "photos", "good.onnx"):
        assert data in refused(folder, capsys, call("compare", data=data))
    (folder / "photos" / "a.jpg").write_bytes(b"no picture")
    refused(folder, capsys, call("compare", data="photos"))


def test_preprocessing_by_name_is_for_pictures(folder, capsys):
    assert "torch" in refused(folder, capsys, [*call("compare"), "--preprocess", "torch"])


@pytest.mark.parametrize(
    "module, suffix, extra",
    [("torch", "pt2", "pytorch"), ("tensorflow", "keras", "tensorflow"), ("tensorflow", "pb", "tensorflow"),
     ("tf2onnx", "tflite", "tflite")],
)
def test_a_missing_extra_names_the_install_that_mends_it(folder, capsys, monkeypatch, whole_files, module, suffix, extra):
    import tensorflow as tf

    if suffix == "pb":
        graph = tf.Graph()
        with graph.as_default():
            tf.identity(tf.compat.v1.placeholder(tf.float32, [None, 4], name="x"), name="y")
        (folder / "m.pb").write_bytes(graph.as_graph_def().SerializeToString())
    else:
        shutil.copy(whole_files[suffix], folder / f"m.{suffix}")
    for name in [name for name in sys.modules if name == module or name.startswith(f"{module}.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    sentence = refused(folder, capsys, call("compare", target=f"m.{suffix}"))
    assert f"pip install 'onnxfix[{extra}]'" in sentence


@pytest.mark.parametrize(
    "output, message",
    [("fixed.pdf", "choose one of .onnx"), ("fixed.tflite", "choose one of .onnx"), ("fixed", "choose one of .onnx"),
     ("gone/fixed.onnx", "the directory gone does not exist"), ("good.onnx", "is the model that is read")],
)
def test_an_output_that_cannot_be_is_refused_before_the_work(folder, capsys, output, message):
    onnx.save(dense(weight=2.0), folder / "target.onnx")
    arguments = ["repair", "good.onnx", "target.onnx", "--data", "good.npz", "-o", output]
    assert message in refused(folder, capsys, arguments)


def test_reports_and_json_are_checked_before_the_work(folder, capsys):
    assert "r.pdf is no report file" in refused(folder, capsys, [*call("repair")[:-1], "r.pdf"])
    assert "gone does not exist" in refused(folder, capsys, [*call("repair")[:-1], "gone/r.md"])
    assert "gone does not exist" in refused(folder, capsys, ["inspect", "good.onnx", "--json", "gone/i.json"])


def test_an_existing_output_survives_a_failure(folder, capsys, monkeypatch):
    onnx.save(dense(weight=2.0), folder / "target.onnx")
    (folder / "fixed.onnx").write_bytes(b"precious")
    np.savez(folder / "bad.npz", x=np.full((2, 4), np.nan))
    refused(folder, capsys, call("repair", target="target.onnx", data="bad.npz"))

    def fail(*_, **__):
        raise ExportError("the disk is full.")

    monkeypatch.setattr("onnxfix.surgeon.giveback.give_back", fail)
    assert main(["repair", "good.onnx", "target.onnx", "--data", "good.npz", "-o", "fixed.onnx", "-q"]) in (1, 2)
    assert (folder / "fixed.onnx").read_bytes() == b"precious"


def test_an_existing_output_is_replaced_by_a_complete_one(folder):
    (folder / "out.onnx").write_bytes(b"old")
    assert main(["canonicalize", "good.onnx", "-o", "out.onnx", "-q"]) == 0
    assert onnxfix.compare("good.onnx", "out.onnx", "good.npz").equivalent
    assert sorted(path.name for path in folder.iterdir()) == ["good.npz", "good.onnx", "out.onnx"]
