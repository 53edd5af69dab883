"""How a model wants its pictures: size, crop, filter, scale, mean and standard deviation, channel order, dtype."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from onnxfix.errors import InputError

FILTERS = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")  # in the order of Pillow's numbers


@dataclass(frozen=True)
class Preparation:
    """A recipe from uint8 RGB pictures to what a model takes: ``(pixel * scale - mean) / std``.

    Give it to :class:`onnxfix.Inputs` as ``preprocess``, ``source_preprocess`` or ``target_preprocess``. The layout
    (NCHW or NHWC) is each model's own and needs no recipe.

    Attributes:
        scale: Factor of the pixels, which run from 0 to 255.
        mean: Taken off after that: one number, or one per channel.
        std: Divided by after that, likewise.
        order: ``RGB`` or ``BGR``; mean and std are in this order.
        size: Height and width to scale to, or one number for the shorter edge; None: the model's size.
        crop: Height and width cut out of the middle after that; None: nothing is cut.
        filter: One of :data:`FILTERS`.
        dtype: Dtype of the result.

    Example:
        >>> Preparation(scale=1 / 127.5, mean=(1.0,))(np.full((1, 2, 2, 3), 255, np.uint8)).max()
        1.0
    """

    scale: float = 1 / 255
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    order: str = "RGB"
    size: tuple[int, int] | int | None = None
    crop: tuple[int, int] | None = None
    filter: str = "bilinear"
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if self.order not in ("RGB", "BGR"):
            raise InputError(f"the channel order is {self.order}, but must be RGB or BGR.")
        if self.filter not in FILTERS:
            raise InputError(f"there is no filter named {self.filter}: choose one of {', '.join(FILTERS)}.")
        if not all(self.std):
            raise InputError(f"the standard deviation is {self.std}, but must not be zero.")

    @property
    def shapes(self) -> bool:
        """Whether it says how pictures are scaled or cut."""
        return self.size is not None or self.crop is not None or self.filter != "bilinear"

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """Prepare pictures.

        Args:
            pixels: ``[batch, height, width, channels]``, 0..255, RGB or grey; of the size wanted already.

        Returns:
            The same shape, of :attr:`dtype`.
        """
        values = np.asarray(pixels, np.float32)
        if self.order == "BGR":
            values = values[..., ::-1]
        mean, std = np.asarray(self.mean, np.float32), np.asarray(self.std, np.float32)
        if max(len(mean), len(std)) not in (1, values.shape[-1]):
            raise InputError(f"the preparation is for {len(mean)} channels, but the pictures have {values.shape[-1]}.")
        prepared = (values * np.float32(self.scale) - mean) / std
        kind = np.dtype(self.dtype)
        if kind.kind in "iu":
            limits = np.iinfo(kind)
            prepared = np.clip(np.rint(prepared), limits.min, limits.max)
        return prepared.astype(kind)

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON data."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    @classmethod
    def read(cls, given: Any) -> Preparation:
        """Read it off what comes with a model.

        Args:
            given: A ``.tflite`` file with metadata (``NormalizationOptions``), a Hugging Face image processor's
                ``preprocessor_config.json`` (the file, its directory, or its content as a dict), or torchvision
                weights or their transforms.

        Raises:
            InputError: there is nothing to be read.
        """
        from onnxfix.inputs import recipes

        if isinstance(given, str | Path):
            path = Path(given)
            if path.suffix.lower() == ".tflite":
                return recipes.from_tflite(path)
            return recipes.from_huggingface_file(path)
        if isinstance(given, Mapping):
            return recipes.from_huggingface(given)
        return recipes.from_torchvision(given)
