"""Layers on arrays `[..., feature]`: dense, layer norm, recurrent."""

from __future__ import annotations

import math
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp

from perla.types import Array, Bool, Float, PRNGKeyArray

Init = Literal["orthogonal", "torch"]
SMALL = 0.01
"""Gain of output layers whose outputs start near zero: policies, which then start nearly uniform,
and action values that bootstrap from their own maximum, which large random values overestimate.
"""


def expand_dims_like(parameter: Array, x: Array) -> Array:
    """`parameter` `[*axes]` with leading axes of one, for explicit broadcasting with `x`
    `[*more *axes]`."""
    return parameter.reshape((1,) * (x.ndim - parameter.ndim) + parameter.shape)


def product(
    x: Float[Array, "*batch in"], weight: Float[Array, "in out"]
) -> Float[Array, "*batch out"]:
    """x W, as a product of two matrices: with more axes XLA computes the gradient of W on CPUs from
    transposed copies, up to 2.4 times as slowly."""
    rows = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
    return (rows @ weight).reshape(*x.shape[:-1], weight.shape[-1])


def initial_weight(
    key: PRNGKeyArray, rows: int, columns: int, init: Init, gain: float
) -> Float[Array, "{rows} {columns}"]:
    """A weight matrix: orthogonal times `gain`, or PyTorch's U(±1/√rows), which has no gain."""
    if init == "orthogonal":
        # One matrix at a time, even in a batch: jaxlib factorises a batch on XLA's own threads and
        # waits for them on one of these. If all of them wait, the program deadlocks.
        draw = jax.nn.initializers.orthogonal(gain)
        return jax.custom_batching.sequential_vmap(lambda key: draw(key, (rows, columns)))(key)
    bound = rows**-0.5
    return jax.random.uniform(key, (rows, columns), minval=-bound, maxval=bound)


def initial_bias(
    key: PRNGKeyArray, rows: int, columns: int, init: Init
) -> Float[Array, " {columns}"]:
    """The bias of a layer: zero, or PyTorch's U(±1/√rows)."""
    if init == "orthogonal":
        return jnp.zeros(columns)
    bound = rows**-0.5
    return jax.random.uniform(key, (columns,), minval=-bound, maxval=bound)


class Linear(eqx.Module):
    """x W + b."""

    weight: Float[Array, "in out"]
    bias: Float[Array, " out"]

    @classmethod
    def create(
        cls, key: PRNGKeyArray, rows: int, columns: int, init: Init, gain: float = 2**0.5
    ) -> Linear:
        """Orthogonal weights and zero bias, or both from PyTorch's U(±1/√rows)."""
        key_weight, key_bias = jax.random.split(key)
        weight = initial_weight(key_weight, rows, columns, init, gain)
        return cls(weight, initial_bias(key_bias, rows, columns, init))

    def __call__(self, x: Float[Array, "*batch in"]) -> Float[Array, "*batch out"]:
        """x W + b."""
        y = product(x, self.weight)
        return y + expand_dims_like(self.bias, y)


class LayerNorm(eqx.Module):
    """Normalisation to zero mean and unit variance over the features, then a learnt scale and
    shift."""

    scale: Float[Array, " feature"]
    shift: Float[Array, " feature"]

    @classmethod
    def create(cls, features: int) -> LayerNorm:
        """The identity's scale and shift."""
        return cls(jnp.ones(features), jnp.zeros(features))

    def __call__(self, x: Float[Array, "*batch feature"]) -> Float[Array, "*batch feature"]:
        """Layer-normalised `x`."""
        x = jax.nn.standardize(x, axis=-1, epsilon=1e-5)
        return x * expand_dims_like(self.scale, x) + expand_dims_like(self.shift, x)


