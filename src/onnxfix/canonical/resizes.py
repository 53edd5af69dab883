"""Resizing by whole numbers is spelled one way; attributes that change nothing have their defaults."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from onnxfix.canonical.queries import dims, nodes_of, set_attribute
from onnxfix.canonical.rewriting import Editor, array

_CROP = "tf_crop_and_resize"
_HALF_PIXEL = ("half_pixel", "pytorch_half_pixel", "half_pixel_symmetric")  # the same where sizes grow by whole numbers
_ROUNDINGS: dict[str, Callable[[float], float]] = {
    "floor": math.floor,
    "ceil": math.ceil,
    "round_prefer_floor": lambda place: math.ceil(place - 0.5),
    "round_prefer_ceil": lambda place: math.floor(place + 0.5),
}


class SpellResizes(ir.passes.InPlacePass):
    """Enlarging by whole numbers is given as scales of all axes, its coordinates as ``half_pixel`` or ``asymmetric``.

    - ``Resize(x, sizes=s * shape(x)) = Resize(x, scales=s)`` for whole s.
    - ``nearest`` takes element ``round(f(i))`` for output i. Enlarged by a whole s, ``f(i + s) = f(i) + 1`` for
      ``asymmetric`` (``i / s``) and ``half_pixel`` (``(i + 0.5) / s - 0.5``), so one period decides: where it is
      ``floor(i / s)``, the op is spelled ``asymmetric, floor``.
    - The region of interest counts for ``tf_crop_and_resize`` alone, rounding for ``nearest``, the coefficient for
      ``cubic``, smoothing where something shrinks.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Spell."""
        editor = Editor(model.graph)
        for node in nodes_of(model.graph, "Resize"):
            editor.modified |= _defaults(node)
            _as_scales(editor, node)
            editor.modified |= _coordinates(node)
        return ir.passes.PassResult(model, editor.modified)


def _text(node: ir.Node, name: str, default: str) -> str:
    return node.attributes.get_string(name, default) or default


def _defaults(node: ir.Node) -> bool:
    modified = False
    mode = _text(node, "mode", "nearest")
    if _text(node, "coordinate_transformation_mode", "half_pixel") != _CROP:
        if len(node.inputs) > 1 and node.inputs[1] is not None:
            node.replace_input_with(1, None)
            modified = True
        modified |= "extrapolation_value" in node.attributes and set_attribute(node, "extrapolation_value", 0.0)
    if mode != "nearest":
        modified |= set_attribute(node, "nearest_mode", "round_prefer_floor")
    if mode != "cubic":
        modified |= set_attribute(node, "cubic_coeff_a", -0.75)
    return modified


def _as_scales(editor: Editor, node: ir.Node) -> None:
    """Give the scales of all axes where they are whole and the sizes or some of the axes are given."""
    shape = dims(node.inputs[0])
    if shape is None or _text(node, "coordinate_transformation_mode", "half_pixel") == _CROP:
        return
    given = node.attributes.get_ints("axes")
    axes = list(range(len(shape))) if given is None else [axis % len(shape) for axis in given]
    scales = _scales(node, [shape[axis] for axis in axes])
    spelled = len(node.inputs) > 2 and node.inputs[2] is not None and node.inputs[2].name != "" and given is None
    if scales is None or spelled:
        return
    full = np.ones(len(shape), np.float32)
    full[axes] = scales
    node.resize_inputs(3)
    node.replace_input_with(2, editor.literal(full))
    node.attributes.pop("axes", None)
    editor.modified = True


def _scales(node: ir.Node, sizes: Sequence[int | None]) -> list[float] | None:
    """By how much the axes grow, where all do by whole numbers."""
    scales = array(node.inputs[2]) if len(node.inputs) > 2 else None
    wanted = array(node.inputs[3]) if len(node.inputs) > 3 else None
    if scales is not None and scales.size:
        return [float(s) for s in scales] if _whole(scales) else None
    if wanted is None or _text(node, "keep_aspect_ratio_policy", "stretch") != "stretch":
        return None
    if any(size is None or size < 1 or int(w) % size for size, w in zip(sizes, wanted, strict=True)):
        return None
    ratios = [int(w) / size for size, w in zip(sizes, wanted, strict=True) if size]
    return ratios if min(ratios, default=0) >= 1 else None


def _whole(scales: np.ndarray) -> bool:
    return bool(np.all(scales >= 1) and np.all(scales == np.round(scales)))


def _coordinates(node: ir.Node) -> bool:
    scales = array(node.inputs[2]) if len(node.inputs) > 2 else None
    if scales is None or not scales.size or not _whole(scales):
        return False
    modified = set_attribute(node, "antialias", 0)
    coordinates = _text(node, "coordinate_transformation_mode", "half_pixel")
    if coordinates in _HALF_PIXEL:
        modified |= set_attribute(node, "coordinate_transformation_mode", "half_pixel")
    if _text(node, "mode", "nearest") != "nearest":
        return modified
    rounding = _text(node, "nearest_mode", "round_prefer_floor")
    if all(_repeats(int(s), coordinates, rounding) for s in scales):
        modified |= set_attribute(node, "coordinate_transformation_mode", "asymmetric")
        modified |= set_attribute(node, "nearest_mode", "floor")
    return modified


def _repeats(scale: int, coordinates: str, rounding: str) -> bool:
    """Whether every element is repeated ``scale`` times: looked at in the second period, where nothing is clamped."""
    if coordinates not in (*_HALF_PIXEL, "asymmetric"):
        return False
    shift = 0.0 if coordinates == "asymmetric" else 0.5
    places = ((i + shift) / scale - shift for i in range(scale, 2 * scale))
    return all(_ROUNDINGS[rounding](place) == 1 for place in places)
