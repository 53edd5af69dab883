"""Models whose weights are too large to be held twice: mapped from their files, streamed, lent to the runtime."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx_ir
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnxfix
from onnxfix import mapped
from onnxfix.errors import ExportError, LoadError
from onnxfix.frameworks.onnx_files import write_onnx

RNG = np.random.default_rng(0)


def write_model(path: Path, width: int = 64, blocks: int = 1) -> Path:
    """Blocks of MatMul + Add, Gemm with a transposed weight + Mul, and Conv + batch norm; all weights are external."""
    nodes, weights, value = [], {"axes": np.array([2, 3])}, "x"
    for k in range(blocks):
        matrices = {f"{n}{k}": RNG.standard_normal((width, width)).astype(np.float32) / width**0.5 for n in "abc"}
        vectors = {f"{n}{k}": RNG.uniform(0.5, 1.5, width) for n in ("bias", "scale", "g", "h", "m", "v")}
        weights |= matrices | {name: content.astype(np.float32) for name, content in vectors.items()}
        weights[f"c{k}"] = weights[f"c{k}"][:, :, None, None]
        nodes += [
            helper.make_node("MatMul", [value, f"a{k}"], [f"p{k}"]), helper.make_node("Add", [f"p{k}", f"bias{k}"], [f"q{k}"]),
            helper.make_node("Gemm", [f"q{k}", f"b{k}"], [f"r{k}"], transB=1), helper.make_node("Mul", [f"r{k}", f"scale{k}"], [f"s{k}"]),
            helper.make_node("Unsqueeze", [f"s{k}", "axes"], [f"t{k}"]), helper.make_node("Conv", [f"t{k}", f"c{k}"], [f"u{k}"]),
            helper.make_node("BatchNormalization", [f"u{k}", f"g{k}", f"h{k}", f"m{k}", f"v{k}"], [f"w{k}"]),
            helper.make_node("Flatten", [f"w{k}"], [f"x{k}"]), helper.make_node("Relu", [f"x{k}"], [f"y{k}"]),
        ]  # fmt: skip
        value = f"y{k}"
    graph = helper.make_graph(
        nodes, "large", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", width])],
        [helper.make_tensor_value_info(value, TensorProto.FLOAT, ["n", width])],
        [numpy_helper.from_array(content, name) for name, content in weights.items()],
    )
    model = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])
    write_onnx(model, path, external=True)
    return path


@pytest.fixture
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small model that counts as a large one."""
    monkeypatch.setattr(mapped, "MAPPED_FROM", 1024)
    monkeypatch.setattr(mapped, "SMALL", 512)
    return write_model(tmp_path / "net.onnx")


def outputs(model: onnxfix.Model) -> np.ndarray:
    return next(iter(model.run({"x": np.linspace(-1, 1, 192, dtype=np.float32).reshape(3, 64)}).values()))


def externals(proto: onnx.ModelProto) -> int:
    return sum(tensor.data_location == TensorProto.EXTERNAL for tensor in proto.graph.initializer)


