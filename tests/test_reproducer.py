"""The folder that a fault writes shows the fault by itself, in a process that knows nothing of onnxfix."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

import onnxfix
from broken import BROKEN
from onnxfix import Fault, FaultKind
from onnxfix.errors import ExportError, OnnxFixError
from onnxfix.runtime.session import Session
from small_onnx import images, network, value, with_value

FILES = {"model.onnx", "inputs.npz", "expected.npz", "reproduce.py", "README.md"}


def reproduced(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "reproduce.py"], cwd=folder, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("what", BROKEN)
def test_every_fault_shows_itself(what: str, tmp_path: Path) -> None:
    diagnosis = onnxfix.diagnose(network(), BROKEN[what][0](), images())
    assert diagnosis.faults
    for number, fault in enumerate(diagnosis.faults):
        folder = fault.reproducer(tmp_path / str(number))
        assert {p.name for p in folder.iterdir()} >= FILES
        shown = fault.evidence.exhibit()
        assert shown.error() > 0
        assert len(onnx.load(folder / "model.onnx").graph.node) <= len(network().graph.node)
        readme = (folder / "README.md").read_text()
        assert fault.message in readme
        assert str(fault.kind) in readme


def test_the_script_says_so_until_the_fault_is_gone(tmp_path: Path) -> None:
    weight = value(network(), "left_kernel").copy()
    weight[0, 0, 1, 1] += 0.5
    (fault,) = onnxfix.diagnose(network(), with_value(network(), left_kernel=weight), images()).faults
    folder = fault.reproducer(tmp_path / "fault")
    run = reproduced(folder)
    assert run.returncode == 1, run.stderr
    assert "differs from what is expected" in run.stdout
    model = onnx.load(folder / "model.onnx")
    assert [node.op_type for node in model.graph.node] == ["Conv"]
    inputs, expected = np.load(folder / "inputs.npz"), np.load(folder / "expected.npz")
    assert inputs["input_0"].shape == (1, 4, 8, 8)  # one sample is enough
    reference = onnx.load(folder / "reference.onnx")
    (answer,) = Session(reference).run({reference.graph.input[0].name: inputs["input_0"]}).values()
    np.testing.assert_allclose(answer, expected["output_0"], rtol=0, atol=1e-5)
    (folder / "reference.onnx").replace(folder / "model.onnx")
    run = reproduced(folder)
    assert run.returncode == 0, run.stdout
    assert "agrees" in run.stdout


def test_two_faults_of_one_node_are_shown_apart(tmp_path: Path) -> None:
    bias, weight = value(network(), "left_bias") + np.float32(0.5), value(network(), "left_kernel").copy()
    weight[0, 0, 1, 1] += 0.5
    faults = onnxfix.diagnose(network(), with_value(network(), left_bias=bias, left_kernel=weight), images()).faults
    assert {fault.parameter for fault in faults} == {"left_bias", "left_kernel"}
    for fault in faults:
        (node,) = onnx.load(fault.reproducer(tmp_path / fault.parameter) / "model.onnx").graph.node
        model = fault.evidence.exhibit().model
        constants = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
        wrong = [constants[name] for name in node.input[1:]]
        right_bias = np.allclose(wrong[1], value(network(), "left_bias"))
        assert right_bias == (fault.parameter == "left_kernel")


def test_a_fault_at_the_boundary_is_shown_on_the_whole_model(tmp_path: Path) -> None:
    target = network()
    for own in target.graph.node:
        own.input[:] = ["scaled" if name == "image" else name for name in own.input]
    target.graph.node.insert(0, onnx.helper.make_node("Mul", ["image", "factor"], ["scaled"], "node_scaled"))
    target.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(3), "factor"))
    faults = onnxfix.diagnose(network(), target, images()).faults
    assert faults
    for number, fault in enumerate(faults):
        assert reproduced(fault.reproducer(tmp_path / str(number))).returncode == 1


def test_a_folder_that_is_in_use_is_left_alone(tmp_path: Path) -> None:
    (fault,) = onnxfix.diagnose(network(), BROKEN["a bias zeroed"][0](), images()).faults
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ExportError, match="not empty"):
        fault.reproducer(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_a_fault_made_by_hand_has_nothing_to_show(tmp_path: Path) -> None:
    fault = Fault(FaultKind.GRAPH, ("a",), (), None, None, None, 1.0, "made by hand.")
    with pytest.raises(OnnxFixError, match="not found by a diagnosis"):
        fault.reproducer(tmp_path / "f")
