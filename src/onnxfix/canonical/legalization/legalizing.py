"""The pipeline of legalisation."""

from __future__ import annotations

from typing import TYPE_CHECKING, overload

import onnx
import onnx_ir as ir

from onnxfix.canonical.defaults import ExplicitAttributes
from onnxfix.canonical.folding import FoldConstants
from onnxfix.canonical.housekeeping import RemoveDeadCode, RemoveNoOps
from onnxfix.canonical.inference import infer_graph, refresh
from onnxfix.canonical.ingest import ingest
from onnxfix.canonical.legalization.branches import TakeBranches
from onnxfix.canonical.legalization.comparisons import COMPARISONS
from onnxfix.canonical.legalization.dilated_pools import POOLS, dilated_max_pool
from onnxfix.canonical.legalization.downgrade import downgrade
from onnxfix.canonical.legalization.elementwise import ELEMENTWISE
from onnxfix.canonical.legalization.emission import emit
from onnxfix.canonical.legalization.functions import inlined
from onnxfix.canonical.legalization.integers import keep_integer_types
from onnxfix.canonical.legalization.padding import PADDING
from onnxfix.canonical.legalization.quantized import QUANTIZED
from onnxfix.canonical.legalization.rearranging import BLOCKS, REARRANGING
from onnxfix.canonical.legalization.recurrent import RECURRENT
from onnxfix.canonical.legalization.resizing import RESIZING
from onnxfix.canonical.legalization.respelling import Respell, Rule
from onnxfix.canonical.legalization.sampling import SAMPLING
from onnxfix.canonical.legalization.spectral import SPECTRAL
from onnxfix.canonical.legalization.targets import DIALECTS, Dialect, Target
from onnxfix.canonical.legalization.windows import WINDOWS, cropped_conv_transpose
from onnxfix.canonical.opset import UnifyOpset
from onnxfix.canonical.pads import ResolveAutoPad
from onnxfix.canonical.shapes import FoldShapes
from onnxfix.errors import CanonicalizationError

if TYPE_CHECKING:
    from onnxfix.model import Model

_RULES = ELEMENTWISE | COMPARISONS | QUANTIZED | RECURRENT | BLOCKS | WINDOWS | PADDING | SAMPLING | POOLS | SPECTRAL
# Far more rounds than any model needs; reaching it means that two rules undo each other.
_ROUNDS = 20
# Definitions of ops refer to ops that are defined themselves, two or three deep.
_NESTING = 4


@overload
def legalize(model: onnx.ModelProto, for_: str) -> onnx.ModelProto: ...
@overload
def legalize(model: ir.Model, for_: str) -> ir.Model: ...
@overload
def legalize(model: Model, for_: str) -> Model: ...


def legalize(model: onnx.ModelProto | ir.Model | Model, for_: str) -> onnx.ModelProto | ir.Model | Model:
    """Respell a model, without changing what it computes, in what a converter reads correctly.

    Opsets are converted down; computed shapes, wrapped and shared initializers and branches with a fixed condition
    are folded; ops that the converter lacks or gets wrong are spelled by others; padding that it lacks is done apart.
    Inputs, outputs and parameters keep their names. What has no other spelling stays: the converter will say so.

    Args:
        model: An ``onnx.ModelProto``, an ``onnx_ir.Model`` or an :class:`onnxfix.Model`; it is left unchanged.
        for_: ``"onnx2torch"``, ``"litert-torch"``, ``"onnx2tf"``, ``"tf2onnx-tflite"`` or ``"keras"``.

    Returns:
        The respelled model, of the type given. An :class:`onnxfix.Model` comes back as an ONNX one.

    Raises:
        CanonicalizationError: an op has no form in the converter's opset.
        ValueError: there is no such converter.

    Example:
        >>> module = onnx2torch.convert(legalize(onnx.load("model.onnx"), "onnx2torch"))     # doctest: +SKIP
    """
    if for_ not in set(Target):
        raise ValueError(f"no converter {for_!r}: legalize knows {', '.join(Target)}.")
    dialect = DIALECTS[Target(for_)]
    if isinstance(model, onnx.ModelProto):
        return _legalized(model, dialect)
    if isinstance(model, ir.Model):
        return ir.serde.deserialize_model(_legalized(ir.serde.serialize_model(model), dialect))
    from onnxfix.model import Model  # it imports this package

    proto = _legalized(model.proto, dialect)
    return Model(proto=proto, native=proto)


def _legalized(proto: onnx.ModelProto, dialect: Dialect) -> onnx.ModelProto:
    model = _read(proto)
    for _ in range(_NESTING):
        ExplicitAttributes()(model)  # definitions refer to attributes, and what is left out is left out there too
        if not any(node.op_type in dialect.defined for node in model.graph.all_nodes()):
            break
        whole = ir.serde.serialize_model(model)
        written_out = inlined(whole, dialect.defined)
        if written_out is whole:
            break
        model = _read(written_out)
    _settle(model, _passes(dialect))
    if dialect.torch:
        keep_integer_types(model.graph)
    downgrade(model, dialect.opset)
    return emit(model, distinct=dialect.torch)


def _read(proto: onnx.ModelProto) -> ir.Model:
    model = ingest(proto)
    infer_graph(model, trust=False)
    UnifyOpset()(model)
    return model


def _passes(dialect: Dialect) -> tuple[ir.passes.InPlacePass, ...]:
    rules: dict[str, Rule] = {op: rule for op, rule in _RULES.items() if op in dialect.respelled}
    if dialect.crops:
        rules |= {"ConvTranspose": cropped_conv_transpose, "MaxPool": dilated_max_pool}
    return (
        RemoveNoOps(),
        FoldConstants(),
        FoldShapes(),
        TakeBranches(),
        ExplicitAttributes(),
        ResolveAutoPad(),
        Respell(rules | REARRANGING | RESIZING),
        RemoveDeadCode(),
    )


def _settle(model: ir.Model, passes: tuple[ir.passes.InPlacePass, ...]) -> None:
    for _ in range(_ROUNDS):
        refresh(model.graph)
        changed = [type(p).__name__ for p in passes if p(model).modified]
        if not changed and not infer_graph(model):
            return
    raise CanonicalizationError(f"legalisation does not settle: {', '.join(changed)} still change the model.")
