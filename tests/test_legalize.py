"""Legalisation keeps the meaning of a model and spells it so that the converter reads it."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import onnxfix
from onnxfix.canonical import legalize
from onnxfix.errors import CanonicalizationError
from onnxfix.runtime.session import Session

TARGETS = ["onnx2torch", "litert-torch", "onnx2tf", "tf2onnx-tflite", "keras"]
RNG = np.random.default_rng(7)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def parse(text: str, opset: int, **constants: np.ndarray) -> onnx.ModelProto:
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}]> g ' + text)
    for name, value in constants.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
    return model


def feeds_of(model: onnx.ModelProto, batch: int = 2) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(3)
    feeds = {}
    for info in model.graph.input:
        shape = [dim.dim_value or batch for dim in info.type.tensor_type.shape.dim]
        dtype = onnx.helper.tensor_dtype_to_np_dtype(info.type.tensor_type.elem_type)
        values = generator.standard_normal(shape)
        feeds[info.name] = (3 * values).astype(dtype) if dtype.kind == "f" else generator.integers(0, 3, shape, dtype)
    return feeds


def legal(model: onnx.ModelProto, target: str = "onnx2torch") -> onnx.ModelProto:
    """Legalise; the result is valid, leaves the model as it was, and answers the same."""
    before = model.SerializeToString(deterministic=True)
    result = legalize(model, target)
    assert model.SerializeToString(deterministic=True) == before
    onnx.checker.check_model(result, full_check=True)
    feeds = feeds_of(model)
    wanted, found = Session(model).run(feeds), Session(result).run(feeds)
    assert list(found) == list(wanted)
    for name, value in wanted.items():
        assert found[name].shape == value.shape
        assert found[name].dtype == value.dtype
        # float32 sums of at most a few hundred terms in another order
        np.testing.assert_allclose(found[name], value, rtol=2e-5, atol=2e-5 * float(np.abs(value).max(initial=0)))
    return result


def ops(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


X = "float[2,4,7,9] x"


@pytest.mark.parametrize(
    ("opset", "body", "constants"),
    [
        (18, "y = ReduceMean <keepdims = 0> (x, a)", {"a": ints(2, 3)}),
        (18, "y = ReduceL2 (x, a)", {"a": ints(-1)}),
        (18, "p, q = Split <axis = 3, num_outputs = 2> (x) y = Concat <axis = 3> (q, p)", {}),
        (18, "y = Pad (x, p, , a)", {"p": ints(1, 2, 0, 1), "a": ints(-1, -2)}),
        (21, "y = Pad <mode = \"wrap\"> (x, p)", {"p": ints(0, 0, 1, 2, 0, 0, 1, 0)}),
        (10, "y = Pad <pads = [0, 0, 1, 0, 0, 0, 0, 2], value = 1.5> (x)", {}),
        (20, "y = Gelu (x)", {}),
        (20, "y = Gelu <approximate = \"tanh\"> (x)", {}),
        (18, "y = Mish (x)", {}),
        (21, "y = GroupNormalization <num_groups = 2> (x, s, b)", {"s": normal(4), "b": normal(4)}),
        (11, "y = Softmax <axis = 1> (x)", {}),
        (11, "y = Clip (x, , h)", {"h": np.float32(0.5)}),
        (18, "y = CastLike (x, c)", {"c": np.float64(0)}),
        (13, "y = DepthToSpace <blocksize = 2> (x)", {}),
        (16, "y = PRelu (x, s)", {"s": normal(9)}),
        (11, "y = LpNormalization <p = 1, axis = 2> (x)", {}),
        (14, "y = Trilu <upper = 0> (x, k)", {"k": np.int64(1)}),
        (13, "s = Sinh(x) t = Atanh(h) u = Asinh(x) v = Add(s, t) y = Add(u, v)", {"h": np.float32([0.3])}),
        (17, "y, m, d = LayerNormalization (x, s)", {"s": normal(9)}),
        (13, "q = QuantizeLinear <axis = 1> (x, s, z) y = DequantizeLinear <axis = 1> (q, s, z)",
         {"s": np.abs(normal(4)) + 0.1, "z": np.arange(4, dtype=np.uint8)}),
    ],
)
def test_each_spelling_keeps_the_meaning_in_opset_17(opset: int, body: str, constants: dict[str, np.ndarray]) -> None:
    result = legal(parse(f"({X}) => (float y) {{ {body} }}".replace("float y", _output(body)), opset, **constants))
    assert result.opset_import[0].version == 17


def _output(body: str) -> str:
    return "double[d0,d1,d2,d3] y" if "CastLike" in body else "float[d0,d1] y" if "keepdims" in body else (
        "float[d0,d1,d2,d3] y"
    )


@pytest.mark.parametrize(
    ("attributes", "known"),
    [
        ("kernel_shape = [3, 3], strides = [2, 2], pads = [0, 0, 1, 1]", []),
        ("kernel_shape = [3, 3], pads = [1, 0, 1, 2], count_include_pad = 1", []),
        ("kernel_shape = [2, 2], strides = [2, 2], ceil_mode = 1", []),
        ("kernel_shape = [3, 3], strides = [2, 2], auto_pad = \"SAME_UPPER\"", []),
    ],
)
@pytest.mark.parametrize("op", ["AveragePool", "MaxPool"])
def test_pools_pad_apart_and_borders_are_divided_by_the_right_count(op: str, attributes: str, known: list[str]) -> None:
    if op == "MaxPool":
        attributes = attributes.replace(", count_include_pad = 1", "")
    result = legal(parse(f"({X}) => (float[2,4,h,w] y) {{ y = {op} <{attributes}> (x) }}", 13))
    (pool,) = (node for node in result.graph.node if node.op_type == op)
    pads = next((list(a.ints) for a in pool.attribute if a.name == "pads"), [0] * 4)
    assert pads[:2] == pads[2:]
    assert not any(a.name == "ceil_mode" and a.i for a in pool.attribute)


@pytest.mark.parametrize(
    "attributes",
    ["pads = [0, 1, 1, 0]", "output_padding = [1, 0], pads = [1, 0, 0, 1]", "output_shape = [16, 20]"],
)
def test_transposed_convolutions_crop_what_padding_they_cannot_have(attributes: str) -> None:
    text = f"({X}) => (float[2,3,h,w] y) {{ y = ConvTranspose <strides = [2, 2], {attributes}> (x, k) }}"
    for target in ("onnx2torch", "litert-torch"):
        result = legal(parse(text, 11, k=normal(4, 3, 3, 3)), target)
        (conv,) = (node for node in result.graph.node if node.op_type == "ConvTranspose")
        pads = next((list(a.ints) for a in conv.attribute if a.name == "pads"), [0] * 4)
        assert pads == [0] * 4


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize("coordinates", ["half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel"])
@pytest.mark.parametrize("by", ["sizes", "scales"])
def test_resizes_are_ones_that_pytorch_has_or_linear_maps(mode: str, coordinates: str, by: str) -> None:
    torch = pytest.importorskip("torch")
    operand = {"sizes": ints(2, 4, 11, 5)} if by == "sizes" else {"scales": np.float32([1, 1, 11 / 7, 0.6])}
    inputs = "x, , , sizes" if by == "sizes" else "x, , scales"
    text = (f'({X}) => (float[2,4,11,5] y) {{ y = Resize <mode = "{mode}", '
            f'coordinate_transformation_mode = "{coordinates}", nearest_mode = "ceil"> ({inputs}) }}')
    result = legal(parse(text, 13, **operand))
    resizes = [node for node in result.graph.node if node.op_type == "Resize"]
    for node in resizes:  # what is left is what torch.nn.functional.interpolate does
        given = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        align = given["coordinate_transformation_mode"] == b"align_corners"
        x = torch.from_numpy(feeds_of(result)["x"])
        kind = {b"nearest": "nearest", b"linear": "bilinear", b"cubic": "bicubic"}[given["mode"]]
        y = torch.nn.functional.interpolate(x, (11, 5), mode=kind, align_corners=None if kind == "nearest" else align)
        (expected,) = Session(result).run(feeds_of(result)).values()
        np.testing.assert_allclose(y.numpy(), expected, rtol=0, atol=3e-5)


def test_a_scale_that_rounds_down_becomes_a_size() -> None:
    model = parse(
        '(float[1,3,7,9] x) => (float[1,3,11,5] y) { y = Resize <mode = "linear"> (x, , s) }', 13,
        s=np.array([1, 1, 11 / 7, 5 / 9], np.float32),
    )
    (node,) = legal(model).graph.node
    assert node.op_type == "Resize"
    assert len(node.input) == 4


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize(("op", "gates"), [("LSTM", 4), ("GRU", 3), ("RNN", 1)])
def test_recurrent_layers_are_unrolled(op: str, gates: int, direction: str) -> None:
    count = 2 if direction == "bidirectional" else 1
    weights = {"w": normal(count, gates * 5, 3) / 2, "r": normal(count, gates * 5, 5) / 2,
               "b": normal(count, 2 * gates * 5) / 2, "h": normal(count, 2, 5)}
    for extra in ("", "linear_before_reset = 1, ") if op == "GRU" else ("",):
        text = (f'(float[6,2,3] x) => (float[6,{count},2,5] y, float[{count},2,5] last) {{ '
                f'y, last = {op} <hidden_size = 5, {extra}direction = "{direction}"> (x, w, r, b, , h) }}')
        assert op not in ops(legal(parse(text, 14, **weights)))


@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
@pytest.mark.parametrize("padding", ["zeros", "border"])
@pytest.mark.parametrize("align", [0, 1])
@pytest.mark.parametrize("target", ["onnx2torch", "onnx2tf"])
def test_grid_sample_is_gathered(mode: str, padding: str, align: int, target: str) -> None:
    text = (f'(float[N,2,5,6] x, float[N,4,3,2] g) => (float[N,2,4,3] y) {{ y = GridSample <mode = "{mode}", '
            f'padding_mode = "{padding}", align_corners = {align}> (x, g) }}')
    assert "GridSample" not in ops(legal(parse(text, 16), target))


def test_squeezes_name_ascending_axes_from_the_front_or_are_flattens() -> None:
    model = parse(
        "(float[2,3,1,1] x, float[1,2,1,3] z) => (float[2,3] y, float[2,3] w) "
        "{ y = Squeeze (x, a) w = Squeeze (z, b) }", 13, a=ints(-1, -2), b=ints(2, -4),
    )
    result = legal(model)
    assert ops(result) == ["Flatten", "Squeeze"]
    axes = next(t for t in result.graph.initializer if t.name == result.graph.node[1].input[1])
    assert list(onnx.numpy_helper.to_array(axes)) == [0, 2]


def test_wrapped_shared_initializers_are_read_directly_under_their_own_names() -> None:
    model = parse(
        "(float[1,2,4,4] x) => (float[1,2,2,2] y) { c = Identity (b) h = Conv (x, k, b) i = Relu(h) y = Conv (i, k, c) }",
        17, k=normal(2, 2, 2, 2)[:, :, :1, :1].repeat(2, 2).repeat(2, 3)[..., :2, :2], b=normal(2),
    )
    result = legal(model)
    assert ops(result) == ["Conv", "Relu", "Conv"]
    assert {name for node in result.graph.node if node.op_type == "Conv" for name in node.input[1:]} == {"k", "b"}


def test_dynamic_shape_arithmetic_is_folded() -> None:
    model = parse(
        "(float[N,3,4] x) => (float[N,12] y) { s = Shape (x) n = Gather (s, i) u = Unsqueeze (n, a) "
        "t = Concat <axis = 0> (u, m) y = Reshape (x, t) }", 17, i=np.int64(0), a=ints(0), m=ints(-1),
    )
    assert ops(legal(model)) == ["Flatten"]


def test_branches_with_a_fixed_condition_are_taken() -> None:
    model = parse(
        "(float[2,3] x) => (float[2,3] y) { s = Size (x) c = Equal (s, n) y = If (c) <"
        "then_branch = t () => (float[2,3] a) { k = Relu (x) a = Neg (k) }, "
        "else_branch = e () => (float[2,3] b) { b = Identity (x) }> }", 17, n=np.int64(6),
    )
    assert ops(legal(model)) == ["Relu", "Neg"]


def test_outputs_are_the_only_outputs_of_nodes_of_their_own_and_names_are_plain() -> None:
    model = parse(
        "(float[2,4] x) => (float[2,2] a, float[2,2] b, float[2,2] r, float[2,4] c) "
        "{ a, b = Split <axis = 1> (x, s) r = Relu (b) c = Identity (k) }", 17, s=ints(2, 2), k=normal(2, 4),
    )
    model.graph.node[0].name = "first/op;second.op"
    result = legal(model)
    makers = {output: node for node in result.graph.node for output in node.output}
    chosen = [makers[output.name] for output in result.graph.output]
    assert all(len(node.output) == 1 for node in chosen)
    assert len({node.name for node in chosen}) == 4
    assert all(";" not in node.name and "." not in node.name for node in result.graph.node)


def test_fmod_is_of_positive_numbers_for_onnx2tf() -> None:
    result = legal(parse("(float[8] x, float[8] z) => (float[8] y) { y = Mod <fmod = 1> (x, z) }", 13), "onnx2tf")
    assert ops(result) == ["Abs", "Abs", "Mod", "Sign", "Mul"] or "Sign" in ops(result)


@pytest.mark.parametrize("target", TARGETS)
def test_legalising_twice_changes_nothing_more(target: str) -> None:
    model = parse(f"({X}) => (float[2,4] y) {{ p = AveragePool <kernel_shape = [7, 9], pads = [0, 0, 1, 1], "
                  "strides = [8, 10]> (x) r = ReduceMax (p, a) y = Squeeze (r, a) }", 18, a=ints(-1, -2))
    once = legal(model, target)
    assert ops(legal(once, target)) == ops(once)


def test_a_model_comes_back_in_the_type_that_was_given() -> None:
    proto = parse("(float[2,3] x) => (float[2,3] y) { y = Relu (x) }", 18)
    assert isinstance(legalize(ir.serde.deserialize_model(proto), "onnx2torch"), ir.Model)
    model = legalize(onnxfix.load(proto), "onnx2torch")
    assert model.framework == "onnx"
    assert model.proto.opset_import[0].version == 17


def test_an_op_without_an_older_form_is_named() -> None:
    model = parse("(int32[2] x, int32[2] z) => (int32[2] y) { y = BitwiseAnd (x, z) }", 18)
    with pytest.raises(CanonicalizationError, match="BitwiseAnd"):
        legalize(model, "onnx2torch")
    with pytest.raises(ValueError, match="onnx2torch, litert-torch"):
        legalize(model, "caffe")


@pytest.mark.parametrize("target", ["onnx2torch", "litert-torch", "keras"])
@pytest.mark.parametrize("attributes", [
    "dilations = [2, 3], pads = [1, 1, 0, 1]", "dilations = [2, 1], strides = [2, 2]",
    "dilations = [2, 2], pads = [2, 1, 1, 1], count_include_pad = 1", "dilations = [3, 2], ceil_mode = 1, strides = [2, 3]",
])
def test_dilated_average_pools_are_sums_of_slices(attributes: str, target: str) -> None:
    model = parse(f"({X}) => (float[2,4,h,w] y) {{ y = AveragePool <kernel_shape = [3, 2], {attributes}> (x) }}", 19)
    assert "AveragePool" not in ops(legal(model, target))


def test_dilated_max_pools_are_maxima_of_slices_where_they_must_be() -> None:
    text = f"({X}) => (float[2,4,h,w] y) {{ y = MaxPool <kernel_shape = [2, 3], dilations = [3, 2], strides = [1, 2], "
    model = parse(text + "pads = [1, 1, 0, 1]> (x) }", 12)
    assert "MaxPool" in ops(legal(model, "onnx2torch"))
    for target in ("litert-torch", "keras"):
        assert ops(legal(model, target)).count("Slice") == 6


@pytest.mark.parametrize("attributes", ["p = 1", "p = 3, strides = [2, 1]", "pads = [1, 0, 1, 1]", "dilations = [2, 2]"])
def test_pools_of_powers_are_powers_of_average_pools(attributes: str) -> None:
    text = f"({X}) => (float[2,4,h,w] y) {{ y = LpPool <kernel_shape = [3, 2], {attributes}> (x) }}"
    assert "LpPool" not in ops(legal(parse(text, 18)))


@pytest.mark.parametrize(("size", "attributes"), [(3, ""), (5, "alpha = 0.5, beta = 0.6, bias = 1.5,"), (1, "")])
def test_normalisation_by_neighbouring_channels_is_spelled_out_for_litert_and_keras(size: int, attributes: str) -> None:
    model = parse(f"({X}) => (float[2,4,7,9] y) {{ y = LRN <{attributes} size = {size}> (x) }}", 17)
    for target in ("litert-torch", "keras"):
        assert "LRN" not in ops(legal(model, target))


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("attributes", ["", "inverse = 1", "onesided = 1"])
@pytest.mark.parametrize("length", [None, 5, 9])
def test_fourier_transforms_are_products_with_matrices(parts: int, attributes: str, length: int | None) -> None:
    given = {} if length is None else {"n": np.array(length, np.int64)}
    operands = "x" if length is None else "x, n"
    text = f"(float[2,7,3,{parts}] x) => (float[2,k,3,2] y) {{ y = DFT <axis = 1 {', ' * bool(attributes)}{attributes}> ({operands}) }}"
    if parts == 2 and "onesided" in attributes:
        pytest.skip("the standard has no one-sided transform of complex numbers")
    assert "DFT" not in ops(legal(parse(text, 17, **given)))


def test_short_time_transforms_are_gathered_and_multiplied() -> None:
    text = "(float[2,40,1] x) => (float[2,f,k,2] y) { y = STFT (x, step, window) }"
    model = parse(text, 17, step=np.array(6, np.int64), window=np.hanning(16).astype(np.float32))
    assert "STFT" not in ops(legal(model))


@pytest.mark.parametrize("mode", ["linear", "nearest"])
def test_crops_that_are_resized_are_linear_maps(mode: str) -> None:
    text = f"""({X}) => (float[2,4,5,6] y) {{
        y = Resize <mode = "{mode}", coordinate_transformation_mode = "tf_crop_and_resize"> (x, roi, , sizes) }}"""
    roi = np.array([0, 0, 0.2, -0.1, 1, 1, 0.9, 1.2], np.float32)
    assert "Resize" not in ops(legal(parse(text, 17, roi=roi, sizes=ints(2, 4, 5, 6))))
