"""The guard: does a normal form compute what the lowered model computes?"""

from __future__ import annotations

import numpy as np
import onnx

from onnxfix.errors import CanonicalizationError
from onnxfix.frameworks import Feeds
from onnxfix.runtime.session import Session

# Folding reassociates float sums; a deep float32 network amplifies that to about 1e-5 of its largest output.
_TOLERANCE = 1e-4


def check_values(lowered: onnx.ModelProto, canonical: onnx.ModelProto, feeds: Feeds) -> None:
    """Run both models on the same feeds.

    Args:
        lowered: The model before.
        canonical: Its normal form.
        feeds: Input name -> array.

    Raises:
        CanonicalizationError: an output differs in shape, dtype, where it is not finite, or by more than 1e-4 of its
            largest element.
        RuntimeFailure: onnxruntime fails on one of them.
    """
    wanted, found = Session(lowered).run(feeds), Session(canonical).run(feeds)
    for name, value in wanted.items():
        why = _difference(np.asarray(value), np.asarray(found[name]))
        if why:
            raise CanonicalizationError(f"the normal form changes output {name}: {why}. Please report the model.")


def _difference(wanted: np.ndarray, found: np.ndarray) -> str:
    if wanted.shape != found.shape or wanted.dtype != found.dtype:
        return f"{wanted.dtype}{list(wanted.shape)} became {found.dtype}{list(found.shape)}"
    if wanted.dtype.kind != "f":
        return "" if np.array_equal(wanted, found) else f"{np.count_nonzero(wanted != found)} elements differ"
    finite = np.isfinite(wanted)
    if not np.array_equal(finite, np.isfinite(found)):
        return "NaN or infinity in other places"
    scale = float(np.abs(wanted[finite], dtype=np.float64).max(initial=0.0))
    error = float(np.abs(wanted[finite].astype(np.float64) - found[finite]).max(initial=0.0))
    return f"by {error:.3g}, its largest element is {scale:.3g}" if error > _TOLERANCE * scale else ""
