"""A Keras model made of other tensors: its kind, its name and the structure of what it takes and gives stay."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from onnxfix.frameworks.keras_graph import functional


def remodelled(model: Any, inputs: Sequence[Any], outputs: Sequence[Any]) -> Any:
    """A model of the same kind, name and structure with other outputs, and inputs of its own kind.

    A ``Sequential`` stays one where what leads to its output is a chain of layers.
    """
    import keras

    if isinstance(model, keras.Sequential):
        chain = _chain(inputs, outputs)
        if chain is not None:
            return keras.Sequential([*inputs, *chain], name=model.name)
    graph = functional(model)
    struct = _packed(graph._inputs_struct, inputs)
    answers = _packed(graph._outputs_struct, outputs)
    kind = keras.Model if isinstance(model, keras.Sequential) else type(model)
    try:
        return kind(struct, answers, name=model.name)
    except TypeError:  # a class with a constructor of its own
        return keras.Model(struct, answers, name=model.name)


def with_distinct_names(outputs: Sequence[Any], own: Iterable[Any], taken: set[str]) -> None:
    """Rename operations that lead to tensors and are not the model's own, where they have the names of others."""
    from onnxfix.frameworks.keras_building import free_name

    seen = {id(operation) for operation in own}
    names = {operation.name for operation in own}
    queue, walked = list(outputs), set()
    while queue:
        operation, place, _ = queue.pop()._keras_history
        node = operation._inbound_nodes[place]
        if id(node) not in walked:
            walked.add(id(node))
            queue.extend(node.input_tensors)
        if id(operation) in seen:
            continue
        seen.add(id(operation))
        if operation.name in names and not hasattr(operation, "weights"):
            operation.name = free_name(operation.name, taken)
        names.add(operation.name)


def _packed(struct: Any, tensors: Sequence[Any]) -> Any:
    import keras

    if len(keras.tree.flatten(struct)) == len(tensors):
        return keras.tree.pack_sequence_as(struct, list(tensors))
    return list(tensors) if len(tensors) > 1 else tensors[0]


def _chain(inputs: Sequence[Any], outputs: Sequence[Any]) -> list[Any] | None:
    """The layers from the one input to the one output, where there is nothing beside them."""
    import keras

    if len(inputs) != 1 or len(outputs) != 1:
        return None
    layers: list[Any] = []
    tensor = outputs[0]
    while tensor is not inputs[0]:
        operation, place, _ = tensor._keras_history
        node = operation._inbound_nodes[place]
        given = [value for value in node.arguments._flat_arguments if value is not None]  # a mask may be None
        if not isinstance(operation, keras.Layer) or len(given) != 1 or operation in layers:
            return None
        layers.insert(0, operation)
        (tensor,) = node.input_tensors
    return layers
