"""Every way from a network to ONNX that today's converters offer, and today's ONNX optimisers.

A route takes the folder of a network, writes what its converter makes there, and returns the lowered ONNX model.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx

import onnxfix
from onnxfix.canonical.legalization import legalize
from onnxfix.frameworks.torchvision_ops import ensure_torchvision_importable

Route = Callable[["Origin", Path], onnx.ModelProto]
# What onnx2torch understands and torch.export can trace differs from network to network: the first that works is taken,
# and where none does, what `onnxfix.export` makes of the model for the same converter.
_OPSETS = (10, 13, 17)


class Origin:
    """A network in the framework that it was written in.

    Args:
        model: Keras model or PyTorch module.
        example: Example inputs of a PyTorch module; empty for Keras.
    """

    def __init__(self, model: Any, example: tuple[Any, ...] = ()) -> None:
        self.model, self.example = model, example
        if not example:
            import numpy as np

            random = np.random.default_rng(1)
            self.feeds = [random.normal(size=(1, *i.shape[1:])).astype(np.float32) for i in model.inputs]
        else:
            self.feeds = [value.numpy() for value in example]

    def source(self) -> onnxfix.Model:
        """The network as we load it."""
        return onnxfix.load(self.model, inputs=self.example or None)

    def lowered(self) -> onnx.ModelProto:
        """Our own raw lowering."""
        return self.source().proto


def _tf2onnx(origin: Origin, folder: Path, opset: int | None = None) -> onnx.ModelProto:
    import tensorflow as tf
    import tf2onnx

    shapes = [(None if opset is None else 1, *i.shape[1:]) for i in origin.model.inputs]
    spec = [tf.TensorSpec(shape, tf.float32, name=f"x{k}") for k, shape in enumerate(shapes)]
    function = tf.function(lambda *x: origin.model(x[0] if len(x) == 1 else list(x), training=False),
                           input_signature=spec)
    proto: onnx.ModelProto = tf2onnx.convert.from_function(function, input_signature=spec, opset=opset)[0]
    return proto


def _keras_onnx(origin: Origin, folder: Path) -> onnx.ModelProto:
    path = folder / "keras_export.onnx"
    origin.model.export(path, format="onnx", verbose=False)
    return onnx.load(path)


def _saved_model(origin: Origin, folder: Path) -> onnx.ModelProto:
    path = folder / "saved_model"
    origin.model.export(path, format="tf_saved_model", verbose=False)
    return onnxfix.load(path).proto


def _tflite(origin: Origin, folder: Path) -> onnx.ModelProto:
    import tensorflow as tf

    path = folder / "model.tflite"
    try:
        path.write_bytes(tf.lite.TFLiteConverter.from_keras_model(origin.model).convert())
    except Exception:  # TensorFlow's own error: for recurrent layers it wants a fixed batch, which our export gives it
        onnxfix.export(origin.source(), "tflite", path)
    return onnxfix.load(path).proto


def _exported(model: Any, example: tuple[Any, ...], path: Path, **options: Any) -> onnx.ModelProto:
    import torch

    torch.onnx.export(model, example, path, verbose=False, **options)
    return onnx.load(path)


def _dynamo_raw(origin: Origin, folder: Path) -> onnx.ModelProto:
    return _exported(origin.model, origin.example, folder / "dynamo_raw.onnx", dynamo=True, optimize=False,
                     external_data=False)


def _dynamo(origin: Origin, folder: Path) -> onnx.ModelProto:
    return _exported(origin.model, origin.example, folder / "dynamo.onnx", dynamo=True, external_data=False)


def _torchscript(origin: Origin, folder: Path) -> onnx.ModelProto:
    return _exported(origin.model, origin.example, folder / "torchscript.onnx", dynamo=False, opset_version=17)


def _litert(origin: Origin, folder: Path) -> onnx.ModelProto:
    import litert_torch

    path = folder / "litert.tflite"
    try:
        litert_torch.convert(origin.model, origin.example).export(str(path))
    except Exception:  # a converter's own crash; respelled for it the model may do
        onnxfix.export(origin.lowered(), "tflite", path)
    return onnxfix.load(path).proto


def _through_onnx2torch(dynamo: bool) -> Route:
    """To ONNX, to PyTorch by onnx2torch, and back by one of torch's exporters.

    What onnx2torch refuses is converted from its legalised normal form, as :func:`onnxfix.export` does it.
    """

    def route(origin: Origin, folder: Path) -> onnx.ModelProto:
        ensure_torchvision_importable()
        import onnx2torch
        import torch

        example = tuple(torch.from_numpy(value) for value in origin.feeds)
        error: Exception | None = None
        path = folder / f"onnx2torch_{'dynamo' if dynamo else 'torchscript'}.onnx"
        options: dict[str, Any] = {"external_data": False} if dynamo else {"opset_version": 17}
        for opset in _OPSETS:
            try:
                if origin.example:
                    source = _exported(origin.model, origin.example, folder / f"opset{opset}.onnx", dynamo=False,
                                       opset_version=opset)
                else:
                    source = _tf2onnx(origin, folder, opset)
                module = onnx2torch.convert(source).eval()
                return _exported(module, example, path, dynamo=dynamo, **options)
            except Exception as failure:  # a converter's own crash; another opset may do
                error = failure
        if isinstance(error, NotImplementedError):
            try:
                legal = legalize(onnxfix.canonicalize(source), "onnx2torch")
                return _exported(onnx2torch.convert(legal).eval(), example, path, dynamo=dynamo, **options)
            except Exception as failure:  # such as shapes that torch.export cannot trace
                error = failure
        module = onnxfix.export(origin.lowered(), "pytorch")
        return _exported(module, example, path, dynamo=dynamo, **options)

    return route


KERAS_ROUTES: dict[str, Route] = {
    "raw": lambda origin, folder: origin.lowered(), "tf2onnx": _tf2onnx, "Keras export": _keras_onnx,
    "SavedModel": _saved_model, "TFLite": _tflite, "onnx2torch, dynamo": _through_onnx2torch(True),
    "onnx2torch, TorchScript": _through_onnx2torch(False),
}
TORCH_ROUTES: dict[str, Route] = {
    "raw": lambda origin, folder: origin.lowered(), "dynamo unoptimised": _dynamo_raw, "dynamo": _dynamo,
    "TorchScript": _torchscript, "litert-torch": _litert, "onnx2torch, dynamo": _through_onnx2torch(True),
    "onnx2torch, TorchScript": _through_onnx2torch(False),
}


def _slim(proto: onnx.ModelProto) -> onnx.ModelProto:
    import onnxslim

    result: onnx.ModelProto = onnxslim.slim(proto)
    return result


def _sim(proto: onnx.ModelProto) -> onnx.ModelProto:
    import onnxsim

    result: onnx.ModelProto = onnxsim.simplify(proto)[0]
    return result


def _optimizer(proto: onnx.ModelProto) -> onnx.ModelProto:
    import onnxoptimizer

    result: onnx.ModelProto = onnxoptimizer.optimize(proto, onnxoptimizer.get_fuse_and_elimination_passes())
    return result


def _script(proto: onnx.ModelProto) -> onnx.ModelProto:
    import onnxscript.optimizer
    import onnxscript.rewriter

    return onnxscript.rewriter.rewrite(onnxscript.optimizer.optimize(proto))


def _ort(proto: onnx.ModelProto) -> onnx.ModelProto:
    import tempfile

    import onnxruntime as ort

    with tempfile.TemporaryDirectory() as folder:
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.optimized_model_filepath = str(Path(folder) / "optimized.onnx")
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
        ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return onnx.load(options.optimized_model_filepath)


PEERS: dict[str, Callable[[onnx.ModelProto], onnx.ModelProto]] = {
    "onnxslim": _slim, "onnxsim": _sim, "onnxoptimizer": _optimizer, "onnxscript": _script, "ORT basic": _ort,
}
