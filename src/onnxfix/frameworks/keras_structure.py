"""Patches of the lowered graph as an edited Keras model, checked against the patched graph."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from onnxfix.errors import ExportError
from onnxfix.frameworks.agreement import disagreement
from onnxfix.frameworks.example_inputs import accepted_feeds
from onnxfix.frameworks.graph_matching import GraphIndex
from onnxfix.frameworks.keras_editing import Rebuilding
from onnxfix.frameworks.keras_graph import functional
from onnxfix.frameworks.keras_naming import lowered_names
from onnxfix.frameworks.keras_remodelling import remodelled, with_distinct_names
from onnxfix.frameworks.keras_table import Edit
from onnxfix.frameworks.lowering_tf2onnx import first_line
from onnxfix.frameworks.quiet import quiet
from onnxfix.frameworks.writing import refusal, sorted_patches

if TYPE_CHECKING:
    from onnxfix.model import Model
    from onnxfix.surgeon.patch import Patch


def restructured(model: Model, patches: Sequence[Patch]) -> Any:
    """A copy of a functional or sequential model with patches in it that change more than its variables.

    Raises:
        ExportError: the model is defined by its code, or a changed part has no form in Keras.
    """
    from onnxfix.surgeon.apply import apply

    _, others = sorted_patches(model, patches)
    if functional(model.native) is None:
        raise refusal(model, others[0], "the structure of a subclassed model is the code of its class")
    patched = apply(model.proto, patches)
    failures = []
    for replaces in (True, False):
        try:
            with quiet(), _deep(len(model.proto.graph.node)):
                made = _made(model, patched, patches, replaces=replaces)
        except ExportError as error:
            failures.append(str(error).rstrip("."))
        except Exception as error:  # Keras's layers refuse what they are called with each in its own way
            failures.append(f"Keras refuses the edited model ({first_line(error)})")
        else:
            problem = _difference(model, patched, made)
            if problem is None:
                return made
            failures.append(f"the edited model answers differently ({problem})")
    raise refusal(model, others[0], failures[-1])


@contextmanager
def _deep(layers: int) -> Iterator[None]:
    """Let Python's calls nest as deep as a model: each layer asks the one before it for its tensor."""
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(limit + 10 * layers)
    try:
        yield
    finally:
        sys.setrecursionlimit(limit)


def _made(model: Model, patched: onnx.ModelProto, patches: Sequence[Patch], *, replaces: bool) -> Any:
    from onnxfix.frameworks.keras import variables
    from onnxfix.frameworks.keras_files import copied

    copy = copied(model.native)
    graph = functional(copy)
    for mine, original in zip(copy.variables, model.native.variables, strict=True):
        mine.assign(original)  # what a file leaves out too, such as the state of random generators
    frame, names = lowered_names(model, copy)
    by_name = dict(zip(variables(model.native), variables(copy).values(), strict=True))
    edit = Edit(
        GraphIndex(model.proto), GraphIndex(patched), _renamed(patches),
        {name: by_name[own] for name, own in model.parameters.items()},
        {operation.name for operation in graph._operations}, {}, replaces,
    )
    inputs = _inputs(graph, patched)
    rebuilding = Rebuilding(edit, frame, names, {})
    for symbol, tensor, spec in zip(graph.inputs, inputs, model.inputs, strict=True):
        rebuilding.take(spec.name, tensor)
        rebuilding.give(symbol, tensor)
    outputs = _outputs(model, graph, edit, rebuilding)
    for name, value in edit.assigned.items():
        edit.variables[name].assign(value)
    if all(new is own for new, own in zip([*inputs, *outputs], [*graph.inputs, *graph.outputs], strict=False)) and len(
        outputs
    ) == len(graph.outputs):
        return copy
    with_distinct_names(outputs, graph._operations, edit.taken)
    return remodelled(copy, inputs, outputs)


def _renamed(patches: Sequence[Patch]) -> dict[str, str]:
    """Lowered value -> its name when all patches are in."""
    from onnxfix.surgeon.patch import ChangeBoundary

    names: dict[str, str] = {}
    for patch in patches:
        if isinstance(patch, ChangeBoundary):
            names = {old: patch.renamed.get(new, new) for old, new in names.items()}
            names.update((old, new) for old, new in patch.renamed.items() if old not in names)
    return names


def _inputs(graph: Any, patched: onnx.ModelProto) -> list[Any]:
    """The model's inputs, of the sizes that the patched graph gives them."""
    import keras

    constants = {tensor.name for tensor in patched.graph.initializer}
    found = []
    infos = [info for info in patched.graph.input if info.name not in constants]
    for symbol, info in zip(graph.inputs, infos, strict=True):
        dims = info.type.tensor_type.shape.dim
        sizes = tuple(d.dim_value if d.HasField("dim_value") else None for d in dims)
        if sizes == tuple(symbol.shape):
            found.append(symbol)
        else:
            name = symbol._keras_history.operation.name
            found.append(keras.Input(sizes[1:], batch_size=sizes[0], dtype=symbol.dtype, name=name))
    return found


def _outputs(model: Model, graph: Any, edit: Edit, rebuilding: Rebuilding) -> list[Any]:
    """The tensors of the patched graph's outputs, called as these are where the names are free."""
    from onnxfix.frameworks.keras_building import named_output

    own = {spec.name: symbol for spec, symbol in zip(model.outputs, graph.outputs, strict=True)}
    found = []
    for info in edit.new.proto.graph.output:
        name, symbol = info.name, own.get(info.name)
        while not rebuilding.knows(name) and (maker := edit.new.makers.get(name)) and maker.op_type == "Identity":
            name = maker.input[0]
        kept = symbol is not None and rebuilding.expected(symbol) == name
        tensor = rebuilding.keep(symbol) if kept else rebuilding.value(name, symbol if edit.replaces else None)
        free = info.name.isidentifier() and info.name not in edit.taken
        found.append(named_output(tensor, info.name, edit.taken) if not kept and free else tensor)
    return found


def _difference(model: Model, patched: onnx.ModelProto, made: Any) -> str | None:
    """How the edited model's answers differ from the patched graph's, on random inputs."""
    from onnxfix.model import Model as Lowered

    wanted = Lowered(proto=patched, native=patched)
    for feeds in accepted_feeds(wanted):
        expected = wanted.run(feeds)
        try:
            with quiet():
                answers = _answers(made, [feeds[spec.name] for spec in model.inputs])
        except Exception as error:  # whatever TensorFlow raises
            return f"it fails on a random input: {first_line(error)}"
        if len(answers) != len(expected):
            return f"it has {len(answers)} outputs instead of {len(expected)}"
        problem = disagreement(expected, dict(zip(expected, answers, strict=True)))
        if problem:
            return problem
    return None


def _answers(made: Any, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
    import keras

    tensors = [keras.ops.convert_to_tensor(array) for array in arrays]
    given = keras.tree.pack_sequence_as(functional(made)._inputs_struct, tensors)
    return [np.asarray(value) for value in keras.tree.flatten(made(given, training=False)) if value is not None]
