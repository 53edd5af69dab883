"""Patches: what a repair changes, as data (JSON-serialisable, replayable, revertible).

A patch is written either in terms of the target's *lowered* graph, the caller's own, whose names it keeps
(:class:`SetParameter`, :class:`SetAttribute`, :class:`SetNode`, :class:`ChangeBoundary`), or in terms of its *normal
form* (:class:`SetConstant`, :class:`ReplaceRegion`), where the lowered graph has no single place for the change. A
:class:`ReplaceRegion` may be in terms of either.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import onnx


@dataclass(frozen=True, eq=False)
class SetParameter:
    """Give an initializer of the lowered graph another value.

    Attributes:
        name: Initializer name.
        value: The new value, same shape and dtype.
        previous: The value it replaces.
        readers: Lowered nodes for which the change is meant; empty for all. Where other nodes read the initializer
            too, these get a copy of their own.
    """

    name: str
    value: np.ndarray
    previous: np.ndarray
    readers: tuple[str, ...] = ()
    lowered: ClassVar[bool] = True

    def describe(self) -> str:
        """One line for people."""
        changed = int(np.count_nonzero(self.value != self.previous))
        return f"set {self.name} ({changed} of {self.value.size} values)"

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON data, from which the patch can be made again."""
        return {
            "patch": "parameter",
            "name": self.name,
            "value": _packed(self.value),
            "previous": _packed(self.previous),
            "readers": list(self.readers),
        }


@dataclass(frozen=True, eq=False)
class SetAttribute:
    """Give an attribute of a lowered node another value (None: remove it)."""

    node: str
    attribute: str
    value: Any
    previous: Any
    lowered: ClassVar[bool] = True

    def describe(self) -> str:
        """One line for people."""
        return f"set {self.attribute} of {self.node} to {self.value}"

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON data."""
        return {
            "patch": "attribute",
            "node": self.node,
            "attribute": self.attribute,
            "value": _plain(self.value),
            "previous": _plain(self.previous),
        }


@dataclass(frozen=True, eq=False)
class SetConstant:
    """Give an initializer of the normal form another value."""

    name: str
    value: np.ndarray
    previous: np.ndarray
    lowered: ClassVar[bool] = False

    def describe(self) -> str:
        """One line for people."""
        return f"set {self.name} of the normal form"

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON data."""
        return {
            "patch": "constant",
            "name": self.name,
            "value": _packed(self.value),
            "previous": _packed(self.previous),
        }


@dataclass(frozen=True, eq=False)
class ReplaceRegion:
    """Put nodes taken from the source into the normal form of the target, or into its lowered graph.

    Attributes:
        removed: Target nodes that go, as far as nothing else reads them.
        added: The nodes put in, in topological order. One that makes a value of the target's takes the place of the
            node that made it, and all that reads the value follows.
        constants: Initializers that they bring with them.
        rewired: (reader, operand) -> value that it now reads; the reader "" stands for the graph's outputs.
        lowered: Whether all names are those of the lowered graph; else of the normal form.
    """

    removed: tuple[str, ...]
    added: tuple[onnx.NodeProto, ...]
    constants: Mapping[str, np.ndarray] = field(default_factory=dict)
    rewired: Mapping[tuple[str, int], str] = field(default_factory=dict)
    lowered: bool = False

    def describe(self) -> str:
        """One line for people."""
        added = ", ".join(node.op_type for node in self.added) or "nothing"
        return f"replace {', '.join(self.removed) or 'nothing'} by {added} taken from the source"

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON data."""
        return {
            "patch": "region",
            "removed": list(self.removed),
            "added": [base64.b64encode(node.SerializeToString()).decode() for node in self.added],
            "constants": {name: _packed(value) for name, value in self.constants.items()},
            "rewired": [[node, slot, value] for (node, slot), value in self.rewired.items()],
            "lowered": self.lowered,
        }


@dataclass(frozen=True, eq=False)
class SetNode:
    """Put another node in the place of a lowered one, under its name and with its result; an Identity leaves it out.

    Attributes:
        previous: The node that goes.
        value: The node that comes.
    """

    previous: onnx.NodeProto
    value: onnx.NodeProto
    lowered: ClassVar[bool] = True

    def describe(self) -> str:
        """One line for people."""
        if self.value.op_type == "Identity":
            return f"leave out {self.previous.op_type} {self.previous.name}"
        return f"make {self.previous.op_type} {self.previous.name} {self.value.op_type}({', '.join(self.value.input)})"

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON data."""
        return {"patch": "node", "previous": _encoded(self.previous), "value": _encoded(self.value)}


