"""Patches of a lowered PyTorch graph as attributes of the modules that the nodes come from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from onnxfix.surgeon.patch import Patch, SetAttribute, SetParameter

if TYPE_CHECKING:
    from onnxfix.model import Model

# ONNX attribute -> what modules call it.
_NAMES: dict[str, tuple[str, ...]] = {
    "strides": ("stride",), "dilations": ("dilation",), "kernel_shape": ("kernel_size",), "pads": ("padding",),
    "epsilon": ("eps",), "axis": ("dim",), "alpha": ("negative_slope", "alpha"), "lambd": ("lambd",),
    "ceil_mode": ("ceil_mode",), "count_include_pad": ("count_include_pad",), "p": ("p", "norm_type"),
    "mode": ("mode",), "coordinate_transformation_mode": ("align_corners",), "approximate": ("approximate",),
    "upscale_factor": ("upscale_factor",), "blocksize": ("upscale_factor", "downscale_factor"),
}  # fmt: skip
_MODES = {"nearest": ("nearest",), "linear": ("bilinear", "linear", "trilinear"), "cubic": ("bicubic",)}
_MODE_RANKS = {"linear": 3, "bilinear": 4, "bicubic": 4, "trilinear": 5}


def set_attributes(module: Any, model: Model, patches: Iterable[Patch]) -> bool:
    """Set attributes of submodules as patches say, in place; the caller checks what comes out.

    Args:
        module: A copy of the model's module.
        model: The model.
        patches: The patches.

    Returns:
        Whether there was an attribute for every patch.
    """
    children = dict(module.named_modules())
    for patch in patches:
        places = [children[path] for path in _layers(model, patch) if path in children]
        if not any(_set(place, model, patch) for place in places):
            return False
    return True


def _layers(model: Model, patch: Patch) -> Iterator[str]:
    """Paths of the modules that the nodes of a patch come from."""
    if isinstance(patch, SetAttribute):
        names = [patch.node]
    elif isinstance(patch, SetParameter):
        readers = patch.readers or tuple(n.name for n in model.proto.graph.node if patch.name in n.input)
        made = [n.name for n in model.proto.graph.node if patch.name in n.output]
        names = [*readers, *made]
    else:
        return
    yield from dict.fromkeys(model.layers[name] for name in names if name in model.layers)


def _set(module: Any, model: Model, patch: Patch) -> bool:
    if isinstance(patch, SetAttribute):
        return _set_named(module, model, patch)
    return isinstance(patch, SetParameter) and _set_equal(module, patch)


def _set_named(module: Any, model: Model, patch: SetAttribute) -> bool:
    value = patch.value.decode() if isinstance(patch.value, bytes) else patch.value
    if patch.attribute in ("nearest_mode", "cubic_coeff_a"):
        return True  # the mode brings it along
    for name in _NAMES.get(patch.attribute, ()):
        if name not in module.__dict__:
            continue
        if patch.attribute == "mode":
            rank = _rank(model, patch.node)
            fits = [m for m in _MODES.get(str(value), ()) if _MODE_RANKS.get(m, rank) == rank]
            if fits:
                module.mode = fits[0]
                return True
        elif patch.attribute == "coordinate_transformation_mode":
            module.align_corners = True if value == "align_corners" else None
            return True
        elif patch.attribute == "pads":
            half = len(value) // 2
            if list(value[:half]) == list(value[half:]):
                module.padding = _like(module.padding, value[:half])
                return True
        else:
            setattr(module, name, _like(getattr(module, name), value))
            return True
    return False


def _rank(model: Model, node: str) -> int:
    """How many dimensions a node's input has; four where it is not known."""
    value = next(n.input[0] for n in model.proto.graph.node if n.name == node)
    shapes: dict[str, onnx.ValueInfoProto] = {info.name: info for info in model.proto.graph.value_info}
    return len(shapes[value].type.tensor_type.shape.dim) if value in shapes else 4


def _like(previous: Any, value: Any) -> Any:
    """A number or a tuple of them in the form that the module had it in."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        if isinstance(previous, int) and len(set(value)) == 1:
            return int(value[0])
        return tuple(int(v) for v in value)
    if isinstance(previous, bool):
        return bool(value)
    return value


def _set_equal(module: Any, patch: SetParameter) -> bool:
    """The attributes that hold the constant's old value take the new one."""
    was, now = np.asarray(patch.previous), np.asarray(patch.value)
    found = False
    for name, held in list(module.__dict__.items()):
        if name.startswith("_") or isinstance(held, bool) or not isinstance(held, float | int | tuple):
            continue
        if was.size == 1 and not isinstance(held, tuple) and np.float32(held) == np.float32(was.item()):
            setattr(module, name, type(held)(now.item()))
            found = True
        elif isinstance(held, tuple) and was.ndim == 1 and held == _torch_padding(was, len(held)):
            setattr(module, name, _torch_padding(now, len(held)))
            found = True
    return found


def _torch_padding(pads: np.ndarray, count: int) -> tuple[int, ...]:
    """ONNX's paddings, all begins before all ends, as torch has them: pairs, the last axis first."""
    half = pads.size // 2
    pairs = [(int(pads[k]), int(pads[half + k])) for k in reversed(range(half))]
    return tuple(v for pair in pairs for v in pair)[:count]
