"""A written file run by its own runtime, in a process of its own: ``python -m onnxfix.surgeon.trial FOLDER``.

The folder holds ``job.json`` (framework and path of the file), ``interface.onnx`` (inputs and outputs, no nodes) and
``feeds_000000.npz`` ..., arrays in the order of the inputs; the answers go to ``answers_000000.npz`` ... beside them.
Exit status 3 means that the file cannot be read by a process that knows nothing but the file.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx

from onnxfix.errors import LoadError, MissingDependencyError, OnnxFixError
from onnxfix.frameworks import Framework, adapter
from onnxfix.model import Model

UNREADABLE = 3
FAILED = 4


def interface(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The inputs and outputs of a graph, without its nodes and weights."""
    graph = onnx.helper.make_graph([], "interface", proto.graph.input, proto.graph.output)
    return onnx.helper.make_model(graph, opset_imports=list(proto.opset_import), ir_version=proto.ir_version)


def as_read(framework: Framework, path: Path, proto: onnx.ModelProto) -> Model:
    """A file as a model that only its own runtime can run.

    Raises:
        LoadError: the file cannot be read.
    """
    native = adapter(framework).read(path)
    # ONNX's own runtime runs the graph itself, all others the native object.
    return Model(native if framework == Framework.ONNX else proto, framework, native, path=path)


def packed(arrays: Sequence[np.ndarray], file: Path) -> None:
    """Write arrays, those of types that numpy does not know (bfloat16) too."""
    names = [array.dtype.name for array in arrays]
    np.savez(file, np.array(names), *(np.ascontiguousarray(a).reshape(a.shape) for a in arrays))


def unpacked(file: Path) -> list[np.ndarray]:
    """Read what :func:`packed` wrote."""
    with np.load(file) as stored:
        names, *arrays = (stored[f"arr_{index}"] for index in range(len(stored.files)))
    return [a.view(np.dtype(str(name))) if a.dtype.kind == "V" else a for a, name in zip(arrays, names, strict=True)]


def main(folder: Path) -> int:
    """Run a job; the exit status."""
    job = json.loads((folder / "job.json").read_text())
    proto = onnx.load_model(folder / "interface.onnx")
    try:
        model = as_read(Framework(job["framework"]), Path(job["path"]), proto)
    except (LoadError, MissingDependencyError) as error:
        sys.stderr.write(f"{error}\n")
        return UNREADABLE
    try:
        for feeds in sorted(folder.glob("feeds_*.npz")):
            answers = model.run_native(dict(zip(job["inputs"], unpacked(feeds), strict=True)))
            packed([*answers.values()], folder / feeds.name.replace("feeds", "answers"))
    except OnnxFixError as error:
        sys.stderr.write(f"{error}\n")
        return FAILED
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
