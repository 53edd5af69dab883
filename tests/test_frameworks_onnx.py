"""ONNX models: read, checked, run, written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnxfix
from onnxfix.errors import ExportError, LoadError
from onnxfix.frameworks import Framework, adapter

RNG = np.random.default_rng(0)
WEIGHT = RNG.standard_normal((4, 3)).astype(np.float32)
BIAS = RNG.standard_normal(3).astype(np.float32)


def network(names: tuple[str, str, str] = ("dense", "shift", "relu"), **options: object) -> onnx.ModelProto:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name=names[0]),
        helper.make_node("Add", ["h", "b"], ["s"], name=names[1]),
        helper.make_node("Relu", ["s"], ["y"], name=names[2]),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3])],
        [numpy_helper.from_array(WEIGHT, "w"), numpy_helper.from_array(BIAS, "b")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], **{"ir_version": 8, **options})


def expected(x: np.ndarray) -> np.ndarray:
    return np.maximum(x @ WEIGHT + BIAS, 0)


def one_sentence(error: BaseException) -> bool:
    return "\n" not in str(error) and str(error).endswith(".")


@pytest.mark.parametrize("form", ["proto", "ir", "path"])
def test_every_form_runs(form: str, tmp_path: Path) -> None:
    proto = network()
    path = tmp_path / "net.onnx"
    onnx.save_model(proto, path)
    model = onnxfix.load({"proto": proto, "ir": onnx_ir.from_proto(proto), "path": path}[form])
    x = RNG.standard_normal((5, 4)).astype(np.float32)
    assert model.framework is Framework.ONNX
    np.testing.assert_allclose(model.run({"x": x})["y"], expected(x), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(model.run({"x": x})["y"], model.run_native({"x": x})["y"])
    assert dict(model.parameters) == {"w": "w", "b": "b"}


def test_activations_are_the_values_of_the_graph() -> None:
    x = RNG.standard_normal((2, 4)).astype(np.float32)
    values = onnxfix.load(network()).activations({"x": x})
    assert set(values) == {"h", "s", "y"}
    np.testing.assert_allclose(values["h"], x @ WEIGHT, rtol=1e-5, atol=1e-6)


def test_nodes_get_unique_names_and_the_callers_proto_stays() -> None:
    proto = network(("same", "same", ""))
    before = proto.SerializeToString()
    names = [node.name for node in onnxfix.load(proto).proto.graph.node]
    assert names[0] == "same" and len(set(names)) == 3 and "" not in names
    assert proto.SerializeToString() == before


def test_an_ir_version_newer_than_the_runtime_still_runs() -> None:
    model = onnxfix.load(network(ir_version=onnx.IR_VERSION))
    assert model.run({"x": np.zeros((1, 4), np.float32)})["y"].shape == (1, 3)


def test_external_data_are_read_and_written_again(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    onnx.save_model(network(), path, save_as_external_data=True, location="net.bin", size_threshold=0)
    model = onnxfix.load(path)
    x = RNG.standard_normal((2, 4)).astype(np.float32)
    np.testing.assert_allclose(model.run({"x": x})["y"], expected(x), rtol=1e-5, atol=1e-6)
    model.save(tmp_path / "copy.onnx")
    np.testing.assert_allclose(onnxfix.load(tmp_path / "copy.onnx").run({"x": x})["y"], expected(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("location", ["../secret.bin", "/etc/hostname", "link.bin", "sub/../../secret.bin"])
def test_external_data_outside_the_folder_are_refused(location: str, tmp_path: Path) -> None:
    (tmp_path / "secret.bin").write_bytes(WEIGHT.tobytes())
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    (folder / "link.bin").symlink_to(tmp_path / "secret.bin")
    proto = network()
    tensor = proto.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    (folder / "net.onnx").write_bytes(proto.SerializeToString())
    with pytest.raises(LoadError, match="outside its own folder") as caught:
        onnxfix.load(folder / "net.onnx")
    assert one_sentence(caught.value)


def test_external_data_cut_short_or_missing_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    onnx.save_model(network(), path, save_as_external_data=True, location="net.bin", size_threshold=0)
    data = (tmp_path / "net.bin").read_bytes()
    (tmp_path / "net.bin").write_bytes(data[: len(data) // 2])
    with pytest.raises(LoadError, match="cut short"):
        onnxfix.load(path)
    (tmp_path / "net.bin").unlink()
    with pytest.raises(LoadError, match="missing"):
        onnxfix.load(path)


@pytest.mark.parametrize("kept", [0.0, 0.02, 0.1, 0.3, 0.5, 0.9, 0.99])
def test_truncated_files_are_refused(kept: float, tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    data = network().SerializeToString()
    path.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(LoadError, match=r"net\.onnx") as caught:
        onnxfix.load(path)
    assert one_sentence(caught.value)


@pytest.mark.parametrize("content", [b"not a model at all", b"\x1c\x00\x00\x00TFL3" + bytes(64), bytes(range(256)) * 4])
def test_other_content_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(content)
    with pytest.raises(LoadError) as caught:
        onnxfix.load(path)
    assert one_sentence(caught.value)


def test_a_graph_with_an_undefined_input_is_refused() -> None:
    proto = network()
    proto.graph.node[1].input[0] = "nowhere"
    with pytest.raises(LoadError, match="nowhere"):
        onnxfix.load(proto)


def test_a_graph_without_outputs_is_refused() -> None:
    proto = network()
    del proto.graph.output[:]
    with pytest.raises(LoadError, match="no outputs"):
        onnxfix.load(proto)


def test_saved_parameters_are_replaced_and_nothing_else(tmp_path: Path) -> None:
    model = onnxfix.load(network())
    adapter(Framework.ONNX).save(model, {"b": BIAS + 1}, tmp_path / "new.onnx")
    x = RNG.standard_normal((3, 4)).astype(np.float32)
    got = ort.InferenceSession(tmp_path / "new.onnx").run(None, {"x": x})[0]
    np.testing.assert_allclose(got, np.maximum(x @ WEIGHT + BIAS + 1, 0), rtol=1e-5, atol=1e-6)
    written = onnx.load_model(tmp_path / "new.onnx")
    written.graph.initializer[1].CopyFrom(model.proto.graph.initializer[1])
    assert written == model.proto


def test_a_parameter_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    model = onnxfix.load(network())
    for parameters in ({"b": BIAS[:2]}, {"b": BIAS.astype(np.float64)}, {"c": BIAS}):
        with pytest.raises(ExportError):
            adapter(Framework.ONNX).save(model, parameters, tmp_path / "new.onnx")
    with pytest.raises(ExportError, match=r"\.onnx"):
        adapter(Framework.ONNX).save(model, {}, tmp_path / "new.tflite")
