"""Make ``docs/images/repair.svg``: the terminal of a real repair run, exported by rich.

The run is the one that the README shows: the published ``ad01`` autoencoder in Keras, and the TFLite file that a real
converter made of it. The models lie in ``$ONNXFIX_DATA``, by default ``../shared/data``.
"""

from __future__ import annotations

import io
import os
import re
import tempfile
from pathlib import Path

import numpy as np
from rich.console import Console

import onnxfix
from onnxfix.report import terminal

ROOT = Path(__file__).resolve().parents[1]
PICTURE = ROOT / "docs" / "images" / "repair.svg"
COMMAND = "onnxfix repair ad01.h5 ad01_fp32.tflite --data gaussian.npz -o fixed.tflite"


def main() -> None:
    """Run the repair and export what the terminal shows."""
    folder = Path(os.environ.get("ONNXFIX_DATA", ROOT.parent / "shared" / "data")) / "models" / "ad01"
    source = onnxfix.load(folder / "ad01.h5")
    width = source.inputs[0].shape[-1]
    data = np.random.default_rng(0).standard_normal((1000, width)).astype(np.float32)
    repair = onnxfix.repair(source, folder / "ad01_fp32.tflite", data)
    with tempfile.TemporaryDirectory() as scratch:
        repair.save(Path(scratch) / "fixed.tflite")  # so that what the last line says has happened
    console = Console(record=True, width=96, file=io.StringIO(), force_terminal=True)
    console.print(f"[bold]$[/bold] {COMMAND}", highlight=False)
    terminal.show_repair(console, repair)
    console.print("wrote fixed.tflite", highlight=False)
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    svg = console.export_svg(title="onnxfix", clear=False)
    PICTURE.write_text(re.sub(r"@font-face \{.*?\}", "", svg, flags=re.DOTALL))  # the reader's own monospace font does
    print(console.export_text())


if __name__ == "__main__":
    main()
