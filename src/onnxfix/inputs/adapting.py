"""Give an array the layout and dtype that a model input asks for, and refuse what cannot be fed honestly."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxfix.errors import InputError
from onnxfix.inputs.matching import fitting_move

if TYPE_CHECKING:
    from onnxfix.model import TensorSpec


def adapt(array: np.ndarray, spec: TensorSpec) -> np.ndarray:
    """Transpose and cast ``array`` to what ``spec`` asks for.

    The axes are moved between channels-first and channels-last only where the shape fits in no other way. Floats
    change width freely; integers as long as the values fit; floats become integers only where every value is whole, or
    where the model says what its integers stand for (a quantized file's input).

    Raises:
        InputError: shape, dtype or values do not fit; the text names what was expected and what was given.
    """
    if spec.shape is not None:
        array = array.transpose(check_layout(array, spec))
        batch = spec.shape[0] if spec.shape else None
        if isinstance(batch, int) and array.shape[0] != batch:
            raise InputError(
                f"the data for input {spec.name} have {array.shape[0]} rows, but the model takes exactly {batch} "
                f"({spec})."
            )
    if spec.quantization is not None and array.dtype.kind == "f":
        return spec.quantization.quantize(array)
    result = cast(array, spec.dtype, spec.name)
    return np.ascontiguousarray(result) if result.ndim else result


def check_layout(array: np.ndarray, spec: TensorSpec) -> tuple[int, ...]:
    """The permutation after which the shape of ``array`` fits ``spec``, whatever its number of rows.

    Raises:
        InputError: none does.
    """
    move = tuple(range(array.ndim)) if spec.shape is None else fitting_move(array.shape, spec.shape)
    if move is None:
        raise InputError(
            f"the data for input {spec.name} have shape {_shape(array)}, but the model expects {spec}: "
            "give arrays of that shape with a leading batch axis."
        )
    return move


def cast(array: np.ndarray, dtype: np.dtype[Any], name: str) -> np.ndarray:
    """Cast without changing what the values mean.

    Raises:
        InputError: the values cannot be held by ``dtype``.
    """
    if array.dtype == dtype:
        return array
    given, wanted = array.dtype.kind, dtype.kind
    if wanted in "OUS":
        if given not in "OUS":
            raise _refused(array, dtype, name, "it takes text")
        return array.astype(object)
    if given not in "fiubV":
        raise _refused(array, dtype, name, "give numbers")
    if wanted in "fV":
        return _to_float(array, dtype, name)
    return _to_integer(array, dtype, name)


def _to_float(array: np.ndarray, dtype: np.dtype[Any], name: str) -> np.ndarray:
    with np.errstate(over="ignore"):
        result = array.astype(dtype)
    if not np.isfinite(result.astype(np.float32)).all() and np.isfinite(array.astype(np.float64)).all():
        raise _refused(array, dtype, name, "some values are too large for it")
    return result


def _to_integer(array: np.ndarray, dtype: np.dtype[Any], name: str) -> np.ndarray:
    if array.dtype.kind in "fV" and not np.array_equal(array, np.rint(array)):
        raise _refused(array, dtype, name, "the values are not whole numbers")
    low, high = (0, 1) if dtype.kind == "b" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    if array.size and (int(array.min()) < low or int(array.max()) > high):
        raise _refused(array, dtype, name, f"the values must lie between {low} and {high}")
    return array.astype(dtype)


def check_finite(feed: Mapping[str, np.ndarray], where: str = "") -> None:
    """Refuse NaN and infinity.

    Args:
        feed: Input name -> array.
        where: What the arrays are, for the message (`` after preprocessing``).

    Raises:
        InputError: naming the input and the index of the first offender.
    """
    for name, array in feed.items():
        if array.dtype.kind not in "fV":
            continue
        finite = np.isfinite(array)
        if not finite.all():
            index = tuple(int(i) for i in np.argwhere(~finite)[0])
            what = "NaN" if np.isnan(array[index]) else "infinity"
            raise InputError(
                f"the data for input {name} contain {what}{where} at index {list(index)}: clean the data first."
            )


def _refused(array: np.ndarray, dtype: np.dtype[Any], name: str, why: str) -> InputError:
    return InputError(f"the data for input {name} are {array.dtype}, but the model expects {dtype}: {why}.")


def _shape(array: np.ndarray) -> str:
    return "[" + ", ".join(map(str, array.shape)) + "]"
