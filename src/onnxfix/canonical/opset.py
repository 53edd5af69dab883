"""One opset: every node is respelled in the opset of the normal form, older and newer ones alike.

Written out rather than borrowed: onnx's own converter serialises the model, loses node names and stops at ops whose
meaning changed (Softmax before opset 13, Upsample), which are exactly the ones that matter here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx
import onnx_ir as ir

from onnxfix.canonical.batched_scans import unbatch
from onnxfix.canonical.inference import infer_node
from onnxfix.canonical.origins import EXPRESSION_OPSET
from onnxfix.canonical.rewriting import Editor, array, attribute, rank
from onnxfix.errors import CanonicalizationError

Upgrade = Callable[[Editor, ir.Node, int], None]

# The oldest opset whose broadcasting and attributes are those of today; older models are left to onnx's converter.
OLDEST = 7


class UnifyOpset(ir.passes.InPlacePass):
    """Respell all nodes in opset 21.

    A model that uses ops which opset 21 does not have keeps its own opset.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Upgrade, or downgrade where nothing is lost."""
        version = model.opset_imports.get("", model.opset_imports.get("ai.onnx", EXPRESSION_OPSET))
        modified = version != EXPRESSION_OPSET
        for graph in tuple(model.graphs()):
            editor = Editor(graph)
            for node in list(graph):
                own = node.version or version
                node.version = None
                if node.domain in ("", "ai.onnx") and own < EXPRESSION_OPSET and node.op_type in _UPGRADES:
                    _UPGRADES[node.op_type](editor, node, own)
            modified = modified or editor.modified
        model.opset_imports.pop("ai.onnx", None)
        model.opset_imports[""] = max(_needed(model, version), EXPRESSION_OPSET)
        return ir.passes.PassResult(model, modified)


def _needed(model: ir.Model, version: int) -> int:
    """The lowest opset from the normal form's up that has every op as the model uses it."""
    if version <= EXPRESSION_OPSET:
        return EXPRESSION_OPSET
    nodes = [node for node in model.graph.all_nodes() if node.domain in ("", "ai.onnx")]
    return EXPRESSION_OPSET if all(_expressible(node, version) for node in nodes) else version


def _expressible(node: ir.Node, version: int) -> bool:
    """Whether a node of a newer opset means the same in ours (after dropping attributes that have their default)."""
    try:
        ours = onnx.defs.get_schema(node.op_type, EXPRESSION_OPSET)
        theirs = onnx.defs.get_schema(node.op_type, version)
    except onnx.defs.SchemaError:
        return False
    extra = [name for name in node.attributes if name not in ours.attributes]
    for name in extra:
        default = theirs.attributes[name].default_value if name in theirs.attributes else None
        if default is None or onnx.helper.get_attribute_value(default) != node.attributes[name].value:
            return False
    if not (_typed(node.inputs, ours.inputs) and _typed(node.outputs, ours.outputs)):
        return False
    for name in extra:
        del node.attributes[name]
    return len(node.inputs) <= ours.max_input


def _typed(values: Sequence[ir.Value | None], formal: Sequence[onnx.defs.OpSchema.FormalParameter]) -> bool:
    """Whether the element types of values are among those of formal parameters, the last of which may repeat."""
    return all(
        value is None or value.dtype is None or not isinstance(value.type, ir.TensorType) or not formal
        or f"tensor({value.dtype.name.lower()})" in formal[min(index, len(formal) - 1)].types
        for index, value in enumerate(values)
    )


def _operand(editor: Editor, node: ir.Node, slot: int, value: np.ndarray | None, hint: str) -> None:
    """Give a node an operand in place of an attribute."""
    if len(node.inputs) <= slot:
        node.resize_inputs(slot + 1)
    node.replace_input_with(slot, None if value is None else editor.literal(value, hint))
    editor.modified = True


def _ints_to_operand(name: str, before: int, slot: int = 1) -> Upgrade:
    """An int-list attribute that became an operand at opset ``before``."""

    def upgrade(editor: Editor, node: ir.Node, version: int) -> None:
        values = attribute(node, name)
        if version < before and values is not None:
            del node.attributes[name]
            values = [values] if isinstance(values, int) else values
            _operand(editor, node, slot, np.asarray(values, dtype=np.int64), name)

    return upgrade


