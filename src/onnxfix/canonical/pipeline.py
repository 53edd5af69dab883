"""From a lowered model to its normal form: the passes in order, run until nothing changes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, overload

import numpy as np
import onnx
import onnx_ir as ir

from onnxfix import mapped
from onnxfix.canonical.activations import RecognizeActivations
from onnxfix.canonical.affine import FoldAffineAfter, FoldAffineBefore, MergeAffine, SplitBatchNorm
from onnxfix.canonical.arithmetic import SpellArithmetic
from onnxfix.canonical.bias import ExplicitBias
from onnxfix.canonical.bodies import CleanBodies
from onnxfix.canonical.broadcasting import SpellBroadcasts
from onnxfix.canonical.casts import SpellCasts
from onnxfix.canonical.clipping import SpellClips
from onnxfix.canonical.collector import paused
from onnxfix.canonical.concats import FlattenConcats
from onnxfix.canonical.crops import CropTransposedConvs
from onnxfix.canonical.defaults import ExplicitAttributes, WideIndices
from onnxfix.canonical.dense import LiftFlattening, SpellDense
from onnxfix.canonical.dilations import MergeDilations
from onnxfix.canonical.directions import SpellDirections
from onnxfix.canonical.einsum import SpellEinsum
from onnxfix.canonical.folding import FoldConstants
from onnxfix.canonical.gathers import SpellGathers
from onnxfix.canonical.guard import check_values
from onnxfix.canonical.housekeeping import MergeEqualNodes, RemoveDeadCode, RemoveNoOps
from onnxfix.canonical.inference import infer_graph
from onnxfix.canonical.ingest import LoweredParameters, ingest
from onnxfix.canonical.invariants import LiftInvariants
from onnxfix.canonical.loops import RecognizeLoops
from onnxfix.canonical.map_norms import SpellMapNorms
from onnxfix.canonical.masks import SpellMasks
from onnxfix.canonical.moved_ones import MoveOnesByTranspose
from onnxfix.canonical.naming import emit
from onnxfix.canonical.norm_folding import FoldNormIntoDense
from onnxfix.canonical.normalization import FoldIntoLayerNorm, RecognizeLayerNorm
from onnxfix.canonical.opset import UnifyOpset
from onnxfix.canonical.ordering import OrderOperands
from onnxfix.canonical.origins import Origin
from onnxfix.canonical.padded_reshapes import PadBehindReshape
from onnxfix.canonical.pads import FoldPads, MergePads, ResolveAutoPad
from onnxfix.canonical.pooling import SpellPools
from onnxfix.canonical.products import SpellProducts
from onnxfix.canonical.quantization import SpellQuantization
from onnxfix.canonical.rectifiers import RecognizeRectifiers
from onnxfix.canonical.recurrent import SpellRecurrent
from onnxfix.canonical.reductions import SpellReductions
from onnxfix.canonical.regrouping import PushThroughReshapes
from onnxfix.canonical.reshaping import SpellReshapes
from onnxfix.canonical.resizes import SpellResizes
from onnxfix.canonical.reversals import SpellReversals
from onnxfix.canonical.rewriting import SPILL
from onnxfix.canonical.root_norms import SpellRootNorms
from onnxfix.canonical.selections import SpellSelections
from onnxfix.canonical.sequences import SqueezeConvs
from onnxfix.canonical.settling import settle
from onnxfix.canonical.shapes import FoldShapes
from onnxfix.canonical.sinking import SinkReshapes
from onnxfix.canonical.sinking_blocks import SinkThroughBlocks
from onnxfix.canonical.slices import SpellSlices
from onnxfix.canonical.spelled_activations import WriteOutActivations
from onnxfix.canonical.stacks import SpellStacks
from onnxfix.canonical.transposes import PushTransposes
from onnxfix.canonical.unit_axes import PlaceUnitAxes
from onnxfix.canonical.unrolled import RollSteps
from onnxfix.frameworks import Feeds

if TYPE_CHECKING:
    from onnxfix.model import Model


@dataclass(frozen=True, eq=False)
class NormalForm:
    """The normal form of a model and where everything in it came from.

    Attributes:
        proto: The canonical model; see ``docs/normal-form.md``.
        origins: Canonical initializer name -> expression over lowered parameters.
        provenance: Canonical node name -> names of the lowered nodes it stands for, the primary one first.
        parameters: Lowered initializers and Constant outputs by name, converted when asked for.
        spill: Where computed constants lie that ``proto`` only refers to; None if it holds all itself.
    """

    proto: onnx.ModelProto
    origins: Mapping[str, Origin]
    provenance: Mapping[str, tuple[str, ...]]
    parameters: Mapping[str, np.ndarray]
    spill: mapped.Spill | None = field(default=None, repr=False)

    def pinned(self) -> onnx.ModelProto:
        """:attr:`proto` to give away: the constants that it only refers to are kept until Python ends."""
        if self.spill is not None:
            self.spill.pin()
        return self.proto


def passes() -> tuple[ir.passes.InPlacePass, ...]:
    """The passes of one round, in order."""
    return (
        CleanBodies(),
        LiftInvariants(),
        SpellCasts(),
        FoldConstants(),
        FoldShapes(),
        RemoveNoOps(),
        SpellReshapes(),
        SpellGathers(),
        SpellSlices(),
        RecognizeLoops(),
        RollSteps(),
        SpellReductions(),
        SpellResizes(),
        SpellBroadcasts(),
        ExplicitAttributes(),
        WideIndices(),
        ExplicitBias(),
        WriteOutActivations(),
        SpellArithmetic(),
        SpellClips(),
        SpellSelections(),
        RecognizeRectifiers(),
        RecognizeActivations(),
        RecognizeLayerNorm(),
        SpellRootNorms(),
        SplitBatchNorm(),
        SpellMasks(),
        SpellQuantization(),
        SpellReversals(),
        SpellDirections(),
        SpellRecurrent(),
        SpellStacks(),
        SpellEinsum(),
        MoveOnesByTranspose(),
        PushTransposes(),
        PlaceUnitAxes(),
        MergeDilations(),
        PushThroughReshapes(),
        SinkReshapes(),
        SinkThroughBlocks(),
        SpellProducts(),
        ResolveAutoPad(),
        PadBehindReshape(),
        MergePads(),
        FoldPads(),
        CropTransposedConvs(),
        MergeAffine(),
        FoldIntoLayerNorm(),
        SpellMapNorms(),
        FoldNormIntoDense(),
        FoldAffineAfter(),
        FoldAffineBefore(),
        SpellPools(),
        FlattenConcats(),
        SpellDense(),
        SqueezeConvs(),
        LiftFlattening(),
        MergeEqualNodes(),
        RemoveDeadCode(),
        OrderOperands(),
    )


def normal_form(proto: onnx.ModelProto, *, check: Feeds | None = None, batch: int | None = None) -> NormalForm:
    """Bring a lowered model into normal form.

    Args:
        proto: The lowered model, weights included; it is left unchanged.
        check: Inputs on which to run both models and compare; None trusts the passes.
        batch: What a symbolic first dimension of the inputs is to be, to compare with a model where it is fixed.

    Returns:
        The normal form.

    Raises:
        CanonicalizationError: the passes do not settle, the model cannot be read, or the check fails.
    """
    with paused():
        model = ingest(proto, batch)
        infer_graph(model, trust=False)
        UnifyOpset()(model)
        settle(model, passes())
        UnifyOpset()(model)  # what needed a newer opset may be gone
        canonical, origins, provenance = emit(model)
    if check is not None:
        check_values(proto, canonical, check)
    return NormalForm(canonical, origins, provenance, LoweredParameters(proto), model.graph.meta.get(SPILL))


def plain_form(proto: onnx.ModelProto) -> NormalForm:
    """The lowered model as it is, spelled like a normal form: no pass run, only names unified.

    Raises:
        CanonicalizationError: the model cannot be read.
    """
    model = ingest(proto)
    infer_graph(model, trust=False)
    canonical, origins, provenance = emit(model)
    return NormalForm(canonical, origins, provenance, LoweredParameters(proto), model.graph.meta.get(SPILL))


@overload
def canonicalize(model: onnx.ModelProto) -> onnx.ModelProto: ...
@overload
def canonicalize(model: ir.Model) -> ir.Model: ...
@overload
def canonicalize(model: Model | str | Path) -> Model: ...


def canonicalize(model: onnx.ModelProto | ir.Model | Model | str | Path) -> onnx.ModelProto | ir.Model | Model:
    """Bring a model into normal form.

    Args:
        model: An ``onnx.ModelProto``, an ``onnx_ir.Model``, an :class:`onnxfix.Model` or a path to load; it is left
            unchanged. Weights of more than 512 MB in external files are not read into memory when a path, a ``Model``
            or an ``onnx_ir.Model`` is given.

    Returns:
        The canonical model, of the type given. An :class:`onnxfix.Model` comes back as an ONNX one, and so does a path.

    Raises:
        LoadError: it is no valid model.
        CanonicalizationError: the normal form cannot be reached.

    Example:
        >>> canonical = onnxfix.canonicalize(onnx.load("model.onnx"))     # doctest: +SKIP
    """
    from onnxfix.frameworks.onnx_objects import from_ir, from_proto
    from onnxfix.model import Model, load  # it imports this package

    if isinstance(model, onnx.ModelProto):
        return normal_form(_consistent(from_proto(model))).pinned()
    if isinstance(model, ir.Model):
        return ir.serde.deserialize_model(normal_form(_consistent(from_ir(model))).pinned())
    model = load(model)
    _consistent(model.proto)
    return Model(proto=model.canonical, native=model.canonical, held=mapped.holders(model.canonical))


def _consistent(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model itself; a rewrite could turn one that contradicts itself into one that runs."""
    from onnxfix.frameworks.onnx_judgement import refuse_contradictions

    refuse_contradictions(proto, "the model")
    return proto
