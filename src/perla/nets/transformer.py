"""The multi-agent transformer: agents attend to each other's observations, and each agent to the
actions of those before it (Wen et al., 2022).

The agents of one state are the tokens of a sequence, in the environment's order. The encoder sees
all observations at once; the decoder is causal, so actions are drawn agent by agent.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp

from perla.distributions import MASKED_LOGIT, Categorical, Gaussian, encode
from perla.envs.protocol import Observation
from perla.keys import apart
from perla.nets.layers import SMALL, LayerNorm, Linear, expand_dims_like
from perla.nets.pictures import Pictures, output_features
from perla.types import Actions, Array, Bool, Float, Int, PRNGKeyArray

gelu = partial(jax.nn.gelu, approximate=False)


class Memory(NamedTuple):
    """The tokens that an attention layer attends to."""

    keys: Float[Array, "*batch agent feature"]
    values: Float[Array, "*batch agent feature"]

    def write(self, tokens: Memory, position: int | Int[Array, ""]) -> Memory:
        """This memory with `tokens` in the places from `position` on."""
        return jax.tree.map(
            lambda old, new: jax.lax.dynamic_update_slice_in_dim(old, new, position, axis=-2),
            self,
            tokens,
        )


class Attention(eqx.Module):
    """Scaled dot-product attention with several heads."""

    query: Linear
    key: Linear
    value: Linear
    output: Linear
    heads: int = eqx.field(static=True)

    @classmethod
    def create(cls, key: PRNGKeyArray, size: int, heads: int) -> Attention:
        """Attention between tokens of `size` features, whose output starts near zero."""
        layers = jax.vmap(lambda key: Linear.create(key, size, size, "orthogonal", SMALL))(
            jax.random.split(key, 4)
        )
        query, of_key, value, output = (
            Linear(*layer) for layer in zip(layers.weight, layers.bias, strict=True)
        )
        return cls(query, of_key, value, output, heads)

    def memory(self, tokens: Float[Array, "*batch token feature"]) -> Memory:
        """The keys and values of `tokens`."""
        return Memory(self.key(tokens), self.value(tokens))

    def __call__(
        self,
        tokens: Float[Array, "*batch token feature"],
        memory: Memory,
        mask: Bool[Array, "token agent"],
    ) -> Float[Array, "*batch token feature"]:
        """A reading for each of the `tokens`, from the agents of the `memory` that its row of the
        `mask` allows."""
        queries, keys, values = map(self.split, (self.query(tokens), *memory))
        # softmax(Q Kᵀ / √d) V                                    (Vaswani et al., 2017, Eq. 1)
        scores = jnp.einsum("...qhd,...khd->...hqk", queries, keys) / keys.shape[-1] ** 0.5
        scores = jnp.where(expand_dims_like(mask, scores), scores, MASKED_LOGIT)
        read = jnp.einsum("...hqk,...khd->...qhd", jax.nn.softmax(scores), values)
        return self.output(read.reshape(tokens.shape))

    def split(
        self, x: Float[Array, "*batch token feature"]
    ) -> Float[Array, "*batch token head width"]:
        """The features of each head."""
        return x.reshape(*x.shape[:-1], self.heads, x.shape[-1] // self.heads)


class Dense(eqx.Module):
    """Two dense layers with a GELU between them, and a layer norm behind it if there is one."""

    first: Linear
    norm: LayerNorm | None
    last: Linear

    @classmethod
    def create(cls, key: PRNGKeyArray, size: int, outputs: int, *, norm: bool) -> Dense:
        """From `size` features to `outputs`, which start near zero."""
        key_first, key_last = jax.random.split(key)
        return cls(
            Linear.create(key_first, size, size, "orthogonal"),
            LayerNorm.create(size) if norm else None,
            Linear.create(key_last, size, outputs, "orthogonal", SMALL),
        )

    def __call__(self, x: Float[Array, "*batch feature"]) -> Float[Array, "*batch out"]:
        """The outputs."""
        x = gelu(self.first(x))
        return self.last(x if self.norm is None else self.norm(x))


class EncoderBlock(eqx.Module):
    """Attention of every agent to all agents, then dense layers; a layer norm after either."""

    attention: Attention
    dense: Dense
    norms: tuple[LayerNorm, LayerNorm]

    @classmethod
    def create(cls, key: PRNGKeyArray, size: int, heads: int) -> EncoderBlock:
        """A block for tokens of `size` features."""
        key_attention, key_dense = jax.random.split(key)
        return cls(
            Attention.create(key_attention, size, heads),
            Dense.create(key_dense, size, size, norm=False),
            (LayerNorm.create(size), LayerNorm.create(size)),
        )

    def __call__(
        self, x: Float[Array, "*batch agent feature"]
    ) -> Float[Array, "*batch agent feature"]:
        """The tokens after the block."""
        everyone = jnp.ones((x.shape[-2],) * 2, bool)
        x = self.norms[0](x + self.attention(x, self.attention.memory(x), everyone))
        return self.norms[1](x + self.dense(x))


class DecoderBlock(eqx.Module):
    """Attention of every action to those before it, then of every agent's encoding to these
    actions, then dense layers; a layer norm after each."""

    actions: Attention
    agents: Attention
    dense: Dense
    norms: tuple[LayerNorm, LayerNorm, LayerNorm]

    @classmethod
    def create(cls, key: PRNGKeyArray, size: int, heads: int) -> DecoderBlock:
        """A block for tokens of `size` features."""
        key_actions, key_agents, key_dense = jax.random.split(key, 3)
        return cls(
            Attention.create(key_actions, size, heads),
            Attention.create(key_agents, size, heads),
            Dense.create(key_dense, size, size, norm=False),
            (LayerNorm.create(size), LayerNorm.create(size), LayerNorm.create(size)),
        )

    def __call__(
        self,
        x: Float[Array, "*batch token feature"],
        encoding: Float[Array, "*batch token feature"],
        memories: tuple[Memory, Memory],
        position: int | Int[Array, ""],
        mask: Bool[Array, "token agent"],
    ) -> tuple[Float[Array, "*batch token feature"], tuple[Memory, Memory]]:
        """The tokens of the agents from `position` on after the block, and the memories with
        them."""
        first = memories[0].write(self.actions.memory(x), position)
        x = self.norms[0](x + self.actions(x, first, mask))
        second = memories[1].write(self.agents.memory(x), position)
        x = self.norms[1](encoding + self.agents(encoding, second, mask))
        return self.norms[2](x + self.dense(x)), (first, second)


class Encoder(eqx.Module):
    """Every agent's encoding of all observations, and its value of the state."""

    embedding: Linear
    norm: LayerNorm
    blocks: EncoderBlock
    """All blocks, stacked on a leading axis."""
    value: Dense
    agent_ids: bool = eqx.field(static=True)
    """Append a one-hot agent id to the observations."""
    pictures: Pictures | None = None
    """Below the embedding, where observations begin with pictures."""

    @classmethod
    def create(
        cls,
        key: PRNGKeyArray,
        features: int,
        size: int,
        blocks: int,
        heads: int,
        agent_ids: int,
        picture: tuple[int, ...] | None = None,
    ) -> Encoder:
        """An encoder of observations with so many `features`, beside ids of `agent_ids` agents (0:
        no ids). `picture` is the shape of the pictures that they begin with (`nets.pictures`)."""
        key_embedding, key_blocks, key_value = jax.random.split(key, 3)
        rows = output_features(picture, features) + agent_ids
        return cls(
            Linear.create(key_embedding, rows, size, "orthogonal"),
            LayerNorm.create(size),
            jax.vmap(lambda key: EncoderBlock.create(key, size, heads))(
                jax.random.split(key_blocks, blocks)
            ),
            Dense.create(key_value, size, 1, norm=True),
            agent_ids > 0,
            None if picture is None else Pictures.create(apart(key), picture, "orthogonal"),
        )

    def __call__(
        self, obs: Float[Array, "*batch agent feature"]
    ) -> Float[Array, "*batch agent encoding"]:
        """The encodings."""
        obs = obs if self.pictures is None else self.pictures(obs)
        if self.agent_ids:
            ids = expand_dims_like(jnp.eye(obs.shape[-2]), obs)
            obs = jnp.concatenate(
                [obs, jnp.broadcast_to(ids, (*obs.shape[:-2], *ids.shape[-2:]))], -1
            )
        x = self.norm(gelu(self.embedding(obs)))
        return jax.lax.scan(lambda x, block: (block(x), None), x, self.blocks)[0]

    def values(
        self, encoding: Float[Array, "*batch agent encoding"]
    ) -> Float[Array, "*batch agent"]:
        """V(o₁, …, o_N) of every agent."""
        return self.value(encoding)[..., 0]


