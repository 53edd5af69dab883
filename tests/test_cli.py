"""The command line: verbs, exit codes, JSON, and where output goes."""

import json
import os
import subprocess
import sys

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnxfix
from onnxfix.cli import main

RNG = np.random.default_rng(0)


def convolution(path, bias_of_second):
    """A small network with two convolutions; the second one's bias is given."""
    rng = np.random.default_rng(1)
    constants = {
        "w1": rng.normal(size=(6, 3, 3, 3)), "b1": rng.normal(size=6), "w2": rng.normal(size=(5, 6, 3, 3)),
        "b2": bias_of_second,
    }
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["a"], name="first", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["r"], name="relu"),
        helper.make_node("Conv", ["r", "w2", "b2"], ["c"], name="second"),
        helper.make_node("GlobalAveragePool", ["c"], ["p"], name="pool"),
        helper.make_node("Flatten", ["p"], ["y"], name="flatten"),
    ]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 12, 12])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 5])],
        [numpy_helper.from_array(np.float32(value), name) for name, value in constants.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


@pytest.fixture
def files(tmp_path, monkeypatch):
    """source.onnx, same.onnx (equal to it), broken.onnx (a bias lost) and data.npz in the working directory."""
    bias = np.random.default_rng(2).normal(size=5)
    convolution(tmp_path / "source.onnx", bias)
    convolution(tmp_path / "same.onnx", bias)
    convolution(tmp_path / "broken.onnx", bias * 0)
    np.savez(tmp_path / "data.npz", x=RNG.normal(size=(40, 3, 12, 12)).astype(np.float32))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_compare_exits_zero_for_equal_and_one_for_different_models(files, capsys):
    assert main(["compare", "source.onnx", "same.onnx", "--data", "data.npz"]) == 0
    assert "The models agree." in capsys.readouterr().out
    assert main(["compare", "source.onnx", "broken.onnx", "--data", "data.npz"]) == 1
    captured = capsys.readouterr()
    assert "is allowed) on input" in captured.out
    assert captured.err == ""


def test_the_command_line_says_what_python_says(files, capsys):
    main(["compare", "source.onnx", "broken.onnx", "--data", "data.npz", "--limit", "7", "--json", "-"])
    told = json.loads(capsys.readouterr().out)
    assert told == onnxfix.compare("source.onnx", "broken.onnx", "data.npz", limit=7).to_dict()
    assert told["count"] == 7


def test_tolerances_decide(files):
    reach = onnxfix.compare("source.onnx", "broken.onnx", "data.npz")
    call = ["compare", "source.onnx", "broken.onnx", "--data", "data.npz", "--comparator", "regression"]
    assert main([*call, "--atol", str(reach.max_abs * 1.01)]) == 0
    assert main([*call, "--atol", str(reach.max_abs * 0.99), "--rtol", "0"]) == 1


def test_diagnose_exits_one_when_there_are_faults(files, capsys):
    assert main(["diagnose", "source.onnx", "same.onnx", "--data", "data.npz"]) == 0
    assert "No faults found." in capsys.readouterr().out
    assert main(["diagnose", "source.onnx", "broken.onnx", "--data", "data.npz", "--json", "d.json"]) == 1
    assert "1 fault found." in capsys.readouterr().out
    found, = json.loads((files / "d.json").read_text())["faults"]
    assert (found["kind"], found["parameter"]) == ("weights", "b2")


def test_repair_writes_a_model_that_agrees_and_reports(files, capsys):
    call = ["repair", "source.onnx", "broken.onnx", "--data", "data.npz", "-o", "fixed.onnx"]
    assert main([*call, "--report", "r.html", "--json", "r.json"]) == 0
    assert "1 fault found, all repaired" in capsys.readouterr().out
    assert onnxfix.compare("source.onnx", "fixed.onnx", "data.npz", rtol=1e-5).equivalent
    told = json.loads((files / "r.json").read_text())
    assert (told["success"], told["output"]) == (True, "fixed.onnx")
    assert (files / "r.html").read_text().startswith("<!doctype html>")


def test_repair_of_a_right_model_says_so_and_writes_it(files, capsys):
    assert main(["repair", "source.onnx", "same.onnx", "--data", "data.npz", "-o", "out.onnx"]) == 0
    assert "nothing to repair" in capsys.readouterr().out
    assert onnxfix.compare("same.onnx", "out.onnx", "data.npz", rtol=0).equivalent


def test_repair_verifies_on_the_holdout_given(files):
    np.savez(files / "more.npz", x=RNG.normal(size=(9, 3, 12, 12)).astype(np.float32))
    call = ["repair", "source.onnx", "broken.onnx", "--data", "data.npz", "--holdout", "more.npz", "-o", "f.onnx"]
    assert main([*call, "--json", "r.json", "-q"]) == 0
    assert json.loads((files / "r.json").read_text())["verified"]["count"] == 9


def test_canonicalize_writes_the_normal_form(files, capsys):
    assert main(["canonicalize", "source.onnx", "-o", "normal.onnx"]) == 0
    assert "wrote normal.onnx" in capsys.readouterr().out
    assert onnx.load("normal.onnx") == onnxfix.load("source.onnx").canonical


def test_inspect_tells_inputs_operators_and_framework(files, capsys):
    assert main(["inspect", "source.onnx", "--json", "i.json"]) == 0
    text = capsys.readouterr().out
    assert "x: float32[n, 3, 12, 12]" in text
    assert "Conv 2, Flatten 1" in text
    facts = json.loads((files / "i.json").read_text())
    assert facts["framework"] == "onnx"
    assert facts["numbers"] == 6 * 27 + 6 + 5 * 54 + 5
    assert facts["inputs"] == [{"name": "x", "dtype": "float32", "shape": ["n", 3, 12, 12]}]


def test_quiet_prints_nothing(files, capsys):
    assert main(["compare", "source.onnx", "broken.onnx", "--data", "data.npz", "-q"]) == 1
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    "call, message",
    [
        ([], "VERB"),
        (["mend"], "invalid choice: 'mend'"),
        (["compare", "a.onnx"], "required: TARGET, --data"),
        (["compare", "a", "b", "--data", "d", "--limit", "0"], "0 is no whole number of at least 1"),
        (["compare", "a", "b", "--data", "d", "--rtol", "x"], "x is no number of at least 0"),
    ],
)
def test_usage_errors_are_one_sentence(call, message, capsys):
    assert main(call) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def test_bugs_are_one_sentence_too(files, capsys, monkeypatch):
    monkeypatch.setattr(sys.modules["onnxfix.compare"], "compare", lambda *_, **__: 1 / 0)
    assert main(["compare", "source.onnx", "same.onnx", "--data", "data.npz"]) == 2
    assert capsys.readouterr().err == "onnxfix: internal error: ZeroDivisionError: division by zero; run with --debug.\n"
    assert main(["compare", "source.onnx", "same.onnx", "--data", "data.npz", "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_version_and_help():
    for option, text in (("--version", f"onnxfix {onnxfix.__version__}"), ("--help", "repair")):
        done = subprocess.run([sys.executable, "-m", "onnxfix.cli", option], capture_output=True, text=True, check=False)
        assert done.returncode == 0
        assert text in done.stdout


def test_help_imports_no_framework():
    code = "import sys; from onnxfix.cli import main; main(['--help']); print(sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "tensorflow", "keras"} & set(done.stdout.split("'"))


def test_a_pipe_gets_plain_lines_and_stderr_stays_empty(files):
    call = [sys.executable, "-m", "onnxfix.cli", "compare", "source.onnx", "broken.onnx", "--data", "data.npz"]
    done = subprocess.run(call, capture_output=True, text=True, check=False, env=os.environ | {"PYTHONIOENCODING": "ascii"})
    assert done.returncode == 1
    assert done.stderr == ""
    assert "\x1b" not in done.stdout
    assert done.stdout.splitlines()[:2] == ["loading the source ...", "loading the target ..."]