class GRU(eqx.Module):
    """A gated recurrent unit, unrolled over the leading time axis."""

    inputs: Linear
    """Weights from x to the pre-activations of the gates r, z and of the candidate n."""
    recurrent: Float[Array, "hidden gates"]
    candidate_bias: Float[Array, " hidden"]

    @classmethod
    def create(cls, key: PRNGKeyArray, rows: int, hidden: int, init: Init) -> GRU:
        """Orthogonal matrices, one for each gate, and zero biases; or all from PyTorch's
        U(±1/√hidden)."""
        key_inputs, key_recurrent, key_bias, key_candidate = jax.random.split(key, 4)

        def gates(key, rows):
            if init == "torch":
                bound = hidden**-0.5
                return jax.random.uniform(key, (rows, 3 * hidden), minval=-bound, maxval=bound)
            keys = jax.random.split(key, 3)
            return jnp.concatenate([initial_weight(k, rows, hidden, init, 1.0) for k in keys], -1)

        return cls(
            Linear(gates(key_inputs, rows), initial_bias(key_bias, hidden, 3 * hidden, init)),
            gates(key_recurrent, hidden),
            initial_bias(key_candidate, hidden, hidden, init),
        )

    def __call__(
        self,
        x: Float[Array, "time *batch in"],
        hidden_state: Float[Array, "*batch hidden"],
        is_first: Bool[Array, "time *#batch"],
    ) -> Float[Array, "time *batch hidden"]:
        """The hidden state after each step; it is zeroed before the steps that are `is_first`.

        The inputs' products, and in the backward pass the weights' gradients, are computed over all
        steps at once; the recurrence is in the scan, with all that would read these products again.
        """
        biases = self.inputs.bias, self.candidate_bias
        products = product(x, self.inputs.weight)
        return _unroll(self.recurrent, biases, products, hidden_state, is_first)


def _gru_step(recurrent, biases, products, before):
    """One step; returns the new hidden state and the residuals of its derivative."""
    bias, candidate_bias = biases
    r_x, z_x, n_x = jnp.split(products + expand_dims_like(bias, products), 3, axis=-1)
    r_h, z_h, n_h = jnp.split(before @ recurrent, 3, axis=-1)
    n_h = n_h + expand_dims_like(candidate_bias, n_h)
    r, z = jax.nn.sigmoid(r_x + r_h), jax.nn.sigmoid(z_x + z_h)
    n = jnp.tanh(n_x + r * n_h)
    return n + z * (before - n), (before, r, z, n, n_h)


@jax.custom_vjp
def _unroll(recurrent, biases, products, hidden_state, is_first):
    return _unroll_forward(recurrent, biases, products, hidden_state, is_first)[0]


def _unroll_forward(recurrent, biases, products, hidden_state, is_first):
    def step(hidden_state, inputs):
        products, is_first = inputs
        before = jnp.where(is_first[..., None], 0.0, hidden_state)
        after, saved = _gru_step(recurrent, biases, products, before)
        return after, (after, saved)

    _, (hidden_states, saved) = jax.lax.scan(step, hidden_state, (products, is_first))
    return hidden_states, (recurrent, saved, is_first)


def _unroll_backward(residuals, d_hidden_states):
    recurrent, saved, is_first = residuals

    def step(d_after, inputs):
        d_hidden_state, (before, r, z, n, n_h), is_first = inputs
        d_after = d_after + d_hidden_state
        d_n = d_after * (1 - z) * (1 - n * n)  # through tanh
        d_r = d_n * n_h * r * (1 - r)
        d_z = d_after * (before - n) * z * (1 - z)
        d_inputs = jnp.concatenate([d_r, d_z, d_n], -1)
        d_recurrence = jnp.concatenate([d_r, d_z, d_n * r], -1)
        d_before = d_after * z + d_recurrence @ recurrent.T
        return jnp.where(is_first[..., None], 0.0, d_before), (d_inputs, d_recurrence)

    d_hidden_state, (d_inputs, d_recurrence) = jax.lax.scan(
        step, jnp.zeros_like(d_hidden_states[0]), (d_hidden_states, saved, is_first), reverse=True
    )
    hidden = len(recurrent)
    rows = d_recurrence.reshape(-1, 3 * hidden)
    d_recurrent = saved[0].reshape(-1, hidden).T @ rows
    d_biases = d_inputs.reshape(rows.shape).sum(0), rows[:, 2 * hidden :].sum(0)
    return d_recurrent, d_biases, d_inputs, d_hidden_state, None


