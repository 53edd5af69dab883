"""Patches of a lowered graph as edits of the TFLite file it came from.

The patched graph is compared with the lowered one operator by operator. What differs only in constants is overwritten;
an operator whose own nodes changed is searched for the edit that lowers to them; what no edit reaches, and what is new,
becomes operators of its own. The result is lowered again and must be the patched graph.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from onnxfix.errors import CanonicalizationError, ExportError, LoadError, LoweringError, RuntimeFailure
from onnxfix.frameworks.flatbuffer import Flatbuffer, schema
from onnxfix.frameworks.flatbuffer_editing import FlatbufferEditor
from onnxfix.frameworks.lowering_tf2onnx import first_line
from onnxfix.frameworks.tflite_checking import ordered, refuse_another
from onnxfix.frameworks.tflite_forms import Form, Workbench, code, set_options
from onnxfix.frameworks.tflite_padding import padded_first, without_pads
from onnxfix.frameworks.tflite_quantities import quantities
from onnxfix.frameworks.tflite_search import found
from onnxfix.frameworks.tflite_shapes import with_true_shapes
from onnxfix.frameworks.tflite_splicing import operators_for
from onnxfix.frameworks.tflite_tensors import Places, Tensors, Types
from onnxfix.frameworks.tflite_wanted import Difference, Unit, Wanted, array, components

if TYPE_CHECKING:
    from onnxfix.model import Model
    from onnxfix.surgeon.patch import Patch

_FEW = 6  # more new nodes than this are no part of one operator


def edited_file(model: Model, patches: Sequence[Patch]) -> bytes:
    """The model's file with patches of its lowered graph in it.

    Raises:
        ExportError: a patch has no form in TFLite.
    """
    from onnxfix.surgeon.apply import apply

    return reconciled(model, apply(model.proto, patches))


def reconciled(model: Model, wanted: onnx.ModelProto) -> bytes:
    """The model's file, edited so that it lowers to another graph.

    Args:
        model: The model as it was loaded.
        wanted: Its lowered graph with changes in it; nodes that stay keep their names.

    Raises:
        ExportError: a change has no form in TFLite.
    """
    file = Flatbuffer(model.native, str(model.path or "The TFLite model"))
    try:
        return _Reconciliation(model, file, wanted).result()
    except (CanonicalizationError, LoadError, LoweringError, RuntimeFailure) as error:
        raise ExportError(f"the edited file cannot be read again ({first_line(error)})") from error


class _Reconciliation:
    """One file on its way to another graph."""

    def __init__(self, model: Model, file: Flatbuffer, wanted: onnx.ModelProto) -> None:
        self._file = file
        self._editor = FlatbufferEditor(file)
        self._tensors = Tensors(self._editor)
        wanted, rescaled = quantities(self._editor, self._tensors.native, model.proto, wanted)
        written = self._constants(model, wanted)
        self._wanted = Wanted(model.proto, wanted, model.layers, {*written, *rescaled})
        self._tensors.read(self._wanted)

    def result(self) -> bytes:
        """Carry it out."""
        editor, wanted = self._editor, self._wanted
        differences = {k: wanted.difference(k) for k in range(len(editor.operators))}
        foreign = {o for node in wanted.foreign for o in node.output}
        for difference in differences.values():
            for old, new in (difference.rewired or {}).items():
                if old in self._tensors.native and (new in foreign or self._stands_for(new, old)):
                    self._tensors.origins[new] = old
        units = self._units(differences)
        passing = {id(unit): unit for unit in units if self._passes(unit.nodes)}
        gone = {k for unit in passing.values() for k in unit.operators}
        units = [unit for unit in units if id(unit) not in passing]
        merged = {id(unit): self._merged(unit) for unit in units}
        operators = {place[0]: [place[1]] for place in merged.values() if place is not None}
        remade = {k for unit in units for k in unit.operators} | operators.keys() | gone
        for k, difference in differences.items():
            if k not in remade and difference.nodes:
                self._rewire(k, difference.rewired or {})
                operators[k] = [editor.operators[k]]
        for unit in units:
            if merged[id(unit)] is None:
                operators.setdefault(max(unit.operators, default=len(differences)), []).extend(self._remade(unit))
        editor.operators = [op for k in sorted(operators) for op in operators[k]]
        editor.operators = ordered(editor.operators)
        self._ends()
        return self._checked()

    def _units(self, differences: Mapping[int, Difference]) -> list[Unit]:
        """What is to be made anew: changed operators and new nodes, joined where no tensor lies between them."""
        unit = {k: Unit((k,), d.nodes) for k, d in differences.items() if d.nodes}
        of_node = {n.name: u for u in unit.values() for n in u.nodes}
        for nodes in components(self._wanted.foreign):
            of_node.update(dict.fromkeys((n.name for n in nodes), Unit((), tuple(nodes))))
        changed = {n.name for d in differences.values() if d.rewired is None for n in d.nodes}
        changed.update(n.name for n in self._wanted.foreign)
        for name in self._wanted.outputs:
            if not self._tensors.holds(name) and name in self._wanted.makers:
                changed.update(n.name for n in of_node[self._wanted.makers[name].name].nodes)
        for node in self._wanted.proto.graph.node:
            for value in node.input:
                maker = self._wanted.makers.get(value)
                if maker is None or of_node[maker.name] is of_node[node.name] or self._tensors.holds(value):
                    continue
                joined = of_node[maker.name].joined(of_node[node.name], self._wanted.order)
                of_node.update({n.name: joined for n in joined.nodes})
                changed.update(n.name for n in joined.nodes)
        self._heirs(differences, of_node)
        distinct = {id(u): u for name, u in of_node.items() if name in changed}
        return [distinct[id(of_node[n.name])] for n in self._firsts(distinct, of_node)]

    def _heirs(self, differences: Mapping[int, Difference], of_node: dict[str, Unit]) -> None:
        """Let new nodes that make what a vanished operator made take its place: it may need a small edit only."""
        for k, difference in differences.items():
            outputs = [self._file.tensor_names[i] for i in self._file.graph.operators[k].outputs if i >= 0]
            maker = self._wanted.makers.get(outputs[0]) if len(outputs) == 1 else None
            unit = of_node[maker.name] if maker is not None and not difference.nodes else None
            if unit is not None and not unit.operators:
                of_node.update(dict.fromkeys((n.name for n in unit.nodes), Unit((k,), unit.nodes)))

    def _firsts(self, units: Mapping[int, Unit], of_node: Mapping[str, Unit]) -> list[onnx.NodeProto]:
        """The first node of each unit, in the graph's order."""
        seen: set[int] = set()
        firsts = []
        for node in self._wanted.proto.graph.node:
            key = id(of_node[node.name])
            if key in units and key not in seen:
                seen.add(key)
                firsts.append(node)
        return firsts

    def _stands_for(self, new: str, old: str) -> bool:
        """Whether an operator that lost its last nodes gives another value for what it gave."""
        maker = self._wanted.makers.get(new)
        if maker is None or old in self._tensors.values:
            return False
        position = self._wanted.owners.get(maker.name)
        return position is not None and self._tensors.native[old] in self._file.graph.operators[position].outputs

    def _constants(self, model: Model, wanted: onnx.ModelProto) -> set[str]:
        """Write changed constants of the file where they are; returns the initializers that are done."""
        old = {t.name: t for t in model.proto.graph.initializer}
        news = {
            model.parameters[t.name]: (t.name, array(t))
            for t in wanted.graph.initializer
            if t.name in model.parameters and t.name in old and t != old[t.name]
        }
        done = set()
        for native, (name, value) in news.items():
            constant = self._file.constants.get(native)
            if constant is None or value.shape != constant.shape or value.dtype != constant.dtype:
                continue
            sharers = [c.name for c in self._file.constants.values() if c.buffer == constant.buffer]
            if any(s not in news or news[s][1].tobytes() != value.tobytes() for s in sharers):
                continue
            content = np.frombuffer(np.ascontiguousarray(value).tobytes(), np.uint8)
            self._editor.edit(self._editor.buffers, constant.buffer).data = content
            done.add(name)
        return done

    def _passes(self, nodes: Sequence[onnx.NodeProto]) -> bool:
        """Whether nodes hand on a value as it is; what reads the result then reads that value."""
        from onnxfix.canonical.pipeline import normal_form

        piece = self._piece(nodes)
        if len(piece.graph.input) != 1 or len(piece.graph.output) != 1:
            return False
        left = normal_form(piece).proto.graph.node
        if any(node.op_type != "Identity" for node in left):
            return False
        given, made = piece.graph.input[0].name, piece.graph.output[0].name
        if made not in self._wanted.outputs:
            self._tensors.aliases[made] = given
        elif given in self._wanted.makers and given not in self._wanted.outputs:
            self._tensors.aliases[given] = made  # the output keeps its tensor, and what made the value writes that
        else:
            return False
        return True

    def _piece(self, nodes: Sequence[onnx.NodeProto]) -> onnx.ModelProto:
        return self._wanted.piece(nodes, Types(self._tensors, self._wanted.proto.graph.input))

    def _rewire(self, position: int, rewired: Mapping[str, str]) -> None:
        operator = self._editor.operators[position]
        names, renamed = self._file.tensor_names, self._wanted.renamed

        def place(index: int) -> int:
            name = names[index] if index >= 0 else ""
            if index < 0 or name in self._file.constants:
                return index
            value = rewired.get(name, renamed.get(name, name))
            return self._tensors.index(value) if value in self._tensors.values else index

        ends = [np.array([place(int(i)) for i in indices], np.int32) for indices in (operator.inputs, operator.outputs)]
        if not all(np.array_equal(a, b) for a, b in zip(ends, (operator.inputs, operator.outputs), strict=True)):
            fresh = self._editor.edit(self._editor.operators, position)
            fresh.inputs, fresh.outputs = ends

    def _merged(self, unit: Unit) -> tuple[int, Any] | None:
        """New nodes as part of the one operator whose result they take, such as an activation fused into it.

        Returns:
            Which operator, and what it becomes; None where it cannot take them in.
        """
        given = {v for n in unit.nodes for v in n.input} - self._wanted.tensors.keys()
        given -= {o for n in unit.nodes for o in n.output}
        maker = self._wanted.makers.get(next(iter(given))) if len(given) == 1 else None
        position = None if maker is None or unit.operators else self._wanted.owners.get(maker.name)
        if position is None or len(unit.nodes) > _FEW:
            return None
        value = next(iter(given))
        own = {n.name for n in unit.nodes}
        readers = [n for n in self._wanted.proto.graph.node if value in n.input and n.name not in own]
        difference = self._wanted.difference(position)
        if readers or value in self._wanted.outputs or difference.rewired:
            return None
        joined = Unit((position,), difference.nodes).joined(unit, self._wanted.order)
        result = unit.nodes[-1].output[0]
        native, added = self._tensors.native, self._tensors.added
        inherits = value in native and self._tensors.origins.get(result) == value and result not in added
        if inherits:
            added[result] = native[value]
        edited = self._searched(joined, self._piece(joined.nodes))
        if edited is None and inherits:
            del added[result]
        return None if edited is None else (position, edited)

    def _remade(self, unit: Unit) -> list[Any]:
        """Operators for a unit: its own one edited, or else new ones."""
        piece = self._piece(unit.nodes)
        edited = self._searched(unit, piece)
        if edited is not None:
            return [edited]
        bare = without_pads(piece)
        edited = None if bare is None else self._searched(unit, bare[0])
        if bare is not None and edited is not None:
            name = f"{piece.graph.output[0].name}/padded"
            return [padded_first(self._editor, edited, bare[1], name), edited]
        return operators_for(self._editor, piece, self._tensors.index_of)

    def _searched(self, unit: Unit, piece: onnx.ModelProto) -> Any:
        """The unit's one operator, edited so that it does all that is wanted; None where it cannot."""
        alone = len(unit.operators) == len(piece.graph.output) == 1
        form = self._form(unit.operators[0]) if alone else None
        if form is None:
            return None
        position, outputs = unit.operators[0], [info.name for info in piece.graph.output]
        best = found(Workbench(self._editor, Places(self._tensors, piece)), form, piece, outputs, position)
        return None if best is None else self._as_form(position, form, best, outputs)

    def _form(self, position: int) -> Form | None:
        """An operator as it is; None where it is no built-in one, or computes more than one value."""
        operator = self._editor.operators[position]
        numbers = {n: name for name, n in vars(schema().BuiltinOperator).items() if isinstance(n, int)}
        present = self._editor.codes[operator.opcodeIndex]
        kind = numbers.get(max(present.builtinCode, present.deprecatedBuiltinCode), "CUSTOM")
        if kind == "CUSTOM" or len(operator.outputs) != 1 or operator.builtinOptions2 is not None:
            return None
        names = self._file.tensor_names
        inputs = tuple(names[i] if i >= 0 else "" for i in operator.inputs)
        contents = {}
        for name in inputs:
            if name in self._file.constants:
                tensor = self._editor.tensors[self._tensors.native[name]]
                data = self._editor.buffers[tensor.buffer].data
                stored = self._file.constants[name]
                contents[name] = np.asarray(data).view(stored.dtype).reshape(stored.shape)
        renamed = self._wanted.renamed
        return Form(kind, operator.builtinOptions, tuple(renamed.get(n, n) for n in inputs), contents)

    def _as_form(self, position: int, before: Form, after: Form, outputs: Sequence[str]) -> Any:
        """The operator in the form that was found."""
        editor = self._editor
        operator = editor.edit(editor.operators, position)
        if after.kind != before.kind:
            operator.opcodeIndex = editor.add_code(code(after.kind))
        set_options(operator, after.options)
        places = []
        for name in after.inputs:
            content = after.constants.get(name)
            if content is None or content is before.constants.get(name):
                places.append(self._tensors.index(name) if name else -1)
            else:
                places.append(self._tensors.own_constant(name, content, position))
        operator.inputs = np.array(places, np.int32)
        operator.outputs = np.array([self._tensors.index(name) for name in outputs], np.int32)
        return operator

    def _ends(self) -> None:
        """Inputs and outputs of the graph, and the signatures that speak of them."""
        editor = self._editor
        names = [self._file.tensor_names[i] for i in editor.outputs]
        outputs = [self._tensors.index(name) for name in self._wanted.outputs]
        if outputs == editor.outputs:
            return
        # An output keeps its entry by its name; where the names are others, by its place.
        places = {name: index for name, index in zip(self._wanted.outputs, outputs, strict=True)}
        if not set(names) & set(places) and len(names) == len(outputs):
            places = dict(zip(names, outputs, strict=True))
        editor.outputs = outputs
        for number, signature in enumerate(editor.signatures):
            if signature.subgraphIndex == 0:
                self._sign(editor.edit(editor.signatures, number), places, outputs)

    def _sign(self, signature: Any, places: Mapping[str, int], outputs: Sequence[int]) -> None:
        """Let a signature speak of the outputs that there are."""
        kept = []
        for entry in signature.outputs or ():
            place = places.get(self._file.tensor_names[entry.tensorIndex])
            if place is not None:
                entry.tensorIndex = place
                kept.append(entry)
        present = {entry.tensorIndex for entry in kept}
        for name, index in zip(self._wanted.outputs, outputs, strict=True):
            if index not in present:
                kept.append(schema().TensorMapT(name=name.encode(), tensorIndex=index))
        signature.outputs = kept

    def _checked(self) -> bytes:
        from onnxfix.frameworks.tflite import lower_file

        data = with_true_shapes(self._editor, self._wanted.proto)
        again = lower_file(Flatbuffer(data, self._file.what))
        refuse_another(again, self._wanted.proto)
        return data
