"""Inlining of TensorFlow function calls that the runtime's own inliner leaves alone.

Keras wraps grouped convolutions in functions marked for compilation (onnx/tensorflow-onnx#2099); TensorFlow does not
inline those, and tf2onnx knows no calls.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

_CALLS = ("PartitionedCall", "StatefulPartitionedCall")


def inlined(graph_def: Any) -> Any:
    """A graph in which every plain call is replaced by the body of its function; names get the call's as a prefix.

    Functions that nothing calls any more are left out: tf2onnx would lower them too, and knows no shapes there.
    """
    functions = {function.signature.name: function for function in graph_def.library.function}
    if not any(_is_call(node, functions) for node in graph_def.node):
        return graph_def
    while any(_is_call(node, functions) for node in graph_def.node):
        graph_def = _one_level(graph_def, functions)
    called = _called(graph_def.node, functions)
    del graph_def.library.gradient[:]
    del graph_def.library.function[:]
    graph_def.library.function.extend(function for name, function in functions.items() if name in called)
    return graph_def


def _called(nodes: Iterable[Any], functions: dict[str, Any]) -> set[str]:
    """The functions that nodes name, and those that their bodies name."""
    found: set[str] = set()
    waiting = list(nodes)
    while waiting:
        for value in waiting.pop().attr.values():
            for name in {value.func.name, *(function.name for function in value.list.func)} & functions.keys() - found:
                found.add(name)
                waiting += functions[name].node_def
    return found


def _is_call(node: Any, functions: dict[str, Any]) -> bool:
    return node.op in _CALLS and node.attr["f"].func.name in functions


def _one_level(graph_def: Any, functions: dict[str, Any]) -> Any:
    made = type(graph_def)()
    made.CopyFrom(graph_def)
    del made.node[:]
    results: dict[str, str] = {}
    for node in graph_def.node:
        if _is_call(node, functions):
            results.update(_insert(made, node, functions[node.attr["f"].func.name]))
        else:
            made.node.add().CopyFrom(node)
    for node in made.node:
        node.input[:] = [_resolved(name, results) for name in node.input]
    return made


def _insert(graph_def: Any, call: Any, function: Any) -> dict[str, str]:
    """Add a function's body to the graph; returns call output -> body tensor."""
    from tensorflow.python.framework.function_def_to_graph import function_def_to_graph_def

    body, flat_names = function_def_to_graph_def(function)
    arguments = [argument.name for argument in function.signature.input_arg]
    given = dict(zip(arguments, (name for name in call.input if not name.startswith("^")), strict=True))

    def outer(name: str) -> str:
        control = "^" if name.startswith("^") else ""
        operator, _, port = name.removeprefix("^").partition(":")
        if operator in given:
            source = given[operator]
            return f"^{source.split(':')[0]}" if control else source
        return f"{control}{call.name}/{operator}" + (f":{port}" if port else "")

    for node in body.node:
        if node.name in given:
            continue
        copy = graph_def.node.add()
        copy.CopyFrom(node)
        copy.name = f"{call.name}/{node.name}"
        copy.input[:] = [outer(name) for name in node.input]
    results = {}
    for port, output in enumerate(function.signature.output_arg):
        results[f"{call.name}:{port}"] = outer(flat_names[function.ret[output.name]])
    results[call.name] = results.get(f"{call.name}:0", "")
    return results


def _resolved(name: str, results: dict[str, str]) -> str:
    """An input with calls replaced by what they return, through calls that return another call's result."""
    control = name.startswith("^")
    name = name.removeprefix("^")
    while results.get(name):
        name = results[name]
    return f"^{name.split(':')[0]}" if control else name
