"""How named arrays become the arguments of a torch module's forward, and its answer named arrays."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxfix.errors import InputError, LoadError


@dataclass(frozen=True)
class Call:
    """The calling convention of a module, read from example inputs.

    Attributes:
        spec: The pytree of (args, kwargs).
        leaves: For every leaf of it, the name of the graph input that goes there, or a constant (not a string).
        examples: The example tensors, by input name.
        by_name: Every input is a tensor that forward takes under the input's own name.
    """

    spec: Any
    leaves: tuple[Any, ...]
    examples: dict[str, Any]
    by_name: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """The input names, in order."""
        return tuple(leaf for leaf in self.leaves if isinstance(leaf, str))

    def bind(self, tensors: Sequence[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Positional and keyword arguments from one tensor per input."""
        from torch.utils import _pytree as pytree

        rest = iter(tensors)
        filled = [next(rest) if isinstance(leaf, str) else leaf for leaf in self.leaves]
        args, kwargs = pytree.tree_unflatten(filled, self.spec)
        return tuple(args), dict(kwargs)

    def tensors(self, feeds: Mapping[str, np.ndarray]) -> list[Any]:
        """One tensor per input, taken from ``feeds`` by name.

        Raises:
            InputError: an input is missing.
        """
        missing = [name for name in self.names if name not in feeds]
        if missing:
            raise InputError(f"no data for input {', '.join(missing)}: the data has {', '.join(feeds) or 'nothing'}.")
        return [to_tensor(feeds[name]) for name in self.names]


def call_of(forward: Callable[..., Any], inputs: Any, what: str) -> Call:
    """Read the calling convention of ``forward`` from example inputs.

    Args:
        forward: The module's forward (its parameter names become input names).
        inputs: A tensor or array, a tuple or list of positional arguments, or a dict of arguments by name.
        what: The module, for messages.

    Raises:
        LoadError: no inputs, or inputs that ``forward`` does not take.
    """
    if inputs is None:
        raise LoadError(f"{what} must be traced to be lowered: give example inputs, load(model, inputs=...).")
    try:
        signature = inspect.signature(forward)
    except (TypeError, ValueError):  # TorchScript methods and builtins have none
        signature = None
    args, kwargs = _arguments(inputs, signature)
    if signature is not None:
        try:
            signature.bind(*args, **kwargs)
        except TypeError as error:
            raise LoadError(f"{what} does not take these example inputs: {error}.") from error
    return _call(_positional(forward, signature), args, kwargs, what)


def to_tensor(value: Any) -> Any:
    """A CPU tensor of an array (shared where possible, never written to)."""
    import torch

    if isinstance(value, torch.Tensor):
        return value.detach().cpu()
    array = np.ascontiguousarray(value)
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(array if array.flags.writeable else array.copy()).reshape(np.shape(value))


def to_array(tensor: Any) -> np.ndarray:
    """A numpy array of a tensor's values."""
    import torch

    tensor = tensor.detach().cpu().resolve_conj().resolve_neg()
    if tensor.is_sparse:
        tensor = tensor.to_dense()
    if tensor.dtype == torch.bfloat16:
        import ml_dtypes

        bits: np.ndarray = tensor.contiguous().view(torch.int16).numpy()
        return bits.view(ml_dtypes.bfloat16)
    array: np.ndarray = tensor.numpy()
    return array


def outputs_of(answer: Any) -> tuple[Any, ...]:
    """The tensors of a module's answer, flattened; everything else in it is dropped."""
    import torch
    from torch.utils import _pytree as pytree

    return tuple(leaf for leaf in pytree.tree_leaves(_plain(answer)) if isinstance(leaf, torch.Tensor))


def output_names(count: int, taken: Sequence[str] = ()) -> list[str]:
    """``output``, ``output_1``, ...; an input of that name pushes the outputs to ``output_`` and so on."""
    stem = "output"
    while any(name == stem or name.startswith(f"{stem}_") for name in taken):
        stem = f"model_{stem}"
    return [stem if index == 0 else f"{stem}_{index}" for index in range(count)]


def _plain(answer: Any) -> Any:
    """Mappings that pytree does not know (Hugging Face's ``ModelOutput``) as dicts."""
    from torch.utils import _pytree as pytree

    known = type(answer) in pytree.SUPPORTED_NODES
    return dict(answer) if isinstance(answer, Mapping) and not known else answer


def _arguments(inputs: Any, signature: inspect.Signature | None) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(inputs, Mapping):
        known = set(signature.parameters) if signature is not None else set(inputs)
        if set(inputs) <= known or len(known) != 1:
            return (), dict(inputs)
        return (dict(inputs),), {}  # forward takes one dict
    if isinstance(inputs, tuple | list):
        return tuple(inputs), {}
    return (inputs,), {}


def _positional(forward: Callable[..., Any], signature: inspect.Signature | None) -> list[str]:
    """Names of the positional parameters; a ``*args`` parameter is marked by its star."""
    if signature is None:
        schema = getattr(forward, "schema", None)
        return [argument.name for argument in schema.arguments[1:]] if schema is not None else []
    return [
        f"*{name}" if parameter.kind is inspect.Parameter.VAR_POSITIONAL else name
        for name, parameter in signature.parameters.items()
        if parameter.kind not in (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD)
    ]


def _call(positional: list[str], args: tuple[Any, ...], kwargs: dict[str, Any], what: str) -> Call:
    import torch
    from torch.utils import _pytree as pytree

    paths, spec = pytree.tree_flatten_with_path((args, kwargs))
    leaves: list[Any] = []
    examples: dict[str, Any] = {}
    for path, leaf in paths:
        if isinstance(leaf, str):
            raise LoadError(f"{what} takes a text argument, which onnxfix cannot bind: wrap it in a module without.")
        if not isinstance(leaf, torch.Tensor | np.ndarray):
            leaves.append(leaf)
            continue
        name = _free(_name(path, positional), examples)
        leaves.append(name)
        examples[name] = to_tensor(leaf)
    if not examples:
        raise LoadError(f"{what} gets no tensor or array from these example inputs: give at least one.")
    tops = {*positional[: len(args)], *kwargs}
    return Call(spec, tuple(leaves), examples, by_name=set(leaves) == tops)


def _name(path: Sequence[Any], positional: list[str]) -> str:
    """The input name of a leaf: its parameter, then the keys inside it, joined as torch.export joins them."""
    keys = [str(getattr(key, "key", getattr(key, "idx", getattr(key, "name", key)))) for key in path]
    side, first, rest = keys[0], keys[1], keys[2:]
    if side == "0":
        first = _parameter(positional, int(first))
    return "_".join([first, *rest])


def _parameter(positional: list[str], index: int) -> str:
    star = next((i for i, name in enumerate(positional) if name.startswith("*")), len(positional))
    if index < star:
        return positional[index] if index < len(positional) else f"input_{index}"
    return f"{positional[star][1:]}_{index - star}" if star < len(positional) else f"input_{index}"


def _free(name: str, taken: Mapping[str, Any]) -> str:
    while name in taken:
        name += "_"
    return name
