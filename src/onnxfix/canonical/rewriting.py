"""How passes edit the graph: constants keep their origins, nodes keep the lowered nodes they came from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxfix.canonical.origins import Apply, Literal, Origin, Parameter, apply

ORIGIN = "onnxfix.origin"
LOWERED = "onnxfix.lowered"


def array(value: ir.Value | None) -> np.ndarray | None:
    """The content of a constant value, or None if it is not one."""
    if value is None or value.const_value is None or not value.is_initializer():
        return None
    return value.const_value.numpy()


def is_constant(value: ir.Value | None) -> bool:
    """Whether a value is an initializer that no caller can override."""
    return value is not None and value.is_initializer() and value.const_value is not None


def origin_of(value: ir.Value) -> Origin:
    """The origin of a constant; an initializer nobody has touched is a parameter of the lowered graph."""
    found: Origin | None = value.meta.get(ORIGIN)
    return Parameter(value.name or "") if found is None else found


def lowered_of(node: ir.Node) -> tuple[str, ...]:
    """Names of the lowered nodes that a node came from, the primary one first."""
    return tuple(node.meta.get(LOWERED, ()))


def merged(nodes: Iterable[ir.Node]) -> tuple[str, ...]:
    """The provenance of nodes together, in order, without repeats."""
    names: dict[str, None] = {}
    for node in nodes:
        names.update(dict.fromkeys(lowered_of(node)))
    return tuple(names)


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
        values = []
        for operand in operands:
            content = array(operand)
            if operand is not None and content is None:
                raise ValueError(f"{operand.name} is not a constant")
            values.append(content)
        origins = tuple(None if o is None else origin_of(o) for o in operands)
        hint = next((o.name for o in operands if o is not None and o.name), op)
        return tuple(
            self._register(result, Apply(op, origins, attributes, index), hint)
            for index, result in enumerate(apply(op, values, attributes))
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
        self.modified = True
        return node

    def replace(self, old: ir.Value, new: ir.Value) -> None:
        """Let everything that read ``old`` read ``new``; shape and type carry over, graph outputs keep their name."""
        if new.shape is None:
            new.shape = old.shape
        if new.type is None:
            new.type = old.type
        if old.is_graph_output():
            new = self._as_output(old, new)
        old.replace_all_uses_with(new, replace_graph_outputs=True)
        self.modified = True

    def _as_output(self, old: ir.Value, new: ir.Value) -> ir.Value:
        """A graph output keeps its name; a value that cannot take it (an input, a constant, another output) is wrapped."""
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
        for node in nodes:
            if not any(output.uses() or output.is_graph_output() for output in node.outputs):
                self.graph.remove(node, safe=True)
                self.modified = True

    def _register(self, content: np.ndarray, origin: Origin, hint: str) -> ir.Value:
        name, count = hint, 0
        while name in self.graph.initializers:
            count += 1
            name = f"{hint}.{count}"
        value = ir.val(name, const_value=ir.tensor(np.ascontiguousarray(content), name=name))
        value.meta[ORIGIN] = origin
        self.graph.register_initializer(value)
        return value
