"""Other configurations of a Keras layer that a changed lowered graph may stand for.

Nothing here is trusted: each proposal is tried on numbers (see :mod:`onnxfix.frameworks.keras_fitting`).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

# What makes no difference to inference, or changes the weights' sizes.
_FIXED = frozenset({
    "name", "trainable", "dtype", "units", "filters", "kernel_size", "groups", "depth_multiplier", "use_bias", "seed",
    "input_dim", "output_dim", "dropout", "recurrent_dropout", "momentum", "zero_output_for_mask", "unroll",
    "quantization_config", "lora_rank", "lora_alpha", "autocast", "num_heads", "key_dim", "value_dim", "mask_zero",
    "center", "scale_weight", "synchronized", "registered_name", "build_config", "input_shape", "batch_shape",
})  # fmt: skip
_FIXED_ENDS = ("_initializer", "_regularizer", "_constraint")
_ACTIVATIONS = (
    "linear", "relu", "relu6", "sigmoid", "tanh", "softmax", "elu", "selu", "softplus", "softsign", "silu", "gelu",
    "hard_sigmoid", "hard_silu", "leaky_relu", "exponential", "mish", "log_softmax", "celu", "hard_tanh",
)  # fmt: skip
_WORDS: dict[str, tuple[str, ...]] = {
    "padding": ("valid", "same", "causal"),
    "data_format": ("channels_last", "channels_first"),
    "interpolation": ("nearest", "bilinear", "bicubic", "lanczos3", "lanczos5"),
    "merge_mode": ("concat", "sum", "ave", "mul"),
    "activation": _ACTIVATIONS,
    "recurrent_activation": ("sigmoid", "hard_sigmoid", "tanh", "relu", "linear"),
}
# Relative: what a setting may lose that was recomputed from float32 weights.
_ROUNDED = 1e-3
# Settings that faults change together.
_WINDOW = ("strides", "dilation_rate", "padding", "pool_size", "size")


@dataclass(frozen=True)
class Facts:
    """The numbers that nodes hold: what a changed setting may have become."""

    lists: tuple[tuple[int, ...], ...]
    numbers: tuple[float, ...]
    rank: int

    @classmethod
    def of(cls, nodes: Iterable[onnx.NodeProto], constants: Iterable[np.ndarray], rank: int) -> Facts:
        """Those in nodes' attributes and in small constants; ``rank`` is that of the layer's input."""
        lists: dict[tuple[int, ...], None] = {}
        numbers: dict[float, None] = {}
        for node in nodes:
            for attribute in node.attribute:
                if attribute.ints:
                    lists.update(dict.fromkeys(_parts(attribute.ints)))
                if attribute.type == onnx.AttributeProto.FLOAT:
                    numbers.update(dict.fromkeys(_decimals(attribute.f)))
                if attribute.type == onnx.AttributeProto.INT:
                    lists[(int(attribute.i),)] = None
        for array in constants:
            flat = array.reshape(-1)
            if array.dtype.kind in "iu" and 0 < flat.size <= 2 * rank:
                lists.update(dict.fromkeys(_parts(flat.tolist())))
            elif array.dtype.kind == "f" and flat.size == 1:
                value = float(flat[0])
                for number in (value, -value, *([1 / value] if value else [])):
                    numbers.update(dict.fromkeys(_decimals(number)))
        return cls(tuple(lists), tuple(n for n in numbers if np.isfinite(n)), rank)


def _parts(values: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """A list, and what is left of it without a batch, or channels at either end."""
    whole = tuple(int(v) for v in values)
    yield whole
    if len(whole) > 1:
        yield whole[1:]
    if len(whole) > 2:
        yield whole[1:-1]
        yield whole[2:]


def _decimals(value: float) -> Iterator[float]:
    """A float32 as settings are written down: in a few digits where that may be meant, and in as many as it takes."""
    whole = float(str(np.float32(value)))
    for digits in (1, 2, 4):
        few = float(f"{value:.{digits}g}")
        if abs(few - whole) <= _ROUNDED * abs(whole):
            yield few
    yield whole


def proposals(config: Mapping[str, Any], facts: Facts, sizes: Sequence[tuple[int, int]]) -> Iterator[dict[str, Any]]:
    """Changes of a configuration, the likeliest first.

    Args:
        config: ``layer.get_config()``.
        facts: What the nodes that the layer is to stand for hold.
        sizes: (before, after) of each axis between batch and channels, where the layer changes nothing but sizes.
    """
    single = {key: list(_values(key, value, facts, sizes)) for key, value in config.items() if not _is_fixed(key)}
    for key, values in single.items():
        for value in values:
            yield {key: value}
    for keys in _together(single):
        for chosen in itertools.product(*(single[key] for key in keys)):
            yield dict(zip(keys, chosen, strict=True))
    for key, inner in config.items():  # wrappers hold the configuration of a layer
        if isinstance(inner, dict) and isinstance(inner.get("config"), dict):
            for change in proposals(inner["config"], facts, sizes):
                yield {key: {**inner, "config": {**inner["config"], **change}}}


def _together(single: Mapping[str, Sequence[Any]]) -> Iterator[tuple[str, ...]]:
    window = [key for key in _WINDOW if single.get(key)]
    numeric = [key for key, values in single.items() if values and all(isinstance(v, float) for v in values)]
    for group in (window, numeric):
        yield from itertools.combinations(group, 2)
    yield from itertools.combinations(window, 3)


def _is_fixed(key: str) -> bool:
    return key in _FIXED or key.endswith(_FIXED_ENDS)


def _values(key: str, value: Any, facts: Facts, sizes: Sequence[tuple[int, int]]) -> Iterator[Any]:
    if key in _WORDS and isinstance(value, str):
        yield from (word for word in _WORDS[key] if word != value)
    elif isinstance(value, bool):
        yield not value
    elif key in ("axis", "axes"):
        yield from _axes(value, facts)
    elif isinstance(value, list | tuple) and value and all(isinstance(v, list | tuple) for v in value):
        yield from _pairs(value, sizes)
    elif isinstance(value, list | tuple) and value and all(isinstance(v, int) for v in value):
        yield from (list(v) for v in facts.lists if len(v) == len(value) and v != tuple(value))
        if key == "target_shape":
            yield from (list(v) for v in facts.lists if len(v) != len(value))
    elif isinstance(value, int):
        yield from (v[0] for v in facts.lists if len(v) == 1 and v[0] != value)
    if (value is None and key in ("max_value",)) or (isinstance(value, float | int) and not isinstance(value, bool)):
        yield from (n for n in facts.numbers if n != value)
    if isinstance(value, float) and key == "max_value":
        yield None


def _axes(value: Any, facts: Facts) -> Iterator[Any]:
    if isinstance(value, int):
        yield from (axis for axis in range(1 - facts.rank, 0) if axis % facts.rank != value % facts.rank)
    elif isinstance(value, list | tuple):
        for count in range(1, facts.rank):
            yield from ([*axes] for axes in itertools.combinations(range(1, facts.rank), count))


def _pairs(value: Sequence[Any], sizes: Sequence[tuple[int, int]]) -> Iterator[Any]:
    """Amounts at the begin and end of each axis that come to the change of its size."""
    if len(sizes) != len(value):
        return
    ways = [[(begin, abs(b - a) - begin) for begin in range(abs(b - a) + 1)] for a, b in sizes]
    if np.prod([len(w) for w in ways]) <= 256:
        yield from ([list(pair) for pair in pairs] for pairs in itertools.product(*ways))
