"""Structural edits of functional Keras models: the patched graph, with the layers that still compute a part of it.

Every call of a layer stands for a piece of the lowered graph. Where the patched graph still has that piece, the layer
stays, with the weights and the operands that the piece has there. Where it has another one in its place, the layer gets
the configuration by which it computes that, if there is one. What is left is built anew, op by op.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx

from onnxfix.errors import ExportError
from onnxfix.frameworks.graph_matching import Match
from onnxfix.frameworks.keras_building import free_name
from onnxfix.frameworks.keras_fitting import Fitted, fitted, piece_of
from onnxfix.frameworks.keras_graph import Frame
from onnxfix.frameworks.keras_pieces import built_of
from onnxfix.frameworks.keras_remodelling import remodelled
from onnxfix.frameworks.keras_table import Calls, Edit


class EscapeError(ExportError):
    """A model inside another one would have to read more than it is given."""


class Rebuilding:
    """The graph of one functional model, made anew where the patched graph asks for it.

    Args:
        edit: What is to be done.
        frame: The model's run.
        names: id of a symbolic tensor -> the lowered value that it is; those that tf2onnx has left out are missing.
        inputs: Value of the patched graph -> symbolic tensor, for what the model is given.
    """

    def __init__(
        self, edit: Edit, frame: Frame, names: Mapping[int, str], inputs: Mapping[str, Any]
    ) -> None:
        self._edit = edit
        self._names = names
        self._inputs = dict(inputs)
        self._calls = Calls(edit, frame, names, self._inputs)
        self._values: dict[str, Any] = {}
        self._given: dict[int, Any] = {}
        self._done: dict[int, list[Any]] = {}

    def expected(self, symbol: Any) -> str | None:
        """The value of the patched graph that a symbolic tensor of the model is, if nothing changes it."""
        return self._calls.expected(symbol)

    def take(self, value: str, tensor: Any) -> None:
        """Say which tensor a value of the patched graph is."""
        self._inputs[value] = tensor
        self._calls.by_name.pop(value, None)

    def give(self, symbol: Any, tensor: Any) -> None:
        """Say which tensor an input of the model is."""
        self._given[id(symbol)] = tensor

    def keep(self, symbol: Any) -> Any:
        """The tensor that stands where a symbolic tensor of the old model stood."""
        if id(symbol) in self._given:
            return self._given[id(symbol)]
        node = self._calls.makers.get(id(symbol))
        if node is None:
            return symbol
        match = self._calls.plan(node)
        if match is not None:
            return self._call(node, match)[_index(node.outputs, symbol)]
        expected = self._calls.expected(symbol)
        if expected is None:
            raise ExportError(f"the layer {node.operation.name} cannot be told apart from its neighbours")
        return self.value(expected)

    def value(self, name: str, before: Any = None) -> Any:
        """The tensor of a value of the patched graph; ``before`` is what was in its place in the old model."""
        if name in self._inputs:
            return self._inputs[name]
        if name not in self._values:
            self._values[name] = self._made(name, before)
        return self._values[name]

    def _made(self, name: str, before: Any) -> Any:
        symbol = self._calls.by_name.get(name)
        if symbol is not None:
            node = self._calls.makers[id(symbol)]
            match = self._calls.plan(node)
            if match is not None:
                return self._call(node, match)[_index(node.outputs, symbol)]
        maker = self._edit.new.makers.get(name)
        if maker is not None and maker.op_type == "Identity" and maker.input[0] != name and symbol is None:
            return self.value(maker.input[0], before)
        symbol = self._calls.around(name) if symbol is None else symbol
        if symbol is None and id(before) in self._calls.makers:
            merged = self._merged(name, before)
            return self._replaced(name, before, own=False) if merged is None else merged
        return self._replaced(name, symbol)

    def _merged(self, name: str, before: Any) -> Any:
        """What is put in behind a layer, where it can be a setting of the layer."""
        node, place = self._calls.makers[id(before)], self._calls.expected(before)
        here = (self._calls.by_name.keys() | self._inputs.keys()) - {place}
        nodes, begins = self._edit.new.behind(name, here)
        if place not in {output for n in nodes for output in n.output} or not here.issuperset(begins):
            return None
        return self._values[name] if self._refitted(node, name, nodes, begins, whole=True) == name else None

    def knows(self, value: str) -> bool:
        """Whether a value of the patched graph has the name of what one of the model's calls makes."""
        return value in self._calls.by_name or value in self._inputs

    def _call(self, node: Any, match: Match) -> list[Any]:
        """Call a layer of the model as the patched graph has it."""
        if id(node) not in self._done:
            given = {id(symbol): self._argument(symbol, match) for symbol in node.input_tensors}
            operation = self._with_weights(node.operation, match.parameters)
            if id(node) in self._calls.inner and any(given[id(s)].shape != s.shape for s in node.input_tensors):
                operation = self._resized(node, [given[id(s)] for s in node.input_tensors])
            if operation is node.operation and all(given[id(s)] is s for s in node.input_tensors):
                self._done[id(node)] = list(node.outputs)
            else:
                self._done[id(node)] = _called(operation, node, given)
        return self._done[id(node)]

    def _argument(self, symbol: Any, match: Match) -> Any:
        name = self._calls.lowered(symbol)
        if name is None:  # the layer before it is part of the same piece
            maker = self._calls.makers[id(symbol)]
            return self._call(maker, match)[_index(maker.outputs, symbol)]
        bound = match.inputs.get(name)
        if bound is None or bound == self._calls.expected(symbol):
            return self.keep(symbol)
        return self.value(bound, symbol if self._edit.replaces else None)

    def _with_weights(self, operation: Any, parameters: Mapping[str, np.ndarray]) -> Any:
        """The operation, or a copy of it where another call of it needs other weights."""
        assigned = self._edit.assigned
        if all(_same(assigned.setdefault(name, value), value) for name, value in parameters.items()):
            return operation
        config = {**operation.get_config(), "name": free_name(operation.name, self._edit.taken)}
        twin = type(operation).from_config(config)
        twin.build_from_config(operation.get_build_config())
        own = {id(self._edit.variables[name]): value for name, value in parameters.items()}
        twin.set_weights([own.get(id(variable), np.asarray(variable)) for variable in operation.weights])
        return twin

    def _replaced(self, name: str, symbol: Any, *, own: bool = True) -> Any:
        """A value that no call of the model makes any more: by a layer with another configuration, or op by op.

        Args:
            name: The value.
            symbol: What it stands in the place of.
            own: Whether it is what the call of ``symbol`` made, and not something put in behind that.
        """
        node = None if symbol is None else self._calls.makers[id(symbol)]
        if node is not None and own and id(node) in self._calls.inner:
            found = self._inside(node, symbol)
            if found is not None:
                return found
        here = self._calls.by_name.keys() | self._inputs.keys()
        moved = self._moved(name, node, here)
        nodes, begins = self._edit.new.behind(name, here | moved.keys())
        stray = next((value for value in begins if value not in here and value not in moved), None)
        if stray is not None:
            raise EscapeError(f"{name} depends on {stray}, which it is not given")
        self._values.update({value: make() for value, make in moved.items() if value in begins})
        if node is not None and own and not moved and not self._calls.is_shared(node.operation):
            self._edit.taken.discard(node.operation.name)
        if node is not None and not moved and hasattr(node.operation, "get_config"):
            end = self._refitted(node, name, nodes, begins)
            if end == name:
                return self._values[name]
            if end is not None:
                nodes, begins = self._edit.new.behind(name, {*here, end})
        return self._built(name, nodes, begins, node)

    def _moved(self, name: str, node: Any, here: Iterable[str]) -> dict[str, Callable[[], Any]]:
        """A value before this one that is what the call made, as it is."""
        old = None if node is None else next((self._calls.lowered(s) for s in node.outputs), None)
        if old is None or len(node.outputs) > 1:
            return {}
        nodes, _ = self._edit.new.behind(name, set(here))
        for maker in reversed(nodes):
            for value in maker.output:
                match = None if value == name else self._calls.found(node, [(old, value)])
                if match is not None and value not in self._inputs and old not in (self._calls.begins(node) or ()):
                    return {value: lambda match=match: self._call(node, match)[0]}  # type: ignore[misc]
        return {}

    def _refitted(
        self, node: Any, name: str, nodes: Sequence[onnx.NodeProto], begins: Sequence[str], *, whole: bool = False
    ) -> str | None:
        """Let a layer with another configuration make the value, or one before it if that will do; say which."""
        if len(node.outputs) != 1 or not begins or not hasattr(node.operation, "weights"):
            return None
        tensors = {value: self._operand(value, node) for value in begins}
        inputs = {value: (tuple(t.shape), t.dtype) for value, t in tensors.items()}
        order = [self._calls.expected(symbol) for symbol in node.input_tensors]
        ordered = sorted(begins, key=lambda v: order.index(v) if v in order else len(order))
        piece = piece_of(self._edit.new, name, nodes, {value: inputs[value] for value in ordered})
        weights = self._wanted(node.operation)
        found = fitted(node, weights, piece, whole=True)
        if found is None and not whole:
            found = fitted(node, weights, piece, whole=False)
        if found is not None and self._calls.is_shared(node.operation):
            own = {**found.layer.get_config(), "name": free_name(node.operation.name, self._edit.taken)}
            found = replace(found, layer=type(found.layer).from_config(own))
        if found is None:
            return None
        self._values[found.value] = self._placed(found, node, tensors, weights)
        return found.value

    def _operand(self, value: str, node: Any) -> Any:
        """A value as a call took it: what passes it on untouched, such as a Dropout, stays between."""
        symbols = [] if node is None else node.input_tensors
        symbol = next((own for own in symbols if self._calls.expected(own) == value), None)
        return self.value(value) if symbol is None else self.keep(symbol)

    def _placed(
        self, found: Fitted, node: Any, tensors: Mapping[str, Any], weights: Sequence[np.ndarray]
    ) -> Any:
        arguments = [tensors[value] for value in found.inputs]
        if found.before is not None:
            self._edit.taken.add(found.before.name)
            arguments = [found.before(tensor) for tensor in arguments]
        given = {id(symbol): tensor for symbol, tensor in zip(node.input_tensors, arguments, strict=True)}
        (result,) = _called(found.layer, node, given)
        if weights:
            found.layer.set_weights(list(weights))
        return result

    def _wanted(self, layer: Any) -> list[np.ndarray]:
        """A layer's weights, as the patched graph has them."""
        names = {id(variable): name for name, variable in self._edit.variables.items()}
        wanted = []
        for variable in layer.weights:
            name = names.get(id(variable))
            value = None if name is None else self._edit.new.constant(name)
            wanted.append(np.asarray(variable) if value is None else value)
        return wanted

    def _resized(self, node: Any, arguments: Sequence[Any]) -> Any:
        """An inner model for arguments of other sizes."""
        import keras

        frame = self._calls.inner[id(node)]
        own = frame.graph.inputs
        given = [keras.Input(batch_shape=new.shape, dtype=new.dtype, name=old.name)
                 for old, new in zip(own, arguments, strict=True)]
        inner = Rebuilding(self._edit, frame, self._names, {})
        for symbol, tensor in zip(own, given, strict=True):
            inner.give(symbol, tensor)
        return remodelled(node.operation, given, [inner.keep(symbol) for symbol in frame.graph.outputs])

    def _inside(self, node: Any, symbol: Any) -> Any:
        """The value of an inner model, which is made anew by itself; None where it then reads more than it is given."""
        frame = self._calls.inner[id(node)]
        arguments = list(node.input_tensors)
        inputs = {self._calls.expected(a): s for a, s in zip(arguments, frame.graph.inputs, strict=False)}
        if None in inputs or len(inputs) != len(frame.graph.inputs):
            self._open(node, frame)
            return None
        inner = Rebuilding(self._edit, frame, self._names, {str(k): v for k, v in inputs.items()})
        try:
            outputs = [inner.keep(own) for own in frame.graph.outputs]
        except EscapeError:
            self._open(node, frame)
            return None
        model = remodelled(node.operation, frame.graph.inputs, outputs)
        self._done[id(node)] = _called(model, node, {id(a): self.keep(a) for a in arguments})
        return self._done[id(node)][_index(node.outputs, symbol)]

    def _open(self, node: Any, frame: Frame) -> None:
        """Let the layers of an inner model be the outer one's."""
        for own, argument in zip(frame.graph.inputs, node.input_tensors, strict=True):
            self.give(own, self.keep(argument))
        for symbol in node.outputs:
            self._calls.by_name.pop(self._calls.expected(symbol) or "", None)
        self._calls.inner.pop(id(node))
        self._calls.adopt(frame)

    def _built(self, name: str, nodes: Sequence[onnx.NodeProto], begins: Sequence[str], node: Any) -> Any:
        """A value op by op from the values that it depends on."""
        tensors = {value: self._operand(value, node) for value in begins}
        layer = None if node is None else node.operation.name
        return built_of(self._edit.new, name, nodes, tensors, layer, self._edit.taken)


def _called(operation: Any, node: Any, given: Mapping[int, Any]) -> list[Any]:
    import keras

    args, kwargs = node.arguments.fill_in(dict(given))
    return [value for value in keras.tree.flatten(operation(*args, **kwargs)) if value is not None]


def _index(symbols: Sequence[Any], symbol: Any) -> int:
    return next(k for k, own in enumerate(symbols) if own is symbol)


def _same(one: np.ndarray, other: np.ndarray) -> bool:
    return one is other or np.array_equal(one, other, equal_nan=one.dtype.kind == "f")
