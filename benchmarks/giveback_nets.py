"""One small network with a place for every kind of patch, in Keras and in PyTorch, whole or with one fault."""

from __future__ import annotations

from typing import Any

import numpy as np

SIZE, CLASSES, SAMPLES = 12, 10, 40


def data() -> np.ndarray:
    """``[40, 12, 12, 3]`` in 0..1."""
    return np.random.default_rng(1).random((SAMPLES, SIZE, SIZE, 3), dtype=np.float32)


def keras_net(fault: str = "") -> Any:
    """The Keras network, its parameters the same in every call."""
    import keras

    layers = keras.layers
    x = keras.Input((SIZE, SIZE, 3), name="image")
    h = x if fault == "preprocessing" else layers.Rescaling(2.0, -1.0, name="scaling")(x)
    h = layers.Conv2D(8, 3, padding="same", strides=2 if fault == "stride" else 1, name="c1")(h)
    h = layers.BatchNormalization(epsilon=1e-5 if fault == "epsilon" else 1e-3, name="norm")(h)
    h = layers.ReLU(max_value=4.0 if fault == "activation bound" else 6.0, name="clip")(h)
    h = layers.UpSampling2D(2, interpolation="nearest" if fault == "resize mode" else "bilinear", name="up")(h)
    h = layers.ZeroPadding2D(((0, 2), (0, 2)) if fault == "pads" else 1, name="pad")(h)
    h = layers.Conv2D(8, 3, strides=2, name="c2")(h)
    if fault != "added op":
        h = layers.Activation("tanh", name="bend")(h)
    h = layers.Conv2D(8, 3, padding="same", dilation_rate=1 if fault == "dilation" else 2, name="c3")(h)
    if fault == "removed op":
        h = layers.Activation("sigmoid", name="extra")(h)
    h = layers.Softmax(axis=1 if fault == "axis" else -1, name="soft")(h)
    h = layers.Conv2D(8, 3, padding="same", name="c4")(h)
    h = layers.Activation("softsign" if fault == "replaced region" else "silu", name="gate")(h)
    if fault != "inserted transpose":
        h = layers.Permute((2, 1, 3), name="swap")(h)
    h = layers.Conv2D(4, 3, padding="same", activation="relu", name="c5")(h)
    h = layers.GlobalAveragePooling2D(name="pool")(h)
    h = layers.Dense(CLASSES + (fault == "label map"), name="logits")(h)
    model = keras.Model(x, h)
    _fill(model)
    _spoil(model, fault)
    return model


def _fill(model: Any) -> None:
    rng = np.random.default_rng(2)
    for variable in model.variables:
        shape = variable.shape
        kind = variable.path.rsplit("/", 1)[-1]
        if kind == "moving_variance":
            value = rng.uniform(0.002, 0.01, shape)
        elif kind == "gamma":
            value = rng.uniform(0.2, 0.6, shape)
        elif kind == "kernel":
            value = rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[:-1])) * (1 + 2 * ("c4" in variable.path))
        else:
            value = rng.standard_normal(shape) * 0.3
        variable.assign(value.astype(np.float32))


def _spoil(model: Any, fault: str) -> None:
    def change(layer: str, slot: int, edit: Any) -> None:
        weights = model.get_layer(layer).get_weights()
        weights[slot] = edit(weights[slot].copy())
        model.get_layer(layer).set_weights(weights)

    if fault == "weight":
        change("c3", 0, lambda w: w.transpose(1, 0, 2, 3))
    elif fault == "bias":
        change("c4", 1, np.zeros_like)
    elif fault == "folded batch-norm weight":
        change("norm", 2, np.zeros_like)  # the moving mean
    elif fault == "per-channel quantized weight":
        change("c5", 0, lambda w: w * np.array([1, 1.6, 1, 1], np.float32))
    elif fault == "label map":  # what the source calls 0 is 1: background comes first
        whole = keras_net().get_layer("logits").get_weights()
        kernel, bias = (np.concatenate([w[..., :1] * 0 - (w.ndim == 1), w], -1) for w in whole)
        model.get_layer("logits").set_weights([kernel, bias])


