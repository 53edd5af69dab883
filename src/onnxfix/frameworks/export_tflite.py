"""Any model as a TFLite file by litert-torch, and the check of any TFLite file."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from onnxfix.errors import ExportError, MissingDependencyError
from onnxfix.frameworks.agreement import disagreement
from onnxfix.frameworks.example_inputs import accepted_feeds
from onnxfix.frameworks.quiet import quiet
from onnxfix.frameworks.tflite import open_interpreter

if TYPE_CHECKING:
    from onnxfix.frameworks import Feeds
    from onnxfix.model import Model, TensorSpec

# torch.export wants a bound; it does not end up in the file.
_LARGEST_BATCH = 1 << 16


def by_module(model: Model, feeds: Feeds | None) -> bytes:
    """A PyTorch model, its batch open where the model leaves it so."""
    from onnxfix.frameworks.pytorch import positional

    return _by_litert_torch(positional(model), with_open_batch(model, feeds), variadic=True)


def by_module_fixed(model: Model, feeds: Feeds | None) -> bytes:
    """A PyTorch model, every size fixed."""
    from onnxfix.frameworks.pytorch import positional

    return _by_litert_torch(positional(model), with_fixed_sizes(model, feeds))


def by_legalised(model: Model, feeds: Feeds | None) -> bytes:
    """Any model: its legalised graph to PyTorch by onnx2torch, from there by litert-torch; the batch stays open."""
    return _by_way_of_torch(with_open_batch(model, feeds))


def by_legalised_fixed(model: Model, feeds: Feeds | None) -> bytes:
    """The same with every size fixed, so that all computed shapes are folded."""
    return _by_way_of_torch(with_fixed_sizes(model, feeds))


def by_canonical_fixed(model: Model, feeds: Feeds | None) -> bytes:
    """The same from the normal form, which has fewer ops, spelled in another way."""
    from onnxfix.model import Model

    proto = with_fixed_sizes(model, feeds).canonical
    return _by_way_of_torch(Model(proto=proto, native=proto))


def with_fixed_sizes(model: Model, feeds: Feeds | None = None) -> Model:
    """The lowered model with a batch of one; other open sizes are those of ``feeds``, or 1."""
    from onnxfix.model import Model

    proto = _with_sizes(model.proto, feeds, 1)
    return Model(proto=proto, native=proto)


def with_open_batch(model: Model, feeds: Feeds | None = None) -> Model:
    """The lowered model, which has an open batch; other open sizes are fixed as in :func:`with_fixed_sizes`."""
    from onnxfix.model import Model

    proto = _with_sizes(model.proto, feeds, "batch")
    return Model(proto=proto, native=proto)


def _with_sizes(proto: onnx.ModelProto, feeds: Feeds | None, batch: int | str) -> onnx.ModelProto:
    """A copy of a graph whose open input dimensions are set, with nothing said about shapes inside."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    del copy.graph.value_info[:]
    for info in copy.graph.input:
        shape = np.shape((feeds or {}).get(info.name, ()))
        for axis, dim in enumerate(info.type.tensor_type.shape.dim):
            if dim.HasField("dim_value") and dim.dim_value > 0:
                continue
            size = batch if axis == 0 else shape[axis] if axis < len(shape) else 1
            if isinstance(size, str):
                dim.dim_param = size
            else:
                dim.dim_value = size
    for info in copy.graph.output:
        for dim in info.type.tensor_type.shape.dim:
            if not dim.HasField("dim_value"):
                dim.ClearField("dim_param")
    return copy


def _by_way_of_torch(model: Model) -> bytes:
    from onnxfix.frameworks.export_pytorch import converted

    return _by_litert_torch(converted(model.proto, "litert-torch"), model)