class Decoder(eqx.Module):
    """π(aᵢ | o₁, …, o_N, a₁, …, aᵢ₋₁) of every agent.

    An agent's token is the action of the agent before it; the first agent's marks the start.
    """

    embedding: Linear
    norm: LayerNorm
    blocks: DecoderBlock
    """All blocks, stacked on a leading axis."""
    head: Dense
    log_std: Float[Array, " dimension"] | None
    """log σ of continuous actions, independent of the state; none: the actions are discrete."""

    @classmethod
    def create(
        cls,
        key: PRNGKeyArray,
        actions: int,
        size: int,
        blocks: int,
        heads: int,
        log_std: float | None,
    ) -> Decoder:
        """A decoder of so many `actions`, or of continuous ones of so many dimensions if there is
        a `log_std`."""
        key_embedding, key_blocks, key_head = jax.random.split(key, 3)
        return cls(
            Linear.create(key_embedding, 1 + actions, size, "orthogonal"),
            LayerNorm.create(size),
            jax.vmap(lambda key: DecoderBlock.create(key, size, heads))(
                jax.random.split(key_blocks, blocks)
            ),
            Dense.create(key_head, size, actions, norm=True),
            None if log_std is None else jnp.full(actions, log_std, jnp.float32),
        )

    @property
    def actions(self) -> int:
        """Number of actions, or of dimensions of a continuous action."""
        return self.head.last.bias.shape[0]

    def start(self, batch: tuple[int, ...]) -> Float[Array, "*batch in"]:
        """The first agent's token."""
        return jnp.zeros((*batch, 1 + self.actions)).at[..., 0].set(1.0)

    def token(
        self, action: Int[Array, "*batch"] | Float[Array, "*batch dimension"]
    ) -> Float[Array, "*batch in"]:
        """The token that passes an action on."""
        encoded = encode(action, self.actions)
        return jnp.concatenate([jnp.zeros((*encoded.shape[:-1], 1)), encoded], -1)

    def memories(self, encoding: Float[Array, "*batch agent encoding"]) -> tuple[Memory, Memory]:
        """The memories of all blocks `[block, ...]` before the first agent."""
        blocks = self.blocks.actions.key.bias.shape[0]
        empty = jnp.zeros((blocks, *encoding.shape))
        return Memory(empty, empty), Memory(empty, empty)

    def __call__(
        self,
        tokens: Float[Array, "*batch token in"],
        encoding: Float[Array, "*batch token encoding"],
        memories: tuple[Memory, Memory],
        position: int | Int[Array, ""],
    ) -> tuple[Float[Array, "*batch token action"], tuple[Memory, Memory]]:
        """The outputs of the agents from `position` on, and the memories with their tokens."""
        agents, count = memories[0].keys.shape[-2], tokens.shape[-2]
        mask = jnp.arange(agents)[None, :] <= position + jnp.arange(count)[:, None]

        def step(x, inputs):
            block, before = inputs
            return block(x, encoding, before, position, mask)

        x = self.norm(gelu(self.embedding(tokens)))
        x, memories = jax.lax.scan(step, x, (self.blocks, memories))
        return self.head(x), memories

    def policy(
        self,
        outputs: Float[Array, "*batch action"],
        avail: Bool[Array, "*batch action"],
        alive: Bool[Array, "*batch"] | None,
    ) -> Categorical | Gaussian:
        """The policies with these outputs as logits, or as means."""
        if self.log_std is None:
            return Categorical.masked(outputs, avail, alive)
        std = expand_dims_like(jnp.exp(self.log_std), outputs)
        return Gaussian.masked(outputs, jnp.broadcast_to(std, outputs.shape), avail, alive)


