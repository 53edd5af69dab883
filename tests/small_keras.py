"""A small trained-looking Keras network, and measures, for the framework tests."""

import numpy as np


def conv_net():
    """Conv + batch norm (statistics not trivial) + depthwise + dense logits on 8x8x2 inputs."""
    import keras
    from keras import layers

    keras.utils.set_random_seed(3)
    model = keras.Sequential(
        [
            keras.Input((8, 8, 2), name="image"),
            layers.Conv2D(6, 3, strides=2, padding="same", name="stem"),
            layers.BatchNormalization(name="stem_bn"),
            layers.ReLU(6.0, name="stem_relu"),
            layers.DepthwiseConv2D(3, padding="same", name="depthwise"),
            layers.GlobalAveragePooling2D(name="pool"),
            layers.Dense(4, name="logits"),
        ],
        name="conv_net",
    )
    rng = np.random.default_rng(3)
    for variable in model.variables:
        low = 0.5 if "variance" in variable.path or "gamma" in variable.path else -0.5
        variable.assign(rng.uniform(low, low + 1.0, variable.shape))
    return model


def images(count=3, seed=0):
    return np.random.default_rng(seed).standard_normal((count, 8, 8, 2)).astype(np.float32)


def to_tflite(model):
    import tensorflow as tf

    from onnxfix.frameworks.quiet import muted, quiet

    with quiet(), muted():
        return tf.lite.TFLiteConverter.from_keras_model(model).convert()


def random_feeds(model, batch=3, seed=0):
    """Standard normal inputs for a loaded model; symbolic dimensions become ``batch``."""
    rng = np.random.default_rng(seed)
    return {
        spec.name: rng.standard_normal([d if isinstance(d, int) else batch for d in spec.shape]).astype(spec.dtype)
        for spec in model.inputs
    }


def disagreement(model, feeds):
    """Largest max|lowered - native| / max|native| over the outputs; names, order and shapes must be equal."""
    lowered, native = model.run(feeds), model.run_native(feeds)
    assert list(lowered) == list(native)
    worst = 0.0
    for name, value in native.items():
        assert lowered[name].shape == value.shape
        assert lowered[name].dtype == value.dtype
        delta = np.abs(lowered[name].astype(np.float64) - value.astype(np.float64)).max(initial=0.0)
        worst = max(worst, delta / max(np.abs(value).max(initial=0.0), 1e-30))
    return worst


# Two float32 evaluations of these networks in different orders: some ten layers of sums of up to a thousand terms,
# each with relative rounding 2**-24, stay below this.
FLOAT_NOISE = 1e-5
