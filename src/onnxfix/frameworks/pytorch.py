"""PyTorch: modules, exported programs and TorchScript."""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from onnxfix.errors import ExportError, InputError, LoadError, RuntimeFailure
from onnxfix.frameworks import Feeds, Framework, Lowered
from onnxfix.frameworks.sniff import Content, claims
from onnxfix.frameworks.torch_activations import module_activations, program_activations, script_activations
from onnxfix.frameworks.torch_call import Call, call_of, outputs_of, to_array, to_tensor
from onnxfix.frameworks.torch_files import read_torch, require_torch
from onnxfix.frameworks.torch_lowering import lower_module, lower_program, lower_script, quiet
from onnxfix.frameworks.writing import refusal, sorted_patches

if TYPE_CHECKING:
    from onnxfix.model import Model
    from onnxfix.surgeon.patch import Patch

_CALL = "_onnxfix_call"


class PyTorchAdapter:
    """``torch.nn.Module`` (with example inputs), ``torch.export.ExportedProgram``, ``.pt2`` and TorchScript files."""

    framework = Framework.PYTORCH

    def recognises(self, obj: object) -> bool:
        """Say whether ``obj`` is a PyTorch file, module or exported program; torch is not imported for it."""
        if isinstance(obj, Path):
            return claims(obj, (Content.TORCH_ZIP, Content.TORCH_LEGACY))
        torch = sys.modules.get("torch")
        return torch is not None and (isinstance(obj, torch.nn.Module) or _is_program(obj))

    def lower(self, obj: Any, inputs: Any = None) -> Lowered:
        """Lower a module or program; parameters and buffers keep their qualified names.

        A module in training mode is lowered in inference mode, as a copy: the caller's module stays as it is.

        Args:
            obj: A path, module or exported program.
            inputs: Example inputs of a module or TorchScript file: a tensor or array, a tuple of positional arguments,
                or a dict of arguments by name. Its first dimensions become dynamic where the module allows it.

        Raises:
            LoadError: the file cannot be read, or there are no example inputs, or the module fails on them.
            LoweringError: no exporter can express it.
        """
        require_torch()
        path = obj if isinstance(obj, Path) else None
        native = read_torch(path) if path is not None else obj
        if _is_program(native):
            names = [leaf for leaf in _program_call(native).leaves if isinstance(leaf, str)]
            proto, layers = lower_program(native, names)
        else:
            native, call = _prepare(native, inputs, str(path or f"the module {type(native).__name__}"))
            lower = lower_script if _is_script(native) else lower_module
            proto, layers = lower(native, call)
        return Lowered(proto, native, _parameters(proto, native), layers, path)

    def run(self, model: Model, feeds: Feeds) -> dict[str, np.ndarray]:
        """Run the module or program in torch, without gradients."""
        answers = _answer(model, feeds)
        names = [output.name for output in model.outputs]
        return {name: to_array(answer) for name, answer in zip(names, answers, strict=True)}

    def activations(self, model: Model, feeds: Feeds) -> dict[str, np.ndarray]:
        """Intermediate values: by module path, by operator name (programs) or by value name (TorchScript)."""
        import torch

        native = model.native
        record = (
            program_activations if _is_program(native)
            else script_activations if _is_script(native)
            else module_activations
        )
        module = _module(native)
        args, kwargs = _bind(model, feeds)
        with torch.no_grad():
            values = record(module, args, kwargs)
        return {name: to_array(value) for name, value in values.items()} | self.run(model, feeds)

    def with_parameters(self, model: Model, parameters: Mapping[str, np.ndarray]) -> Any:
        """Return a copy of the module or program in which the named parameters and buffers have the given values.

        Raises:
            ExportError: there is no such parameter, or shape or dtype differ.
        """
        import torch

        native = copy.deepcopy(model.native)
        if not _is_program(native) and _CALL in model.native.__dict__:
            object.__setattr__(native, _CALL, model.native.__dict__[_CALL])  # a TorchScript copy drops it
        tensors = dict(_named_tensors(native))
        with torch.no_grad():
            for name, value in parameters.items():
                tensor = tensors.get(name)
                if tensor is None:
                    raise ExportError(f"the PyTorch model has no parameter or buffer {name}.")
                new = to_tensor(value)
                if new.shape != tensor.shape or new.dtype != tensor.dtype:
                    raise ExportError(
                        f"{name} is {tensor.dtype}{list(tensor.shape)}, the new value {new.dtype}{list(new.shape)}."
                    )
                tensor.copy_(new)
        return native

    def edited(self, model: Model, patches: Sequence[Patch]) -> Any:
        """A copy of the module or program with the patches in it.

        Parameters, buffers and attributes of submodules are set; beyond that the module's graph is edited, and the copy
        is a ``torch.fx.GraphModule`` with the module's own submodules in it.
        """
        values, others = sorted_patches(model, patches)
        if not others:
            return self.with_parameters(model, values)
        if _is_script(model.native):
            raise refusal(model, others[0], "TorchScript is compiled code, in which only weights can be replaced")
        from onnxfix.frameworks.torch_editing import edited

        return edited(model, patches, others, lambda: self.with_parameters(model, values), _bind)

    def write(self, model: Model, native: Any, path: Path) -> None:
        """Write a module or program.

        ``.pt2`` holds the whole program (a module is exported for it). ``.pt`` and ``.pth`` hold a TorchScript module
        where the model is one, and otherwise the module's ``state_dict``, to be loaded into the same module.

        Raises:
            ExportError: the suffix is none of these, or an exported program should become a ``state_dict``.
        """
        import torch

        suffix = path.suffix.lower()
        if suffix == ".pt2" and not _is_script(native):
            program = native if _is_program(native) else _program(model, native)
            with quiet():
                torch.export.save(program, str(path))
        elif suffix in (".pt", ".pth") and _is_script(native):
            torch.jit.save(native, str(path))
        elif suffix in (".pt", ".pth") and not _is_program(native):
            torch.save(native.state_dict(), path)
        else:
            accepted = ".pt2" if _is_program(native) else ".pt" if _is_script(native) else ".pt2 or .pt"
            given = suffix or "a file without suffix"
            raise ExportError(f"this PyTorch model is written as {accepted}, not as {given}.")

    def read(self, path: Path) -> Any:
        """The exported program or TorchScript module of a file."""
        require_torch()
        return read_torch(path)

    def save(self, model: Model, parameters: Mapping[str, np.ndarray], path: Path) -> None:
        """Write the model with the named parameters replaced."""
        self.write(model, self.with_parameters(model, parameters), path)


