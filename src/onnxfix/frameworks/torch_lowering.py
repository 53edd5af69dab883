"""PyTorch to raw ONNX: through ``torch.export``, with parameters and module paths under their own names."""

from __future__ import annotations

import ast
import io
import logging
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any

import numpy as np
import onnx

from onnxfix.errors import LoweringError, RuntimeFailure
from onnxfix.frameworks.onnx import name_nodes
from onnxfix.frameworks.torch_call import Call, output_names, outputs_of, to_array
from onnxfix.frameworks.torch_constants import interpreter
from onnxfix.frameworks.torch_mends import mend
from onnxfix.frameworks.torch_padding import padding_as_in_inference

_INNER = "lowered_module"  # attribute of the flattening wrapper that holds the module
_METADATA = "pkg.torch.onnx."
_TORCHSCRIPT_OPSET = 18
_NOISY = ("torch", "torch.onnx", "torch.export", "torch._export", "torch._dynamo", "onnxscript", "onnx_ir")
_SAME = 1e-4  # relative; a converter's mistake is far larger, float32 reordering far smaller


def lower_module(module: Any, call: Call) -> tuple[onnx.ModelProto, dict[str, str]]:
    """Lower an ``nn.Module`` in inference mode.

    The first dimension of every input is dynamic where the module allows it. A module whose forward branches on data
    cannot be traced; it is compiled by TorchScript instead, which keeps both branches.

    Returns:
        The raw graph, and node name -> module path.

    Raises:
        LoweringError: no exporter can express the module.
    """
    flat = _flatten(module, call)
    failures: list[Exception] = []
    examples = list(call.examples.values())
    args, kwargs = call.bind(examples)
    for tensors, dynamic in _attempts(flat, examples):
        try:
            with padding_as_in_inference(module, args, kwargs):
                program = _export(flat, tensors, dynamic)
            return _finish(_to_onnx(program), call.names)
        except Exception as error:  # torch's exporters raise everything from ValueError to AssertionError
            failures.append(error)
    try:
        return _by_torchscript(_script(module), call)
    except Exception:  # as above; the first failure is the one that tells the user something
        raise LoweringError(f"{type(module).__name__} cannot be lowered to ONNX: {_reason(failures[0])}.") from (
            failures[0]
        )


def lower_program(program: Any, names: Sequence[str]) -> tuple[onnx.ModelProto, dict[str, str]]:
    """Lower a ``torch.export.ExportedProgram`` whose tensor inputs are ``names``.

    Raises:
        LoweringError: torch.onnx cannot express the program.
    """
    try:
        with quiet():
            return _finish(_to_onnx(program), names)
    except Exception as error:  # see lower_module
        raise LoweringError(f"the exported program cannot be lowered to ONNX: {_reason(error)}.") from error


def lower_script(script: Any, call: Call) -> tuple[onnx.ModelProto, dict[str, str]]:
    """Lower a TorchScript module.

    It goes through ``torch.export`` where that reproduces it: the TorchScript exporter drops softplus thresholds,
    mis-bounds integer clamps and loses duplicates of ``index_put``. Control flow goes through the TorchScript exporter.

    Raises:
        LoweringError: no exporter can express the module.
    """
    failures: list[Exception] = []
    for lowering in (_by_export, _by_torchscript):
        try:
            proto, layers = lowering(script, call)
            _confirm(proto, script, call)
        except Exception as error:  # see lower_module
            failures.append(error)
        else:
            return proto, layers
    raise LoweringError(f"the TorchScript module cannot be lowered to ONNX: {_reason(failures[-1])}.") from failures[-1]


