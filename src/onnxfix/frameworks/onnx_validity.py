"""Is an ONNX graph a complete model? What cannot be mended is refused in a sentence that says what is wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import onnx

from onnxfix.errors import LoadError
from onnxfix.frameworks.onnx_judgement import STANDARD, ask_checker, called, has_op, version_of

# The oldest opset whose ops onnxruntime runs.
_OLDEST = 7
# Control flow inside control flow: protobuf itself reads no more than about thirty levels.
_DEPTH = 32
# Sparse initializers are spelled out up to this size (bytes).
_DENSE_LIMIT = 2**30


def sound(proto: onnx.ModelProto, what: str) -> onnx.ModelProto:
    """Check a model.

    Args:
        proto: The model; it is left unchanged.
        what: How messages call it.

    Returns:
        The model itself; a copy where its nodes had to be put in order or its sparse initializers spelled out.

    Raises:
        LoadError: it is no complete, valid model.
    """
    _check_opset(proto, what)
    if not proto.graph.output:
        raise LoadError(f"{what} has no outputs, so it is not a complete ONNX model: export it again.")
    _check_depth(proto.graph, what)
    if proto.graph.sparse_initializer:
        proto = _spelled_out(proto, what)
    _refuse_repeated([f"{f.domain}:{f.name}" for f in proto.functions], "two functions named", what)
    _check_names(proto.graph, what)
    _check_age(proto, what)
    order = _order(proto.graph, what)
    if order != list(range(len(proto.graph.node))):
        proto = _reordered(proto, order)
    ask_checker(proto, what)
    return proto


def _check_opset(proto: onnx.ModelProto, what: str) -> None:
    versions: dict[str, int] = {}
    for entry in proto.opset_import:
        domain = "" if entry.domain == "ai.onnx" else entry.domain
        if versions.setdefault(domain, entry.version) != entry.version:
            raise LoadError(
                f"{what} imports two versions, {versions[domain]} and {entry.version}, of the operator set "
                f"{domain or 'ai.onnx'!r}: export it again with one."
            )
    if not versions:
        raise LoadError(f"{what} has no opset_import, so it does not say what its ops mean: export it again.")
    newest = onnx.defs.onnx_opset_version()
    version = versions.get("", 1)
    if version > newest:
        raise LoadError(
            f"{what} uses opset {version}, but the installed onnx {onnx.__version__} knows opsets up to {newest}: "
            f"upgrade onnx and onnxruntime, or export the model with opset {min(newest, 21)}."
        )
    if version < 1:
        raise LoadError(f"{what} uses opset {version}, which does not exist: export it again with opset 17 or newer.")


def _bodies(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def _check_depth(graph: onnx.GraphProto, what: str) -> None:
    level: list[onnx.GraphProto] = [graph]
    for _ in range(_DEPTH):
        level = [body for outer in level for node in outer.node for body in _bodies(node)]
        if not level:
            return
    raise LoadError(f"{what} nests control flow more than {_DEPTH} levels deep, which is not supported: flatten it.")


def _check_age(proto: onnx.ModelProto, what: str) -> None:
    """Refuse ops of the first opsets that meant something else then (explicit broadcasting, shapes as attributes)."""
    version = version_of(proto)
    changed = next((n for n in proto.graph.node if version < _OLDEST and _changed(n.op_type, version)), None)
    if changed is not None and changed.domain in STANDARD:
        raise LoadError(
            f"{what} uses an op of opset {version} that onnxruntime does not run, {called(changed)}: "
            "convert it with onnx.version_converter.convert_version(model, 13)."
        )


def _changed(op: str, version: int) -> bool:
    if not (has_op(op, version) and has_op(op, _OLDEST)):
        return False
    then, now = (onnx.defs.get_schema(op, v).since_version for v in (version, _OLDEST))
    return bool(then != now)


def _check_names(graph: onnx.GraphProto, what: str) -> None:
    inputs, constants = [i.name for i in graph.input], [t.name for t in graph.initializer]
    made = [name for node in graph.node for name in node.output if name]
    for kind, names in (("inputs", inputs), ("initializers", constants), ("outputs", [o.name for o in graph.output])):
        _refuse_unnamed(names, kind, what)
        _refuse_repeated(names, f"two {kind} named", what)
    _refuse_repeated(made, "two nodes that both produce", what)
    given = dict.fromkeys((*inputs, *constants))
    _refuse_repeated([*given, *made], "a node that produces anew the input or constant", what)
    _check_defaults(graph, what)


def _check_defaults(graph: onnx.GraphProto, what: str) -> None:
    """Initializers that are inputs too are those inputs' defaults, and must be of their type and shape."""
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for info in graph.input:
        tensor = constants.get(info.name)
        kind = info.type.tensor_type
        if tensor is None:
            continue
        dims = [d.dim_value if d.HasField("dim_value") else None for d in kind.shape.dim]
        if kind.elem_type == tensor.data_type and (not kind.HasField("shape") or _agree(dims, tensor.dims)):
            continue
        raise LoadError(
            f"{what} declares input {info.name} with another type or shape than its initializer, {list(tensor.dims)}: "
            "export it again."
        )


