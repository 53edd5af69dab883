"""Keeps TensorFlow, Keras and tf2onnx from writing to the terminal while onnxfix uses them."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

_STDERR = 2
_LOGGERS = ("tensorflow", "tf2onnx", "absl", "keras")


@contextmanager
def quiet() -> Iterator[None]:
    """Silence log messages and warnings of the TensorFlow family inside the block, and restore them after it.

    TensorFlow's native side reads its log level once, when it is first imported: if that happens inside the block and
    the user has not chosen a level, it starts with errors only.
    """
    if "tensorflow" not in sys.modules:
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    level = os.environ.get("TF_CPP_MIN_LOG_LEVEL")
    before = {name: logging.getLogger(name).level for name in _LOGGERS}
    for name in _LOGGERS:
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, value in before.items():
            logging.getLogger(name).setLevel(value)
        if level is not None:  # tf2onnx rewrites it on import
            os.environ["TF_CPP_MIN_LOG_LEVEL"] = level


@contextmanager
def muted() -> Iterator[None]:
    """Send what native code writes to the standard error stream to nowhere inside the block.

    Only for imports: TensorFlow's native libraries write there before any log level applies.
    """
    try:
        kept = os.dup(_STDERR)
    except OSError:  # no standard error stream at all
        yield
        return
    sink = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(sink, _STDERR)
        yield
    finally:
        os.dup2(kept, _STDERR)
        os.close(kept)
        os.close(sink)
