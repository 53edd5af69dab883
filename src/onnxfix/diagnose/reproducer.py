"""A fault as a folder that anyone can run, with a text for the issue tracker of the converter."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from onnxfix.diagnose.evidence import Exhibit
from onnxfix.errors import ExportError

if TYPE_CHECKING:
    from onnxfix.diagnose.fault import Fault

_PACKAGES = (
    "onnx", "onnxruntime", "numpy", "torch", "tensorflow", "keras", "tf2onnx", "onnx2torch", "litert-torch",
    "ai-edge-litert",
)  # fmt: skip
_SCRIPT = '''"""Runs model.onnx on inputs.npz and compares it with expected.npz. Needs numpy and onnxruntime."""

import sys
from pathlib import Path

import numpy as np
import onnxruntime

folder = Path(__file__).parent
options = onnxruntime.SessionOptions()
options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
options.log_severity_level = 4
inputs, expected = np.load(folder / "inputs.npz"), np.load(folder / "expected.npz")
try:
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    actual = session.run(None, {name: inputs[f"input_{k}"] for k, name in enumerate(names)})
except Exception as error:
    print(f"the model does not run: {error}")
    sys.exit(1)
wrong = len(actual) != len(expected.files)
if wrong:
    print(f"{len(actual)} outputs instead of {len(expected.files)}")
for k, got in enumerate(actual[: len(expected.files)]):
    want = expected[f"output_{k}"]
    if want.shape != got.shape:
        print(f"output {k}: shape {got.shape} instead of {want.shape}")
        wrong = True
        continue
    with np.errstate(all="ignore"):
        gap = np.abs(want.astype(np.float64) - got.astype(np.float64))
        gap = np.where(np.isnan(want.astype(np.float64)) & np.isnan(got.astype(np.float64)), 0, gap)
    worst, scale = np.max(gap, initial=0), np.max(np.abs(want.astype(np.float64)), initial=0)
    print(f"output {k}: largest difference {worst:.6g}, largest expected value {scale:.6g}")
    wrong = wrong or not worst <= TOLERANCE * scale
print("differs from what is expected" if wrong else "agrees with what is expected")
sys.exit(int(wrong))
'''


def write_reproducer(fault: Fault, folder: Path) -> Path:
    """Write the smallest model that shows a fault, inputs, expected outputs, a script that runs it, and a README.

    Args:
        fault: A fault that a diagnosis found.
        folder: Where; it is made, and must be empty.

    Raises:
        ExportError: the folder is not empty or cannot be written.
        OnnxFixError: the fault was not found by a diagnosis.
    """
    exhibit = fault.evidence.exhibit()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise ExportError(f"{folder} is not empty: choose another folder for the reproducer.")
        _write_model(exhibit.model, folder / "model.onnx")
        if exhibit.reference is not None:
            _write_model(exhibit.reference, folder / "reference.onnx")
        names = [info.name for info in _inputs(exhibit.model)]
        _save(folder / "inputs.npz", "input", [exhibit.inputs[name] for name in names])
        _save(folder / "expected.npz", "output", exhibit.expected)
        (folder / "reproduce.py").write_text(_SCRIPT.replace("TOLERANCE", f"{_tolerance(fault):g}"), encoding="utf-8")
        (folder / "README.md").write_text(_readme(fault, exhibit), encoding="utf-8")
    except OSError as error:
        raise ExportError(f"{folder} cannot be written: {error.strerror or error}.") from error
    return folder


def _tolerance(fault: Fault) -> float:
    """Well above the region's noise, well below its error."""
    lower, upper = max(fault.noise, 1e-7), fault.local_error if np.isfinite(fault.local_error) else 1.0
    return float(np.sqrt(lower * upper)) if upper > lower else lower


def _save(path: Path, stem: str, arrays: Sequence[np.ndarray]) -> None:
    contents: dict[str, Any] = {f"{stem}_{k}": array for k, array in enumerate(arrays)}
    np.savez(path, **contents)


def _write_model(model: onnx.ModelProto, path: Path) -> None:
    from onnxfix.frameworks.onnx_files import write_onnx

    write_onnx(model, path)


def _inputs(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    constants = {tensor.name for tensor in model.graph.initializer}
    return [info for info in model.graph.input if info.name not in constants]


def _readme(fault: Fault, exhibit: Exhibit) -> str:
    """A text to paste into an issue tracker."""
    ops = ", ".join(dict.fromkeys(node.op_type for node in exhibit.model.graph.node)) or "no ops"
    what = "the whole converted model" if exhibit.whole else f"the part of the converted model that is wrong ({ops})"
    facts = [
        ("kind", str(fault.kind)), ("nodes of the converted model", _listed(fault.target_nodes)),
        ("nodes of the original model", _listed(fault.source_nodes)),
        ("parameter", fault.native_parameter or fault.parameter or "-"), ("expected", _short(fault.expected)),
        ("actual", _short(fault.actual)), ("relative error", f"{fault.local_error:.3g}"),
        ("float noise there", f"{fault.noise:.1g}"),
    ]  # fmt: skip
    rows = "\n".join(f"| {name} | {value} |" for name, value in facts)
    files = [
        f"- `model.onnx`: {what}, as ONNX in a normal form",
        "- `inputs.npz`, `expected.npz`: what goes in, and what the original model makes of it",
        "- `reproduce.py`: runs the one on the other; exit code 1 while the fault is there",
    ]
    if exhibit.reference is not None:
        files.insert(1, "- `reference.onnx`: the same part of the original model, which gives what is expected")
    title = f"Conversion changes the result: {fault.message.rstrip('.')}"
    return (
        f"# {title}\n\n{fault.message}\n\n| | |\n| --- | --- |\n{rows}\n\n## To reproduce\n\n"
        "```sh\npip install numpy onnxruntime\npython reproduce.py\n```\n\n"
        + "\n".join(files)
        + f"\n\n## Environment\n\n{_environment()}\n"
    )


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names) or "-"


def _short(value: object) -> str:
    if isinstance(value, np.ndarray) and value.size > 8:
        return f"{value.dtype}{list(value.shape)}, {value.min():.6g} to {value.max():.6g}"
    return f"`{value}`".replace("\n", " ").replace("|", "\\|")


def _environment() -> str:
    lines = [f"- Python {platform.python_version()}, {platform.system()}"]
    for package in _PACKAGES:
        try:
            lines.append(f"- {package} {version(package)}")
        except PackageNotFoundError:
            continue
    return "\n".join(lines)