def _agree(declared: Sequence[int | None], dims: Sequence[int]) -> bool:
    return len(declared) == len(dims) and all(a in (None, b) for a, b in zip(declared, dims, strict=True))


def _refuse_unnamed(names: Iterable[str], kind: str, what: str) -> None:
    if "" in names:
        raise LoadError(f"{what} has {kind} without a name, which nothing can refer to: export it again.")


def _refuse_repeated(names: Iterable[str], defect: str, what: str) -> None:
    repeated = next((name for name, count in Counter(names).items() if count > 1), None)
    if repeated is not None:
        raise LoadError(f"{what} has {defect} {repeated}, so which is meant is not known: give each a name of its own.")


def _order(graph: onnx.GraphProto, what: str) -> list[int]:
    """Positions of the nodes in an order in which each comes after those it reads; the order given where it will do."""
    maker = {name: k for k, node in enumerate(graph.node) for name in node.output if name}
    given = {"", *(i.name for i in graph.input), *(t.name for t in graph.initializer)}
    needs = [[(name, maker.get(name)) for name in _read(node) if name not in given] for node in graph.node]
    for k, wanted in enumerate(needs):
        missing = next((name for name, source in wanted if source is None), None)
        if missing is not None:
            raise LoadError(
                f"{what} is not a valid ONNX model: node {called(graph.node[k])} reads {missing}, which nothing "
                "produces: export it again."
            )
    dangling = next((o.name for o in graph.output if o.name not in maker and o.name not in given), None)
    if dangling is not None:
        raise LoadError(f"{what} is not a valid ONNX model: nothing produces its output {dangling}: export it again.")
    sources = [{source for _, source in wanted if source is not None} for wanted in needs]
    if all(source < k for k, wanted in enumerate(sources) for source in wanted):
        return list(range(len(sources)))
    return _sorted(graph, sources, what)


def _sorted(graph: onnx.GraphProto, sources: list[set[int]], what: str) -> list[int]:
    readers: list[list[int]] = [[] for _ in sources]
    for k, wanted in enumerate(sources):
        for source in wanted:
            readers[source].append(k)
    left = [len(wanted) for wanted in sources]
    order = [k for k, count in enumerate(left) if count == 0]
    for k in order:  # it grows meanwhile
        for reader in readers[k]:
            left[reader] -= 1
            if left[reader] == 0:
                order.append(reader)
    if len(order) < len(sources):
        stuck = next(k for k, count in enumerate(left) if count)
        raise LoadError(
            f"{what} is not a valid ONNX model: its nodes form a cycle near node {called(graph.node[stuck])}: "
            "export it again."
        )
    return order


def _read(node: onnx.NodeProto) -> list[str]:
    """Values that a node reads, those included that its bodies take from around them."""
    names = list(node.input)
    for body in _bodies(node):
        own = {"", *(i.name for i in body.input), *(t.name for t in body.initializer)}
        own.update(s.values.name for s in body.sparse_initializer)
        own.update(name for inner in body.node for name in inner.output)
        names += [name for inner in body.node for name in _read(inner) if name not in own]
        names += [o.name for o in body.output if o.name not in own]
    return names


def _reordered(proto: onnx.ModelProto, order: list[int]) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    nodes = [proto.graph.node[k] for k in order]
    del copy.graph.node[:]
    copy.graph.node.extend(nodes)
    return copy


def _spelled_out(proto: onnx.ModelProto, what: str) -> onnx.ModelProto:
    """Sparse initializers as dense ones: no pass and few runtimes read them."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    for sparse in proto.graph.sparse_initializer:
        copy.graph.initializer.append(_dense(sparse, what))
    del copy.graph.sparse_initializer[:]
    return copy


def _dense(sparse: onnx.SparseTensorProto, what: str) -> onnx.TensorProto:
    name, shape = sparse.values.name, tuple(sparse.dims)
    values, places = onnx.numpy_helper.to_array(sparse.values), onnx.numpy_helper.to_array(sparse.indices)
    if any(d < 0 for d in shape) or int(np.prod([float(d) for d in shape])) * values.itemsize > _DENSE_LIMIT:
        raise LoadError(
            f"the sparse initializer {name} of {what} is {list(shape)}, too large to spell out: store it dense."
        )
    result = np.zeros(shape, values.dtype)
    try:
        if places.ndim == 2:
            places = np.ravel_multi_index(tuple(places.T), shape)
        if places.size != values.size or np.any(places < 0):
            raise ValueError("indices and values do not belong together")
        result.reshape(-1)[places] = values
    except (ValueError, IndexError) as error:
        raise LoadError(
            f"the sparse initializer {name} of {what} is damaged ({error}): export the model again."
        ) from error
    return onnx.numpy_helper.from_array(result, name)