def test_weights_stay_in_the_file_and_the_results_are_those_of_weights_in_memory(
    large: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outside = onnxfix.load(large)
    canonical = onnxfix.canonicalize(outside)
    key = onnxfix.fingerprint(large)
    monkeypatch.undo()
    inside = onnxfix.load(large)
    assert (externals(outside.proto), externals(inside.proto)) == (3, 0)
    assert externals(canonical.proto) == 3
    assert all(not tensor.raw_data for tensor in canonical.proto.graph.initializer if len(tensor.dims) > 1)
    np.testing.assert_array_equal(outputs(outside), outputs(inside))
    np.testing.assert_array_equal(outputs(canonical), outputs(onnxfix.canonicalize(inside)))
    assert key == onnxfix.fingerprint(inside)


def test_what_is_saved_is_complete_and_the_same(large: Path, tmp_path: Path) -> None:
    model = onnxfix.load(large)
    canonical = onnxfix.canonicalize(model)
    target = tmp_path / "new" / "canonical.onnx"
    target.parent.mkdir()
    canonical.save(target)
    assert sorted(path.name for path in target.parent.iterdir()) == ["canonical.onnx", "canonical.onnx.data"]
    again = onnxfix.load(target)
    np.testing.assert_array_equal(outputs(again), outputs(canonical))
    np.testing.assert_allclose(outputs(again), outputs(model), rtol=1e-4, atol=1e-5)
    assert onnxfix.fingerprint(target) == onnxfix.fingerprint(model)
    onnx.checker.check_model(target, full_check=True)
    np.testing.assert_array_equal(outputs(onnxfix.load(onnx.load(target))), outputs(canonical))


def test_a_path_and_an_ir_model_are_canonicalized_alike(large: Path) -> None:
    canonical = onnxfix.canonicalize(str(large))
    assert isinstance(canonical, onnxfix.Model)
    found = onnxfix.canonicalize(onnx_ir.load(large))
    assert isinstance(found, onnx_ir.Model)
    kinds = {type(value.const_value) for value in found.graph.initializers.values() if value.const_value.size > 1000}
    assert kinds == {onnx_ir.ExternalTensor}
    ours = {tensor.name: mapped.to_array(tensor) for tensor in canonical.proto.graph.initializer}
    for name, value in found.graph.initializers.items():
        np.testing.assert_array_equal(value.const_value.numpy(), ours[name])


def test_a_model_may_be_saved_over_its_own_file(large: Path) -> None:
    model = onnxfix.load(large)
    canonical = onnxfix.canonicalize(model)
    wanted = outputs(model)
    canonical.save(large)
    np.testing.assert_array_equal(outputs(onnxfix.load(model.proto)), wanted)
    np.testing.assert_array_equal(outputs(onnxfix.load(large)), outputs(canonical))


def test_a_file_that_changed_since_is_noticed(large: Path) -> None:
    proto = onnxfix.load(large).proto
    gc.collect()
    data = large.with_name(f"{large.name}.data")
    data.write_bytes(bytes(data.stat().st_size))
    os.utime(data, ns=(1, 1))
    with pytest.raises(LoadError, match="was changed since"):
        onnxfix.load(proto)


def test_a_save_that_fails_leaves_the_old_files(large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "old.onnx"
    onnxfix.load(large).save(target)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    canonical = onnxfix.canonicalize(large)

    def full(value: np.ndarray) -> object:
        yield value.reshape(-1).view(np.uint8)[:100]
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(mapped, "streamed", full)
    with pytest.raises(ExportError, match="No space left"):
        canonical.save(target)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_proto_cannot_name_a_file_by_itself(large: Path) -> None:
    proto = onnxfix.load(large).proto
    forged = onnx.ModelProto()
    forged.CopyFrom(proto)
    entries = next(t for t in forged.graph.initializer if t.external_data).external_data
    next(entry for entry in entries if entry.key == "checksum").value = "1-2-3-4"
    with pytest.raises(LoadError, match="external file that was not loaded"):
        onnxfix.load(forged)


def test_a_fault_in_a_large_model_is_found_and_repaired(large: Path, tmp_path: Path) -> None:
    proto = onnx.load(large)
    bias = next(tensor for tensor in proto.graph.initializer if tensor.name == "bias0")
    bias.CopyFrom(numpy_helper.from_array(np.zeros(64, np.float32), "bias0"))
    write_onnx(proto, tmp_path / "broken.onnx", external=True)
    data = {"x": RNG.standard_normal((16, 64)).astype(np.float32)}
    fix = onnxfix.repair(large, tmp_path / "broken.onnx", data)
    assert [(fault.kind, fault.parameter) for fault in fix.diagnosis.faults] == [("weights", "bias0")]
    assert fix.success
    fix.save(tmp_path / "fixed.onnx")
    assert (tmp_path / "fixed.onnx.data").exists()
    assert onnxfix.compare(large, tmp_path / "fixed.onnx", data).equivalent


_MEASURED = """
import sys, onnxfix
from onnxfix import mapped
from pathlib import Path

def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) * 1024

def work(path, out):
    onnxfix.canonicalize(onnxfix.load(path)).save(out)
    onnxfix.fingerprint(out)
    onnxfix.fingerprint(path)

mapped.MAPPED_FROM = 1024
warm, path, out = map(Path, sys.argv[1:])
work(warm, out)
Path("/proc/self/clear_refs").write_text("5")
before = peak()
work(path, out)
print(peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is read where Linux tells it")
def test_the_peak_is_far_below_one_copy_of_the_weights(tmp_path: Path) -> None:
    """Resident memory, mapped pages included; the largest of the 24 weights is 4 MB, streams are cut into 16 MB."""
    warm, path = write_model(tmp_path / "warm.onnx", 128), write_model(tmp_path / "net.onnx", 1024, blocks=8)
    weights = path.with_name(f"{path.name}.data").stat().st_size
    command = [sys.executable, "-c", _MEASURED, *map(str, (warm, path, tmp_path / "out.onnx"))]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert weights > 96 * 2**20
    assert int(done.stdout) < 0.5 * weights
