"""PyTorch models: modules, exported programs and TorchScript, lowered, run and written back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnxfix
from onnxfix.errors import ExportError, LoadError
from onnxfix.frameworks import Framework, adapter

torch = pytest.importorskip("torch")
nn, functional = torch.nn, torch.nn.functional

FLOAT_NOISE = 1e-5  # relative; float32 sums in another order, a few hundred terms deep


class ConvNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.head = nn.Linear(6, 4)
        self.norm.running_mean.normal_()
        self.norm.running_var.uniform_(0.5, 2)

    def forward(self, x):
        return self.head(functional.relu6(self.norm(self.conv(x))).mean((2, 3)))


class Softplus(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.dense = nn.Linear(4, 3)

    def forward(self, x):
        return functional.softplus(self.dense(x), beta=1.0, threshold=1.0)


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(10, 5)
        self.dense = nn.Linear(4, 5)

    def forward(self, ids, x, scale: float = 1.0):
        h = self.table(ids).mean(1) + self.dense(x) * scale
        return {"hidden": h, "score": h.sum(1), "nothing": None}


class Nested(nn.Module):
    def forward(self, batch):
        return batch["a"] * 2 + batch["rest"][0]


class Branching(nn.Module):
    def forward(self, x):
        if x.abs().max() > 2.0:
            x = x / x.abs().max()
        return x.tanh()


def image(batch: int = 2) -> np.ndarray:
    return np.random.default_rng(batch).standard_normal((batch, 3, 8, 8)).astype(np.float32)


def vector(batch: int = 2) -> np.ndarray:
    return np.random.default_rng(batch).standard_normal((batch, 4)).astype(np.float32)


def ids(batch: int = 2) -> np.ndarray:
    return np.random.default_rng(batch).integers(0, 10, (batch, 7))


def disagreement(model: onnxfix.Model, feeds: dict[str, np.ndarray]) -> float:
    lowered, native = model.run(feeds), model.run_native(feeds)
    assert list(lowered) == list(native) == [spec.name for spec in model.outputs]
    assert [v.shape for v in lowered.values()] == [v.shape for v in native.values()]
    assert [v.dtype for v in lowered.values()] == [v.dtype for v in native.values()]
    return max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in zip(lowered.values(), native.values(), strict=True))


@pytest.fixture(scope="module")
def conv() -> onnxfix.Model:
    return onnxfix.load(ConvNet().eval(), image())


def test_a_module_runs_like_its_lowering_at_any_batch_size(conv: onnxfix.Model) -> None:
    assert conv.framework is Framework.PYTORCH
    assert [spec.name for spec in conv.inputs] == ["x"]
    assert conv.inputs[0].shape == ("batch", 3, 8, 8)
    for batch in (1, 2, 5):
        assert disagreement(conv, {"x": image(batch)}) < FLOAT_NOISE


def test_parameters_keep_their_qualified_names_and_values(conv: onnxfix.Model) -> None:
    state = conv.native.state_dict()
    assert set(conv.parameters.values()) == set(state) - {"norm.num_batches_tracked"}
    for tensor in conv.proto.graph.initializer:
        if tensor.name in conv.parameters:
            np.testing.assert_array_equal(numpy_helper.to_array(tensor), state[conv.parameters[tensor.name]].numpy())


def test_nodes_know_their_layers_and_have_unique_names(conv: onnxfix.Model) -> None:
    assert {"conv", "norm", "head"} <= set(conv.layers.values())
    names = [node.name for node in conv.proto.graph.node]
    assert len(set(names)) == len(names)
    conv_node = next(node for node in conv.proto.graph.node if node.op_type == "Conv")
    assert conv.layers[conv_node.name] == "conv"


def test_a_module_in_training_mode_is_lowered_for_inference_and_left_alone() -> None:
    module = ConvNet().train()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    model = onnxfix.load(module, image())
    assert module.training and not model.native.training
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())
    np.testing.assert_allclose(
        model.run({"x": image()})["output"], ConvNet().eval()(torch.from_numpy(image())).detach(), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize(
    "inputs",
    [(ids(), vector()), (ids(), vector(), 0.5), {"x": vector(), "ids": ids()}, (ids(1), vector(1))],
    ids=["tuple", "constant", "dict", "one sample"],
)
def test_inputs_by_position_by_name_and_constants(inputs: Any) -> None:
    model = onnxfix.load(TwoInputs().eval(), inputs)
    assert {spec.name for spec in model.inputs} == {"ids", "x"}
    assert [spec.name for spec in model.outputs] == ["output", "output_1"]
    assert disagreement(model, {"ids": ids(3), "x": vector(3)}) < FLOAT_NOISE


def test_a_constant_argument_counts_in_both_runs() -> None:
    halves = onnxfix.load(TwoInputs().eval(), (ids(), vector(), 0.5))
    whole = onnxfix.load(TwoInputs().eval(), (ids(), vector()))
    feeds = {"ids": ids(), "x": vector()}
    assert np.abs(halves.run_native(feeds)["output"] - whole.run_native(feeds)["output"]).max() > 0.01
    assert disagreement(halves, feeds) < FLOAT_NOISE


def test_nested_inputs_have_joined_names() -> None:
    model = onnxfix.load(Nested(), ({"a": vector(), "rest": [vector()]},))
    assert [spec.name for spec in model.inputs] == ["batch_a", "batch_rest_0"]
    assert disagreement(model, {"batch_a": vector(3), "batch_rest_0": vector(3)}) == 0


def test_an_input_may_be_called_like_a_value_of_the_graph() -> None:
    class Cat(nn.Module):
        def forward(self, cat, add):
            return torch.cat([cat + add, add], 1)

    model = onnxfix.load(Cat(), (vector(), vector()))
    assert [spec.name for spec in model.inputs] == ["cat", "add"]
    assert disagreement(model, {"cat": vector(3), "add": vector(3)}) == 0


def test_branches_on_data_are_kept() -> None:
    model = onnxfix.load(Branching(), vector())
    for scale in (0.1, 10.0):
        assert disagreement(model, {"x": vector() * np.float32(scale)}) < FLOAT_NOISE


def test_squeezing_a_dimension_that_is_not_one_does_nothing() -> None:
    class Squeezes(nn.Module):
        def forward(self, x):
            return x.squeeze(1), x[:, :1].squeeze((1, 2))

    model = onnxfix.load(Squeezes(), vector()[:, :, None])
    assert disagreement(model, {"x": vector(3)[:, :, None]}) == 0


def test_resizing_by_a_factor_gives_the_size_that_torch_gives() -> None:
    class Resizes(nn.Module):
        def forward(self, x):
            return functional.interpolate(x, scale_factor=(float(np.float32(11 / 7)), 0.5), mode="bilinear")

    x = np.random.default_rng(0).standard_normal((2, 3, 7, 8)).astype(np.float32)
    model = onnxfix.load(Resizes(), x)
    assert model.run_native({"x": x})["output"].shape == (2, 3, 10, 4)
    assert disagreement(model, {"x": x}) < FLOAT_NOISE


def test_activations_of_a_module_are_its_submodules_answers(conv: onnxfix.Model) -> None:
    values = conv.activations({"x": image()})
    assert set(values) == {"conv", "norm", "head", "output"}
    expected = conv.native.conv(torch.from_numpy(image())).detach().numpy()
    np.testing.assert_array_equal(values["conv"], expected)
    np.testing.assert_array_equal(values["head"], values["output"])


def programs() -> dict[str, Callable[[Path], Any]]:
    def exported(folder: Path) -> Any:
        return torch.export.export(Softplus().eval(), (torch.from_numpy(vector()),))

    def saved(folder: Path) -> Path:
        torch.export.save(exported(folder), str(folder / "net.pt2"))
        return folder / "net.pt2"

    def traced(folder: Path) -> Path:
        torch.jit.save(torch.jit.trace(Softplus().eval(), torch.from_numpy(vector())), folder / "net.pt")
        return folder / "net.pt"

    return {"exported program": exported, "pt2": saved, "torchscript": traced}


@pytest.mark.parametrize("form", list(programs()))
def test_programs_run_like_their_lowering(form: str, tmp_path: Path) -> None:
    obj = programs()[form](tmp_path)
    model = onnxfix.load(obj, vector() if form == "torchscript" else None)
    feeds = {"x": vector() * 4}  # on both sides of softplus' threshold
    assert [spec.name for spec in model.inputs] == ["x"]
    assert disagreement(model, feeds) < FLOAT_NOISE
    assert set(model.parameters) == {"dense.weight", "dense.bias"}
    expected = Softplus()(torch.from_numpy(feeds["x"])).detach().numpy()
    np.testing.assert_allclose(model.run(feeds)["output"], expected, rtol=1e-5, atol=1e-6)
    values = model.activations(feeds)
    dense = Softplus().dense(torch.from_numpy(feeds["x"])).detach().numpy()
    assert any(v.shape == dense.shape and np.allclose(v, dense, rtol=1e-5, atol=1e-6) for v in values.values())


@pytest.mark.parametrize(("form", "suffix"), [("pt2", ".pt2"), ("torchscript", ".pt"), ("exported program", ".pt2")])
def test_programs_are_written_back(form: str, suffix: str, tmp_path: Path) -> None:
    inputs = vector() if form == "torchscript" else None
    model = onnxfix.load(programs()[form](tmp_path), inputs)
    path = tmp_path / f"new{suffix}"
    adapter(Framework.PYTORCH).save(model, {"dense.bias": np.full(3, 0.25, np.float32)}, path)
    written = onnxfix.load(path, inputs)
    module = Softplus()
    module.dense.bias.data.fill_(0.25)
    expected = module(torch.from_numpy(vector())).detach().numpy()
    np.testing.assert_allclose(written.run_native({"x": vector()})["output"], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(  # the model itself is as before
        model.run_native({"x": vector()})["output"], Softplus()(torch.from_numpy(vector())).detach(), rtol=1e-5, atol=1e-6
    )


def test_a_module_is_written_as_state_dict_or_as_program(conv: onnxfix.Model, tmp_path: Path) -> None:
    new = {"norm.running_mean": np.zeros(6, np.float32)}
    adapter(Framework.PYTORCH).save(conv, new, tmp_path / "net.pt")
    adapter(Framework.PYTORCH).save(conv, new, tmp_path / "net.pt2")
    module = ConvNet().eval()
    module.load_state_dict(torch.load(tmp_path / "net.pt", weights_only=True))
    assert torch.count_nonzero(module.norm.running_mean) == 0
    assert torch.count_nonzero(conv.native.norm.running_mean) == 6
    expected = module(torch.from_numpy(image(3))).detach().numpy()
    np.testing.assert_allclose(onnxfix.load(tmp_path / "net.pt2").run({"x": image(3)})["output"], expected, rtol=1e-4, atol=1e-5)


def test_values_that_do_not_fit_are_refused(conv: onnxfix.Model, tmp_path: Path) -> None:
    torch_adapter = adapter(Framework.PYTORCH)
    for parameters in ({"head.bias": np.zeros(3, np.float32)}, {"head.bias": np.zeros(4)}, {"nobody": np.zeros(4)}):
        with pytest.raises(ExportError):
            torch_adapter.with_parameters(conv, parameters)
    with pytest.raises(ExportError, match=r"\.pt2"):
        torch_adapter.save(conv, {}, tmp_path / "net.tflite")


def test_a_module_made_from_onnx_with_shape_constants() -> None:
    from onnxfix.frameworks.torchvision_ops import ensure_torchvision_importable

    ensure_torchvision_importable()
    onnx2torch = pytest.importorskip("onnx2torch")

    weight = np.random.default_rng(0).standard_normal((12, 4)).astype(np.float32)
    nodes = [
        helper.make_node("Reshape", ["x", "shape"], ["flat"], name="flatten"),
        helper.make_node("MatMul", ["flat", "w"], ["y"], name="dense"),
    ]
    graph = helper.make_graph(
        nodes, "net", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])],
        [numpy_helper.from_array(np.array([-1, 12]), "shape"), numpy_helper.from_array(weight, "w")],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    x = np.random.default_rng(1).standard_normal((5, 3, 4)).astype(np.float32)
    model = onnxfix.load(onnx2torch.convert(proto), x[:1])
    (name,) = (spec.name for spec in model.inputs)
    assert disagreement(model, {name: x}) < FLOAT_NOISE
    np.testing.assert_allclose(model.run({name: x})["output"], x.reshape(5, 12) @ weight, rtol=1e-5, atol=1e-5)
    assert any(np.array_equal(numpy_helper.to_array(t), weight) for t in model.proto.graph.initializer if t.name in model.parameters)


def test_the_real_mobilenet_through_onnx2torch(shared_data: Path) -> None:
    from onnxfix.frameworks.torchvision_ops import ensure_torchvision_importable

    ensure_torchvision_importable()
    onnx2torch = pytest.importorskip("onnx2torch")
    source = onnx.load_model(shared_data / "models" / "mobilenet_v2_imagenet_float.onnx")
    x = np.random.default_rng(0).uniform(-1, 1, (1, 224, 224, 3)).astype(np.float32)
    model = onnxfix.load(onnx2torch.convert(source), x)
    (name,) = (spec.name for spec in model.inputs)
    assert disagreement(model, {name: x}) < FLOAT_NOISE
    want = onnxfix.load(source).run({"input": x})
    np.testing.assert_allclose(model.run({name: x})["output"], next(iter(want.values())), rtol=1e-4, atol=1e-6)


def one_sentence(error: BaseException) -> bool:
    return "\n" not in str(error) and str(error).endswith(".")


@pytest.mark.parametrize("suffix", [".pt", ".pt2", ".pth"])
def test_mere_weights_are_refused_and_never_unpickled(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"net{suffix}"
    for content in (ConvNet().state_dict(), ConvNet()):
        torch.save(content, path)
        with pytest.raises(LoadError, match="load_state_dict") as caught:
            onnxfix.load(path, image())
        assert one_sentence(caught.value)


@pytest.mark.parametrize("kept", [0.0, 0.01, 0.2, 0.5, 0.8, 0.99])
@pytest.mark.parametrize("form", ["pt2", "torchscript"])
def test_truncated_files_are_refused(form: str, kept: float, tmp_path: Path) -> None:
    path = programs()[form](tmp_path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(LoadError, match=path.name) as caught:
        onnxfix.load(path, vector())
    assert one_sentence(caught.value)


def test_missing_and_lying_files_are_refused(tmp_path: Path) -> None:
    for name, content in {"text.pt": b"hello\n", "tflite.pt2": b"\x1c\x00\x00\x00TFL3" + bytes(64)}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(LoadError, match=name) as caught:
            onnxfix.load(tmp_path / name, vector())
        assert one_sentence(caught.value)
    with pytest.raises(LoadError, match="does not exist"):
        onnxfix.load(tmp_path / "missing.pt")


def test_a_module_without_or_with_wrong_inputs_is_refused() -> None:
    for inputs, words in ((None, "inputs="), (vector(), "fails on the example inputs"), ((image(), image()), "does not take")):
        with pytest.raises(LoadError, match=words) as caught:
            onnxfix.load(ConvNet().eval(), inputs)
        assert one_sentence(caught.value)
