"""Messages: what agents communicate before they act.

Arrays `[..., i, j]` belong to sender i and receiver j.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp

from perla.distributions import Categorical, Gaussian
from perla.nets.layers import MLP, SMALL, Init, Linear, expand_dims_like, initial_weight, product
from perla.nets.terms import LossTerm
from perla.types import Array, Float, Int, PRNGKeyArray


class SentMessages(NamedTuple):
    """The messages of one step and the latents that they come from."""

    models: Gaussian
    """q(zᵢⱼ|hᵢ)  `[*batch, i, j, latent]`."""
    latents: Float[Array, "*batch agent agent latent"]
    """zᵢⱼ: samples of the models, or their means."""
    received: Float[Array, "*batch agent action"]
    """Σᵢ αᵢⱼ mᵢⱼ."""


class Messages(eqx.Module):
    """Σᵢ αᵢⱼ mᵢⱼ, added to the utilities of agent j (MAIC; Yuan et al., 2022).

    Agent i models every other agent j by a latent zᵢⱼ ~ q(·|hᵢ) and weighs its message by αᵢⱼ. The
    message mᵢⱼ, one number for each of j's actions, is a function of zᵢⱼ and hⱼ: as in the authors'
    code h is the receiver's, so that agents only need to send zᵢⱼ and αᵢⱼ.
    """

    latent: MLP
    """hᵢ → q(zᵢⱼ|hᵢ) of every j."""
    inference: MLP
    """hᵢ, aⱼ → p(zᵢⱼ|hᵢ, aⱼ)."""
    message: MLP
    """hⱼ, zᵢⱼ → mᵢⱼ."""
    query: Linear
    key: Float[Array, "latent attention"]
    """Without a bias, which would add the same to the scores of all j."""
    floor: float = eqx.field(static=True)
    """Lower bound on the variance of a latent."""
    prune: float = eqx.field(static=True)
    """Attention weight, in units of 1/N, below which greedy agents do not send a message."""
    latent_coef: float = eqx.field(static=True, default=0.0)
    """Weight of the divergence's loss term."""
    attention_coef: float = eqx.field(static=True, default=0.0)
    """Weight of the attention entropy's loss term."""

    @classmethod
    def create(
        cls,
        key: PRNGKeyArray,
        *,
        agents: int,
        features: int,
        actions: int,
        latent: int,
        attention: int,
        hidden_size: int,
        floor: float,
        prune: float,
        init: Init,
        latent_coef: float = 0.0,
        attention_coef: float = 0.0,
    ) -> Messages:
        """`features`: width of h; `latent`: dimensions of z; `attention`: dimensions of queries and
        keys; `hidden_size`: width of the hidden layers."""
        keys = jax.random.split(key, 5)

        def network(key: PRNGKeyArray, extra_inputs: int, outputs: int, gain: float = 1.0) -> MLP:
            return MLP.create(
                key, features, extra_inputs, (hidden_size,), outputs,
                init=init, gain=gain, norm=False,
            )  # fmt: skip

        return cls(
            latent=network(keys[0], 0, agents * 2 * latent),
            inference=network(keys[1], actions, 2 * latent),
            message=network(keys[2], latent, actions, gain=SMALL),
            query=Linear.create(keys[3], features, attention, init, gain=1.0),
            key=initial_weight(keys[4], latent, attention, init, gain=1.0),
            floor=floor,
            prune=prune,
            latent_coef=latent_coef,
            attention_coef=attention_coef,
        )

    def __call__(
        self, hidden: Float[Array, "*batch agent hidden"], key: PRNGKeyArray | None = None
    ) -> SentMessages:
        """The agents' messages. With a `key`, latents are sampled; without one they are the means,
        and messages of small attention weight are not sent."""
        models = self.models(hidden)
        latents = models.mean if key is None else models.sample(key)
        weight = self.attention(hidden, latents).probs
        if key is None:
            weight = jnp.where(weight < self.prune / hidden.shape[-2], 0.0, weight)
        return SentMessages(models, latents, self.received(hidden, latents, weight))

    def losses(
        self,
        hidden: Float[Array, "*batch agent hidden"],
        messages: SentMessages,
        greedy: Int[Array, "*batch agent"],
    ) -> dict[str, LossTerm]:
        """MAIC's loss terms: the divergence of the models, given the `greedy` actions, and the
        entropy of the attention."""
        divergence = self.divergence(hidden, messages.models, greedy)
        entropy = self.entropy(hidden, messages.latents)
        return {
            "latent_loss": LossTerm(self.latent_coef, divergence),
            "attention_loss": LossTerm(self.attention_coef, entropy),
        }

    def models(self, hidden: Float[Array, "*batch agent hidden"]) -> Gaussian:
        """q(zᵢⱼ|hᵢ)  `[*batch, i, j, latent]`."""
        agents = hidden.shape[-2]
        return self.gaussian(self.latent(hidden).reshape(*hidden.shape[:-1], agents, -1))

    def attention(
        self,
        hidden: Float[Array, "*batch agent hidden"],
        latents: Float[Array, "*batch agent agent latent"],
    ) -> Categorical:
        """αᵢ over the other agents: softmaxⱼ(W_q hᵢ · W_k zᵢⱼ / √d), j ≠ i."""
        query = self.query(hidden)
        scores = jnp.einsum("...id,...ijd->...ij", query @ self.key.T, latents)
        scores = scores / query.shape[-1] ** 0.5
        others = ~jnp.eye(hidden.shape[-2], dtype=bool)
        return Categorical.masked(scores, jnp.broadcast_to(others, scores.shape))

    def received(
        self,
        hidden: Float[Array, "*batch agent hidden"],
        latents: Float[Array, "*batch agent agent latent"],
        weight: Float[Array, "*batch agent agent"],
    ) -> Float[Array, "*batch agent action"]:
        """Σᵢ αᵢⱼ mᵢⱼ(hⱼ, zᵢⱼ), summed before the last layer, which is linear."""
        receiver = self.message.begin(hidden)[..., None, :, :]
        pairs = self.message.hidden(receiver + product(latents, self.message.extra_rows))
        total = jnp.einsum("...ij,...ijh->...jh", weight, pairs)
        last = self.message.layers[-1]
        return product(total, last.weight) + weight.sum(-2)[..., None] * expand_dims_like(
            last.bias, total
        )

    def divergence(
        self,
        hidden: Float[Array, "*batch agent hidden"],
        models: Gaussian,
        action: Int[Array, "*batch agent"],
    ) -> Float[Array, "*batch agent"]:
        """KL(q(zᵢⱼ|hᵢ) ‖ p(zᵢⱼ|hᵢ, aⱼ)), averaged over j ≠ i: the divergence of an agent's models
        of the others from those inferred with their actions."""
        agents = hidden.shape[-2]
        sender = self.inference.begin(hidden)[..., None, :]
        action_embedding = self.inference.extra_rows[action][..., None, :, :]
        inferred = self.gaussian(self.inference.finish(sender + action_embedding))
        divergence = models.divergence(inferred)
        others = jnp.broadcast_to(~jnp.eye(agents, dtype=bool), divergence.shape)
        return jnp.where(others, divergence, 0.0).sum(-1) / (agents - 1)

    def entropy(
        self,
        hidden: Float[Array, "*batch agent hidden"],
        latents: Float[Array, "*batch agent agent latent"],
    ) -> Float[Array, "*batch agent"]:
        """H(αᵢ), with a gradient only for the attention's own parameters."""
        return self.attention(*jax.lax.stop_gradient((hidden, latents))).entropy()

    def gaussian(self, output: Float[Array, "*batch output"]) -> Gaussian:
        """A latent's distribution, from its mean and the logarithm of its variance."""
        mean, log_variance = jnp.split(output, 2, -1)
        return Gaussian(mean, jnp.exp(0.5 * jnp.maximum(log_variance, math.log(self.floor))))
