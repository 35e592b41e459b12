"""Convolutions of pictures, which observations and states hold as rows of numbers."""

from __future__ import annotations

import math

import equinox as eqx
import jax
import jax.numpy as jnp

from perla.nets.layers import Init, Linear
from perla.types import Array, Float, PRNGKeyArray

CHANNELS = 32
"""Channels of every convolution."""
KERNEL = 3
"""Height and width of a convolution's kernel."""
LARGEST_SIDE = 8
"""No side of the last convolution's output is longer."""
LEAST_LAYERS = 2
"""Convolutions of a small picture."""


class Pictures(eqx.Module):
    """Convolutions, with ReLUs, of the pictures that an input begins with; its other features pass
    through.

    Convolutions with stride 2 halve a picture until no side is longer than `LARGEST_SIDE`; smaller
    pictures keep their size. Several pictures in one input share the convolutions.
    """

    layers: tuple[Linear, ...]
    """The kernels, `[height width in, out]`, and the biases."""
    shape: tuple[int, ...] = eqx.field(static=True)
    """Height, width and channels; the number of pictures stands in front, if there are several."""

    @classmethod
    def create(cls, key: PRNGKeyArray, shape: tuple[int, ...], init: Init) -> Pictures:
        """Newly initialised convolutions of pictures of `shape`."""
        strides = _strides(*shape[-3:-1])
        inputs = (shape[-1], *(CHANNELS for _ in strides[1:]))
        layers = tuple(
            Linear.create(each, KERNEL * KERNEL * channels, CHANNELS, init)
            for each, channels in zip(jax.random.split(key, len(strides)), inputs, strict=True)
        )
        return cls(layers, shape)

    def __call__(self, x: Float[Array, "*batch feature"]) -> Float[Array, "*batch out"]:
        """The outputs of all pictures, followed by the features that belong to none."""
        batch, size = x.shape[:-1], math.prod(self.shape)
        y = x[..., :size].reshape(-1, *self.shape[-3:])
        for layer, stride in zip(self.layers, _strides(*self.shape[-3:-1]), strict=True):
            y = jax.nn.relu(layer(patches(y, stride)))
        return jnp.concatenate([y.reshape(*batch, -1), x[..., size:]], axis=-1)


def patches(
    x: Float[Array, "picture height width channel"], stride: int
) -> Float[Array, "picture _ _ patch"]:
    """The neighbourhood of every `stride`-th place in both directions, with zeros around the
    picture.

    A convolution is then a product of matrices. On a CPU XLA's own convolutions took 50 times as
    long (6 × 6 pictures) where they stand in a loop, as training does.
    """
    sides = [math.ceil(side / stride) for side in x.shape[1:3]]
    spans = [(side - 1) * stride + 1 for side in sides]
    missing = [span + KERNEL - 1 - side for span, side in zip(spans, x.shape[1:3], strict=True)]
    for axis, count in enumerate(missing, start=1):
        x = _add_zeros(x, axis, count // 2, count - count // 2)
    height, width = spans
    shifted = [
        x[:, i : i + height : stride, j : j + width : stride]
        for i in range(KERNEL)
        for j in range(KERNEL)
    ]
    return jnp.concatenate(shifted, axis=-1)


def _add_zeros(
    x: Float[Array, "picture height width channel"], axis: int, before: int, after: int
) -> Float[Array, "picture _ _ channel"]:
    """`x` with so many zeros along the axis. The export to ONNX cannot pad an unknown number of
    pictures, but it can concatenate."""
    zeros = jnp.zeros_like(jax.lax.slice_in_dim(x, 0, 1, axis=axis))
    return jnp.concatenate([*[zeros] * before, x, *[zeros] * after], axis)


def output_features(shape: tuple[int, ...] | None, features: int) -> int:
    """The number of features that `Pictures` of this `shape` make of `features`; without pictures
    the same."""
    if shape is None:
        return features
    halvings = sum(stride == 2 for stride in _strides(*shape[-3:-1]))
    height, width = (math.ceil(side / 2**halvings) for side in shape[-3:-1])
    pictures = math.prod(shape[:-3])
    return pictures * height * width * CHANNELS + features - math.prod(shape)


def _strides(height: int, width: int) -> tuple[int, ...]:
    """The stride of every convolution."""
    halvings = max(0, math.ceil(math.log2(max(height, width) / LARGEST_SIDE)))
    return (2,) * halvings + (1,) * (LEAST_LAYERS - halvings)
