"""Conversions of the shared data, ``clean_conversions`` and ``converter_bugs`` in ``$ONNXFIX_DATA``, as they lie there.

A PyTorch source is ``source.pt2`` where there is one, else the module that ``model_def.py`` builds. A ``target.pt`` is
the pickled result of a converter; unpickling runs code, which is all right for files of one's own and for no others.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
from photos import data_root

import onnxfix


class Case:
    """One folder: two models, the data, and what is known of them."""

    def __init__(self, collection: str, name: str) -> None:
        self.name, self.folder = name, data_root() / collection / name
        self.facts: dict[str, Any] = json.loads((self.folder / "case.json").read_text())
        self.data = self.folder / "data.npz"

    @property
    def first(self) -> dict[str, np.ndarray]:
        """The first sample, by input name."""
        with np.load(self.data) as arrays:
            return {name: arrays[name] for name in arrays if "__" not in name.rsplit(":", 1)[-1]}

    def source(self) -> onnxfix.Model:
        """The model that was converted."""
        saved = (self.folder / "source.pt2", self.folder / self.facts["source"].split()[0].rstrip("/"))
        path = next((path for path in saved if path.exists()), None)
        return onnxfix.load(path) if path else onnxfix.load(self.module(), inputs=self.examples())

    def original(self) -> onnxfix.Model:
        """The model that was converted, a PyTorch one as the module: an exported program may answer differently."""
        definition = self.folder / "model_def.py"
        return onnxfix.load(self.module(), inputs=self.examples()) if definition.exists() else self.source()

    def target(self) -> onnxfix.Model:
        """What the converter made of it."""
        path = self.folder / self.facts["target"].split()[0]
        return onnxfix.load(_unpickled(path), inputs=self.examples()) if path.suffix == ".pt" else onnxfix.load(path)

    def module(self) -> Any:
        """The PyTorch module that ``model_def.py`` builds."""
        spec = importlib.util.spec_from_file_location(f"{self.name}_model_def", self.folder / "model_def.py")
        if spec is None or spec.loader is None:
            raise FileNotFoundError(f"{self.name} has no model_def.py")
        definition = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(definition)
        return definition.build_model()

    def examples(self) -> tuple[Any, ...]:
        """The first sample as PyTorch tensors."""
        import torch

        return tuple(map(torch.from_numpy, self.first.values()))


def cases(collection: str) -> list[Case]:
    """All cases of a collection, by name."""
    return [Case(collection, path.parent.name) for path in sorted((data_root() / collection).glob("*/case.json"))]


def _unpickled(path: Path) -> Any:
    from onnxfix.frameworks.torchvision_ops import ensure_torchvision_importable

    ensure_torchvision_importable()  # the pickles hold modules of onnx2torch, which imports torchvision
    import torch

    return torch.load(path, weights_only=False).eval()
