"""How passes edit the graph: constants keep their origins, nodes keep the lowered nodes they came from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import count
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxfix import mapped
from onnxfix.canonical.deferred import deferred, strided
from onnxfix.canonical.inference import infer_node
from onnxfix.canonical.origins import ANY_ORDER, Apply, Literal, Origin, Parameter, apply

ORIGIN = "onnxfix.origin"
LOWERED = "onnxfix.lowered"
# Where a graph whose large constants stay in files keeps those that passes make.
SPILL = "onnxfix.spill"
# Numbers the constants that passes make; the normal form renames them all.
_SERIAL = count()


def array(value: ir.Value | None) -> np.ndarray | None:
    """The content of a constant value, or None if it is not one."""
    if value is None or value.const_value is None or not value.is_initializer():
        return None
    return value.const_value.numpy()


def _strided(value: ir.Value | None) -> np.ndarray | None:
    return None if value is None or value.const_value is None else strided(value.const_value)


class _Strings(ir.StringTensor):
    """Strings whose size in bytes can be asked for, as onnx_ir's shape inference does of every tensor."""

    @property
    def nbytes(self) -> int:
        """Number of bytes of the texts."""
        return sum(len(text) for text in self.string_data())


def dense(content: np.ndarray, name: str | None) -> ir.TensorProtocol:
    """A tensor of numbers or strings."""
    if content.dtype.kind in "SO":
        return _Strings(content.astype(object), shape=ir.Shape(content.shape), name=name)
    return ir.Tensor(content, name=name)


def is_constant(value: ir.Value | None) -> bool:
    """Whether a value is an initializer that no caller can override."""
    return value is not None and value.is_initializer() and value.const_value is not None


def origin_of(value: ir.Value) -> Origin:
    """The origin of a constant; an initializer nobody has touched is a parameter of the lowered graph."""
    found: Origin | None = value.meta.get(ORIGIN)
    return Parameter(value.name or "") if found is None else found


def live(graph: ir.Graph) -> Iterator[ir.Node]:
    """The nodes that are in the graph now and still are when they are reached, in order; passes edit it meanwhile."""
    for node in tuple(graph):
        if node.graph is graph:
            yield node


def is_op(node: ir.Node | None, *ops: str) -> bool:
    """Whether a node is one of these ops of the standard domain."""
    return node is not None and node.op_type in ops and node.domain in ("", "ai.onnx")


def producer(value: ir.Value | None, *ops: str) -> ir.Node | None:
    """The node that makes a value, if it is one of these ops (any op when none are given)."""
    node = None if value is None else value.producer()
    return node if node is not None and (not ops or is_op(node, *ops)) else None


def sole_consumer(value: ir.Value) -> ir.Node | None:
    """The only node that reads a value, once, or None; a graph output always has another reader."""
    uses = tuple(value.uses())
    if len(uses) != 1 or value.is_graph_output() or uses[0].node.graph is not value.graph:
        return None
    node: ir.Node = uses[0].node
    return node


# Names that exporters give to dimensions they know nothing about: equal names say nothing.
_ANONYMOUS = frozenset({"", "?", "None", "none", "-1", "*", "unknown", "dynamic"})


def dims(value: ir.Value | None) -> tuple[int | str | None, ...] | None:
    """The shape of a value: an int, a symbol (equal symbols are equal sizes) or None for each dimension."""
    if value is None or value.shape is None:
        return None
    return tuple(d if isinstance(d, int) else (None if d.value is None or d.value in _ANONYMOUS else d.value)
                 for d in value.shape)


def rank(value: ir.Value | None) -> int | None:
    """The rank of a value, or None."""
    return None if value is None or value.shape is None else len(value.shape)


def attribute(node: ir.Node, name: str, default: Any = None) -> Any:
    """The plain Python value of an attribute, or the default."""
    attr = node.attributes.get(name)
    if attr is None or attr.value is None:
        return default
    if attr.type == ir.AttributeType.STRING:
        return attr.as_string()
    if attr.type in (ir.AttributeType.INTS, ir.AttributeType.FLOATS, ir.AttributeType.STRINGS):
        return list(attr.value)
    return attr.value


def lowered_of(node: ir.Node) -> tuple[str, ...]:
    """Names of the lowered nodes that a node came from, the primary one first."""
    return tuple(node.meta.get(LOWERED, ()))


def merged(nodes: Iterable[ir.Node]) -> tuple[str, ...]:
    """The provenance of nodes together, in order, without repeats."""
    names: dict[str, None] = {}
    for node in nodes:
        names.update(dict.fromkeys(lowered_of(node)))
    return tuple(names)


def release_bodies(node: ir.Node) -> None:
    """Let the bodies of a node that is gone read nothing any more: they may have read values from around them."""
    for attr in node.attributes.values():
        for body in ([attr.as_graph()] if attr.type == ir.AttributeType.GRAPH else
                     attr.as_graphs() if attr.type == ir.AttributeType.GRAPHS else []):
            for inner in body.all_nodes():
                for slot in range(len(inner.inputs)):
                    inner.replace_input_with(slot, None)


