"""Pictures as callers give them: one or several, in any form, with masks, boxes and seeds."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sv3d_jax.config import check_range
from sv3d_jax.cutout import Remover
from sv3d_jax.errors import InputError
from sv3d_jax.io.images import mask_of, picture_of
from sv3d_jax.models.config import ModelConfig
from sv3d_jax.preprocess import PreparedImage, prepare_for


@dataclass(frozen=True)
class PictureBatch:
    """Pictures of one object each, with what was given for each of them."""

    images: list[Any]
    seeds: list[int]
    masks: list[Any]
    boxes: list[Any]

    @classmethod
    def of(cls, image: Any, seed: int | Sequence[int], mask: Any, box: Any) -> "PictureBatch":
        """One picture, or a list of them with lists of the rest. Raises InputError where numbers do not match."""
        several = isinstance(image, list)
        images = image if several else [image]
        count = len(images)
        seeds: list[int] = [seed] * count if np.ndim(seed) == 0 else list(seed)  # type: ignore
        if not count:
            raise InputError("no picture was given")
        if len(seeds) != count:
            raise InputError(f"got {len(seeds)} seeds for {count} pictures")
        for each in seeds:
            check_range("seed", each, 0, 2**32 - 1, is_whole=True)
        masks, boxes = (
            _one_each(what, given, count, several) for what, given in (("masks", mask), ("boxes", box))
        )
        return cls(images, [int(each) for each in seeds], masks, boxes)

    def prepare(
        self,
        config: ModelConfig,
        size: int,
        background: str,
        frame_ratio: float | None,
        remover: Remover,
        advance: Callable[[], None],
    ) -> list[PreparedImage]:
        """The pictures as a model sees them, cut out and framed; advance is called after each."""
        prepared = []
        for image, mask, box in zip(self.images, self.masks, self.boxes, strict=True):
            how = (background, frame_ratio, None if mask is None else mask_of(mask), box, remover)
            prepared.append(_prepared(config, image, size, how))
            advance()
        return prepared


def _one_each(what: str, given: Any, pictures: int, several: bool) -> list:
    """What was given with one picture or with a list of them, as a list."""
    if given is None:
        return [None] * pictures
    values = list(given) if several else [given]
    if len(values) != pictures:
        raise InputError(f"got {len(values)} {what} for {pictures} pictures, one each is needed")
    return values


def _prepared(config: ModelConfig, image: Any, size: int, how: tuple) -> PreparedImage:
    """The picture as the model sees it; `how`: what `prepare_for` takes after the size."""
    if isinstance(image, PreparedImage):
        if image.pixels.shape != (size, size, 3):
            raise InputError(f"the prepared picture has shape {image.pixels.shape}, size is {size}")
        return image
    return prepare_for(config, picture_of(image), size, *how)
