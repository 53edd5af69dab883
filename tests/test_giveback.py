"""Repairs given back: in place where the format can hold them, re-exported else, proved, and all or nothing."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import onnxfix
from onnxfix.errors import ExportError
from onnxfix.frameworks import Framework, adapter
from onnxfix.model import Model
from onnxfix.surgeon.apply import apply
from onnxfix.surgeon.files import staged
from onnxfix.surgeon.patch import ChangeBoundary, Patch, ReplaceRegion, SetAttribute, SetNode, SetParameter
from onnxfix.surgeon.written import How

torch = pytest.importorskip("torch")
nn = torch.nn

IMAGES = np.random.default_rng(0).standard_normal((12, 3, 8, 8)).astype(np.float32)
# Float32 sums of at most a few hundred products, in two orders.
CLOSE = {"rtol": 0.0, "atol": 2e-5}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6, eps=1e-2)
        self.clip = nn.Hardtanh(0.0, 0.8)
        self.leak = nn.LeakyReLU(0.1)
        self.deep = nn.Conv2d(6, 6, 3, padding=1)
        self.soft = nn.Softmax(dim=1)
        self.logits = nn.Linear(6, 4)

    def forward(self, x):
        h = self.leak(self.deep(self.clip(self.norm(self.stem(x)))))
        return self.logits(self.soft(h).mean((2, 3)))


def loaded() -> Model:
    return onnxfix.load(Net().eval(), IMAGES[:2])


def program() -> Model:
    batch = torch.export.Dim("batch")
    example = (torch.from_numpy(IMAGES[:2]),)
    return onnxfix.load(torch.export.export(Net().eval(), example, dynamic_shapes=({0: batch},)))


def first(model: Model, op: str) -> onnx.NodeProto:
    return next(node for node in model.proto.graph.node if node.op_type == op)


def held(model: Model, name: str) -> np.ndarray:
    """A constant of the lowered graph."""
    for tensor in model.proto.graph.initializer:
        if tensor.name == name:
            return numpy_helper.to_array(tensor)
    node = next(node for node in model.proto.graph.node if name in node.output)
    value = helper.get_attribute_value(node.attribute[0])
    return numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else np.float32(value)


def checked(model: Model, patches: list[Patch], data: np.ndarray = IMAGES) -> object:
    """The edited native model, which computes what the patched lowered graph computes."""
    native = adapter(model.framework).edited(model, patches)
    patched = replace(model, proto=apply(model.proto, patches), native=native)
    feeds = {model.inputs[0].name: data}
    for name, want in patched.run(feeds).items():
        before = model.run(feeds)[name]
        assert before.shape != want.shape or np.abs(want - before).max() > 1e-3  # the patch does something
        np.testing.assert_allclose(patched.run_native(feeds)[name], want, **CLOSE)
    return native


def attribute(op: str, name: str, value: object):
    def patches(model: Model) -> list[Patch]:
        node = first(model, op)
        previous = next((helper.get_attribute_value(a) for a in node.attribute if a.name == name), None)
        return [SetAttribute(node.name, name, value, previous)]

    return patches


def bound(model: Model) -> list[Patch]:
    kinds = ("value", "value_float")
    constants = [n for n in model.proto.graph.node if n.op_type == "Constant" and n.attribute[0].name in kinds]
    names = [o for node in constants for o in node.output]
    name = next(n for n in names if held(model, n).size == 1 and np.isclose(held(model, n).item(), 0.8))
    return [SetParameter(name, np.full_like(held(model, name), 0.3), held(model, name))]


def left_out(op: str):
    def patches(model: Model) -> list[Patch]:
        node = first(model, op)
        return [SetNode(node, helper.make_node("Identity", [node.input[0]], [node.output[0]], name=node.name))]

    return patches


def put_behind(op: str, new: str):
    def patches(model: Model) -> list[Patch]:
        value = first(model, op).output[0]
        readers = [(n.name, k) for n in model.proto.graph.node for k, v in enumerate(n.input) if v == value]
        node = helper.make_node(new, [value], ["put/in"], name="put/in")
        return [ReplaceRegion((), (node,), {}, dict.fromkeys(readers, "put/in"), lowered=True)]

    return patches


def prepared(model: Model) -> list[Patch]:
    """The input is scaled before anything reads it."""
    name = model.inputs[0].name
    node = helper.make_node("Mul", [name, "factor"], [f"{name}/prepared"], name="prepare")
    return [ChangeBoundary("scale the input", added=(node,), constants={"factor": np.float32(0.25).reshape(())},
                           renamed={name: f"{name}/prepared"})]  # fmt: skip


@pytest.mark.parametrize(
    ("patches", "path", "name", "value"),
    [
        (attribute("BatchNormalization", "epsilon", 1.0), "norm", "eps", 1.0),
        (attribute("LeakyRelu", "alpha", 0.9), "leak", "negative_slope", 0.9),
        (attribute("Softmax", "axis", 2), "soft", "dim", 2),
        (attribute("Conv", "pads", [0, 0, 0, 0]), "stem", "padding", (0, 0)),
        (attribute("Conv", "strides", [2, 2]), "stem", "stride", (2, 2)),
        (bound, "clip", "max_val", pytest.approx(0.3)),
    ],
)
def test_an_attribute_of_a_pytorch_module_is_set_in_a_copy(patches, path, name, value):
    model = loaded()
    before = getattr(model.native.get_submodule(path), name)
    native = checked(model, patches(model))
    assert type(native) is Net
    assert getattr(native.get_submodule(path), name) == value
    assert getattr(model.native.get_submodule(path), name) == before
    changed = {n for n, t in native.state_dict().items() if not torch.equal(t, model.native.state_dict()[n])}
    assert changed == set()


def relabelled(model: Model) -> list[Patch]:
    """Classes in another order, one of them left out."""
    name, shape = model.outputs[0].name, ["batch", 3]
    node = helper.make_node("Gather", [f"{name}/raw", "order"], [name], name="relabel", axis=1)
    output = helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
    return [ChangeBoundary("relabel", outputs=(output,), added=(node,), constants={"order": np.array([2, 0, 1])},
                           renamed={name: f"{name}/raw"})]  # fmt: skip


def weights(native) -> dict:
    return native.state_dict() if isinstance(native, nn.Module) else native.state_dict


@pytest.mark.parametrize("make", [loaded, program])
@pytest.mark.parametrize("patches", [left_out("LeakyRelu"), put_behind("LeakyRelu", "Sigmoid"), prepared, relabelled])
def test_the_graph_of_a_pytorch_model_is_edited(make, patches):
    model = make()
    native = checked(model, patches(model))
    before, after = weights(model.native), weights(native)
    assert before.keys() <= after.keys()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_a_scripted_module_is_refused_but_for_its_weights(tmp_path):
    script = torch.jit.trace(Net().eval(), torch.from_numpy(IMAGES[:2]))
    torch.jit.save(script, tmp_path / "net.pt")
    model = onnxfix.load(tmp_path / "net.pt", IMAGES[:2])
    with pytest.raises(ExportError, match="TorchScript is compiled code"):
        adapter(Framework.PYTORCH).edited(model, left_out("LeakyRelu")(model))


def spoiled() -> Model:
    net = Net().eval()
    net.soft.dim = 2
    return onnxfix.load(net, IMAGES[:2])


@pytest.fixture(scope="module")
def fix() -> onnxfix.Repair:
    result = onnxfix.repair(loaded(), spoiled(), IMAGES)
    assert result.success
    assert result.model.framework == Framework.PYTORCH
    return result


def test_the_result_says_how_it_was_written(fix, tmp_path):
    written = fix.save(tmp_path / "fixed.pt2")
    assert written.how == How.IN_PLACE
    assert (written.reason, written.lost, written.tool) == ("", (), "")
    assert written.changed == tuple(patch.describe() for patch in fix.patches)
    assert written.proof.equivalent
    assert "in place" in written.sentences()[0]
    assert written.to_dict()["how"] == "in place"
    got = onnxfix.load(tmp_path / "fixed.pt2").run_native({"x": IMAGES})["output"]
    np.testing.assert_allclose(got, Net().eval()(torch.from_numpy(IMAGES)).detach(), **CLOSE)


def test_what_cannot_be_done_in_place_is_exported_anew(fix, tmp_path, monkeypatch):
    def refuse(self, model, patches):
        raise ExportError("there is no place for it.")

    monkeypatch.setattr("onnxfix.frameworks.pytorch.PyTorchAdapter.edited", refuse)
    proto = fix.model.proto
    written = replace(fix, model=Model(proto, Framework.ONNX, proto)).save(tmp_path / "fixed.pt2")
    assert written.how == How.RE_EXPORTED
    assert written.reason == "there is no place for it."
    assert "onnx2torch" in written.tool
    assert written.lost
    assert written.proof.equivalent


def test_a_state_dict_cannot_hold_an_attribute(fix, tmp_path):
    with pytest.raises(ExportError, match=r"save the repaired model|repaired ONNX"):
        replace(fix, model=fix.target).save(tmp_path / "fixed.pt")
    assert list(tmp_path.iterdir()) == []


def test_a_protected_file_is_not_replaced(fix, tmp_path):
    path = tmp_path / "old.pt2"
    path.write_bytes(b"old")
    path.chmod(0o444)
    with pytest.raises(ExportError, match="write-protected"):
        fix.save(path)
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["old.pt2"]


def test_a_full_disk_is_one_sentence_and_ends_it(fix, tmp_path, monkeypatch):
    tried = []

    def full(self, model, native, path):
        tried.append(path)
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("onnxfix.frameworks.pytorch.PyTorchAdapter.write", full)
    with pytest.raises(ExportError, match="No space left on device"):
        fix.save(tmp_path / "fixed.pt2")
    assert len(tried) == 1  # no other way is tried
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("folder", [False, True])
def test_a_process_that_is_killed_before_the_end_loses_nothing(folder, tmp_path):
    target = tmp_path / "model"
    if folder:
        target.mkdir()
        (target / "part").write_bytes(b"old")
    else:
        target.write_bytes(b"old")
    code = f"""
        import time
        from pathlib import Path
        from onnxfix.surgeon.files import staged
        with staged(Path({str(target)!r})) as file:
            file.mkdir() if {folder} else file.write_bytes(b"new")
            if {folder}: (file / "part").write_bytes(b"new")
            print("written", flush=True)
            time.sleep(60)
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ) as process:
        assert process.stdout.readline() == b"written\n"
        process.send_signal(signal.SIGKILL)
    assert (target / "part" if folder else target).read_bytes() == b"old"


