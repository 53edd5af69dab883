"""A conversion ends in a file that agrees with its source, or says what was tried and why each try failed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

import onnxfix
from onnxfix.cli import main
from onnxfix.convert import Outcome, converting
from onnxfix.errors import ExportError, InputError
from onnxfix.frameworks.converters import Converter
from small_onnx import NOISE, images, network, normal, parse, value, with_value

CRASHES = {
    "x_k2o_grouped_conv": ("source.keras", "onnx", ".onnx"),
    "x_o2t_avgpool_asymmetric": ("source.onnx", "pytorch", ".pt2"),
    "x_o2t_depth_to_space_dcr": ("source.onnx", "pytorch", ".pt2"),
    "x_o2t_identity_initializer": ("source.onnx", "pytorch", ".pt2"),
    "x_o2t_reducemean_opset18": ("source.onnx", "pytorch", ".pt2"),
    "x_onnx2tf_grid_sample": ("source.onnx", "tflite", ".tflite"),
    "x_onnxoptimizer_squeeze_negative": ("source.onnx", "onnx", ".onnx"),
    "x_t2onnx_elu": ("source.tflite", "onnx", ".onnx"),
    "x_tflite_lstm_dynamic_batch": ("source.keras", "tflite", ".tflite"),
}


def using(monkeypatch: pytest.MonkeyPatch, **makers: object) -> None:
    """Let conversions to ONNX try these converters."""
    choices = tuple(Converter(name, make) for name, make in makers.items())
    monkeypatch.setattr(converting, "converters", lambda model, to: choices)


def crashes(model: onnxfix.Model, feeds: object) -> onnx.ModelProto:
    raise ExportError("no such luck.")


def perturbs(model: onnxfix.Model, feeds: object) -> onnx.ModelProto:
    return with_value(network(), left_bias=value(network(), "left_bias") + np.float32(0.5))


def loses_an_input(model: onnxfix.Model, feeds: object) -> onnx.ModelProto:
    return parse("g (float[N, 2, 7] other) => (float[N, 2, 7] y) { y = Relu (other) }")


def test_what_agrees_is_kept_and_the_batch_stays_open(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    result = onnxfix.convert(network(), "pytorch", tmp_path / "net.pt2", images())
    assert result.success
    assert result.path == tmp_path / "net.pt2"
    assert [attempt.outcome for attempt in result.attempts] == [Outcome.CONVERTED]
    assert result.repair is None
    assert result.verified.count == 20
    assert result.verified.max_rel < NOISE
    assert result.model.framework == "pytorch"
    written = onnxfix.load(tmp_path / "net.pt2")
    assert onnxfix.compare(network(), written, images(3, seed=5)).max_rel < NOISE
    assert [p.name for p in tmp_path.iterdir()] == ["net.pt2"]


def test_a_tflite_file_takes_any_batch(tmp_path: Path) -> None:
    pytest.importorskip("litert_torch")
    result = onnxfix.convert(network(), "tflite", tmp_path / "net.tflite", images())
    assert result.success
    answers = result.model.run_native({result.model.inputs[0].name: images(3, seed=5)})
    expected = onnxfix.load(network()).run({"image": images(3, seed=5)})["logits"]
    np.testing.assert_allclose(next(iter(answers.values())), expected, rtol=0, atol=NOISE * np.abs(expected).max())


def test_outputs_keep_their_order_in_a_tflite_file(tmp_path: Path) -> None:
    """TensorFlow's converter writes them in any order."""
    keras = pytest.importorskip("keras")
    a, b = keras.Input((4,), name="a"), keras.Input((3,), name="b")
    model = keras.Model([a, b], [keras.layers.Dense(3)(a) + b, keras.layers.Concatenate()([a, b]), keras.ops.sum(b, -1)])
    result = onnxfix.convert(model, "tflite", tmp_path / "net.tflite", {"a": normal(6, 4), "b": normal(6, 3)})
    assert result.success
    assert len(result.attempts) == 1
    assert [len(spec.shape) for spec in result.model.outputs] == [2, 2, 1]


def test_a_pytorch_module_is_traced_on_the_data(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Softplus(beta=2, threshold=1)).eval()
    x = normal(6, 4, scale=3)
    result = onnxfix.convert(module, "onnx", tmp_path / "net.onnx", x)
    assert result.success
    (answer,) = onnxfix.load(tmp_path / "net.onnx").run({result.model.inputs[0].name: x}).values()
    np.testing.assert_allclose(answer, module(torch.from_numpy(x)).detach().numpy(), rtol=0, atol=1e-5)


