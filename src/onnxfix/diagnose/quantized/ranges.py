"""Whether a quantizer's range fits what passes it.

A range that is far too small saturates, one that is far too large leaves too few steps. What fits is read off the
activations of the straightened model, whose other faults are set right first, and off those of the quantized model
itself: a range is wrong only if it fits neither. Data that are all larger or smaller than what a file was calibrated on
change every range alike, so each is held against the others.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx

from onnxfix.frameworks import Feeds
from onnxfix.quantization import Quantization
from onnxfix.runtime.probe import MASKED
from onnxfix.runtime.session import Session

# By how much more than the others a range may be off, since calibration saw other data: noise in the place of pictures
# makes logits an eleventh of what they were calibrated on, and two fifths is the smallest range seen in a right file.
TOO_WIDE = 24.0
TOO_NARROW = 5.0
# Inputs are what the user gives.
INPUT_LENIENCY = 16.0
# A bias that is right tells the scale of its layer's input; where a range contradicts it by more, the range is wrong.
CONTRADICTED = 1.5
# Share of elements at each end that need not fit: calibration may cut outliers off.
_OUTLIERS = 1e-3
# What is masked out must end so far below the rest that a softmax of eight bits makes nothing of it: ln(1024).
MASK_MARGIN = 7.0


@dataclass
class Span:
    """What passed one value.

    Attributes:
        low: Smallest number but for outliers, at most 0.
        high: Largest number but for outliers, at least 0.
        masked: Whether the most negative float passed, which fills masks.
    """

    low: float = 0.0
    high: float = 0.0
    masked: bool = False

    @property
    def width(self) -> float:
        """Extent, zero included."""
        return self.high - self.low

    def add(self, values: np.ndarray) -> None:
        """Take note of a batch."""
        wide = values.astype(np.float64).reshape(-1)
        self.masked = self.masked or bool(np.any(wide <= -MASKED))
        plain = wide[np.abs(wide) < MASKED]
        if plain.size:
            low, high = np.quantile(plain, (_OUTLIERS, 1 - _OUTLIERS))
            self.low, self.high = min(self.low, float(low)), max(self.high, float(high))

    def joined(self, other: Span) -> Span:
        """Both."""
        return Span(min(self.low, other.low), max(self.high, other.high), self.masked or other.masked)


@dataclass
class Spans:
    """Spans of many values, filled by running models."""

    spans: dict[str, Span] = field(default_factory=dict)

    def measure(self, proto: onnx.ModelProto, values: Iterable[str], feeds: Iterable[Feeds]) -> None:
        """Run a model over the data and take note of some of its values, as far as it has them."""
        made = {o for node in proto.graph.node for o in node.output} | {i.name for i in proto.graph.input}
        wanted = [v for v in dict.fromkeys(values) if v in made]
        inputs = {i.name for i in proto.graph.input}
        computed = [v for v in wanted if v not in inputs]
        tapped = onnx.ModelProto()
        tapped.CopyFrom(proto)
        present = {o.name for o in tapped.graph.output}
        tapped.graph.output.extend(onnx.ValueInfoProto(name=v) for v in computed if v not in present)
        session = Session(tapped)
        for feed in feeds:
            found: Mapping[str, np.ndarray] = session.run(feed, computed) if computed else {}
            for value in wanted:
                content = feed[value] if value in inputs else found[value]
                if content.dtype.kind == "f":
                    self.spans.setdefault(value, Span()).add(content)


def fitting(scheme: Quantization, span: Span) -> Quantization:
    """The scheme of the same type that holds all of a span, what is masked out below it."""
    info = np.iinfo(scheme.dtype)
    low = span.low - MASK_MARGIN if span.masked else span.low
    symmetric = scheme.zero_point == 0 and scheme.dtype == "int16"
    if symmetric:
        return Quantization(_float32(max(-low, span.high) / info.max), 0, scheme.dtype)
    scale = _float32((span.high - low) / (info.max - info.min))
    return Quantization(scale, int(np.clip(np.rint(info.min - low / scale), info.min, info.max)), scheme.dtype)


def _float32(value: float) -> float:
    return float(np.float32(value)) or float(np.finfo(np.float32).tiny)


def misfit(scheme: Quantization, span: Span) -> float:
    """How many times as wide as needed a range is; below 1 it saturates."""
    low, high = scheme.limits
    if span.width == 0:
        return 1.0
    # Each side has to hold what is on it; a side that nothing is on costs steps.
    held = [h / s for h, s in ((high, span.high), (-low, -span.low)) if s > 0.05 * span.width]
    worst = min(held)
    return worst if worst < 1 else (high - low) / span.width


def usual(misfits: Sequence[float]) -> float:
    """The factor by which the data differ from those that a file was calibrated on."""
    return float(np.median(misfits)) if misfits else 1.0