def _split(editor: Editor, node: ir.Node, version: int) -> None:
    _ints_to_operand("split", 13)(editor, node, version)
    if version < 18 and (len(node.inputs) < 2 or node.inputs[1] is None):
        node.attributes.add(ir.AttrInt64("num_outputs", len(node.outputs)))


def _slice(editor: Editor, node: ir.Node, version: int) -> None:
    if version >= 10:
        return
    for slot, name in ((1, "starts"), (2, "ends"), (3, "axes")):
        _ints_to_operand(name, 10, slot)(editor, node, version)


def _clip(editor: Editor, node: ir.Node, version: int) -> None:
    if version >= 11:
        return
    dtype = _dtype(node)
    for slot, name in ((1, "min"), (2, "max")):
        bound = attribute(node, name)
        if bound is not None:
            del node.attributes[name]
            _operand(editor, node, slot, np.asarray(bound, dtype=dtype), name)


def _pad(editor: Editor, node: ir.Node, version: int) -> None:
    if version >= 11:
        return
    fill = attribute(node, "value", 0.0)
    node.attributes.pop("value", None)
    _ints_to_operand("pads", 11)(editor, node, version)
    _operand(editor, node, 2, np.asarray(fill, dtype=_dtype(node)), "value")


def _dropout(editor: Editor, node: ir.Node, version: int) -> None:
    if version >= 12:
        return
    ratio = attribute(node, "ratio", 0.5)
    node.attributes.pop("ratio", None)
    _operand(editor, node, 1, np.asarray(ratio, dtype=np.float32), "ratio")


def _batch_norm(editor: Editor, node: ir.Node, version: int) -> None:
    if version < 9 and attribute(node, "spatial", 1) == 0:
        raise CanonicalizationError(f"{node.name}: BatchNormalization with spatial=0 has no form after opset 8.")
    node.attributes.pop("spatial", None)
    if version < 14 and sum(1 for output in node.outputs if output.uses() or output.is_graph_output()) > 1:
        raise CanonicalizationError(f"{node.name} is a BatchNormalization in training mode: export for inference.")
    if version < 14:
        node.resize_outputs(1)


def _topk(editor: Editor, node: ir.Node, version: int) -> None:
    _ints_to_operand("k", 10)(editor, node, version)


def _softmax(editor: Editor, node: ir.Node, version: int) -> None:
    """Before opset 13 the op worked on the matrix of dims[:axis] by dims[axis:].

    ``Softmax_11(x, axis) = Reshape(Softmax(Flatten(x, axis), -1), Shape(x))``; the same thing for the last axis.
    """
    if version >= 13:
        return
    axis, dimensions = attribute(node, "axis", 1), rank(node.inputs[0])
    if axis == -1 or (dimensions is not None and axis % dimensions == dimensions - 1):
        node.attributes.add(ir.AttrInt64("axis", -1))
        return
    x = node.inputs[0]
    flat = editor.node("Flatten", [x], like=[node], before=node, attributes={"axis": axis})
    matrix = editor.node(node.op_type, flat.outputs, like=[node], before=node, attributes={"axis": -1})
    shape = editor.node("Shape", [x], like=[node], before=node)
    result = editor.node("Reshape", [matrix.outputs[0], shape.outputs[0]], like=[node], before=node)
    editor.replace(node.outputs[0], result.outputs[0])
    editor.remove([node])


def _upsample(editor: Editor, node: ir.Node, version: int) -> None:
    """``Upsample(x, scales) = Resize(x, scales, asymmetric, floor)``."""
    scales = attribute(node, "scales")
    if scales is not None:
        operand: ir.Value | None = editor.literal(np.asarray(scales, dtype=np.float32), "scales")
    else:
        operand = node.inputs[1]
    _as_resize(editor, node, operand)


def _resize(editor: Editor, node: ir.Node, version: int) -> None:
    if version < 11:
        _as_resize(editor, node, node.inputs[1])
    elif version < 13 and attribute(node, "coordinate_transformation_mode") == "tf_half_pixel_for_nn":
        raise CanonicalizationError(f"{node.name}: Resize mode tf_half_pixel_for_nn has no form after opset 12.")