def test_a_folder_is_exchanged_as_a_whole(tmp_path):
    target = tmp_path / "saved"
    target.mkdir()
    (target / "old").write_bytes(b"old")
    with staged(target) as file:
        file.mkdir()
        (file / "new").write_bytes(b"new")
    assert [p.name for p in tmp_path.iterdir()] == ["saved"]
    assert [p.name for p in target.iterdir()] == ["new"]


def lacking_tanh(with_tanh: bool) -> onnx.ModelProto:
    middle = "b = Tanh(a)" if with_tanh else "b = Identity(a)"
    graph = onnx.parser.parse_graph(
        f"g (float[n, 4, 4, 3] image) => (float[n, 5] y) {{ x = Transpose<perm=[0, 3, 1, 2]>(image) "
        f"a = Conv<pads=[1, 1, 1, 1]>(x, w, c) {middle} d = Conv(b, v) e = ReduceMean<keepdims=0>(d, axes) "
        "y = Mul(e, f) }"
    )
    rng = np.random.default_rng(3)
    for name, shape in (("w", (4, 3, 3, 3)), ("c", (4,)), ("v", (5, 4, 3, 3)), ("f", (5,))):
        graph.initializer.append(numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name))
    graph.initializer.append(numpy_helper.from_array(np.array([2, 3]), "axes"))
    for index, node in enumerate(graph.node):
        node.name = f"mine_{index}"
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def test_a_missing_op_is_put_into_the_callers_own_graph(tmp_path):
    """The normal form has no Transpose at the front and other names; the file keeps both, and its external data."""
    onnx.save_model(lacking_tanh(False), tmp_path / "broken.onnx", save_as_external_data=True, size_threshold=0)
    data = np.random.default_rng(4).standard_normal((20, 4, 4, 3)).astype(np.float32)
    fix = onnxfix.repair(lacking_tanh(True), tmp_path / "broken.onnx", {"image": data})
    assert fix.success
    written = fix.save(tmp_path / "fixed.onnx")
    assert written.how == How.IN_PLACE
    fixed = onnx.load_model(tmp_path / "fixed.onnx")
    before = onnx.load_model(tmp_path / "broken.onnx")
    names = {node.name for node in before.graph.node}
    assert {node.op_type for node in fixed.graph.node if node.name not in names} == {"Tanh"}
    assert {node.name for node in fixed.graph.node} >= names - {"mine_2"}
    old = {t.name: numpy_helper.to_array(t) for t in before.graph.initializer}
    new = {t.name: numpy_helper.to_array(t) for t in fixed.graph.initializer}
    assert old.keys() == new.keys()
    assert all(np.array_equal(old[name], new[name]) for name in old)



@pytest.mark.parametrize("name", ["net.h5", "net.pb"])
def test_keras_and_tensorflow_models_are_exported_in_their_older_formats(name, tmp_path):
    pytest.importorskip("tensorflow")
    graph = onnx.parser.parse_graph("g (float[n, 6] x) => (float[n, 3] y) { y = MatMul(x, w) }")
    weight = np.random.default_rng(5).standard_normal((6, 3)).astype(np.float32)
    graph.initializer.append(numpy_helper.from_array(weight, "w"))
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnxfix.export(proto, "keras" if name == "net.h5" else "tensorflow", tmp_path / name)
    model = onnxfix.load(tmp_path / name)
    got = model.run_native({model.inputs[0].name: np.eye(6, dtype=np.float32)})
    np.testing.assert_allclose(next(iter(got.values())), weight, rtol=1e-6)
