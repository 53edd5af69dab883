"""The graph of a functional Keras model: its calls, and which lowered value each of its tensors is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import wraps
from typing import Any


@dataclass(eq=False)
class Frame:
    """One run of a functional model.

    Attributes:
        graph: The ``Functional`` that ran; of a ``Sequential`` the one inside it.
        tensors: id of a symbolic tensor of its graph -> the TensorFlow tensor that it was.
        inner: Node id -> what ran inside a call of a model.
    """

    graph: Any
    tensors: dict[int, Any] = field(default_factory=dict)
    inner: dict[int, Frame] = field(default_factory=dict)

    def frames(self) -> Iterator[Frame]:
        """This one and all inside."""
        yield self
        for frame in self.inner.values():
            yield from frame.frames()


def functional(model: Any) -> Any:
    """The graph of a functional or sequential model; None where the model is defined by its code."""
    graph = getattr(model, "_functional", model)
    return graph if hasattr(graph, "_nodes_by_depth") and hasattr(graph, "_run_through_graph") else None


def calls_of(graph: Any) -> list[Any]:
    """The nodes of a functional model in the order in which it runs them."""
    by_depth = graph._nodes_by_depth
    return [node for depth in sorted(by_depth, reverse=True) for node in by_depth[depth]
            if node.operation and not node.is_input]


@contextmanager
def recording(model: Any) -> Iterator[Callable[[], Frame | None]]:
    """Record the runs of a functional model inside the block; what is given answers the first one.

    Its answer is None where the model, or one inside it, ran otherwise than by its graph.
    """
    graphs = list(_graphs(functional(model)))
    recorder = _Recorder(graphs)
    hooked: list[Any] = []
    try:
        for graph in graphs:
            for operation in (graph, *graph._operations):
                if id(operation) not in {id(h) for h in hooked}:
                    # Into the instance's __dict__ directly: Keras tracks what is set the ordinary way.
                    operation.__dict__["call"] = recorder.watch(operation, operation.call)
                    hooked.append(operation)
        yield lambda: recorder.first
    finally:
        for operation in hooked:
            operation.__dict__.pop("call", None)


def _graphs(graph: Any) -> Iterator[Any]:
    if graph is None:
        return
    yield graph
    for operation in graph._operations:
        yield from _graphs(functional(operation))


class _Recorder:
    """Keeps the stack of the graphs that run."""

    def __init__(self, graphs: list[Any]) -> None:
        self.first: Frame | None = None
        self._graphs = {id(graph) for graph in graphs}
        self._running: list[tuple[Frame, Iterator[Any]]] = []
        self._ended: Frame | None = None

    def watch(self, operation: Any, call: Callable[..., Any]) -> Callable[..., Any]:
        """``call`` with its tensors written down."""
        runs = self._run if id(operation) in self._graphs else None

        @wraps(call)
        def watching(*args: Any, **kwargs: Any) -> Any:
            outputs = call(*args, **kwargs) if runs is None else runs(operation, call, args, kwargs)
            if functional(operation) is not operation or runs is not None:
                self._note(operation, outputs)
            return outputs

        return watching

    def _run(self, graph: Any, call: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        frame = Frame(graph)
        given = _flat(args[0] if args else next(iter(kwargs.values())))
        frame.tensors.update(_paired(graph.inputs, given))
        self._running.append((frame, iter(calls_of(graph))))
        outputs = call(*args, **kwargs)
        self._running.pop()
        self._ended = frame
        if not self._running:
            self.first = self.first or frame
        return outputs

    def _note(self, operation: Any, outputs: Any) -> None:
        """The operation is the next call of the graph that runs."""
        if not self._running:
            return
        frame, calls = self._running[-1]
        if not any(operation is known for known in frame.graph._operations):
            return
        node = next((node for node in calls if node.operation is operation), None)
        if node is None:
            return
        frame.tensors.update(_paired(node.outputs, _flat(outputs)))
        if functional(operation) is not None and self._ended is not None:
            frame.inner[id(node)] = self._ended


def _paired(symbols: list[Any], tensors: list[Any]) -> dict[int, Any]:
    return {id(s): t for s, t in zip(symbols, tensors, strict=True)} if len(symbols) == len(tensors) else {}


def _flat(value: Any) -> list[Any]:
    import keras

    return [item for item in keras.tree.flatten(value) if item is not None]
