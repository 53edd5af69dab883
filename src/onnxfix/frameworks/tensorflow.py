"""TensorFlow: SavedModel directories, frozen graphs and concrete functions, lowered with variables kept by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxfix.errors import ExportError, InputError, LoadError, RuntimeFailure
from onnxfix.frameworks import Feeds, Framework, Lowered
from onnxfix.frameworks.lowering_tf2onnx import first_line, operator_of, owners, require, same_content
from onnxfix.frameworks.quiet import quiet
from onnxfix.frameworks.sniff import Content, claims, sniff
from onnxfix.frameworks.writing import sorted_patches

if TYPE_CHECKING:
    from onnxfix.frameworks.tf_function import FlatGraph
    from onnxfix.model import Model
    from onnxfix.surgeon.patch import Patch

_FILES = (Content.SAVED_MODEL, Content.GRAPH_DEF, Content.SAVED_MODEL_PB, Content.DIRECTORY)


@dataclass(frozen=True, eq=False)
class TensorFlowModel:
    """A TensorFlow function ready to be called.

    Attributes:
        function: The concrete function.
        graph: The same function without calls and captures.
        root: What keeps its variables alive (the loaded SavedModel), or None.
        graph_def: The frozen graph as the file holds it, or None for a function.
        values: New values of parameters, by name, that an edit gave it.
        nodes: Operators of :attr:`graph` that an edit set up in another way, by name.
        rebuilt: An edit gave it other operators.
    """

    function: Any
    graph: FlatGraph
    root: Any = None
    graph_def: Any = None
    values: Mapping[str, np.ndarray] = field(default_factory=dict)
    nodes: Mapping[str, Any] = field(default_factory=dict)
    rebuilt: bool = False


class TensorFlowAdapter:
    """Reads and runs SavedModels, frozen ``.pb`` graphs and concrete functions; writes frozen graphs."""

    framework = Framework.TENSORFLOW

    def recognises(self, obj: object) -> bool:
        """A directory, a ``.pb`` path, or a TensorFlow function, module or loaded SavedModel."""
        if isinstance(obj, Path):
            return claims(obj, _FILES)
        roots = {c.__module__.split(".")[0] for c in type(obj).__mro__}
        return "tensorflow" in roots and any(
            hasattr(obj, name) for name in ("structured_input_signature", "get_concrete_function", "signatures")
        )

    def lower(self, obj: Any, inputs: Any = None) -> Lowered:
        """Lower a function; initializers carry variable or constant names, inputs and outputs the signature's."""
        from onnxfix.frameworks import tf_sources
        from onnxfix.frameworks.tf_function import lower_graph

        path = obj if isinstance(obj, Path) else None
        if path and sniff(path) is Content.DIRECTORY:
            raise LoadError(f"{path} is a directory but no SavedModel (no saved_model.pb inside).")
        require("tensorflow", "loading a TensorFlow model")
        what = str(path or "The TensorFlow function")
        with quiet():
            native = tf_sources.from_path(path) if path else tf_sources.from_object(obj, inputs)
            proto = lower_graph(native.graph, what)
        values = dict(native.graph.parameters.values())
        verbatim = {
            tensor.name: tensor.name
            for tensor in proto.graph.initializer
            if tensor.name in values and same_content(tensor, values[tensor.name])
        }
        return Lowered(proto, native, verbatim, _layers(native.graph, proto), path)

    def run(self, model: Model, feeds: Feeds) -> dict[str, np.ndarray]:
        """Call the concrete function."""
        import tensorflow as tf

        native: TensorFlowModel = model.native
        arrays = _by_input(model, feeds)
        try:
            with quiet(), tf.device("/cpu:0"):
                outputs = tf.nest.flatten(_call(native.function, arrays))
        except Exception as error:  # TensorFlow's errors share no base with the ValueErrors of its argument checks
            raise RuntimeFailure(f"TensorFlow fails on this input: {first_line(error)}.") from error
        return {spec.name: value.numpy() for spec, value in zip(model.outputs, outputs, strict=True)}

    def activations(self, model: Model, feeds: Feeds) -> dict[str, np.ndarray]:
        """The first output of every operator by tensor name (``conv/Conv2D:0``), and the model's outputs."""
        import tensorflow as tf

        from onnxfix.frameworks.tf_sources import wrapped

        graph = model.native.graph
        arrays = _by_input(model, feeds)
        with quiet(), tf.device("/cpu:0"):
            fetched = _plain_tensors(graph.graph_def)
            function = wrapped(graph.graph_def, list(graph.inputs), fetched)
            values = function(*[tf.constant(a) for a in arrays])
        found = {name: value.numpy() for name, value in zip(fetched, values, strict=True)}
        final = {name: found[tensor] for tensor, name in graph.outputs if tensor in found}
        return {**found, **final}

    def with_parameters(self, model: Model, parameters: Mapping[str, np.ndarray]) -> TensorFlowModel:
        """A copy with the named constants and variables replaced.

        Raises:
            ExportError: there is none of that name, or the value does not fit it.
        """
        from onnxfix.frameworks.tf_editing import edited

        made: TensorFlowModel = edited(model, (), parameters, ())
        return made

    def edited(self, model: Model, patches: Sequence[Patch]) -> TensorFlowModel:
        """A copy of the graph with the patches in it."""
        from onnxfix.frameworks.tf_editing import edited

        made: TensorFlowModel = edited(model, patches, *sorted_patches(model, patches))
        return made

    def write(self, model: Model, native: TensorFlowModel, path: Path) -> None:
        """Write a frozen ``.pb`` or a SavedModel directory.

        A SavedModel that was read from a directory keeps its signatures, variables and assets; what was edited is
        exchanged in a copy of the directory.

        Raises:
            ExportError: the suffix is another, or the edits have no place in the SavedModel's functions.
        """
        from onnxfix.frameworks.tf_saving import save_function, save_like

        suffix = path.suffix.lower()
        if suffix == ".pb":
            graph = native.graph.graph_def if native.graph_def is None else native.graph_def
            path.write_bytes(graph.SerializeToString())
        elif suffix:
            raise ExportError(f"A TensorFlow model is saved as a directory, .pb or .onnx, not as {suffix}.")
        elif model.path is not None and model.path.is_dir():
            with quiet():
                save_like(model, native, path)
        else:
            with quiet():
                save_function(model, native, path)

    def read(self, path: Path) -> TensorFlowModel:
        """The function of a SavedModel directory or a frozen graph."""
        from onnxfix.frameworks import tf_sources

        with quiet():
            return tf_sources.from_path(path)

    def save(self, model: Model, parameters: Mapping[str, np.ndarray], path: Path) -> None:
        """Write the model with the named constants replaced."""
        self.write(model, self.with_parameters(model, parameters) if parameters else model.native, path)


