"""Faults of a model's boundary, found before anything inside it is compared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from onnxfix.compare import Accumulator, Comparison
from onnxfix.diagnose.boundary.change import Change, changed
from onnxfix.diagnose.boundary.dimensions import dimension_changes
from onnxfix.diagnose.boundary.outputs import output_changes
from onnxfix.diagnose.boundary.preparation import preparations
from onnxfix.diagnose.boundary.samples import Samples, agree
from onnxfix.diagnose.fault import Diagnosis
from onnxfix.errors import AlignmentError, InputError, RuntimeFailure
from onnxfix.frameworks import Framework
from onnxfix.inputs import Inputs
from onnxfix.inputs.matching import fitting_move
from onnxfix.model import Model, TensorSpec
from onnxfix.surgeon.patch import Patch


@dataclass(frozen=True, eq=False)
class Boundary:
    """What is wrong at the target's inputs and outputs.

    Attributes:
        target: The target with that set right: what is compared further.
        changes: The faults, in the order in which their patches apply.
    """

    target: Model
    changes: tuple[Change, ...] = ()

    @property
    def patches(self) -> tuple[Patch, ...]:
        """All patches of the boundary, in order."""
        return tuple(patch for change in self.changes for patch in change.patches)

    def with_faults(self, diagnosis: Diagnosis, before: Comparison) -> Diagnosis:
        """A diagnosis of what is inside, with the boundary's faults in front: they concern the whole model."""
        faults = tuple(change.fault for change in self.changes)
        return replace(diagnosis, faults=(*faults, *diagnosis.faults), comparison=before) if faults else diagnosis


def settle(source: Model, target: Model, data: Inputs) -> Boundary:
    """Find the faults of the target's boundary.

    Nothing is looked for where the models agree on a first sample: a wrong preparation or order shows on every one.

    Args:
        source: The model that is right.
        target: The conversion of it.
        data: The data.

    Raises:
        InputError: the data cannot be fed to the models.
        AlignmentError: the models' inputs do not correspond.
    """
    found = dimension_changes(source, target, data)
    target = _with(target, found)
    if agree(source, target, Samples.of(source, target, data, 1)):
        return Boundary(target, tuple(found))
    steps: tuple[Callable[[Model, Model, Samples], list[Change]], ...] = (preparations, output_changes)
    for step in steps:
        more = step(source, target, Samples.of(source, target, data))
        target = _with(target, more)
        found.extend(more)
    return Boundary(target, tuple(found))


def _with(target: Model, changes: Sequence[Change]) -> Model:
    patches = [patch for change in changes for patch in change.patches]
    return changed(target, patches) if patches else target


def resized(source: Model, data: Inputs) -> Model:
    """The source, lowered again where it was traced on other sizes than the data have and takes these all the same.

    Args:
        source: The model; only a PyTorch module can be traced again.
        data: The data.
    """
    if source.framework != Framework.PYTORCH:
        return source
    try:
        feeds = data.sizes(source)
        if all(fits_sizes(feed[spec.name], spec) for feed in feeds for spec in source.inputs):
            return source
    except InputError:
        return source
    from onnxfix.frameworks.torch_resizing import with_free_sizes

    kinds = {spec.name: spec.dtype for spec in source.inputs}
    return with_free_sizes(source, [{n: a.astype(kinds[n]) for n, a in feed.items()} for feed in feeds]) or source


def fits_sizes(array: np.ndarray, spec: TensorSpec) -> bool:
    """Whether an array has the sizes that an input asks for, its number of rows aside."""
    return spec.shape is None or fitting_move(array.shape, spec.shape) is not None


def bound(data: Inputs, source: Model, target: Model) -> Inputs:
    """The data, tied to both models, or to the source alone where the target cannot be fed them as it is.

    Raises:
        InputError: the data cannot be fed to the source.
    """
    try:
        return data.bind(source, target)
    except (InputError, AlignmentError):
        return data.bind(source)


def compared(source: Model, target: Model, data: Inputs, *, rtol: float, atol: float) -> Comparison:
    """The models as they were given; where the target cannot even be fed, the comparison says why."""
    try:
        accumulator = Accumulator.for_models(source, target, rtol=rtol, atol=atol)
        for chunk in data.chunks(source, target):
            ours, theirs = source.run(chunk.source), target.run(chunk.target)
            accumulator.add([*ours.values()], [*theirs.values()], chunk.count)
        return accumulator.result()
    except (InputError, AlignmentError, RuntimeFailure) as error:
        infinite = float("inf")
        return Comparison(
            equivalent=False, label_discrepancy=None, max_abs=infinite, max_rel=infinite, rank_correlation=None,
            per_output=(), worst=(), count=0, rtol=rtol, atol=atol, noise=None, reason=str(error),
        )  # fmt: skip