@dataclass(frozen=True, eq=False)
class ChangeBoundary:
    """Give the lowered graph other inputs or outputs, and nodes between these and what was there before.

    Attributes:
        summary: What it is for, one line.
        inputs: Graph inputs of another size, as they are afterwards.
        outputs: All graph outputs afterwards; empty where they stay.
        previous_inputs: The same inputs before.
        previous_outputs: All graph outputs before; empty where they stay.
        added: Nodes put in; those that no present node makes an operand of come first in the graph.
        removed: Nodes that go.
        constants: Initializers put in.
        dropped: Initializers that go.
        renamed: Value -> the name that it gets in all nodes that stay.
        last: Whether it is made after all other patches, to the graph that they leave.
    """

    summary: str
    inputs: tuple[onnx.ValueInfoProto, ...] = ()
    outputs: tuple[onnx.ValueInfoProto, ...] = ()
    previous_inputs: tuple[onnx.ValueInfoProto, ...] = ()
    previous_outputs: tuple[onnx.ValueInfoProto, ...] = ()
    added: tuple[onnx.NodeProto, ...] = ()
    removed: tuple[onnx.NodeProto, ...] = ()
    constants: Mapping[str, np.ndarray] = field(default_factory=dict)
    dropped: Mapping[str, np.ndarray] = field(default_factory=dict)
    renamed: Mapping[str, str] = field(default_factory=dict)
    last: bool = False
    lowered: ClassVar[bool] = True

    def reverted(self) -> ChangeBoundary:
        """The change that takes this one back."""
        return ChangeBoundary(
            f"take back: {self.summary}", self.previous_inputs, self.previous_outputs, self.inputs, self.outputs,
            self.removed, self.added, self.dropped, self.constants, {new: old for old, new in self.renamed.items()},
            self.last,
        )  # fmt: skip

    def describe(self) -> str:
        """One line for people."""
        return self.summary

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON data."""
        return {
            "patch": "boundary",
            "summary": self.summary,
            **{name: [_encoded(item) for item in getattr(self, name)] for name in (*_INFOS, *_NODES)},
            "constants": {name: _packed(value) for name, value in self.constants.items()},
            "dropped": {name: _packed(value) for name, value in self.dropped.items()},
            "renamed": dict(self.renamed),
            "last": self.last,
        }


_INFOS = ("inputs", "outputs", "previous_inputs", "previous_outputs")
_NODES = ("added", "removed")

Patch = SetParameter | SetAttribute | SetNode | SetConstant | ReplaceRegion | ChangeBoundary


def patch_from_dict(data: Mapping[str, Any]) -> Patch:
    """Make a patch again from what :meth:`to_dict` gave.

    Raises:
        ValueError: the data are no patch.
    """
    match data.get("patch"):
        case "parameter":
            return SetParameter(
                data["name"], _unpacked(data["value"]), _unpacked(data["previous"]), tuple(data["readers"])
            )
        case "attribute":
            return SetAttribute(data["node"], data["attribute"], data["value"], data["previous"])
        case "constant":
            return SetConstant(data["name"], _unpacked(data["value"]), _unpacked(data["previous"]))
        case "region":
            return ReplaceRegion(
                tuple(data["removed"]),
                tuple(onnx.NodeProto.FromString(base64.b64decode(node)) for node in data["added"]),
                {name: _unpacked(value) for name, value in data["constants"].items()},
                {(node, slot): value for node, slot, value in data["rewired"]},
                data.get("lowered", False),
            )
        case "node":
            return SetNode(_node(data["previous"]), _node(data["value"]))
        case "boundary":
            return ChangeBoundary(
                data["summary"],
                **{name: tuple(map(_value_info, data[name])) for name in _INFOS},
                **{name: tuple(map(_node, data[name])) for name in _NODES},
                constants={name: _unpacked(value) for name, value in data["constants"].items()},
                dropped={name: _unpacked(value) for name, value in data["dropped"].items()},
                renamed=data["renamed"],
                last=data.get("last", False),
            )
    raise ValueError(f"{data.get('patch')!r} is no kind of patch")


def _encoded(item: onnx.NodeProto | onnx.ValueInfoProto) -> str:
    return base64.b64encode(item.SerializeToString(deterministic=True)).decode()


def _value_info(text: str) -> onnx.ValueInfoProto:
    info: onnx.ValueInfoProto = onnx.ValueInfoProto.FromString(base64.b64decode(text))
    return info


def _node(text: str) -> onnx.NodeProto:
    node: onnx.NodeProto = onnx.NodeProto.FromString(base64.b64decode(text))
    return node


def _packed(value: np.ndarray) -> dict[str, Any]:
    return {
        "dtype": value.dtype.str,
        "shape": list(value.shape),
        "data": base64.b64encode(np.asarray(value, order="C").tobytes()).decode(),
    }


def _unpacked(data: Mapping[str, Any]) -> np.ndarray:
    return np.frombuffer(base64.b64decode(data["data"]), dtype=data["dtype"]).reshape(data["shape"])


def _plain(value: Any) -> Any:
    return value.decode() if isinstance(value, bytes) else value