def _as_resize(editor: Editor, node: ir.Node, scales: ir.Value | None) -> None:
    mode = attribute(node, "mode", "nearest")
    resize = editor.node(
        "Resize", [node.inputs[0], None, scales], like=[node], before=node,
        attributes={"mode": mode, "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"},
    )
    editor.replace(node.outputs[0], resize.outputs[0])
    editor.remove([node])


def _grid_sample(editor: Editor, node: ir.Node, version: int) -> None:
    renamed = {"bilinear": "linear", "bicubic": "cubic"}
    mode = attribute(node, "mode", "bilinear")
    if version < 20:
        node.attributes.add(ir.AttrString("mode", renamed.get(mode, mode)))


def _roi_align(editor: Editor, node: ir.Node, version: int) -> None:
    if version < 16:
        node.attributes.add(ir.AttrString("coordinate_transformation_mode", "output_half_pixel"))


def _scatter(editor: Editor, node: ir.Node, version: int) -> None:
    node.op_type = "ScatterElements"


def _scan(editor: Editor, node: ir.Node, version: int) -> None:
    if version < 9:
        unbatch(editor, node)


def _dft(editor: Editor, node: ir.Node, version: int) -> None:
    if version < 20:
        axis = attribute(node, "axis", 1)
        node.attributes.pop("axis", None)
        _operand(editor, node, 2, np.asarray(axis, dtype=np.int64), "axis")


def _group_norm(editor: Editor, node: ir.Node, version: int) -> None:
    """Before opset 21 scale and bias were per group: ``scale_21 = repeat(scale_18, C / groups)``."""
    if version >= 21:
        return
    channels = node.inputs[0].shape[1] if node.inputs[0] is not None and node.inputs[0].shape is not None else None
    groups = attribute(node, "num_groups")
    if not isinstance(channels, int) or any(array(v) is None for v in node.inputs[1:3]):
        _grouped_instances(editor, node, groups)
        return
    for slot in (1, 2):
        column = editor.constant("Reshape", node.inputs[slot], editor.literal(np.array([groups, 1])))
        spread = editor.constant("Expand", column, editor.literal(np.array([groups, channels // groups])))
        flat = editor.constant("Reshape", spread, editor.literal(np.array([channels])))
        node.replace_input_with(slot, flat)
    infer_node(node)


def _grouped_instances(editor: Editor, node: ir.Node, groups: int) -> None:
    """``GroupNorm_18(x, s, b) = Reshape(InstanceNorm(Reshape(x, [0, groups, -1]), s, b), Shape(x))``."""
    x, scale, bias = node.inputs
    target = editor.literal(np.array([0, groups, -1]), "groups")
    apart = editor.node("Reshape", [x, target], like=[node], before=node)
    normal = editor.node(
        "InstanceNormalization", [apart.outputs[0], scale, bias], like=[node], before=node,
        attributes={"epsilon": attribute(node, "epsilon", 1e-5)},
    )
    shape = editor.node("Shape", [x], like=[node], before=node)
    result = editor.node("Reshape", [normal.outputs[0], shape.outputs[0]], like=[node], before=node)
    editor.replace(node.outputs[0], result.outputs[0])
    editor.remove([node])


def _dtype(node: ir.Node) -> np.dtype:
    value = node.inputs[0]
    return np.dtype(np.float32) if value is None or value.dtype is None else value.dtype.numpy()


_REDUCTIONS = ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "SumSquare")
_UPGRADES: dict[str, Upgrade] = {
    **{f"Reduce{name}": _ints_to_operand("axes", 18) for name in _REDUCTIONS},
    "ReduceSum": _ints_to_operand("axes", 13),
    "Squeeze": _ints_to_operand("axes", 13),
    "Unsqueeze": _ints_to_operand("axes", 13),
    **dict.fromkeys(("Softmax", "LogSoftmax", "Hardmax"), _softmax),
    "Split": _split,
    "Slice": _slice,
    "Clip": _clip,
    "Pad": _pad,
    "Dropout": _dropout,
    "BatchNormalization": _batch_norm,
    "TopK": _topk,
    "Upsample": _upsample,
    "Resize": _resize,
    "GridSample": _grid_sample,
    "RoiAlign": _roi_align,
    "Scatter": _scatter,
    "Scan": _scan,
    "DFT": _dft,
    "GroupNormalization": _group_norm,
}
