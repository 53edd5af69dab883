"""What README and docs tell the reader to run does run."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from onnxfix import testing
from onnxfix.cli import main
from onnxfix.diagnose import FaultKind

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
# Exit codes other than 0 that a documented command has, because the classifier it is run on is broken.
DIFFERENT = {"compare", "diagnose", "trace"}


def blocks(page: Path, *languages: str) -> list[str]:
    return [text for language, text in BLOCK.findall(page.read_text()) if language in languages]


def commands(page: Path) -> list[list[str]]:
    lines = "\n".join(blocks(page, "sh", "bash", "console")).replace("\\\n", " ").splitlines()
    return [shlex.split(line.removeprefix("$ "), comments=True) for line in lines if line.strip()]


@pytest.fixture(scope="module")
def classifier(tmp_path_factory) -> Path:
    """A directory with the files that the pages talk about; the TFLite file has lost a bias."""
    keras = pytest.importorskip("keras")
    tf = pytest.importorskip("tensorflow")
    from onnxfix import load
    from onnxfix.frameworks import adapter

    folder = tmp_path_factory.mktemp("classifier")
    keras.utils.set_random_seed(3)
    layers = keras.layers
    model = keras.Sequential([
        keras.Input((8, 8, 3), name="image"),
        layers.Conv2D(4, 3, padding="same", bias_initializer="normal"), layers.ReLU(), layers.Flatten(),
        layers.Dense(5, activation="softmax", bias_initializer=keras.initializers.RandomNormal(stddev=1.0)),
    ])
    model.save(folder / "classifier.keras")
    model.export(folder / "saved_model", verbose=False)
    converted = folder / "converted.tflite"
    converted.write_bytes(tf.lite.TFLiteConverter.from_saved_model(os.fspath(folder / "saved_model")).convert())
    target = load(converted)
    (bias,) = (t.name for t in target.proto.graph.initializer if tuple(t.dims) == (5,))
    adapter(target.framework).save(target, {target.parameters[bias]: np.zeros(5, np.float32)}, folder / "classifier.tflite")
    images = np.random.default_rng(0).standard_normal((64, 8, 8, 3)).astype(np.float32)
    np.savez(folder / "inputs.npz", image=images)
    return folder


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=lambda page: page.name)
def test_python_blocks_run(page, classifier, monkeypatch):
    monkeypatch.chdir(classifier)
    names: dict[str, object] = {"__name__": "__main__"}
    for block in blocks(page, "python"):
        exec(compile(block, os.fspath(page), "exec"), names)
    if page.name == "README.md":
        assert not names["comparison"].equivalent
        assert names["repair"].success
        assert [str(fault.kind) for fault in names["repair"].diagnosis.faults] == ["weights"]
        assert len(names["diagnosis"].faults) == 1
        assert names["same"] is True
        assert (classifier / "repair.html").stat().st_size > 0


@pytest.mark.parametrize("command", [c for c in commands(ROOT / "README.md") if c[0] == "onnxfix"], ids=" ".join)
def test_readme_shell_commands_run(command, classifier, monkeypatch):
    monkeypatch.chdir(classifier)
    assert main(command[1:]) == (1 if command[1] in DIFFERENT else 0)
    if "-o" in command:
        assert (classifier / command[command.index("-o") + 1]).stat().st_size > 0


def test_make_commands_exist():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {text for page in PAGES for text in re.findall(r"`make ([\w-]+)", page.read_text())}
    named |= {words[1] for page in PAGES for words in commands(page) if words[0] == "make"}
    assert {"demo", "test"} <= named <= targets


def test_the_quick_start_is_two_commands():
    quick_start = (ROOT / "README.md").read_text().split("## Quick start")[1].split("\n## ")[0]
    assert re.findall(r"```sh\n(.*?)```", quick_start, re.DOTALL) == ["make demo\nmake test\n"]


def test_links_lead_somewhere():
    for page in PAGES:
        for link in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            assert link.startswith("https://") or (page.parent / link).exists(), f"{page.name}: {link}"


def test_every_fault_kind_and_operator_is_explained():
    text = (ROOT / "docs" / "faults.md").read_text()
    assert all(f"## {kind}" in text or f"`{kind}`" in text for kind in FaultKind)
    text += (ROOT / "docs" / "injection.md").read_text()
    assert [name for name in testing.operators() if f"`{name}`" not in text] == []