def _by_litert_torch(module: Any, model: Model, *, variadic: bool = False) -> bytes:
    """A module by litert-torch; ``model`` says what sizes it takes, ``variadic`` that it takes them as ``*tensors``."""
    from onnxfix.frameworks.converters import has_open_batch
    from onnxfix.frameworks.export_pytorch import first_line
    from onnxfix.frameworks.torch_call import to_tensor
    from onnxfix.frameworks.torch_lowering import quiet as quiet_torch

    try:
        with quiet(), quiet_torch():
            import litert_torch
            import torch
    except ImportError as error:
        raise MissingDependencyError("litert-torch", "tflite", "writing a TFLite model") from error
    batch = torch.export.Dim("batch", min=1, max=_LARGEST_BATCH)
    each = tuple({0: batch} for _ in model.inputs)
    shapes = None if not has_open_batch(model) else (each,) if variadic else each
    example = tuple(to_tensor(np.zeros(_sizes(spec), spec.dtype)) for spec in model.inputs)
    with tempfile.TemporaryDirectory(prefix="onnxfix-") as folder:
        path = Path(folder) / "model.tflite"
        try:
            with quiet(), quiet_torch():
                litert_torch.convert(module, example, dynamic_shapes=shapes).export(str(path))
        except Exception as error:  # litert-torch lets torch's, jax's and its own errors through
            raise ExportError(f"litert-torch cannot express the model: {first_line(error)}.") from error
        return path.read_bytes()


def _sizes(spec: TensorSpec) -> list[int]:
    return [size if isinstance(size, int) else 2 for size in spec.shape or ()]


def check_tflite(model: Model, data: bytes, inputs: Feeds | None = None) -> None:
    """Refuse a file that, run in LiteRT, does not answer as the model does.

    Raises:
        ExportError: it does not run, or answers differently.
    """
    for feeds in accepted_feeds(model, inputs, batches=(1,) if _is_fixed(data) else (1, 3)):
        expected = model.run(feeds)
        actual = _run(model, data, feeds)
        paired = _paired(expected, actual)
        problem = disagreement(expected, paired) if len(actual) == len(expected) else "number of outputs"
        if problem:
            raise ExportError(f"the TFLite file answers differently from the model ({problem}): export it to onnx.")


def _is_fixed(data: bytes) -> bool:
    return any(detail["shape_signature"][0] != -1 for detail in open_interpreter(data).get_input_details()
               if len(detail["shape_signature"]))


def _run(model: Model, data: bytes, feeds: Feeds) -> dict[str, np.ndarray]:
    """What LiteRT answers, in the order of the file's signature."""
    interpreter = open_interpreter(data)
    signatures = interpreter.get_signature_list()
    try:
        if signatures:
            key = next(iter(signatures))
            runner = interpreter.get_signature_runner(key)
            given = _named(list(signatures[key]["inputs"]), runner.get_input_details(), feeds)
            answers = runner(**given)
            return {name: answers[name] for name in sorted(answers, key=natural)}
        details = interpreter.get_input_details()
        for detail, value in zip(details, feeds.values(), strict=True):
            interpreter.resize_tensor_input(detail["index"], value.shape)
        interpreter.allocate_tensors()
        for detail, value in zip(details, feeds.values(), strict=True):
            interpreter.set_tensor(detail["index"], value.astype(detail["dtype"]))
        interpreter.invoke()
        return {d["name"]: interpreter.get_tensor(d["index"]) for d in interpreter.get_output_details()}
    except (ValueError, RuntimeError) as error:
        raise ExportError(f"LiteRT fails on the TFLite file: {str(error).splitlines()[0]}.") from error


def _named(names: list[str], details: dict[str, Any], feeds: Feeds) -> dict[str, np.ndarray]:
    """Feeds by the signature's names: equal ones, else in order (``args_0``, ``args_1``, ...)."""
    plain = {re.sub(r"\W", "_", name): value for name, value in feeds.items()}
    ordered = sorted(names, key=natural)
    if not set(ordered) <= set(plain):
        plain = dict(zip(ordered, feeds.values(), strict=True))
    return {name: plain[name].astype(details[name]["dtype"]) for name in ordered}


def natural(name: str) -> list[tuple[int, str]]:
    """``output_10`` after ``output_9``."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def _paired(expected: Feeds, actual: Feeds) -> dict[str, np.ndarray]:
    """The file's outputs under the model's names: equal ones, else in order."""
    plain = {name.split(":")[0]: value for name, value in actual.items()}
    if set(plain) == {name.split(":")[0] for name in expected}:
        return {name: plain[name.split(":")[0]] for name in expected}
    return dict(zip(expected, actual.values(), strict=False))