class Autoregressive(eqx.Module):
    """The joint policy π(a₁, …, a_N | o) = Πᵢ π(aᵢ | o, a₁, …, aᵢ₋₁), agent by agent
    (Wen et al., 2022)."""

    decoder: Decoder
    encoding: Float[Array, "*batch agent encoding"]
    avail: Bool[Array, "*batch agent action"]
    alive: Bool[Array, "*batch agent"] | None

    def sample(self, key: PRNGKeyArray) -> Actions:
        """One joint action, drawn agent by agent."""
        shape = self.encoding.shape[:-1] if self.decoder.log_std is None else self.avail.shape
        uniform = jnp.moveaxis(jax.random.uniform(key, shape), self.encoding.ndim - 2, 0)
        return self.decode(lambda policy, u: policy.quantile(u), uniform)

    def mode(self) -> Actions:
        """The joint action in which every agent's is the most likely after those before it."""
        return self.decode(lambda policy, _: policy.mode(), None)

    def given(self, action: Actions) -> Categorical | Gaussian:
        """The policy of every agent given the actions of those before it, in one pass."""
        batch = self.encoding.shape[:-2]
        tokens = self.decoder.token(action)[..., :-1, :]
        tokens = jnp.concatenate([self.decoder.start((*batch, 1)), tokens], -2)
        outputs, _ = self.decoder(tokens, self.encoding, self.decoder.memories(self.encoding), 0)
        return self.decoder.policy(outputs, self.avail, self.alive)

    def decode(
        self, choose: Callable[[Categorical | Gaussian, Any], Array], noise: Array | None
    ) -> Actions:
        """The joint action that results if every agent in turn takes `choose(policy, noise)`, with
        its row of the `noise`."""
        axis = self.encoding.ndim - 2

        def step(carry, inputs):
            token, memories = carry
            agent, encoding, avail, alive, own_noise = inputs
            outputs, memories = self.decoder(
                token[..., None, :], encoding[..., None, :], memories, agent
            )
            action = choose(self.decoder.policy(outputs[..., 0, :], avail, alive), own_noise)
            return (self.decoder.token(action), memories), action

        inputs = jax.tree.map(
            lambda x: jnp.moveaxis(x, axis, 0), (self.encoding, self.avail, self.alive)
        )
        start = self.decoder.start(self.encoding.shape[:-2]), self.decoder.memories(self.encoding)
        agents = jnp.arange(self.encoding.shape[-2])
        _, actions = jax.lax.scan(step, start, (agents, *inputs, noise))
        return jnp.moveaxis(actions, 0, axis)