class Editor:
    """Edits one graph on behalf of a pass.

    Args:
        graph: The graph to edit, in place.
    """

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self.modified = False

    def literal(self, value: np.ndarray, hint: str = "literal") -> ir.Value:
        """Add a constant that no parameter stands behind."""
        return self._register(np.asarray(value), Literal(np.asarray(value)), hint)

    def constant(self, op: str, *operands: ir.Value | None, **attributes: Any) -> ir.Value:
        """Fold an op over constants into a new constant that remembers its origin.

        Example: ``editor.constant("Mul", kernel, scale)``.

        Raises:
            ValueError: an operand is not a constant.
            CanonicalizationError: the op cannot be evaluated.
        """
        return self.constants(op, *operands, **attributes)[0]

    def constants(self, op: str, *operands: ir.Value | None, **attributes: Any) -> tuple[ir.Value, ...]:
        """As :meth:`constant`, for ops with several outputs."""
        for operand in operands:
            if operand is not None and not is_constant(operand):
                raise ValueError(f"{operand.name} is not a constant")
        origins = tuple(None if o is None else origin_of(o) for o in operands)
        hint = next((o.name for o in operands if o is not None and o.name), op)
        later = deferred(op, [None if o is None else o.const_value for o in operands], attributes)
        if later is not None:
            return (self._add(later, Apply(op, origins, attributes), hint),)
        read = _strided if op in ANY_ORDER else array
        values = [read(operand) for operand in operands]
        results = apply(op, values, attributes)
        for content in values:
            mapped.release(content)
        return tuple(
            self._register(result, Apply(op, origins, attributes, index), hint)
            for index, result in enumerate(results)
        )

    def node(
        self,
        op: str,
        inputs: Sequence[ir.Value | None],
        *,
        like: Sequence[ir.Node],
        before: ir.Node,
        attributes: Mapping[str, Any] | None = None,
        outputs: int = 1,
    ) -> ir.Node:
        """Insert a node before ``before``.

        Args:
            op: Op type.
            inputs: Its operands.
            like: The nodes it stands for; their provenance becomes its own.
            before: Where to insert it.
            attributes: Attribute name -> plain Python value; None values are left out.
            outputs: How many outputs it has.
        """
        plain = {k: v for k, v in (attributes or {}).items() if v is not None}
        node = ir.node(op, inputs, plain, num_outputs=outputs)
        node.meta[LOWERED] = merged(like)
        self.graph.insert_before(before, node)
        infer_node(node)
        self.modified = True
        return node

    def replace(self, old: ir.Value, new: ir.Value) -> None:
        """Let everything that read ``old`` read ``new``; shape and type carry over, graph outputs keep their name."""
        if new.shape is None:
            new.shape = old.shape
        if new.type is None:
            new.type = old.type
        if old.is_graph_output():
            for use in tuple(old.uses()):
                use.node.replace_input_with(use.idx, new)
            new = self._as_output(old, new)
        old.replace_all_uses_with(new, replace_graph_outputs=True)
        self.modified = True

    def _as_output(self, old: ir.Value, new: ir.Value) -> ir.Value:
        """A graph output keeps its name; what cannot take it (an input, a constant, another output) is wrapped."""
        producer = new.producer()
        if producer is None or new.is_graph_output():
            wrapper = ir.node("Identity", [new])
            origin = old.producer()
            wrapper.meta[LOWERED] = () if origin is None else lowered_of(origin)
            self.graph.append(wrapper)
            wrapper.outputs[0].shape, wrapper.outputs[0].type = old.shape, old.type
            new = wrapper.outputs[0]
        name, old.name = old.name, None
        new.name = name
        return new

    def remove(self, nodes: Iterable[ir.Node]) -> None:
        """Remove nodes that nothing reads any more (others are kept)."""
        for node in dict.fromkeys(nodes):
            read = any(output.uses() or output.is_graph_output() for output in node.outputs)
            if node.graph is self.graph and not read:
                self.graph.remove(node, safe=True)
                release_bodies(node)
                self.modified = True

    def _register(self, content: np.ndarray, origin: Origin, hint: str) -> ir.Value:
        content, spill = np.asarray(content, order="C"), self.graph.meta.get(SPILL)
        if isinstance(spill, mapped.Spill):
            content = spill.keep(content)
        return self._add(dense(content, None), origin, hint)

    def _add(self, tensor: ir.TensorProtocol, origin: Origin, hint: str) -> ir.Value:
        stem = hint.partition("@")[0]
        tensor.name = name = f"{stem}@{next(_SERIAL)}"
        self.modified = True
        value = ir.val(name, const_value=tensor)
        value.meta[ORIGIN] = origin
        self.graph.register_initializer(value)
        return value
