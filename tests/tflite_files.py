"""TFLite files for tests: small ones, what differs between two, and whether other readers take one."""

import struct

import numpy as np

_KERNELS = 1e-5  # relative; kernels of XNNPACK and the reference ones sum in other orders


def of_function(function, *specs):
    import tensorflow as tf

    from onnxfix.frameworks.quiet import muted, quiet

    with quiet(), muted():
        concrete = tf.function(function).get_concrete_function(*specs)
        return tf.lite.TFLiteConverter.from_concrete_functions([concrete]).convert()


def quantized(model, samples):
    """A Keras model with int8 weights, activations, inputs and outputs."""
    import tensorflow as tf

    from onnxfix.frameworks.quiet import muted, quiet

    with quiet(), muted():
        converter = tf.lite.TFLiteConverter.from_keras_model(model)
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = lambda: ([sample[None]] for sample in samples)
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.inference_input_type = converter.inference_output_type = tf.int8
        return converter.convert()


def changes(old, new):
    """How many bytes were put in front, and which of the old bytes are others."""
    front = len(new) - len(old)
    assert front >= 0
    assert front % 64 == 0, "tables would lose their alignment"
    return front, [k for k, (a, b) in enumerate(zip(old, new[front:], strict=True)) if a != b]


def operators(data):
    """The names of the main graph's operators."""
    from onnxfix.frameworks.flatbuffer import Flatbuffer

    return [name.partition("@")[0] for name in dict.fromkeys(Flatbuffer(data, "it").operators.values())]


def check_valid(data, steps=1.0):
    """The file holds together, TensorFlow's own schema reads it, and three sets of kernels agree on it.

    Integer kernels may round the last step of a layer otherwise; ``steps`` is what that comes to at the outputs.
    """
    from tensorflow.lite.python import schema_py_generated as schema

    Walk(data).model()
    assert schema.ModelT.InitFromPackedBuf(bytearray(data), 0).subgraphs
    reference, *others = by_all_kernels(data)
    for answers in others:
        for one, two in zip(reference, answers, strict=True):
            room = steps if one.dtype.kind in "iu" else _KERNELS * np.abs(one).max(initial=1e-3)
            np.testing.assert_allclose(one.astype(np.float64), two.astype(np.float64), rtol=0, atol=room)


def by_all_kernels(data):
    """Outputs on the same random inputs by the reference kernels, the optimized ones and XNNPACK's."""
    import tensorflow as tf

    resolvers = tf.lite.experimental.OpResolverType
    answers = []
    for resolver in (resolvers.BUILTIN_REF, resolvers.BUILTIN_WITHOUT_DEFAULT_DELEGATES, resolvers.BUILTIN):
        interpreter = tf.lite.Interpreter(model_content=data, experimental_op_resolver_type=resolver)
        interpreter.allocate_tensors()
        rng = np.random.default_rng(0)
        for detail in interpreter.get_input_details():
            values = rng.standard_normal(detail["shape"])
            if np.dtype(detail["dtype"]).kind in "iu":
                limits = np.iinfo(detail["dtype"])
                values = np.round(40 * values + (limits.min + limits.max) / 2).clip(limits.min, limits.max)
            interpreter.set_tensor(detail["index"], values.astype(detail["dtype"]))
        interpreter.invoke()
        answers.append([interpreter.get_tensor(d["index"]) for d in interpreter.get_output_details()])
    return answers


def spread(data):
    """By how many steps the kernels differ on a file with integer outputs."""
    reference, *others = by_all_kernels(data)
    return max(
        float(np.abs(one.astype(np.int64) - two.astype(np.int64)).max())
        for answers in others for one, two in zip(reference, answers, strict=True)
    )  # fmt: skip


class Walk:
    """A reader of its own: follows every offset of model, graphs, tensors, operators and buffers by the format's rules.

    https://flatbuffers.dev/internals/
    """

    def __init__(self, data):
        self.data = data

    def number(self, form, place):
        size = struct.calcsize(form)
        assert place >= 0
        assert place % size == 0, "a number is not aligned"
        assert place + size <= len(self.data)
        return struct.unpack_from(form, self.data, place)[0]

    def field(self, table, slot):
        """Where a table's field lies; None if it is not there."""
        vtable = table - self.number("<i", table)
        size, room = self.number("<H", vtable), self.number("<H", vtable + 2)
        assert table + room <= len(self.data)
        offset = self.number("<H", vtable + 4 + 2 * slot) if 4 + 2 * slot < size else 0
        assert offset < room
        return table + offset if offset else None

    def follow(self, place):
        return None if place is None else place + self.number("<I", place)

    def tables(self, table, slot):
        vector = self.follow(self.field(table, slot))
        count = 0 if vector is None else self.number("<I", vector)
        return [self.follow(vector + 4 + 4 * k) for k in range(count)]

    def integers(self, table, slot):
        vector = self.follow(self.field(table, slot))
        count = 0 if vector is None else self.number("<I", vector)
        return [self.number("<i", vector + 4 + 4 * k) for k in range(count)]

    def model(self):
        assert self.data[4:8] == b"TFL3"
        root = self.number("<I", 0)
        codes, graphs, buffers = (self.tables(root, slot) for slot in (1, 2, 4))
        for buffer in buffers:
            content = self.follow(self.field(buffer, 0))
            if content is not None:
                length = self.number("<I", content)
                assert content + 4 + length <= len(self.data)
        for graph in graphs:
            self.graph(graph, len(codes), len(buffers))

    def graph(self, graph, codes, buffers):
        tensors = self.tables(graph, 0)
        for tensor in tensors:
            place = self.field(tensor, 2)
            assert place is None or self.number("<I", place) < buffers
            self.integers(tensor, 0)
        made = set()
        for operator in self.tables(graph, 3):
            place = self.field(operator, 0)
            assert (0 if place is None else self.number("<I", place)) < codes
            ends = self.integers(operator, 1), self.integers(operator, 2)
            assert all(-1 <= k < len(tensors) for k in (*ends[0], *ends[1]))
            assert not made & set(ends[1]), "two operators write one tensor"
            made |= set(ends[1])
