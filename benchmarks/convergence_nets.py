"""The networks of the convergence matrix: Keras ones from ``keras.applications``, PyTorch ones written out here.

Weights are seeded, and none is left where initialisers put it: no bias at zero, no scale at one, no variance at one.
Pictures are small and stacks short where that only saves time; every kind of layer is there.
"""

from __future__ import annotations

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

from collections.abc import Callable
from typing import Any

import numpy as np

CLASSES = 10
KERAS_APPLICATIONS = {  # name -> (class in keras.applications, picture size)
    "MobileNetV2": ("MobileNetV2", 96), "MobileNetV3Small": ("MobileNetV3Small", 96), "ResNet101": ("ResNet101", 64),
    "InceptionV3": ("InceptionV3", 96), "DenseNet121": ("DenseNet121", 64), "EfficientNetB0": ("EfficientNetB0", 64),
}


def keras_network(name: str) -> Any:
    """A seeded Keras model."""
    import keras

    keras.utils.set_random_seed(0)
    if name in KERAS_APPLICATIONS:
        kind, size = KERAS_APPLICATIONS[name]
        model = getattr(keras.applications, kind)(weights=None, input_shape=(size, size, 3), classes=CLASSES)
    else:
        model = KERAS_WRITTEN[name](keras.layers, keras)
    random = np.random.default_rng(0)
    for variable in model.variables:
        if "seed" not in variable.path:
            variable.assign(_value(random, variable.path, tuple(variable.shape), np.asarray(variable)))
    return model


def _value(random: np.random.Generator, path: str, shape: tuple[int, ...], now: np.ndarray) -> np.ndarray:
    """What an initialiser made of a kernel stays; what it left at zero or one is drawn."""
    if not np.issubdtype(now.dtype, np.floating):
        return now
    last = path.rsplit("/", 1)[-1].rsplit(".", 1)[-1]
    if any(word in last for word in ("var", "gamma", "scale")) or (last == "weight" and len(shape) == 1):
        return random.uniform(0.5, 1.5, shape).astype(now.dtype)
    if any(word in last for word in ("beta", "bias", "mean")) or len(shape) < 2:
        return random.normal(0, 0.1, shape).astype(now.dtype)
    return now


def _ds_cnn(layers: Any, keras: Any) -> Any:
    """Depthwise-separable keyword spotter on 49 x 10 features."""
    inputs = layers.Input((49, 10, 1))
    x = layers.Conv2D(64, (10, 4), strides=(2, 2), padding="same")(inputs)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    for _ in range(4):
        x = layers.ReLU()(layers.BatchNormalization()(layers.DepthwiseConv2D(3, padding="same")(x)))
        x = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(64, 1)(x)))
    x = layers.Flatten()(layers.AveragePooling2D((25, 5))(layers.Dropout(0.4)(x)))
    return keras.Model(inputs, layers.Dense(12, activation="softmax")(x))


def _autoencoder(layers: Any, keras: Any) -> Any:
    """Dense autoencoder of 640 spectrogram values."""
    inputs = x = layers.Input((640,))
    for width in (128, 128, 8, 128, 128):
        x = layers.ReLU()(layers.BatchNormalization()(layers.Dense(width)(x)))
    return keras.Model(inputs, layers.Dense(640)(x))


def _convnext(layers: Any, keras: Any) -> Any:
    """ConvNeXt-Tiny with fewer and narrower blocks."""
    from keras.src.applications.convnext import ConvNeXt  # the public builders have fixed widths

    return ConvNeXt(depths=[2, 2, 3, 2], projection_dims=[24, 48, 96, 192], weights=None, input_shape=(64, 64, 3),
                    classes=CLASSES, name="convnext")


def _keras_recurrent(cell: str) -> Callable[[Any, Any], Any]:
    def build(layers: Any, keras: Any) -> Any:
        inputs = layers.Input((20, 16))
        x = getattr(layers, cell)(24, return_sequences=True)(inputs)
        x = getattr(layers, cell)(24)(x)
        return keras.Model(inputs, layers.Dense(CLASSES, activation="softmax")(x))

    return build


KERAS_WRITTEN: dict[str, Callable[[Any, Any], Any]] = {
    "ConvNeXt-Tiny": _convnext, "DS-CNN": _ds_cnn, "dense autoencoder": _autoencoder,
    "LSTM (Keras)": _keras_recurrent("LSTM"), "GRU (Keras)": _keras_recurrent("GRU"),
}
KERAS = (*KERAS_APPLICATIONS, *KERAS_WRITTEN)
TORCH = ("U-Net", "ViT", "Swin", "BERT", "GPT-2", "LSTM (PyTorch)", "GRU (PyTorch)", "MobileNetV2 (PyTorch)")


def torch_network(name: str) -> tuple[Any, tuple[Any, ...]]:
    """A seeded PyTorch module in inference mode, and example inputs."""
    import convergence_modules
    import torch

    torch.manual_seed(0)
    module, example = convergence_modules.BUILDERS[name]()
    random = np.random.default_rng(0)
    with torch.no_grad():
        for path, tensor in (*module.named_parameters(), *module.named_buffers()):
            value = _value(random, path, tuple(tensor.shape), tensor.numpy())
            tensor.copy_(torch.from_numpy(np.ascontiguousarray(value)).reshape(tensor.shape))
    return module.eval(), example
