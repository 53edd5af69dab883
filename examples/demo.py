"""A broken conversion, found and repaired: Keras to TFLite on scikit-learn's digits. Run by ``make demo``.

What is real: the training, the conversion by TensorFlow's own converter, the diagnosis, the repair, the accuracies.
What is staged: the faults. Today's converter gets this small network right, so step 3 spoils two of the constants in
its file, the way converters have really done (``docs/faults.md``, kind *weights*).
"""

from __future__ import annotations

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from sklearn.datasets import load_digits

import onnxfix
from onnxfix.frameworks import adapter
from onnxfix.frameworks.quiet import muted
from onnxfix.report import terminal

with muted():  # TensorFlow greets the terminal when it is imported
    import keras
    import tensorflow as tf

WRONG_EPSILON = 0.05  # the network was trained with Keras's default, 0.001
console = Console(highlight=False, width=110)


def main() -> None:
    """Train, convert, check, break, repair, prove."""
    started = time.perf_counter()
    train, test = digits()
    with tempfile.TemporaryDirectory(prefix="onnxfix-demo-") as folder:
        work = Path(folder)

        step(1, "Train a small convolutional network with batch norm on scikit-learn's digits, in Keras")
        source, model = trained(train, work / "digits.keras")
        say(f"Keras accuracy on {len(test[1])} digits it never saw: {keras_accuracy(model, test):.1%}")

        step(2, "Convert it to TFLite with TensorFlow's own converter, and check the conversion")
        converted = to_tflite(model, work / "digits.tflite")
        diagnosis = onnxfix.diagnose(source, converted, test[0])
        say(f"TFLite accuracy: {tflite_accuracy(converted, test):.1%}")
        say(f"onnxfix: {'no finding' if not diagnosis.faults else 'FINDINGS'}; {diagnosis.comparison!r}")

        step(3, "Staged: spoil two constants of the .tflite file as a broken converter would have written them")
        broken = spoil(converted, model, work / "broken.tflite")
        say("conv_1: batch norm folded with another epsilon than the network's own")
        say("conv_2: bias lost while batch norm was folded (a real converter did this to ad01, an MLPerf Tiny model)")
        say(f"TFLite accuracy: {tflite_accuracy(broken, test):.1%}")

        step(4, "Repair the broken file; the source model and 500 training digits are all that onnxfix gets")
        repair = onnxfix.repair(source, broken, train[0][:500])
        terminal.show_repair(console, repair)

        step(5, "Give it back as .tflite, and run that in the TFLite interpreter")
        fixed = work / "fixed.tflite"
        repair.save(fixed)
        accuracies = (tflite_accuracy(path, test) for path in (broken, fixed, converted))
        say("TFLite accuracy: broken {:.1%}, repaired {:.1%}, as first converted {:.1%}".format(*accuracies))
        say(f"{changed_bytes(broken, fixed)} of the file's {fixed.stat().st_size} bytes were changed by the repair")
    console.print(f"\n{time.perf_counter() - started:.0f} s in all.")
    if not repair.success:
        raise SystemExit("The repair was not verified.")


def digits() -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """The 1797 digits of scikit-learn, ``[n, 8, 8, 1]`` in 0..1, split into train and test."""
    data = load_digits()
    images = (data.images[..., None] / 16).astype(np.float32)
    order = np.random.default_rng(0).permutation(len(images))
    train, test = order[:1297], order[1297:]
    return (images[train], data.target[train]), (images[test], data.target[test])


def trained(train: tuple[np.ndarray, np.ndarray], path: Path) -> tuple[onnxfix.Model, keras.Model]:
    """Train for a few seconds and save; the loaded onnxfix model and the Keras one."""
    keras.utils.set_random_seed(0)
    layers = keras.layers
    model = keras.Sequential([
        keras.Input((8, 8, 1), name="image"),
        layers.Conv2D(16, 3, padding="same", name="conv_1"), layers.BatchNormalization(name="norm_1"), layers.ReLU(),
        layers.Conv2D(32, 3, padding="same", strides=2, name="conv_2"), layers.BatchNormalization(name="norm_2"),
        layers.ReLU(), layers.Flatten(), layers.Dense(10, activation="softmax", name="digit"),
    ], name="digits")
    model.compile(optimizer="adam", loss="sparse_categorical_crossentropy")
    model.fit(*train, epochs=12, batch_size=32, verbose=0)
    model.save(path)
    return onnxfix.load(path), model


def to_tflite(model: keras.Model, path: Path) -> Path:
    """Convert with the real converter."""
    with tempfile.TemporaryDirectory(prefix="onnxfix-demo-") as folder, muted():
        model.export(folder, verbose=False)
        path.write_bytes(tf.lite.TFLiteConverter.from_saved_model(folder).convert())
    return path


def spoil(path: Path, model: keras.Model, broken: Path) -> Path:
    """Write a copy of a ``.tflite`` file with two of its constants wrong."""
    converted = onnxfix.load(path)
    norm = model.get_layer("norm_1")
    variance = np.asarray(norm.moving_variance)
    misfold = np.sqrt((variance + norm.epsilon) / (variance + WRONG_EPSILON)).astype(np.float32)
    kernel, value = native_constant(converted, (16, 3, 3, 1))
    bias, lost = native_constant(converted, (32,))
    wrong = {kernel: value * misfold[:, None, None, None], bias: np.zeros_like(lost)}
    adapter(converted.framework).save(converted, wrong, broken)
    return broken


def native_constant(model: onnxfix.Model, shape: tuple[int, ...]) -> tuple[str, np.ndarray]:
    """Native name and value of the one constant of that shape (TFLite stores kernels as OHWI)."""
    from onnx import numpy_helper

    found = [
        (model.parameters[tensor.name], numpy_helper.to_array(tensor)) for tensor in model.proto.graph.initializer
        if tensor.name in model.parameters and tuple(tensor.dims) == shape
    ]
    (constant,) = found
    return constant


def keras_accuracy(model: keras.Model, test: tuple[np.ndarray, np.ndarray]) -> float:
    """Share of right answers."""
    return float(np.mean(model.predict(test[0], verbose=0).argmax(-1) == test[1]))


def tflite_accuracy(path: Path, test: tuple[np.ndarray, np.ndarray]) -> float:
    """Share of right answers of a ``.tflite`` file in the LiteRT interpreter, one digit at a time."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    plain = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES  # the delegate announces itself on the terminal
    interpreter: Any = Interpreter(str(path), experimental_op_resolver_type=plain)
    interpreter.allocate_tensors()
    (image,), (scores,) = interpreter.get_input_details(), interpreter.get_output_details()
    right = 0
    for digit, label in zip(*test, strict=True):
        interpreter.set_tensor(image["index"], digit[None])
        interpreter.invoke()
        right += int(interpreter.get_tensor(scores["index"]).argmax() == label)
    return right / len(test[1])


def changed_bytes(one: Path, other: Path) -> int:
    """How many bytes differ between two files of the same length."""
    left, right = (np.frombuffer(path.read_bytes(), np.uint8) for path in (one, other))
    return int(np.count_nonzero(left != right)) if left.size == right.size else max(left.size, right.size)


def step(number: int, text: str) -> None:
    """Print a heading."""
    console.print(f"\n[bold]{number}. {text}[/bold]")


def say(text: str) -> None:
    """Print one indented line."""
    console.print(f"   {text}", markup=False)


if __name__ == "__main__":
    main()
