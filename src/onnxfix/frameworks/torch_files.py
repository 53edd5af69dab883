"""PyTorch files: which of the things that torch writes a file is, and reading it without running its pickles."""

from __future__ import annotations

import copy
import zipfile
from pathlib import Path
from typing import Any

from onnxfix.errors import LoadError, MissingDependencyError
from onnxfix.frameworks.sniff import Content, expect
from onnxfix.frameworks.torch_lowering import quiet

_TORCH = (Content.TORCH_ZIP, Content.TORCH_LEGACY, Content.PICKLE)


def require_torch() -> None:
    """Check that torch is there.

    Raises:
        MissingDependencyError: it is not.
    """
    try:
        import torch  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError("torch", "pytorch", "reading a PyTorch model") from error


def read_torch(path: Path) -> Any:
    """Read an ``ExportedProgram`` or a TorchScript module (in inference mode), on the CPU.

    Pickled modules and checkpoints are refused: unpickling runs code that the file brings along.

    Raises:
        LoadError: the file is something else, damaged, or only weights.
        MissingDependencyError: torch is not installed.
    """
    match _kind(path):
        case "script":
            return _read_script(path)
        case "program":
            return _read_program(path)
    raise LoadError(
        f"{path} holds only weights or a pickled module, not a program: build the module, load_state_dict it, and pass "
        "the module with inputs=."
    )


def with_weights(module: Any, path: Path) -> Any:
    """A copy of a module with the ``state_dict`` that a file holds.

    Raises:
        LoadError: it does not fit the module.
    """
    import torch

    made = copy.deepcopy(module)
    try:
        made.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:  # as in reading a program
        raise LoadError(f"{path} does not hold the weights of this module: {_first(error)}.") from error
    made.__dict__.update({k: v for k, v in module.__dict__.items() if k not in made.__dict__})  # how it is called
    return made


def is_program(path: Path) -> bool:
    """Whether a PyTorch file can be run by itself: TorchScript or an exported program, no mere weights.

    Raises:
        LoadError: it is no PyTorch file, or damaged.
    """
    return _kind(path) != "weights"


def _kind(path: Path) -> str:
    if expect(path, _TORCH, "a PyTorch program") is not Content.TORCH_ZIP:
        return "weights"
    leaves, folders = _members(path)
    if "constants.pkl" in leaves and "code" in folders:
        return "script"
    return "program" if leaves & {"archive_format", "serialized_exported_program.json"} else "weights"


def _members(path: Path) -> tuple[set[str], set[str]]:
    """Names of the archive's members without their folders, and names of all folders."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [Path(name) for name in archive.namelist()]
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise LoadError(f"{path} is a damaged PyTorch archive: download or export it again.") from error
    return {name.name for name in names}, {part for name in names for part in name.parts[:-1]}


def _read_script(path: Path) -> Any:
    require_torch()
    import torch

    try:
        with quiet():
            module = torch.jit.load(str(path), map_location="cpu")
    except Exception as error:  # torch raises RuntimeError and pickle's own errors, the C++ side more
        raise LoadError(f"{path} is a TorchScript file that torch cannot read: {_first(error)}.") from error
    return module.eval()


def _read_program(path: Path) -> Any:
    require_torch()
    import torch

    try:
        with quiet():
            return torch.export.load(str(path))
    except Exception as error:  # as above
        raise LoadError(f"{path} is an exported program that torch cannot read: {_first(error)}.") from error


def _first(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".:")[:300] if lines else type(error).__name__
