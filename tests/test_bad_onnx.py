"""Broken ONNX models: refused in one sentence that names the thing, never a crash or a silently different model."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnxfix
from onnxfix.errors import LoadError, OnnxFixError, RuntimeFailure

WEIGHT = np.arange(12, dtype=np.float32).reshape(4, 3)
STRANGE = np.where(WEIGHT == 5, np.nan, np.where(WEIGHT == 7, np.inf, WEIGHT)).astype(np.float32)
DATA = {"x": np.linspace(-1, 1, 8, dtype=np.float32).reshape(2, 4)}


def value(name: str, shape: list[int | str] | None, kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def model(*nodes: onnx.NodeProto, opset: int = 17, **parts: object) -> onnx.ModelProto:
    """``y = relu(x @ w)``, or other nodes that make y of x and w."""
    nodes = nodes or (
        helper.make_node("MatMul", ["x", "w"], ["m"], "dense"), helper.make_node("Relu", ["m"], ["y"], "relu")
    )
    graph = helper.make_graph(
        list(nodes), "g", parts.get("inputs", [value("x", ["n", 4])]), parts.get("outputs", [value("y", ["n", 3])]),
        parts.get("constants", [numpy_helper.from_array(WEIGHT, "w")]), value_info=parts.get("inner", []),
    )
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("acme", 1)]
    return helper.make_model(graph, ir_version=8, opset_imports=imports)


def node(op: str, inputs: str, output: str, **attributes: object) -> onnx.NodeProto:
    return helper.make_node(op, inputs.split(), [output], f"node_{output}", **attributes)


def constant(change: Callable[[TensorProto], object]) -> onnx.ModelProto:
    proto = model()
    change(proto.graph.initializer[0])
    return proto


def _without_opset() -> onnx.ModelProto:
    proto = model()
    del proto.opset_import[:]
    return proto


def _floats(*numbers: float) -> Callable[[TensorProto], object]:
    def change(tensor: TensorProto) -> None:
        tensor.ClearField("raw_data")
        tensor.float_data.extend(numbers)

    return change


def sparse(shape: list[int], places: list[int]) -> onnx.ModelProto:
    proto = model(constants=[])
    stored = proto.graph.sparse_initializer.add(dims=shape)
    stored.values.CopyFrom(numpy_helper.from_array(np.array([1, 2], np.float32), "w"))
    stored.indices.CopyFrom(numpy_helper.from_array(np.array(places, np.int64), "w/places"))
    return proto


def with_functions(count: int) -> onnx.ModelProto:
    proto = model(node("Twice", "x", "t", domain="acme"), node("MatMul", "t w", "y"))
    body = [helper.make_node("Add", ["a", "a"], ["b"])]
    twice = helper.make_function("acme", "Twice", ["a"], ["b"], body, [helper.make_opsetid("", 17)])
    proto.functions.extend([twice] * count)
    return proto


def nested(depth: int) -> onnx.ModelProto:
    """If inside If inside ..."""
    out = [value("o", ["n", "k"])]
    body = helper.make_graph([node("Relu", "x", "o")], "body", [], out)
    other = helper.make_graph([node("Neg", "x", "o")], "other", [], out)
    for _ in range(depth):
        body = helper.make_graph([node("If", "c", "o", then_branch=body, else_branch=other)], "body", [], out)
    flag = numpy_helper.from_array(np.array(True), "c")
    last = node("If", "c", "y", then_branch=body, else_branch=other)
    return model(last, constants=[flag], outputs=[value("y", ["n", "k"])])


REFUSED: dict[str, tuple[Callable[[], onnx.ModelProto], str]] = {
    "a cycle": (lambda: model(node("Add", "x b", "a"), node("Relu", "a", "b"), node("MatMul", "b w", "y")), "cycle.*node_a"),
    "a loop of one": (lambda: model(node("Add", "x a", "a"), node("MatMul", "a w", "y")), "cycle.*node_a"),
    "an undefined operand": (lambda: model(node("MatMul", "x gone", "y")), "node_y.*reads gone"),
    "an undefined output": (lambda: model(outputs=[value("gone", None)]), "output gone"),
    "a value made twice": (lambda: model(node("MatMul", "x w", "y"), node("Relu", "x", "y")), "both produce y"),
    "a constant made again": (lambda: model(node("Relu", "x", "w"), node("MatMul", "x w", "y")), "constant w"),
    "two constants of a name": (
        lambda: model(constants=[numpy_helper.from_array(WEIGHT + k, "w") for k in range(2)]), "two initializers named w"
    ),
    "two inputs of a name": (lambda: model(inputs=[value("x", ["n", 4])] * 2), "two inputs named x"),
    "two outputs of a name": (lambda: model(outputs=[value("y", ["n", 3])] * 2), "two outputs named y"),
    "two functions of a name": (lambda: with_functions(2), "two functions named acme:Twice"),
    "an op that the opset lacks": (lambda: model(node("Frob", "x", "y")), "opset 17 has no op Frob"),
    "a domain not imported": (lambda: model(node("Frob", "x", "y", domain="other")), "domain 'other'"),
    "an opset of the future": (lambda: model(opset=99), "opset 99.*upgrade"),
    "no such opset": (lambda: model(opset=-3), "opset -3"),
    "explicit broadcasting": (
        lambda: model(node("MatMul", "x w", "m"), node("Add", "m m", "y", broadcast=1, axis=1), opset=6), "opset 6.*node_y"
    ),
    "no opset": (_without_opset, "no opset_import"),
    "no graph": (onnx.ModelProto, "no ONNX graph|no graph"),
    "an empty graph": (lambda: helper.make_model(helper.make_graph([], "g", [], [])), "no outputs"),
    "raw data cut short": (lambda: constant(lambda t: setattr(t, "raw_data", bytes(7))), r"w .*\[4, 3\].*48 bytes.*holds 7"),
    "raw data too long": (lambda: constant(lambda t: setattr(t, "raw_data", bytes(700))), "holds 700"),
    "float data cut short": (lambda: constant(_floats(1, 2, 3)), "12 elements, but holds 3"),
    "no data": (lambda: constant(_floats()), "holds 0"),
    "a negative dimension": (lambda: constant(lambda t: t.dims.__setitem__(0, -4)), "w .*negative"),
    "petabytes": (lambda: constant(lambda t: t.dims.__setitem__(0, 2**50)), "w .*holds 48"),
    "more bytes than numbers count": (lambda: constant(lambda t: t.dims.extend([2**33, 2**33])), "holds 48"),
    "an unknown element type": (lambda: constant(lambda t: setattr(t, "data_type", 77)), "element type 77"),
    "no element type": (lambda: constant(lambda t: setattr(t, "data_type", 0)), "element type 0"),
    "an input that is not its default": (
        lambda: model(inputs=[value("x", ["n", 4]), value("w", [7, 7])]), "input w with another"
    ),
    "sparse petabytes": (lambda: sparse([2**30, 2**30], [0, 7]), "too large"),
    "sparse places outside": (lambda: sparse([4, 3], [0, 700]), "damaged"),
}  # fmt: skip


def in_one_sentence(error: BaseException) -> bool:
    return "\n" not in str(error) and str(error).endswith(".")


@pytest.mark.parametrize("defect", REFUSED)
@pytest.mark.parametrize("form", ["path", "proto"])
def test_what_cannot_be_meant_is_refused(defect: str, form: str, tmp_path: Path) -> None:
    make, message = REFUSED[defect]
    proto = make()
    path = tmp_path / "bad.onnx"
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(LoadError, match=message) as caught:
        onnxfix.load(path if form == "path" else proto)
    assert in_one_sentence(caught.value)
    with pytest.raises(LoadError, match=message):
        onnxfix.canonicalize(proto)


CONTRADICTIONS = {
    "a type of a value": lambda: model(inner=[value("m", ["n", 3], TensorProto.INT64)]),
    "the type of the output": lambda: model(outputs=[value("y", ["n", 3], TensorProto.INT64)]),
    "a permutation": lambda: model(node("Transpose", "x", "t", perm=[0, 5]), node("MatMul", "t w", "y")),
    "a shape": lambda: constant(lambda t: t.CopyFrom(numpy_helper.from_array(WEIGHT.T.copy(), "w"))),
    "an axis": lambda: model(node("Concat", "x x", "t", axis=9), node("MatMul", "t w", "y")),
    "too low a rank": lambda: model(node("Conv", "x w", "y", kernel_shape=[-1, 0])),
}


@pytest.mark.parametrize("contradiction", CONTRADICTIONS)
def test_a_model_that_contradicts_itself_does_not_become_one_that_runs(contradiction: str) -> None:
    proto = CONTRADICTIONS[contradiction]()
    with pytest.raises(LoadError, match="contradicts itself") as caught:
        onnxfix.canonicalize(proto)
    assert in_one_sentence(caught.value)
    with pytest.raises(RuntimeFailure):
        onnxfix.load(proto).run(DATA)


KEPT = {
    "nodes out of order": lambda: model(node("Relu", "m", "y"), node("MatMul", "x w", "m")),
    "nodes of one name": lambda: model(
        helper.make_node("MatMul", ["x", "w"], ["m"], "a"), helper.make_node("Relu", ["m"], ["y"], "a")
    ),
    "a wrong rank of a value": lambda: model(inner=[value("m", ["n", 3, 7])]),
    "a wrong size of a value": lambda: model(inner=[value("m", ["n", 5])]),
    "a wrong size of the output": lambda: model(outputs=[value("y", ["n", 9])]),
    "NaN and infinity": lambda: constant(lambda t: t.CopyFrom(numpy_helper.from_array(STRANGE, "w"))),
    "sparse constants": lambda: sparse([4, 3], [0, 7]),
    "deep control flow": lambda: nested(25),
}  # fmt: skip


@pytest.mark.parametrize("oddity", KEPT)
def test_what_onnxruntime_runs_stays_the_same_model(oddity: str, tmp_path: Path) -> None:
    proto = KEPT[oddity]()
    before = proto.SerializeToString()
    loaded = onnxfix.load(proto)
    wanted = loaded.run(DATA)["y"]
    np.testing.assert_array_equal(onnxfix.canonicalize(loaded).run(DATA)["y"], wanted)
    loaded.save(tmp_path / "again.onnx")
    np.testing.assert_array_equal(onnxfix.load(tmp_path / "again.onnx").run(DATA)["y"], wanted)
    assert proto.SerializeToString() == before


def test_deeper_nesting_than_protobuf_reads_is_refused() -> None:
    proto = model()
    graph = proto.graph
    for _ in range(300):
        graph = graph.node.add(op_type="If", input=["c"], output=["o"]).attribute.add(name="then_branch", type=5).g
    with pytest.raises(LoadError, match="levels deep") as caught:
        onnxfix.load(proto)
    assert in_one_sentence(caught.value)


@pytest.mark.parametrize(
    "op, operands",
    [
        ("ConstantOfShape", [np.array([2**25, 2**15])]),
        ("Expand", [np.ones(1, np.float32), np.array([2**25, 2**15])]),
        ("Tile", [np.ones((1, 1), np.float32), np.array([2**25, 2**15])]),
        ("Range", [np.int64(0), np.int64(2**42), np.int64(1)]),
        ("Pad", [np.ones((1, 1), np.float32), np.array([0, 0, 2**25, 2**15])]),
        ("OneHot", [np.array([1, 2]), np.array(2**42), np.array([0, 1], np.float32)]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_constants_of_terabytes_are_not_computed(op: str, operands: list[np.ndarray]) -> None:
    names = [f"c{k}" for k in range(len(operands))]
    proto = model(
        node(op, " ".join(names), "big"), node("ReduceSum", "big", "sum", keepdims=0),
        node("Cast", "sum", "term", to=TensorProto.FLOAT), node("MatMul", "x w", "m"), node("Add", "m term", "y"),
        constants=[numpy_helper.from_array(WEIGHT, "w"),
                   *(numpy_helper.from_array(np.asarray(v), n) for n, v in zip(names, operands, strict=True))],
    )
    assert op in {n.op_type for n in onnxfix.canonicalize(proto).graph.node}


def test_an_op_of_an_unknown_domain_is_left_alone_and_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from onnxfix.cli import main

    custom = model(node("MatMul", "x w", "m"), node("Frob", "m", "y", domain="acme", level=3))
    kept = next(n for n in onnxfix.canonicalize(custom).graph.node if n.domain == "acme")
    assert (kept.op_type, kept.attribute[0].i) == ("Frob", 3)
    assert onnxfix.fingerprint(custom) == onnxfix.fingerprint(onnxfix.canonicalize(custom))
    assert onnxfix.fingerprint(custom) != onnxfix.fingerprint(model())
    onnx.save(custom, tmp_path / "custom.onnx")
    assert main(["inspect", str(tmp_path / "custom.onnx")]) == 0
    assert "acme:Frob (node node_y)" in capsys.readouterr().out
    with pytest.raises(RuntimeFailure, match="acme:Frob") as caught:
        onnxfix.load(custom).run(DATA)
    assert in_one_sentence(caught.value)


def test_an_input_that_is_no_tensor_is_named() -> None:
    sequence = helper.make_tensor_sequence_value_info("x", TensorProto.FLOAT, None)
    proto = model(node("ConcatFromSequence", "x", "y", axis=0), inputs=[sequence])
    with pytest.raises(LoadError, match="x is a sequence"):
        repr(onnxfix.load(proto))


@pytest.mark.parametrize("seed", range(40))
def test_damaged_bytes_raise_nothing_but_our_own_errors(seed: int, tmp_path: Path) -> None:
    """Bytes overwritten, lost and doubled at random: the model is refused, or it is a model that canonicalizes."""
    draw = random.Random(seed)
    content = bytearray(model().SerializeToString())
    for _ in range(draw.choice([1, 1, 2, 4])):
        at = draw.randrange(len(content))
        change = draw.randrange(4)
        if change == 0:
            content[at] = draw.randrange(256)
        elif change == 1:
            del content[at : at + draw.choice([1, 4, 16])]
        elif change == 2:
            content[at:at] = draw.randbytes(draw.choice([1, 4]))
        else:
            content[at : at + 4] = draw.choice([bytes(4), b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f"])
    path = tmp_path / "damaged.onnx"
    path.write_bytes(content)
    try:
        damaged = onnxfix.load(path)
        onnxfix.fingerprint(damaged)
        damaged.run({spec.name: np.ones((2, 4), spec.dtype) for spec in damaged.inputs})
    except OnnxFixError as error:
        assert in_one_sentence(error), error
