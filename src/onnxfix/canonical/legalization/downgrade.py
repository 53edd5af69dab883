"""Write a model of the normal form's opset in an older one."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir

from onnxfix.canonical.legalization.constants import ints_of, require_ints
from onnxfix.canonical.queries import rank
from onnxfix.canonical.rewriting import Editor, attribute
from onnxfix.errors import CanonicalizationError

Downgrade = Callable[[Editor, ir.Node], None]

_REDUCTIONS = ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "SumSquare")
_OLD_GRID_MODES = {"linear": "bilinear", "cubic": "bicubic"}


def downgrade(model: ir.Model, opset: int) -> None:
    """Respell all nodes of a model in an opset or, where it is newer than the model's own, leave it, in place.

    Raises:
        CanonicalizationError: a node has no form there.
    """
    version = model.opset_imports.get("", opset)
    if version <= opset:
        return
    for graph in model.graphs():
        editor = Editor(graph)
        for node in list(graph):
            if node.domain not in ("", "ai.onnx"):
                continue
            for before, rule in _DOWNGRADES.get(node.op_type, ()):
                if opset < before <= version:
                    rule(editor, node)
            _drop_defaults(node, version, opset)
    model.opset_imports[""] = opset


def _drop_defaults(node: ir.Node, version: int, opset: int) -> None:
    """Drop attributes that the older op does not have, where they hold the default, which is what it did."""
    theirs = onnx.defs.get_schema(node.op_type, version)
    try:
        ours = onnx.defs.get_schema(node.op_type, opset)
    except onnx.defs.SchemaError:
        raise CanonicalizationError(
            f"{node.name}: opset {opset} has no {node.op_type}, and onnxfix no other spelling for it."
        ) from None
    for name in [name for name in node.attributes if name not in ours.attributes]:
        default = theirs.attributes[name].default_value if name in theirs.attributes else None
        given = attribute(node, name)
        if default is None or default.type == onnx.AttributeProto.UNDEFINED or _plain(default) != given:
            raise CanonicalizationError(
                f"{node.name}: {node.op_type} of opset {opset} has no attribute {name}, which is {given!r} here."
            )
        del node.attributes[name]
    if len(node.inputs) > ours.max_input:
        raise CanonicalizationError(f"{node.name}: {node.op_type} of opset {opset} takes fewer operands.")


def _plain(default: onnx.AttributeProto) -> object:
    value = onnx.helper.get_attribute_value(default)
    return value.decode() if isinstance(value, bytes) else value


def _axes_to_attribute(editor: Editor, node: ir.Node) -> None:
    axes = require_ints(node, 1)
    if axes:
        node.attributes["axes"] = ir.AttrInt64s("axes", axes)
    elif attribute(node, "noop_with_empty_axes", 0):
        raise CanonicalizationError(f"{node.name}: {node.op_type} over no axes has no form in older opsets.")
    node.attributes.pop("noop_with_empty_axes", None)
    node.resize_inputs(1)


def _pad(editor: Editor, node: ir.Node) -> None:
    """Axes left out are padded by nothing."""
    if len(node.inputs) < 4 or node.inputs[3] is None:
        node.resize_inputs(min(len(node.inputs), 3))
        return
    size, axes, amounts = rank(node.inputs[0]), require_ints(node, 3), require_ints(node, 1)
    if size is None or axes is None or amounts is None:
        raise CanonicalizationError(f"{node.name}: Pad of unknown rank has no form in older opsets.")
    full = [0] * (2 * size)
    for k, axis in enumerate(axes):
        full[axis % size], full[axis % size + size] = amounts[k], amounts[k + len(axes)]
    node.replace_input_with(1, editor.literal(np.array(full, np.int64), "pads"))
    node.resize_inputs(3)


def _split(editor: Editor, node: ir.Node) -> None:
    """``num_outputs`` is how many outputs there are; parts of different size need them spelled out, see shapes."""
    node.attributes.pop("num_outputs", None)


def _cast(editor: Editor, node: ir.Node) -> None:
    node.attributes.pop("saturate", None)


def _resize(editor: Editor, node: ir.Node) -> None:
    if attribute(node, "keep_aspect_ratio_policy", "stretch") == "stretch":
        node.attributes.pop("keep_aspect_ratio_policy", None)


def _pool(editor: Editor, node: ir.Node) -> None:
    """Older average pools are not dilated."""
    if set(attribute(node, "dilations") or [1]) == {1}:
        node.attributes.pop("dilations", None)


def _grid_sample(editor: Editor, node: ir.Node) -> None:
    mode = attribute(node, "mode", "linear")
    node.attributes["mode"] = ir.AttrString("mode", _OLD_GRID_MODES.get(mode, mode))


def _dft(editor: Editor, node: ir.Node) -> None:
    axis = ints_of(node.inputs[2]) if len(node.inputs) > 2 else [-2]
    if axis is None:
        raise CanonicalizationError(f"{node.name}: DFT over a computed axis has no form in older opsets.")
    node.attributes["axis"] = ir.AttrInt64("axis", axis[0])
    node.resize_inputs(2)


# Op type -> (the opset that changed it, how to undo the change), newest first.
_DOWNGRADES: dict[str, tuple[tuple[int, Downgrade], ...]] = {
    **{f"Reduce{name}": ((18, _axes_to_attribute),) for name in _REDUCTIONS},
    "AveragePool": ((19, _pool),),
    "Cast": ((19, _cast),),
    "DFT": ((20, _dft),),
    "GridSample": ((20, _grid_sample),),
    "LpPool": ((18, _pool),),
    "Pad": ((18, _pad),),
    "Resize": ((18, _resize),),
    "Split": ((18, _split),),
}
