"""Convert a model, check what came out, repair it, and try the next converter where that fails."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from onnxfix.compare import Comparison, refuse_blank
from onnxfix.convert.native import compared_natively
from onnxfix.convert.result import Attempt, Conversion, Outcome
from onnxfix.errors import ExportError, LoadError, OnnxFixError
from onnxfix.frameworks import Framework
from onnxfix.frameworks.converters import Converter, check_suffix, converters, write
from onnxfix.inputs import Inputs
from onnxfix.model import Model, load
from onnxfix.repair import Repair, repair
from onnxfix.repair.repairing import Tolerances
from onnxfix.surgeon.files import staged

Progress = Callable[[str, float], None]


def convert(
    source: Any,
    to: str,
    path: str | Path,
    data: Any,
    *,
    rtol: float = 1e-3,
    atol: float = 0.0,
    limit: int | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Conversion:
    """Convert a model to another framework, and prove that the file that is written computes the same.

    The converters there are for this pair of frameworks are tried, the best first, each after the model was legalised
    for it. What a converter writes is loaded again, run in its own runtime beside the source in its own, repaired
    where it disagrees, and kept once it agrees.

    Args:
        source: The model; anything :func:`onnxfix.load` takes. A PyTorch module is traced on the data.
        to: ``"onnx"``, ``"pytorch"``, ``"keras"``, ``"tensorflow"`` or ``"tflite"``.
        path: Where to write: ``.onnx``, ``.pt2``, ``.keras``, ``.h5``, a SavedModel directory (no suffix), a frozen
            ``.pb``, ``.tflite``. An existing file is replaced only by one that was verified.
        data: Inputs; anything :class:`onnxfix.Inputs` takes. Sizes that the model leaves open, and the converter
            cannot, are fixed to those of the data; a batch that cannot stay open is fixed to one.
        rtol: Relative tolerance.
        atol: Absolute tolerance.
        limit: Use only that many samples.
        batch_size: Samples per run.
        seed: Seed of the held-out split of a repair.
        progress: Called with a stage and the fraction done, 0..1.

    Returns:
        The conversion. ``success`` says whether a file was written and verified; ``attempts`` says what each converter
        that was tried did.

    Raises:
        ExportError: there is no such framework, or the path has another suffix or cannot be written.
        LoadError: the model cannot be read.
        InputError: the data cannot be fed to the model.

    Example:
        >>> result = onnxfix.convert("net.keras", "tflite", "net.tflite", "digits.npz")     # doctest: +SKIP
        >>> result.success, result.attempts                                                 # doctest: +SKIP
    """
    if to not in set(Framework):
        raise ExportError(f"there is no conversion to {to!r}: choose one of {', '.join(Framework)}.")
    destination, target = Path(path), Framework(to)
    check_suffix(target, destination)
    if not destination.parent.is_dir():
        raise ExportError(f"{destination} cannot be written: {destination.parent} is no folder.")
    inputs = Inputs.of(data, limit=limit, batch_size=batch_size)
    original = _loaded(source, inputs)
    inputs = inputs.bind(original)
    refuse_blank(original, None, inputs)
    tolerances: Tolerances = {"rtol": rtol, "atol": atol}
    return _Job(original, target, destination, inputs, tolerances, seed, progress).run()


def _loaded(source: Any, data: Inputs) -> Model:
    """The source; a PyTorch module, which must be traced, on the first of the data."""
    try:
        return load(source)
    except LoadError:
        if isinstance(source, str | Path) and Path(source).suffix.lower() not in (".pt", ".pth"):
            raise
        examples = data.examples()
        by_position = all(name.isdigit() for name in examples)
        try:
            return load(source, tuple(examples.values()) if by_position else examples)
        except LoadError:
            if by_position:
                raise
            return load(source, tuple(examples.values()))


class _Rejected(Exception):
    """An attempt that came to nothing; what it has written is dropped."""

    def __init__(
        self,
        converter: Converter,
        outcome: Outcome,
        message: str,
        comparison: Comparison | None = None,
        fix: Repair | None = None,
    ) -> None:
        super().__init__(message)
        self.attempt = Attempt(converter.name, outcome, message, comparison, fix)


@dataclass(frozen=True)
class _Job:
    """One call of :func:`convert`."""

    source: Model
    to: Framework
    path: Path
    data: Inputs
    tolerances: Tolerances
    seed: int
    progress: Progress | None

    def run(self) -> Conversion:
        """Try the converters in turn."""
        attempts: list[Attempt] = []
        feeds = next(self.data.feeds(self.source))
        for converter in converters(self.source, self.to):
            self._tell(converter, 0.0)
            try:
                with staged(self.path) as file:
                    attempt, model, verified = self._proved(converter, feeds, file)
            except _Rejected as rejected:
                attempts.append(rejected.attempt)
                continue
            finally:
                self._tell(converter, 1.0)
            model = replace(model, path=self.path)
            done = (*attempts, attempt)
            return Conversion(self.source, self.to, model, self.path, done, attempt.repair, verified)
        return Conversion(self.source, self.to, None, None, tuple(attempts))

    def _tell(self, converter: Converter, fraction: float) -> None:
        if self.progress is not None:
            self.progress(f"trying {converter.name}", fraction)

    def _proved(
        self, converter: Converter, feeds: dict[str, np.ndarray], file: Path
    ) -> tuple[Attempt, Model, Comparison]:
        """Convert, write, load again, compare."""
        try:
            write(self.source, self.to, converter.convert(self.source, feeds), file)
        except OnnxFixError as error:
            raise _Rejected(converter, Outcome.FAILED, str(error)) from error
        try:
            model = load(file)
            comparison = compared_natively(self.source, model, self.data, **self.tolerances)
        except OnnxFixError as error:
            raise _Rejected(converter, Outcome.UNUSABLE, f"what was written cannot be used: {error}") from error
        if comparison.equivalent:
            message = "What was written agrees with the source."
            return Attempt(converter.name, Outcome.CONVERTED, message, comparison), model, comparison
        return self._repaired(converter, model, comparison, file)

    def _repaired(
        self, converter: Converter, model: Model, comparison: Comparison, file: Path
    ) -> tuple[Attempt, Model, Comparison]:
        """Repair what was written, write it again, compare it on data that the repair did not use."""
        fix: Repair | None = None
        try:
            fix = repair(self.source, model, self.data, seed=self.seed, **self.tolerances)
            if not fix.success or not fix.patches:
                left = "; ".join(u.reason for u in fix.unrepaired) or fix.verified.reason or comparison.reason
                raise _Rejected(
                    converter, Outcome.DIFFERENT, f"What was written differs and is not repaired: {left}",
                    comparison, fix,
                )
            fix.save(file)
            again = load(file)
            verified = compared_natively(self.source, again, fix.holdout, **self.tolerances)
        except OnnxFixError as error:
            message = f"What was written differs, and its repair failed: {error}"
            raise _Rejected(converter, Outcome.DIFFERENT, message, comparison, fix) from error
        if not verified.equivalent:
            message = f"What was written differs, also after its repair: {verified.reason}"
            raise _Rejected(converter, Outcome.DIFFERENT, message, comparison, fix)
        message = f"What was written differed: {comparison.reason} It was repaired, and agrees."
        return Attempt(converter.name, Outcome.REPAIRED, message, comparison, fix), again, verified
