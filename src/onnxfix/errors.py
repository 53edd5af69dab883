"""Every error onnxfix raises on purpose: one root, and a subclass for each thing a caller may want to catch."""

from __future__ import annotations


class OnnxFixError(Exception):
    """Root of all errors that onnxfix raises; its text is one sentence that says what to do."""


class LoadError(OnnxFixError):
    """A file or object is not a model that onnxfix can read."""


class LoweringError(OnnxFixError):
    """A model was read but cannot be expressed in ONNX."""


class UnfaithfulLoweringError(LoweringError):
    """The ONNX form of a model computes something else than the model: a fault of the lowering, not of the model.

    Attributes:
        layer: The first native layer, operator or tensor whose lowered form is wrong; None if it cannot be told.
        nodes: The lowered nodes that stand for it.
    """

    def __init__(self, message: str, layer: str | None = None, nodes: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.layer = layer
        self.nodes = nodes


class InputError(OnnxFixError):
    """The data given cannot be fed to the models (missing, empty, NaN, wrong shape, dtype or names)."""


class CanonicalizationError(OnnxFixError):
    """The normal form could not be reached, or a pass changed what the model computes."""


class AlignmentError(OnnxFixError):
    """The two models cannot be put side by side (their inputs or outputs do not correspond)."""


class RuntimeFailure(OnnxFixError):
    """A runtime refused or crashed on a model."""


class ExportError(OnnxFixError):
    """A model cannot be written in the requested format."""


class MissingDependencyError(OnnxFixError):
    """An optional extra is not installed; the text names the ``pip install`` that mends it."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs {package}, which is not installed: run pip install 'onnxfix[{extra}]'.")
        self.package = package
        self.extra = extra
