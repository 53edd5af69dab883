"""A trace names the hop of a chain of conversions that broke the model, and says how."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

import onnxfix
from onnxfix.cli import main
from onnxfix.errors import InputError, LoadError
from small_onnx import images, network, parse, value, with_value


def renamed(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same network, its input under another name."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy.graph.input[0].name = "picture"
    for node in copy.graph.node:
        node.input[:] = ["picture" if name == "image" else name for name in node.input]
    return copy


def shifted(model: onnx.ModelProto, name: str = "left_bias", by: float = 0.5) -> onnx.ModelProto:
    return with_value(model, **{name: value(model, name) + np.float32(by)})


def test_an_intact_chain_has_no_broken_hop() -> None:
    hops = onnxfix.trace([network(), renamed(network()), network()], images())
    assert hops.equivalent
    assert hops.first_broken is None
    assert hops.diagnosis is None
    assert [hop.broken for hop in hops.hops] == [False, False]
    assert "2 hops are intact" in repr(hops)


def test_the_first_broken_hop_is_found_and_diagnosed() -> None:
    broken = shifted(renamed(network()))
    hops = onnxfix.trace([network(), renamed(network()), broken, shifted(broken, "logits_bias")], images())
    assert not hops.equivalent
    assert hops.first_broken == 1
    assert [hop.broken for hop in hops.hops] == [False, True, True]
    assert [fault.parameter for fault in hops.diagnosis.faults] == ["left_bias"]
    assert hops.hops[2].from_first.max_rel > 0
    assert "Hop 2 of 3 broke it" in hops.verdict


def test_a_later_hop_that_keeps_the_damage_is_intact() -> None:
    broken = shifted(network())
    hops = onnxfix.trace([network(), broken, renamed(broken)], images())
    assert hops.first_broken == 0
    assert [hop.broken for hop in hops.hops] == [True, False]
    assert not hops.hops[1].from_first.equivalent


def test_a_model_that_does_not_load_or_run_breaks_its_hop(tmp_path: Path) -> None:
    (tmp_path / "empty.onnx").write_bytes(b"")
    other = parse("g (float[N, 2, 7] other) => (float[N, 2, 7] y) { y = Relu (other) }")
    for bad in (tmp_path / "empty.onnx", other):
        hops = onnxfix.trace([network(), bad, shifted(network())], images())
        assert hops.first_broken == 0
        assert hops.hops[0].error
        assert hops.hops[0].comparison is None
        assert hops.diagnosis is None
        assert hops.hops[1].broken  # compared with the last model that does run
        json.dumps(hops.to_dict(), allow_nan=False)


def test_small_differences_that_add_up_are_told() -> None:
    step = network()
    chain = [step]
    for _ in range(2):
        step = shifted(step, "logits_bias", 7e-3)
        chain.append(step)
    scale = np.abs(onnxfix.load(network()).run({"image": images()})["logits"]).max()
    hops = onnxfix.trace(chain, images(), rtol=float(1.5 * 7e-3 / scale) * 3)
    assert all(not hop.broken for hop in hops.hops)
    assert hops.equivalent == hops.hops[-1].from_first.equivalent


def test_results_are_data_and_html() -> None:
    hops = onnxfix.trace([network(), shifted(network())], images())
    data = json.loads(json.dumps(hops.to_dict()))
    assert data["first_broken"] == 0
    assert data["hops"][0]["broken"] is True
    assert data["diagnosis"]["faults"][0]["parameter"] == "left_bias"
    assert "model 1 (ModelProto)" in hops._repr_html_()


def test_what_cannot_be_traced_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="at least two"):
        onnxfix.trace([network()], images())
    with pytest.raises(LoadError):
        onnxfix.trace([tmp_path / "none.onnx", network()], images())


def test_the_command_line_says_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, model in {"a": network(), "b": renamed(network()), "c": shifted(network())}.items():
        onnx.save(model, f"{name}.onnx")
    np.savez("data.npz", image=images(6))
    assert main(["trace", "a.onnx", "b.onnx", "--data", "data.npz"]) == 0
    assert main(["trace", "a.onnx", "b.onnx", "c.onnx", "--data", "data.npz", "--json", "t.json"]) == 1
    assert "b.onnx -> c.onnx" in capsys.readouterr().out
    assert json.loads(Path("t.json").read_text())["first_broken"] == 1
    assert main(["trace", "a.onnx", "--data", "data.npz"]) == 2
