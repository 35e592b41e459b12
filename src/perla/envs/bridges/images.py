"""Pictures among other libraries' observations, as rows of numbers.

Worker processes import this module, so it does not import JAX.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

Shape = tuple[int, ...]


class Image(NamedTuple):
    """The layout of an array that is a picture."""

    native: Shape
    """The array's shape."""
    channels_first: bool
    """The array is channel × height × width."""
    largest: float
    """The number that becomes 1: 255 for bytes, 1 for other numbers, which stay as they are."""

    @property
    def shape(self) -> Shape:
        """Height, width and channels."""
        if len(self.native) == 2:
            return (*self.native, 1)
        channels, height, width = self.native
        return (height, width, channels) if self.channels_first else self.native

    def to_row(self, values: Float[np.ndarray, "..."]) -> Float[np.ndarray, " feature"]:
        """The array `values` of the native shape as a row, in the order height, width, channel."""
        if self.channels_first:
            values = np.moveaxis(values, 0, -1)
        return np.ravel(values) / np.float32(self.largest)


def find_image(shape: Shape, dtype: Any) -> Image | None:
    """The layout of arrays of this `shape` and `dtype` if they are pictures.

    A picture has two sides of two numbers or more, and its channels, as the last or the first axis,
    are no more than either side; if both fit they are the last. A picture of bytes may lack them.
    """
    largest = 255.0 if np.dtype(dtype) == np.uint8 else 1.0
    if len(shape) == 2 and largest == 255.0 and min(shape) > 1:
        return Image(shape, False, largest)
    if len(shape) != 3:
        return None
    for channels, sides in ((2, shape[:2]), (0, shape[1:])):
        if min(sides) > 1 and shape[channels] <= min(sides):
            return Image(shape, channels == 0, largest)
    return None


def image_of(space: Any) -> Image | None:
    """The picture that a space of Gymnasium is: a `Box`, also alone in a `Dict` or `Tuple`, where
    action masks do not count."""
    from gymnasium import spaces

    from perla.envs.bridges.masks import is_mask

    if isinstance(space, (spaces.Dict, spaces.Tuple)):
        named = space.items() if isinstance(space, spaces.Dict) else enumerate(space)
        rest = [each for key, each in named if not is_mask(key)]
        return image_of(rest[0]) if len(rest) == 1 else None
    return find_image(space.shape, space.dtype) if isinstance(space, spaces.Box) else None
