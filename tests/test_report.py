"""Reports say what was found and done, escaped, complete, and readable at a glance."""

import io
import json
import stat

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from rich.console import Console

import onnxfix
from onnxfix import Diagnosis, Fault, FaultKind, Inputs, Repair
from onnxfix.errors import OnnxFixError
from onnxfix.repair import Unrepaired
from onnxfix.report import terminal
from onnxfix.report.names import compact
from onnxfix.surgeon.patch import SetParameter

X = np.random.default_rng(0).normal(size=(10, 4)).astype(np.float32)
WEIGHT = np.random.default_rng(1).normal(size=(4, 3)).astype(np.float32)
LONG = "net/block_{}/convolution/BiasAdd/ReadVariableOp/resource"


def dense(weight):
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="mm")], "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])], [numpy_helper.from_array(weight, "w")],
    )
    return onnxfix.load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


def fault(number, **changes):
    facts = {
        "kind": FaultKind.WEIGHTS, "target_nodes": ("n1", f"CONV@{number}"), "source_nodes": ("m", f"conv_{number}"),
        "parameter": "w", "expected": WEIGHT, "actual": WEIGHT + 1, "local_error": 0.0123, "noise": 2e-7,
        "message": f"bias {number} <differs> | & more", "native_parameter": LONG.format(number),
        "source_parameter": f"conv_{number}/bias",
    }
    return Fault(**(facts | changes))


@pytest.fixture(scope="module")
def repair():
    source, target = dense(WEIGHT), dense(WEIGHT + np.float32(1))
    before, after = onnxfix.compare(source, target, X), onnxfix.compare(source, source, X)
    faults = (fault(1), fault(2, parameter="other", kind=FaultKind.GRAPH))
    return Repair(
        model=source, source=source, target=target, diagnosis=Diagnosis(faults, 1.0, before, ("the runtime is odd",)),
        patches=(SetParameter("w", WEIGHT, WEIGHT + 1),), before=before, after=after, verified=after,
        unrepaired=(Unrepaired(faults[1], "no remedy fits"),), holdout=Inputs(X), holdout_note="a fifth was held out",
    )


def printed(show, result, **options):
    stream = io.StringIO()
    show(Console(file=stream, color_system=None, **options), result)
    return stream.getvalue()


def test_the_fault_table_shows_place_parameter_error_and_deed(repair):
    text = printed(terminal.show_repair, repair, force_terminal=True, width=120)
    rows = [line for line in text.splitlines() if "CONV@" in line]
    assert len(rows) == 2
    assert all(part in rows[0] for part in ("weights", "CONV@1", "1.2e-02", "2.0e-07", "12 of 12 values set"))
    assert "left: no remedy fits" in rows[1]
    assert "<- conv_1/bias" in text
    assert "✗ 2 faults found, 1 not repaired." in text
    for name, mark in (("before", "✗"), ("after", "✓"), ("held out", "✓")):
        assert any(line.strip().startswith(name) and mark in line for line in text.splitlines())


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_no_line_is_wider_than_the_terminal(repair, width):
    text = printed(terminal.show_repair, repair, force_terminal=True, width=width)
    assert max(map(len, text.splitlines())) <= width


def test_a_pipe_gets_one_plain_line_per_fault(repair):
    lines = printed(terminal.show_repair, repair).splitlines()
    assert [line[:3] for line in lines if "error 1.2e-02" in line] == ["1. ", "2. "]
    assert sum("equivalent" in line or "different" in line for line in lines) == 3
    assert not any("\x1b" in line or "─" in line for line in lines)


def test_clean_results_say_so():
    same = onnxfix.compare(dense(WEIGHT), dense(WEIGHT), X)
    assert "The models agree." in printed(terminal.show_comparison, same)
    assert "No faults found." in printed(terminal.show_diagnosis, Diagnosis((), 1.0, same))


def test_markup_in_names_is_printed_as_it_is(repair):
    odd = Diagnosis((fault(1, message="[red]node[/red] [0]"),), 1.0, repair.before)
    assert "[red]node[/red] [0]" in printed(terminal.show_diagnosis, odd)


@pytest.mark.parametrize("width", [16, 24])
def test_long_names_stay_apart(width):
    names = [LONG.format(i) for i in range(12)]
    short = compact(names, width)
    assert len(set(short)) == 12
    assert max(map(len, short)) <= width
    assert compact(["CONV@3 (some/very/long;fused/name)", "b"], width) == ["CONV@3", "b"]
    assert compact(["short"], width) == ["short"]


def test_html_is_escaped_and_self_contained(repair):
    for text in (repair._repr_html_(), repair.diagnosis._repr_html_(), repair.before._repr_html_()):
        assert "<differs>" not in text
        assert "http" not in text
    assert "bias 1 &lt;differs&gt; | &amp; more" in repair._repr_html_()
    assert "✗" in repair.before._repr_html_()


def test_report_files_hold_the_findings(repair, tmp_path):
    for suffix in ("html", "json", "md"):
        repair.report(tmp_path / f"r.{suffix}")
    assert (tmp_path / "r.html").read_text().startswith("<!doctype html>")
    data = json.loads((tmp_path / "r.json").read_text())
    assert data["success"] is False
    assert [f["kind"] for f in data["diagnosis"]["faults"]] == ["weights", "graph"]
    table = [line for line in (tmp_path / "r.md").read_text().splitlines() if line.startswith("| 1 |")]
    assert LONG.format(1) in table[0]
    assert len(list(tmp_path.iterdir())) == 3
    assert stat.S_IMODE((tmp_path / "r.md").stat().st_mode) & 0o444 == 0o444


def test_another_suffix_is_refused_and_nothing_is_written(repair, tmp_path):
    with pytest.raises(OnnxFixError, match=r"r\.pdf is no report file: give it one of the suffixes \.html, \.json, \.md"):
        repair.report(tmp_path / "r.pdf")
    with pytest.raises(OnnxFixError, match="cannot be written"):
        repair.report(tmp_path / "missing" / "r.md")
    assert list(tmp_path.iterdir()) == []
