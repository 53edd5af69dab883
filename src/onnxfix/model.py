"""The shared vocabulary: a model, lowered to ONNX, with its native original beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from onnxfix.errors import LoadError
from onnxfix.frameworks import Feeds, Framework, adapter, adapters
from onnxfix.quantization import Quantization, input_quantization, output_quantization

if TYPE_CHECKING:
    from onnxfix.canonical.pipeline import NormalForm
    from onnxfix.runtime.session import Session


@dataclass(frozen=True)
class TensorSpec:
    """Name, dtype and shape of a model input or output; a dimension is an int, a symbolic name, or None."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | str | None, ...] | None
    quantization: Quantization | None = field(default=None, compare=False)
    """What the integers of a quantized file's input or output stand for."""

    def __str__(self) -> str:
        dims = "?" if self.shape is None else ", ".join("?" if d is None else str(d) for d in self.shape)
        return f"{self.name}: {self.dtype}[{dims}]"

    @classmethod
    def of(cls, info: onnx.ValueInfoProto) -> TensorSpec:
        """Read a spec from a graph input or output.

        Raises:
            LoadError: it is no tensor (but a sequence, an optional, a map), or its element type is unknown.
        """
        if info.type.tensor_type.elem_type not in onnx.helper.get_all_tensor_dtypes():
            kind = info.type.WhichOneof("value") or "type that is not given"
            raise LoadError(f"{info.name} is a {kind.removesuffix('_type')}: only tensors can be fed and compared.")
        tensor = info.type.tensor_type
        shape: tuple[int | str | None, ...] | None = None
        if tensor.HasField("shape"):
            shape = tuple(
                d.dim_value if d.HasField("dim_value") else (d.dim_param or None) for d in tensor.shape.dim
            )
        return cls(info.name, np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)), shape)


@dataclass(frozen=True, eq=False)
class Model:
    """A model lowered to ONNX, with its native original kept beside it.

    Attributes:
        proto: The lowered ONNX graph, before canonicalization; node and initializer names are the framework's own.
        framework: Where it came from.
        native: The framework's own object or file content.
        parameters: Lowered initializer name -> native parameter name (those that can be written back).
        layers: Lowered node name -> native layer path.
        path: The file it was read from, if any.
        held: Opened files that large tensors of :attr:`proto` are kept in (see :mod:`onnxfix.mapped`).
    """

    proto: onnx.ModelProto
    framework: Framework = Framework.ONNX
    native: Any = None
    parameters: Mapping[str, str] = field(default_factory=dict)
    layers: Mapping[str, str] = field(default_factory=dict)
    path: Path | None = None
    held: tuple[object, ...] = field(default=(), repr=False)

    @cached_property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """The graph inputs, initializers left out."""
        constants = {t.name for t in self.proto.graph.initializer}
        specs = (TensorSpec.of(i) for i in self.proto.graph.input if i.name not in constants)
        return tuple(_told(spec, input_quantization, self.proto) for spec in specs)

    @cached_property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """The graph outputs."""
        specs = (TensorSpec.of(o) for o in self.proto.graph.output)
        return tuple(_told(spec, output_quantization, self.proto) for spec in specs)

    @cached_property
    def canonical(self) -> onnx.ModelProto:
        """The normal form of :attr:`proto` (see ``docs/normal-form.md``)."""
        return self.normal_form.pinned()

    @cached_property
    def normal_form(self) -> NormalForm:
        """The normal form of :attr:`proto`, with the origins of its constants and the provenance of its nodes."""
        from onnxfix.canonical.pipeline import normal_form

        return normal_form(self.proto)

    def run(self, feeds: Feeds) -> dict[str, np.ndarray]:
        """Run the lowered graph in onnxruntime with graph optimisation off.

        Args:
            feeds: Input name -> array.

        Returns:
            Output name -> array, in output order.
        """
        return self._session.run(feeds)

    @cached_property
    def _session(self) -> Session:
        from onnxfix.runtime.session import Session

        return Session(self.proto)

    def run_native(self, feeds: Feeds) -> dict[str, np.ndarray]:
        """Run the native model in its framework's own runtime; same names as :meth:`run`."""
        return adapter(self.framework).run(self, feeds)

    def activations(self, feeds: Feeds) -> dict[str, np.ndarray]:
        """Native intermediate values by native name."""
        return adapter(self.framework).activations(self, feeds)

    def save(self, path: str | Path) -> None:
        """Write the model: ``.onnx`` writes :attr:`proto`, any other suffix the native model in its own format.

        Raises:
            ExportError: the model's framework cannot write that suffix.
        """
        from onnxfix.surgeon.files import save_model

        save_model(self, {}, Path(path))

    def __repr__(self) -> str:
        return (
            f"Model({self.framework}, inputs=[{'; '.join(map(str, self.inputs))}], "
            f"outputs=[{'; '.join(map(str, self.outputs))}], nodes={len(self.proto.graph.node)})"
        )


