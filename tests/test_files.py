"""Writing models and repairs: complete and verified, or not at all."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import onnxfix
from onnxfix.errors import ExportError
from onnxfix.frameworks import Framework
from onnxfix.surgeon.files import save_model
from onnxfix.surgeon.patch import SetAttribute

torch = pytest.importorskip("torch")
nn = torch.nn

DATA = np.random.default_rng(0).standard_normal((24, 6)).astype(np.float32)


class Dense(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(6, 8)
        self.second = nn.Linear(8, 3)

    def forward(self, x):
        return self.second(torch.relu(self.first(x)))


def broken() -> nn.Module:
    module = Dense().eval()
    module.first.bias.data.zero_()
    return module


def program(module: nn.Module, folder: Path) -> Path:
    batch = torch.export.Dim("batch")
    exported = torch.export.export(module, (torch.from_numpy(DATA),), dynamic_shapes=({0: batch},))
    path = folder / "broken.pt2"
    torch.export.save(exported, str(path))
    return path


def truth(data: np.ndarray = DATA) -> np.ndarray:
    return Dense()(torch.from_numpy(data)).detach().numpy()


@pytest.fixture(scope="module")
def fix() -> onnxfix.Repair:
    source = onnxfix.load(Dense().eval(), DATA)
    target = onnxfix.load(broken(), DATA)
    result = onnxfix.repair(source, target, DATA)
    assert result.success
    return result


def leftovers(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_repair_is_written_into_every_format_of_its_framework(fix: onnxfix.Repair, tmp_path: Path) -> None:
    fix.save(tmp_path / "fixed.onnx")
    fix.save(tmp_path / "fixed.pt2")
    fix.save(tmp_path / "fixed.pt")
    for name in ("fixed.onnx", "fixed.pt2"):
        got = onnxfix.load(tmp_path / name).run_native({"x": DATA})["output"]
        np.testing.assert_allclose(got, truth(), rtol=1e-5, atol=1e-6)
    module = broken()
    module.load_state_dict(torch.load(tmp_path / "fixed.pt", weights_only=True))
    np.testing.assert_allclose(module(torch.from_numpy(DATA)).detach(), truth(), rtol=1e-5, atol=1e-6)
    assert leftovers(tmp_path) == {"fixed.onnx", "fixed.pt2", "fixed.pt"}


def test_a_repaired_file_is_written_back_as_such_a_file(tmp_path: Path) -> None:
    path = program(broken(), tmp_path)
    fix = onnxfix.repair(onnxfix.load(Dense().eval(), DATA), path, DATA)
    fix.save(tmp_path / "fixed.pt2")
    got = torch.export.load(str(tmp_path / "fixed.pt2"))
    np.testing.assert_allclose(got.module()(torch.from_numpy(DATA)).detach(), truth(), rtol=1e-5, atol=1e-6)
    before = torch.export.load(str(path)).state_dict
    changed = {name for name, tensor in got.state_dict.items() if not torch.equal(tensor, before[name])}
    assert changed == {"first.bias"}


def test_a_torchscript_file_is_written_back_as_such_a_file(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.trace(broken(), torch.from_numpy(DATA)), tmp_path / "broken.pt")
    target = onnxfix.load(tmp_path / "broken.pt", DATA)
    fix = onnxfix.repair(onnxfix.load(Dense().eval(), DATA), target, DATA)
    fix.save(tmp_path / "fixed.pt")
    got = torch.jit.load(str(tmp_path / "fixed.pt"))(torch.from_numpy(DATA)).detach()
    np.testing.assert_allclose(got, truth(), rtol=1e-5, atol=1e-6)


def test_a_patch_that_the_format_cannot_express_is_refused(fix: onnxfix.Repair, tmp_path: Path) -> None:
    (tmp_path / "old.pt").write_bytes(b"old")
    patches = (*fix.patches, SetAttribute("node_linear", "alpha", 2.0, 1.0))
    other = replace(fix, patches=patches, model=replace(fix.model, framework=Framework.ONNX))
    with pytest.raises(ExportError, match=r"alpha.*save it as \.onnx"):
        other.save(tmp_path / "old.pt")
    assert (tmp_path / "old.pt").read_bytes() == b"old"
    assert leftovers(tmp_path) == {"old.pt"}


@pytest.mark.parametrize("suffix", [".onnx", ".pt2", ".pt"])
def test_a_file_that_does_not_reproduce_the_source_is_dropped(suffix: str, fix: onnxfix.Repair, tmp_path: Path) -> None:
    path = tmp_path / f"old{suffix}"
    path.write_bytes(b"old")
    wrong = replace(fix, model=fix.target, patches=())
    with pytest.raises(ExportError, match="differs from the source"):
        wrong.save(path)
    assert path.read_bytes() == b"old"
    assert leftovers(tmp_path) == {path.name}


def test_a_suffix_of_another_framework_is_refused(fix: onnxfix.Repair, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"\.tflite"):
        fix.save(tmp_path / "fixed.tflite")
    assert leftovers(tmp_path) == set()


def test_saving_with_parameters_writes_onnx_of_any_framework(fix: onnxfix.Repair, tmp_path: Path) -> None:
    save_model(fix.target, {"second.bias": np.ones(3, np.float32)}, tmp_path / "net.onnx")
    tensors = {t.name: numpy_helper.to_array(t) for t in onnx.load_model(tmp_path / "net.onnx").graph.initializer}
    np.testing.assert_array_equal(tensors["second.bias"], np.ones(3))
    with pytest.raises(ExportError, match="nobody"):
        save_model(fix.target, {"nobody": np.ones(3, np.float32)}, tmp_path / "net.pt")


def test_large_tensors_stay_outside_when_they_were(tmp_path: Path) -> None:
    graph = onnx.parser.parse_graph("g (float[n, 40] x) => (float[n, 40] y) { y = MatMul(x, w) }")
    weight = np.random.default_rng(0).standard_normal((40, 40)).astype(np.float32)
    graph.initializer.append(numpy_helper.from_array(weight, "w"))
    proto = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    onnx.save_model(proto, tmp_path / "in.onnx", save_as_external_data=True, location="in.bin", size_threshold=0)
    onnxfix.load(tmp_path / "in.onnx").save(tmp_path / "out.onnx")
    assert leftovers(tmp_path) == {"in.onnx", "in.bin", "out.onnx", "out.onnx.data"}
    x = np.eye(40, dtype=np.float32)
    np.testing.assert_allclose(onnxfix.load(tmp_path / "out.onnx").run({"x": x})["y"], weight, rtol=1e-6)


def test_a_place_that_cannot_be_written_is_one_sentence(fix: onnxfix.Repair, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "folder.onnx").mkdir()
    for path in (tmp_path / "nowhere" / "x.onnx", tmp_path / "file" / "x.onnx", tmp_path / "folder.onnx"):
        with pytest.raises(ExportError) as caught:
            fix.target.save(path)
        assert "\n" not in str(caught.value) and str(caught.value).endswith(".")
    assert leftovers(tmp_path) == {"file", "folder.onnx"}


def test_a_failing_write_leaves_the_old_file(
    fix: onnxfix.Repair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(b"old")
    half = Path.write_bytes

    def full_disk(self: Path, data: bytes) -> int:
        half(self, data[: len(data) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full_disk)
    with pytest.raises(ExportError, match="No space left"):
        fix.target.save(path)
    assert path.read_bytes() == b"old"
    assert leftovers(tmp_path) == {"net.onnx"}
