"""Messages: what agents tell each other before they act.

Arrays `[..., i, j]` are of what agent i thinks of agent j, or tells it.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp

from perla.distributions import Categorical, Gaussian
from perla.nets.layers import MLP, SMALL, Init, Linear, expand_dims_like, initial_weight, product
from perla.types import Array, Float, Int, PRNGKeyArray


class Said(NamedTuple):
    """What agents tell each other at some moment."""

    models: Gaussian
    """q(zᵢⱼ|hᵢ)  `[*batch, i, j, latent]`."""
    z: Float[Array, "*batch agent agent latent"]
    """What is drawn of them, or their means."""
    received: Float[Array, "*batch agent action"]
    """Σᵢ αᵢⱼ mᵢⱼ."""


class Messages(eqx.Module):
    """Σᵢ αᵢⱼ mᵢⱼ, by which its teammates move the utilities of agent j (MAIC; Yuan et al., 2022).

    Agent i models every other agent j by a latent zᵢⱼ ~ q(·|hᵢ) and weighs what it tells it by αᵢⱼ.
    The message mᵢⱼ, which says something of each of j's actions, is made of zᵢⱼ and hⱼ: as in the
    authors' code h is the receiver's, so that zᵢⱼ and αᵢⱼ are all that anybody needs to send.
    """

    latent: MLP
    """hᵢ → q(zᵢⱼ|hᵢ) of every j."""
    inference: MLP
    """hᵢ, aⱼ → p(zᵢⱼ|hᵢ, aⱼ)."""
    message: MLP
    """hⱼ, zᵢⱼ → mᵢⱼ."""
    query: Linear
    key: Float[Array, "latent attention"]
    """No bias, which would add the same to the scores of all j."""
    floor: float = eqx.field(static=True)
    """The least variance of a latent."""
    prune: float = eqx.field(static=True)
    """The weight, in shares of 1/N, below which a message is not sent."""

    @classmethod
    def create(
        cls,
        key: PRNGKeyArray,
        *,
        agents: int,
        known: int,
        actions: int,
        latent: int,
        attention: int,
        hidden: int,
        floor: float,
        prune: float,
        init: Init,
    ) -> Messages:
        """`known`: features of h; `latent`: those of z; `attention`: those in which α compares;
        `hidden`: width of the hidden layers."""
        keys = jax.random.split(key, 5)

        def network(key: PRNGKeyArray, others: int, outputs: int, gain: float = 1.0) -> MLP:
            return MLP.create(
                key, known, others, (hidden,), outputs, init=init, gain=gain, norm=False
            )

        return cls(
            latent=network(keys[0], 0, agents * 2 * latent),
            inference=network(keys[1], actions, 2 * latent),
            message=network(keys[2], latent, actions, gain=SMALL),
            query=Linear.create(keys[3], known, attention, init, gain=1.0),
            key=initial_weight(keys[4], latent, attention, init, gain=1.0),
            floor=floor,
            prune=prune,
        )

    def __call__(
        self, hidden: Float[Array, "*batch agent known"], key: PRNGKeyArray | None = None
    ) -> Said:
        """What agents tell each other: with a `key` of latents that are drawn, else of their means,
        and then messages that hardly count are not sent."""
        models = self.models(hidden)
        z = models.mean if key is None else models.sample(key)
        weight = self.attention(hidden, z).probs
        if key is None:
            weight = jnp.where(weight < self.prune / hidden.shape[-2], 0.0, weight)
        return Said(models, z, self.received(hidden, z, weight))

    def models(self, hidden: Float[Array, "*batch agent known"]) -> Gaussian:
        """q(zᵢⱼ|hᵢ)  `[*batch, i, j, latent]`."""
        agents = hidden.shape[-2]
        return self.gaussian(self.latent(hidden).reshape(*hidden.shape[:-1], agents, -1))

    def attention(
        self,
        hidden: Float[Array, "*batch agent known"],
        z: Float[Array, "*batch agent agent latent"],
    ) -> Categorical:
        """αᵢ over the others: softmaxⱼ(W_q hᵢ · W_k zᵢⱼ / √d), j ≠ i."""
        query = self.query(hidden)
        scores = jnp.einsum("...id,...ijd->...ij", query @ self.key.T, z) / query.shape[-1] ** 0.5
        others = ~jnp.eye(hidden.shape[-2], dtype=bool)
        return Categorical.masked(scores, jnp.broadcast_to(others, scores.shape))

    def received(
        self,
        hidden: Float[Array, "*batch agent known"],
        z: Float[Array, "*batch agent agent latent"],
        weight: Float[Array, "*batch agent agent"],
    ) -> Float[Array, "*batch agent action"]:
        """Σᵢ αᵢⱼ mᵢⱼ(hⱼ, zᵢⱼ), summed before the last layer, which is linear."""
        receiver = self.message.begin(hidden)[..., None, :, :]
        pairs = self.message.hidden(receiver + product(z, self.message.rows))
        total = jnp.einsum("...ij,...ijh->...jh", weight, pairs)
        last = self.message.layers[-1]
        return product(total, last.weight) + weight.sum(-2)[..., None] * expand_dims_like(
            last.bias, total
        )

    def divergence(
        self,
        hidden: Float[Array, "*batch agent known"],
        models: Gaussian,
        action: Int[Array, "*batch agent"],
    ) -> Float[Array, "*batch agent"]:
        """KL(q(zᵢⱼ|hᵢ) ‖ p(zᵢⱼ|hᵢ, aⱼ)), averaged over j ≠ i: how far an agent's models of others
        are from those that it would make if it knew what they do."""
        agents = hidden.shape[-2]
        sender = self.inference.begin(hidden)[..., None, :]
        doing = self.inference.rows[action][..., None, :, :]
        inferred = self.gaussian(self.inference.finish(sender + doing))
        divergence = models.divergence(inferred)
        others = jnp.broadcast_to(~jnp.eye(agents, dtype=bool), divergence.shape)
        return jnp.where(others, divergence, 0.0).sum(-1) / (agents - 1)

    def entropy(
        self,
        hidden: Float[Array, "*batch agent known"],
        z: Float[Array, "*batch agent agent latent"],
    ) -> Float[Array, "*batch agent"]:
        """H(αᵢ). Only what compares latents learns from it."""
        return self.attention(*jax.lax.stop_gradient((hidden, z))).entropy()

    def gaussian(self, output: Float[Array, "*batch output"]) -> Gaussian:
        """A latent's distribution, from its mean and the logarithm of its variance."""
        mean, log_variance = jnp.split(output, 2, -1)
        return Gaussian(mean, jnp.exp(0.5 * jnp.maximum(log_variance, math.log(self.floor))))