def _told(
    spec: TensorSpec, find: Callable[[onnx.ModelProto, str], Quantization | None], proto: onnx.ModelProto
) -> TensorSpec:
    """The spec with what its integers stand for, where it has eight or sixteen bits and the graph tells."""
    small = spec.dtype.kind in "iu" and spec.dtype.itemsize <= 2
    return replace(spec, quantization=find(proto, spec.name)) if small else spec


def load(obj: Any, inputs: Any = None, *, verify: bool = False) -> Model:
    """Load a model from any framework and lower it to ONNX.

    Args:
        obj: A path (``.onnx``, ``.pt2``, ``.pt``, ``.keras``, ``.h5``/``.hdf5``, SavedModel directory, frozen ``.pb``,
            ``.tflite``), an ``onnx.ModelProto``, an ``onnx_ir.Model``, a ``torch.nn.Module`` (with ``inputs``), a
            ``torch.export.ExportedProgram``, a ``keras.Model``, a TF concrete function, or a :class:`Model`.
        inputs: Example inputs, for models that must be traced (a tensor or array, a tuple of them, or a dict).
        verify: Also run the model in its own framework beside the lowered graph, on ``inputs`` or random ones.

    Returns:
        The lowered model.

    Raises:
        LoadError: nothing there, or not a model onnxfix can read.
        LoweringError: the model was read but has no ONNX form.
        UnfaithfulLoweringError: ``verify`` found that the ONNX form computes something else; it says which layer.
        MissingDependencyError: the model's framework is not installed.

    Example:
        >>> model = onnxfix.load("classifier.tflite")           # doctest: +SKIP
        >>> model.inputs                                        # doctest: +SKIP
    """
    model = obj if isinstance(obj, Model) else _lowered(obj, inputs)
    if verify:
        from onnxfix.frameworks.faithful import verify_lowering

        verify_lowering(model, inputs)
    return model


def _lowered(obj: Any, inputs: Any) -> Model:
    if isinstance(obj, str | Path):
        obj = Path(obj)
        if not obj.exists():
            raise LoadError(f"{obj} does not exist: check the path.")
    for candidate in adapters():
        if candidate.recognises(obj):
            lowered = candidate.lower(obj, inputs)
            return Model(
                proto=lowered.proto, framework=candidate.framework, native=lowered.native,
                parameters=lowered.parameters, layers=lowered.layers, path=lowered.path, held=lowered.held,
            )
    raise LoadError(f"{_describe(obj)} is not a model that onnxfix reads: {_accepted()}.")


def _describe(obj: object) -> str:
    if isinstance(obj, Path):
        return f"{obj} ({'directory' if obj.is_dir() else 'file'})"
    return f"An object of type {type(obj).__module__}.{type(obj).__qualname__}"


def _accepted() -> str:
    return (
        "give an .onnx, .pt2, .pt, .keras, .h5, .pb or .tflite file, a SavedModel directory, or a model object of "
        "ONNX, PyTorch, Keras or TensorFlow"
    )


def names(specs: Sequence[TensorSpec]) -> str:
    """A readable list of specs for messages."""
    return "; ".join(map(str, specs)) or "none"