def _is_program(obj: object) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and hasattr(torch, "export") and isinstance(obj, torch.export.ExportedProgram)


def _is_script(obj: object) -> bool:
    import torch

    return isinstance(obj, torch.jit.ScriptModule | torch.jit.ScriptFunction)


def _prepare(module: Any, inputs: Any, what: str) -> tuple[Any, Call]:
    """The module in inference mode, on the CPU, and how to call it; checked on the example inputs."""
    import torch

    module = getattr(module, "_orig_mod", module)  # what torch.compile wrapped
    elsewhere = any(tensor.device.type != "cpu" for _, tensor in _named_tensors(module))
    if elsewhere or any(child.training for child in module.modules()):
        module = copy.deepcopy(module).cpu().eval()
    call = call_of(module.forward, _matching(inputs, module), what)
    args, kwargs = call.bind(list(call.examples.values()))
    try:
        with torch.no_grad(), quiet():
            answers = outputs_of(module(*args, **kwargs))
    except Exception as error:  # whatever the module raises
        shapes = ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in call.examples.items())
        raise LoadError(f"{what} fails on the example inputs ({shapes}): {_first(error)}.") from error
    if not answers:
        raise LoadError(f"{what} answers no tensor.")
    if not call.by_name:
        module = copy.copy(module)  # shares its parameters with the caller's; only the attribute below is ours
        object.__setattr__(module, _CALL, call)
    return module, call


def _matching(inputs: Any, module: Any) -> Any:
    """Example arrays in numpy's default float64 take the module's own float type."""
    import torch
    from torch.utils import _pytree as pytree

    floats = {tensor.dtype for _, tensor in _named_tensors(module) if tensor.is_floating_point()}
    wanted = next(iter(floats)) if len(floats) == 1 else torch.float32 if not floats else None
    if wanted is None or inputs is None:
        return inputs

    def cast(leaf: Any) -> Any:
        double = isinstance(leaf, np.ndarray) and leaf.dtype == np.float64
        return to_tensor(leaf).to(wanted) if double else leaf

    return pytree.tree_map(cast, inputs)