class Transformer(eqx.Module):
    """An actor whose agents share their observations and act one after another, with a value for
    each agent."""

    encoder: Encoder
    decoder: Decoder
    agents: int = eqx.field(static=True)

    def initial_state(self, batch: tuple[int, ...]) -> Float[Array, "*batch agent hidden"]:
        """The hidden state before an episode's first step: of no features."""
        return jnp.zeros((*batch, self.agents, 0))

    def update_state(
        self, hidden_state: Float[Array, "*batch agent hidden"], action: Actions
    ) -> Float[Array, "*batch agent hidden"]:
        """The hidden state after `action`: unchanged."""
        return hidden_state

    def __call__(
        self,
        observation: Observation,
        hidden_state: Float[Array, "*batch agent hidden"],
        is_first: Bool[Array, "*batch"],
        key: PRNGKeyArray | None = None,
    ) -> tuple[Autoregressive, Float[Array, "*batch agent hidden"]]:
        """One step: the joint policy, which has no noise, and the hidden state after it."""
        return self.policy(self.encoder(observation.obs), observation), hidden_state

    def policy(
        self, encoding: Float[Array, "*batch agent encoding"], observation: Observation
    ) -> Autoregressive:
        """The joint policy at these encodings of the observations."""
        return Autoregressive(self.decoder, encoding, observation.avail, observation.alive)

    def values(self, observation: Observation) -> Float[Array, "*batch agent"]:
        """The values of these states."""
        return self.encoder.values(self.encoder(observation.obs))