_unroll.defvjp(_unroll_forward, _unroll_backward)


class MLP(eqx.Module):
    """Dense layers with ReLU between them.

    The first layer accepts extra inputs beside the features: each has its own rows of one weight
    matrix, as if the inputs were concatenated, so that shared inputs are multiplied only once.
    `begin` computes the first layer's pre-activations from the features; callers add the products
    of the extra inputs with `extra_rows` and call `finish`.
    """

    layers: tuple[Linear, ...]
    """The dense layers, the first one first."""
    norms: tuple[LayerNorm | None, ...] | None
    """Of the inputs, none if these are not normalised, and of the hidden layers."""
    features: int = eqx.field(static=True)
    """Rows of the first layer's weights for the features; those of the extra inputs follow."""

    @classmethod
    def create(
        cls,
        key: PRNGKeyArray,
        features: int,
        extra_inputs: int,
        hidden: tuple[int, ...],
        outputs: int,
        *,
        init: Init,
        gain: float,
        norm: bool,
        norm_inputs: bool = True,
    ) -> MLP:
        """`features` + `extra_inputs` inputs, hidden layers of widths `hidden`, and `outputs`
        scaled by `gain`. `norm` normalises hidden layers and, with `norm_inputs`, the features."""
        sizes = (features + extra_inputs, *hidden, outputs)
        gains = (2**0.5,) * len(hidden) + (gain,)
        keys = jax.random.split(key, len(gains))
        layers = tuple(
            Linear.create(k, rows, columns, init, layer_gain)
            for k, rows, columns, layer_gain in zip(keys, sizes[:-1], sizes[1:], gains, strict=True)
        )
        inputs = LayerNorm.create(features) if norm_inputs else None
        norms = (inputs, *map(LayerNorm.create, hidden)) if norm else None
        return cls(layers, norms, features)

    def begin(self, x: Float[Array, "*batch feature"]) -> Float[Array, "*batch hidden"]:
        """The first layer's pre-activations from `x` and the bias."""
        first = self.layers[0]
        if self.norms is not None and self.norms[0] is not None:
            x = self.norms[0](x)
        y = product(x, first.weight[: self.features])
        return y + expand_dims_like(first.bias, y)

    @property
    def extra_rows(self) -> Float[Array, "extra hidden"]:
        """The first layer's weights of the extra inputs."""
        return self.layers[0].weight[self.features :]

    def hidden(self, y: Float[Array, "*batch hidden"]) -> Float[Array, "*batch hidden"]:
        """The last hidden layer, from the first layer's complete pre-activations."""
        for i, layer in enumerate(self.layers[:-1]):
            y = jax.nn.relu(layer(y) if i else y)
            if self.norms is not None and (norm := self.norms[i + 1]) is not None:
                y = norm(y)
        return y

    def output(self, y: Float[Array, "*batch hidden"]) -> Float[Array, "*batch out"]:
        """The output layer, linear in the last hidden layer."""
        return self.layers[-1](y)

    def finish(self, y: Float[Array, "*batch hidden"]) -> Float[Array, "*batch out"]:
        """The output, from the first layer's complete pre-activations."""
        return y if len(self.layers) == 1 else self.output(self.hidden(y))

    def __call__(self, x: Float[Array, "*batch feature"]) -> Float[Array, "*batch out"]:
        """The output of a network without extra inputs."""
        return self.finish(self.begin(x))