def _call(function: Any, arrays: list[np.ndarray]) -> Any:
    """Call a concrete function with flat inputs, in the structure that it was traced with."""
    import tensorflow as tf

    signature = function.structured_input_signature
    if signature is None:  # a pruned function takes its inputs flat
        return function(*[tf.constant(a) for a in arrays])
    given = iter(arrays)
    leaves = [
        tf.constant(next(given)) if isinstance(leaf, tf.TensorSpec) else leaf for leaf in tf.nest.flatten(signature)
    ]
    args, kwargs = tf.nest.pack_sequence_as(signature, leaves)
    return function(*args, **kwargs)


def _layers(graph: FlatGraph, proto: Any) -> dict[str, str]:
    operators = {node.name for node in graph.graph_def.node}
    values = {f"{name}:{port}": name for name in operators for port in range(4)}
    values.update((name, tensor.rsplit(":", 1)[0]) for tensor, name in graph.outputs)
    return owners(proto, values, lambda name: operator_of(name, operators))


def _plain_tensors(graph_def: Any) -> list[str]:
    """First outputs of the operators that compute ordinary tensors."""
    import tensorflow as tf

    with tf.Graph().as_default() as graph:
        tf.import_graph_def(graph_def, name="")
    odd = (tf.resource, tf.variant, tf.string)
    return [
        op.outputs[0].name
        for op in graph.get_operations()
        if op.outputs and op.type not in ("Const", "Placeholder") and op.outputs[0].dtype not in odd
    ]


def _by_input(model: Model, feeds: Feeds) -> list[np.ndarray]:
    missing = [spec.name for spec in model.inputs if spec.name not in feeds]
    if missing:
        raise InputError(f"no data for input {', '.join(missing)}: the data has {', '.join(feeds) or 'nothing'}.")
    return [np.asarray(feeds[spec.name]) for spec in model.inputs]