def torch_net(fault: str = "", spelled: bool = False) -> Any:
    """The PyTorch network, in inference mode, its parameters the same in every call.

    Args:
        fault: What is wrong with it.
        spelled: Its quantizer is spelled out in the ops that torch.export knows.
    """
    import torch
    from torch import nn

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.c1 = nn.Conv2d(3, 8, 3, padding=1, stride=2 if fault == "stride" else 1)
            self.norm = nn.BatchNorm2d(8, eps=1e-5 if fault == "epsilon" else 1e-3)
            self.clip = nn.Hardtanh(0.0, 4.0 if fault == "activation bound" else 6.0)
            nearest = fault == "resize mode"
            self.up = nn.Upsample(scale_factor=2, mode="nearest" if nearest else "bilinear")
            self.pad = nn.ZeroPad2d((0, 2, 0, 2) if fault == "pads" else 1)
            self.c2 = nn.Conv2d(8, 8, 3, stride=2)
            self.bend = nn.Identity() if fault == "added op" else nn.Tanh()
            dilation = 1 if fault == "dilation" else 2
            self.c3 = nn.Conv2d(8, 8, 3, padding=2, dilation=dilation)
            self.extra = nn.Sigmoid() if fault == "removed op" else nn.Identity()
            self.soft = nn.Softmax(dim=2 if fault == "axis" else 1)
            self.c4 = nn.Conv2d(8, 8, 3, padding=1)
            self.gate = nn.Softsign() if fault == "replaced region" else nn.SiLU()
            self.c5 = nn.Conv2d(8, 4, 3, padding=1)
            self.pool = nn.AdaptiveAvgPool2d(4)
            self.logits = nn.Linear(64, CLASSES + (fault == "label map"))

        def forward(self, image: Any) -> Any:
            h = image if fault == "preprocessing" else image * 2.0 - 1.0
            h = self.up(self.clip(self.norm(self.c1(h))))
            h = self.c3(self.bend(self.c2(self.pad(h))))
            h = self.c4(self.soft(self.extra(h)))
            h = self.gate(h)
            if fault in ("scale", "scale, right"):
                scale = 0.25 if fault == "scale" else 0.03
                if spelled:
                    h = torch.clamp(torch.round(h / scale), -128, 127) * scale
                else:
                    h = torch.fake_quantize_per_tensor_affine(h, scale, 0, -128, 127)
            if fault != "inserted transpose":
                h = h.transpose(2, 3)
            h = torch.relu(self.c5(h))
            return self.logits(self.pool(h).flatten(1))

    net = Net().eval()
    with torch.no_grad():
        _fill_torch(net)
        _spoil_torch(net, fault)
    return net


def _fill_torch(net: Any) -> None:
    import torch

    rng = np.random.default_rng(3)
    for name, tensor in (*net.named_parameters(), *net.named_buffers()):
        if not tensor.is_floating_point():
            continue
        if name.endswith("running_var"):
            value = rng.uniform(0.002, 0.01, tensor.shape)
        elif name == "norm.weight":
            value = rng.uniform(0.2, 0.6, tensor.shape)
        elif tensor.ndim > 1:
            spread = np.sqrt(2 / np.prod(tensor.shape[1:])) * (1 + 2 * (name == "c4.weight"))
            value = rng.standard_normal(tensor.shape) * spread
        else:
            value = rng.standard_normal(tensor.shape) * 0.3
        tensor.copy_(torch.tensor(value, dtype=torch.float32))


def _spoil_torch(net: Any, fault: str) -> None:
    import torch

    if fault == "weight":
        net.c3.weight.copy_(net.c3.weight.transpose(2, 3).clone())
    elif fault == "bias":
        net.c4.bias.zero_()
    elif fault == "folded batch-norm weight":
        net.norm.running_mean.zero_()
    elif fault == "per-channel quantized weight":
        net.c5.weight[1] *= 1.6
    elif fault == "label map":
        whole = torch_net().logits
        net.logits.weight.copy_(torch.cat([whole.weight[:1] * 0, whole.weight]))
        net.logits.bias.copy_(torch.cat([whole.bias[:1] * 0 - 1, whole.bias]))