def _named_tensors(native: Any) -> Iterator[tuple[str, Any]]:
    """All parameters, buffers and constants by qualified name."""
    import torch

    if _is_program(native):
        yield from native.state_dict.items()
        yield from ((name, value) for name, value in native.constants.items() if isinstance(value, torch.Tensor))
        return
    if isinstance(native, torch.jit.ScriptFunction):
        return
    yield from native.named_parameters(remove_duplicate=False)
    yield from native.named_buffers(remove_duplicate=False)


def _parameters(proto: onnx.ModelProto, native: Any) -> dict[str, str]:
    """Initializers that are parameters or buffers, verbatim."""
    tensors = dict(_named_tensors(native))
    found = {}
    for initializer in proto.graph.initializer:
        tensor = tensors.get(initializer.name)
        if tensor is not None and list(tensor.shape) == list(initializer.dims):
            ours, theirs = onnx.numpy_helper.to_array(initializer), to_array(tensor)
            if ours.dtype == theirs.dtype and np.array_equal(ours, theirs, equal_nan=ours.dtype.kind == "f"):
                found[initializer.name] = initializer.name
    return found


def _program_call(program: Any) -> Call:
    leaves: list[Any] = []
    for spec in program.graph_signature.input_specs:
        if spec.kind.name == "USER_INPUT":
            constant = hasattr(spec.arg, "value")
            leaves.append(spec.arg.value if constant else str(spec.arg.name))
    return Call(program.call_spec.in_spec, tuple(leaves), {})


def _module(native: Any) -> Any:
    """Something to call; the guards of an exported program are not part of its meaning, so they are off."""
    if not _is_program(native):
        return native
    module = native.module(check_guards=False)
    module.validate_inputs = False  # the sizes of the example are checked apart from the guards
    return module


def _answer(model: Model, feeds: Feeds) -> tuple[Any, ...]:
    import torch

    args, kwargs = _bind(model, feeds)
    module = _module(model.native)
    try:
        with torch.no_grad():
            return outputs_of(module(*args, **kwargs))
    except Exception as error:  # whatever the module raises
        raise RuntimeFailure(f"PyTorch fails on this input: {_first(error)}.") from error


def _bind(model: Model, feeds: Feeds) -> tuple[tuple[Any, ...], dict[str, Any]]:
    native = model.native
    call: Call | None = _program_call(native) if _is_program(native) else native.__dict__.get(_CALL)
    if call is not None:
        return call.bind(call.tensors(feeds))
    missing = [spec.name for spec in model.inputs if spec.name not in feeds]
    if missing:
        raise InputError(f"no data for input {', '.join(missing)}: the data has {', '.join(feeds) or 'nothing'}.")
    return (), {spec.name: to_tensor(feeds[spec.name]) for spec in model.inputs}


def positional(model: Model) -> Any:
    """The model as a module from one tensor per input, in order, to a tuple of tensors."""
    import torch

    native = _module(model.native)
    names = [spec.name for spec in model.inputs]

    class Positional(torch.nn.Module):  # type: ignore[misc]  # torch is an extra, so mypy does not follow it
        def __init__(self) -> None:
            super().__init__()
            self.inner = native

        def forward(self, *tensors: Any) -> tuple[Any, ...]:
            args, kwargs = _bind(model, dict(zip(names, tensors, strict=True)))
            return outputs_of(self.inner(*args, **kwargs))

    module = Positional()
    module.training = False  # not eval(): the inner module is in inference mode, and that of a program refuses the call
    return module


def _program(model: Model, module: Any) -> Any:
    """Export a module again, on zeros of its inputs' shapes, to write it as a program."""
    import torch

    args, kwargs = _bind(model, {i.name: np.zeros([_size(d) for d in i.shape or ()], i.dtype) for i in model.inputs})
    shapes = {i.name: {0: torch.export.Dim.AUTO} if i.shape and isinstance(i.shape[0], str) else None
              for i in model.inputs}
    try:
        with quiet(), torch.no_grad():
            return torch.export.export(module, args, kwargs, dynamic_shapes=None if args else shapes, strict=False)
    except Exception as error:  # torch.export raises everything from ValueError to AssertionError
        raise ExportError(
            f"torch.export cannot express the module ({_first(error)}): save its weights as .pt."
        ) from error


def _size(dimension: int | str | None) -> int:
    return dimension if isinstance(dimension, int) else 2


def _first(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".:")[:300] if lines else type(error).__name__