@contextmanager
def quiet() -> Iterator[None]:
    """Keep what torch's exporters print, log and warn from the user."""
    loggers = [logging.getLogger(name) for name in _NOISY]
    levels = [logger.level for logger in loggers]
    sink = io.StringIO()
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        with warnings.catch_warnings(), redirect_stdout(sink), redirect_stderr(sink):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def renamed(proto: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """A graph that an exporter made, with its inputs under the given names, in place."""
    return _finish(proto, names)[0]


def _flatten(module: Any, call: Call) -> Any:
    """A module from one tensor per input to a tuple of tensors, whatever the wrapped one takes and answers."""
    import torch

    made_by_fx = isinstance(module, torch.fx.GraphModule)
    inner = interpreter(module) if made_by_fx else module

    class Flat(torch.nn.Module):  # type: ignore[misc]  # torch is an extra, so mypy does not follow it
        def __init__(self) -> None:
            super().__init__()
            setattr(self, _INNER, module)

        def forward(self, *tensors: Any) -> tuple[Any, ...]:
            args, kwargs = call.bind(tensors)
            return outputs_of(inner(*args, **kwargs))

    return Flat().eval() if not module.training else Flat()


def _attempts(flat: Any, tensors: list[Any]) -> Iterator[tuple[list[Any], bool]]:
    """(example tensors, dynamic) to try in turn: torch.export freezes dimensions of size 1, so those are doubled."""
    doubled = _doubled(flat, tensors)
    if doubled is not None:
        yield doubled, True
    yield tensors, True
    yield tensors, False


def _doubled(flat: Any, tensors: list[Any]) -> list[Any] | None:
    import torch

    shaped = [t for t in tensors if t.ndim]
    if not shaped or any(t.shape[0] != 1 for t in shaped):
        return None
    candidate = [torch.cat([t, t]) if t.ndim else t for t in tensors]
    try:
        with torch.no_grad(), quiet():
            flat(*candidate)
    except Exception:  # whatever the module raises on two samples, it means that it takes one only
        return None
    return candidate


def _export(flat: Any, tensors: list[Any], dynamic: bool) -> Any:
    import torch

    # AUTO lets export find which first dimensions belong together and which must stay fixed.
    shapes = tuple({0: torch.export.Dim.AUTO} if t.ndim and t.shape[0] > 1 else None for t in tensors)
    fresh = tuple(t.clone() for t in tensors)  # an attempt leaves its dynamic dimensions marked on the tensors
    with quiet(), torch.no_grad():
        return torch.export.export(flat, fresh, dynamic_shapes=(shapes,) if dynamic else None, strict=False)


def lower_resizable(
    flat: Any, tensors: Sequence[Any], names: Sequence[str], free: Sequence[set[int]]
) -> tuple[onnx.ModelProto, dict[str, str]]:
    """Lower a module from one tensor per input to a tuple of tensors, with some dimensions open.

    Args:
        flat: The module.
        tensors: Examples.
        names: The inputs' names.
        free: For each input, the dimensions that are to be open.

    Raises:
        LoweringError: it cannot be exported so.
    """
    import torch

    shapes = tuple(dict.fromkeys(sorted(axes), torch.export.Dim.AUTO) or None for axes in free)
    try:
        with quiet(), torch.no_grad():
            fresh = tuple(t.clone() for t in tensors)
            program = torch.export.export(flat, fresh, dynamic_shapes=(shapes,), strict=False)
        return _finish(_to_onnx(program), names)
    except Exception as error:  # see lower_module
        raise LoweringError(f"the module cannot be lowered for several sizes: {_reason(error)}.") from error


def _to_onnx(program: Any) -> onnx.ModelProto:
    import torch

    with quiet():
        # Inputs are renamed later: the exporter would let them take names that values of the graph have.
        lowered = torch.onnx.export(program, dynamo=True, optimize=False, verbose=False, external_data=False)
        proto: onnx.ModelProto = lowered.model_proto
    mend(proto)
    return proto


def _script(module: Any) -> Any:
    import torch

    with quiet():
        return torch.jit.script(module)


def _by_export(script: Any, call: Call) -> tuple[onnx.ModelProto, dict[str, str]]:
    from torch._export.converter import TS2EPConverter

    examples = list(call.examples.values())
    flat = _flatten(script, call)
    args, kwargs = call.bind(_doubled(flat, examples) or examples)
    with quiet():
        module = TS2EPConverter(script, args, kwargs).convert().module(check_guards=False)
    flat = _flatten(module, call)
    for tensors, dynamic in _attempts(flat, examples):
        try:
            return _finish(_to_onnx(_export(flat, tensors, dynamic)), call.names)
        except Exception as error:  # see lower_module
            failure = error
    raise failure


def _by_torchscript(script: Any, call: Call) -> tuple[onnx.ModelProto, dict[str, str]]:
    import torch

    args, kwargs = call.bind(list(call.examples.values()))
    axes = {name: {0: "batch"} for name, tensor in call.examples.items() if tensor.ndim}
    buffer = io.BytesIO()
    with quiet():
        torch.onnx.export(
            script, args, buffer, kwargs=kwargs, dynamo=False, do_constant_folding=False, verbose=False,
            keep_initializers_as_inputs=False, input_names=list(call.names), dynamic_axes=axes,
            opset_version=_TORCHSCRIPT_OPSET,
        )
    return _finish(onnx.load_model_from_string(buffer.getvalue()), call.names)


def _confirm(proto: onnx.ModelProto, script: Any, call: Call) -> None:
    """Refuse a lowering that does not reproduce the module on its own example inputs."""
    import torch

    from onnxfix.runtime.session import Session

    args, kwargs = call.bind(list(call.examples.values()))
    with torch.no_grad():
        expected = [to_array(tensor) for tensor in outputs_of(script(*args, **kwargs))]
    session = Session(proto)
    actual = session.run({name: to_array(tensor) for name, tensor in call.examples.items()})
    for want, got in zip(expected, actual.values(), strict=True):
        scale = float(np.max(np.abs(want), initial=1e-6))
        if want.shape != got.shape or not np.allclose(want, got, rtol=0, atol=_SAME * scale, equal_nan=True):
            raise RuntimeFailure("the lowered graph does not reproduce the TorchScript module")


def _finish(proto: onnx.ModelProto, names: Sequence[str]) -> tuple[onnx.ModelProto, dict[str, str]]:
    """Give the graph its native names, and take the module paths out of the exporter's metadata."""
    rename = _renaming(proto, names)
    _rename_values(proto, rename)
    name_nodes(proto)
    layers = {node.name: path for node in proto.graph.node if (path := _layer(node))}
    for holder in (proto.graph, *proto.graph.node, *proto.graph.input, *proto.graph.output, *proto.graph.value_info):
        del holder.metadata_props[:]  # stack traces with the paths of somebody's machine
    _name_batch(proto)
    return proto, layers


def _renaming(proto: onnx.ModelProto, names: Sequence[str]) -> dict[str, str]:
    graph = proto.graph
    rename = {i.name: name for i, name in zip(graph.input, names, strict=True) if i.name != name}
    for tensor in graph.initializer:
        plain = tensor.name.removeprefix(f"{_INNER}.")
        if plain != tensor.name:
            rename[tensor.name] = plain
    inputs = {i.name for i in graph.input}
    outputs = [o.name for o in graph.output]
    for index, (old, new) in enumerate(zip(outputs, output_names(len(outputs), names), strict=True)):
        stored = old in inputs or any(t.name == old for t in graph.initializer)
        if stored or old in outputs[:index]:  # a value handed out twice, or as it came in
            graph.node.append(onnx.helper.make_node("Identity", [old], [new]))
            graph.output[index].name = new
        else:
            rename[old] = new
    taken = {name for node in graph.node for name in node.output} | {t.name for t in graph.initializer} | inputs
    for index, clash in enumerate(sorted((taken - set(rename)) & set(rename.values()))):
        rename[clash] = f"{clash}_value_{index}"
    return rename


def _rename_values(proto: onnx.ModelProto, rename: dict[str, str]) -> None:
    def apply(graph: onnx.GraphProto) -> None:
        for node in graph.node:
            node.input[:] = [rename.get(name, name) for name in node.input]
            node.output[:] = [rename.get(name, name) for name in node.output]
            for attribute in node.attribute:
                for inner in (attribute.g, *attribute.graphs):
                    apply(inner)
        for holder in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
            holder.name = rename.get(holder.name, holder.name)

    if rename:
        apply(proto.graph)


def _layer(node: onnx.NodeProto) -> str:
    """Module path that made the node, or the torch operator's name at the root of the module."""
    properties = {entry.key: entry.value for entry in node.metadata_props}
    scopes = properties.get(f"{_METADATA}name_scopes")
    if not scopes:
        # The TorchScript exporter puts the module path into the node name: /features/0/Conv
        return ".".join(node.name.strip("/").split("/")[:-1]) if node.name.startswith("/") else ""
    known = [str(scope) for scope in ast.literal_eval(scopes) if not scope.startswith("_empty_nn_module")]
    inner = known[-2].removeprefix(_INNER).removeprefix(".") if len(known) > 1 else ""
    return inner or "".join(known[-1:])


def _name_batch(proto: onnx.ModelProto) -> None:
    """Call the symbol that all dynamic inputs share ``batch``; torch.export calls it ``s17`` or so."""
    shapes = [i.type.tensor_type.shape for i in proto.graph.input]
    symbols = {shape.dim[0].dim_param for shape in shapes if shape.dim and shape.dim[0].dim_param}
    if len(symbols) != 1:
        return
    (symbol,) = symbols
    pattern = re.compile(rf"\b{re.escape(symbol)}\b")
    for info in (*proto.graph.input, *proto.graph.output, *proto.graph.value_info):
        for dim in info.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = pattern.sub("batch", dim.dim_param)


def _reason(error: Exception) -> str:
    """The innermost cause's first line, without colours."""
    while error.__cause__ is not None and isinstance(error.__cause__, Exception):
        error = error.__cause__
    lines = [line.strip() for line in re.sub(r"\x1b\[[0-9;]*m", "", str(error)).splitlines() if line.strip()]
    return (lines[0].rstrip(".:") if lines else type(error).__name__)[:300]