def test_what_the_exporter_writes_and_nobody_can_run_is_written_in_simpler_ops(tmp_path: Path) -> None:
    """torch.onnx writes an LSTM with projections as an ONNX LSTM, which has none."""
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)

    class Projected(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.LSTM(3, 4, proj_size=2, batch_first=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x)[0]

    x = normal(4, 3, 3)
    result = onnxfix.convert(Projected().eval(), "onnx", tmp_path / "net.onnx", x)
    assert [attempt.outcome for attempt in result.attempts] == [Outcome.UNUSABLE, Outcome.CONVERTED]
    assert result.verified.max_rel < NOISE


def test_the_next_converter_is_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    using(monkeypatch, first=crashes, second=loses_an_input, third=lambda model, feeds: model.proto)
    result = onnxfix.convert(network(), "onnx", tmp_path / "net.onnx", images())
    assert [(a.converter, a.outcome) for a in result.attempts] == [
        ("first", Outcome.FAILED), ("second", Outcome.UNUSABLE), ("third", Outcome.CONVERTED)
    ]
    assert "no such luck" in result.attempts[0].message
    assert result.success
    assert "third" in repr(result)


def test_what_differs_is_repaired_and_proved_on_other_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    using(monkeypatch, wrong=perturbs)
    result = onnxfix.convert(network(), "onnx", tmp_path / "net.onnx", images())
    (attempt,) = result.attempts
    assert attempt.outcome == Outcome.REPAIRED
    assert not attempt.comparison.equivalent
    assert result.repair is attempt.repair
    assert [fault.parameter for fault in result.repair.diagnosis.faults] == ["left_bias"]
    assert result.success
    assert result.verified.count == 4
    assert onnxfix.compare(network(), tmp_path / "net.onnx", images(5, seed=9)).max_rel < NOISE


def test_nothing_is_written_where_nothing_agrees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    using(monkeypatch, first=crashes, second=loses_an_input)
    (tmp_path / "net.onnx").write_bytes(b"old")
    result = onnxfix.convert(network(), "onnx", tmp_path / "net.onnx", images())
    assert not result.success
    assert (result.model, result.path, result.verified) == (None, None, None)
    assert len(result.attempts) == 2
    assert (tmp_path / "net.onnx").read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["net.onnx"]


def test_results_are_data_and_html(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    using(monkeypatch, crashing=crashes, wrong=perturbs)
    result = onnxfix.convert(network(), "onnx", tmp_path / "net.onnx", images())
    data = json.loads(json.dumps(result.to_dict()))
    assert data["success"] is True
    assert (data["from"], data["to"]) == ("onnx", "onnx")
    assert [attempt["outcome"] for attempt in data["attempts"]] == ["failed", "repaired"]
    assert data["repair"]["diagnosis"]["faults"][0]["parameter"] == "left_bias"
    page = result._repr_html_()
    assert "crashing" in page
    assert "no such luck" in page


def test_what_cannot_run_is_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="choose one of"):
        onnxfix.convert(network(), "caffe", tmp_path / "net.x", images())
    with pytest.raises(ExportError, match=r"end in \.tflite"):
        onnxfix.convert(network(), "tflite", tmp_path / "net.onnx", images())
    with pytest.raises(ExportError, match="no folder"):
        onnxfix.convert(network(), "onnx", tmp_path / "nowhere" / "net.onnx", images())
    with pytest.raises(InputError):
        onnxfix.convert(network(), "onnx", tmp_path / "net.onnx", normal(4, 7))


def test_the_command_line_says_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    onnx.save(network(), "net.onnx")
    np.savez("data.npz", image=images(4))
    call = ["convert", "net.onnx", "--to", "onnx", "--data", "data.npz", "-o", "out.onnx"]
    assert main([*call, "--json", "c.json"]) == 0
    assert json.loads(Path("c.json").read_text())["success"] is True
    assert "wrote out.onnx" in capsys.readouterr().out
    assert onnx.load("out.onnx") == network()
    using(monkeypatch, crashing=crashes)
    assert main(["convert", "net.onnx", "--to", "onnx", "--data", "data.npz", "-o", "none.onnx"]) == 1
    assert "no such luck" in capsys.readouterr().out
    assert not Path("none.onnx").exists()
    assert main(["convert", "net.onnx", "--to", "onnx", "--data", "data.npz", "-o", "net.onnx"]) == 2


@pytest.mark.parametrize("case", CRASHES)
def test_what_other_converters_crash_on_is_converted(case: str, shared_data: Path, tmp_path: Path) -> None:
    pytest.importorskip("litert_torch")
    pytest.importorskip("tf2onnx")
    source, to, suffix = CRASHES[case]
    folder = shared_data / "converter_bugs" / case
    result = onnxfix.convert(folder / source, to, tmp_path / f"out{suffix}", folder / "data.npz")
    assert result.success
    assert result.verified.max_rel < NOISE
