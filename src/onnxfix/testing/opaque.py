"""Meaningless names: a model whose nodes and tensors say nothing about where they came from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import onnx

from onnxfix.testing.faults.editor import subgraphs
from onnxfix.testing.faults.operator import Site


@dataclass(frozen=True, eq=False)
class Opaque:
    """A renamed model.

    Attributes:
        model: The model under meaningless names; graph inputs and outputs keep theirs.
        nodes: Old node name -> new.
        values: Old value name (initializers included) -> new.
    """

    model: onnx.ModelProto
    nodes: dict[str, str]
    values: dict[str, str]

    def site(self, site: Site) -> Site:
        """The ground truth under the new names."""
        return replace(
            site,
            node=self.nodes.get(site.node, site.node),
            parameter=None if site.parameter is None else self.values.get(site.parameter, site.parameter),
            also=tuple(self.nodes.get(name, name) for name in site.also),
        )


def make_names_opaque(model: onnx.ModelProto, *, seed: int = 0) -> Opaque:
    """Rename every node, value and initializer to a random token; graph inputs and outputs keep their names.

    Documentation strings and metadata, which repeat the old names, are cleared. The same seed gives the same names.

    Args:
        model: Left as it is.
        seed: Seed of the tokens.
    """
    renamed = onnx.ModelProto()
    renamed.CopyFrom(model)
    graphs = list(_all_graphs(renamed.graph))
    public = {info.name for info in (*renamed.graph.input, *renamed.graph.output)}
    nodes = list(dict.fromkeys(node.name for graph in graphs for node in graph.node if node.name))
    values = [name for name in dict.fromkeys(n for graph in graphs for n in _values(graph)) if name not in public]
    tokens = _tokens(len(nodes) + len(values), seed, public)
    node_names = dict(zip(nodes, tokens[: len(nodes)], strict=True))
    value_names = dict(zip(values, tokens[len(nodes) :], strict=True))
    for graph in graphs:
        _rename(graph, node_names, value_names)
    del renamed.metadata_props[:]
    renamed.doc_string = ""
    return Opaque(renamed, node_names, value_names)


def _all_graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for body in subgraphs(node):
            yield from _all_graphs(body)


def _values(graph: onnx.GraphProto) -> Iterator[str]:
    for info in (*graph.input, *graph.initializer, *graph.output):
        yield info.name
    yield from (tensor.values.name for tensor in graph.sparse_initializer)
    for node in graph.node:
        yield from (name for name in (*node.input, *node.output) if name)


def _tokens(count: int, seed: int, taken: set[str]) -> list[str]:
    rng = np.random.default_rng(seed)
    found: dict[str, None] = {}
    while len(found) < count:
        token = f"x{int(rng.integers(16**8)):08x}"
        if token not in taken:
            found[token] = None
    return list(found)


def _rename(graph: onnx.GraphProto, nodes: dict[str, str], values: dict[str, str]) -> None:
    del graph.value_info[:]  # it would have to be renamed entry by entry, and every runtime infers it anew
    del graph.quantization_annotation[:]
    del graph.metadata_props[:]
    graph.doc_string = ""
    for info in (*graph.input, *graph.output, *graph.initializer):
        info.name = values.get(info.name, info.name)
        info.doc_string = ""
        del info.metadata_props[:]
    for sparse in graph.sparse_initializer:
        sparse.values.name = values.get(sparse.values.name, sparse.values.name)
    for node in graph.node:
        node.name = nodes.get(node.name, "")
        node.doc_string = ""
        del node.metadata_props[:]
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                names[index] = values.get(name, name)
