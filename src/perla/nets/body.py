"""What actors and critics share: from the features that every agent sees to a last hidden layer.

A body serves all agents at once. Its parameters are shared by the agents, which may then be told
apart by their ids, or stacked, one set for each.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp

from perla.nets.layers import GRU, MLP, Init, LayerNorm, along
from perla.types import Array, Bool, Float, PRNGKeyArray


class Recurrent(eqx.Module):
    """Dense layers, then a GRU."""

    dense: MLP
    gru: GRU
    norms: tuple[LayerNorm, LayerNorm] | None

    def finish(self, y, memory, fresh):
        """The GRU's memory after each step, from the dense part's first pre-activations, and
        the same normalised for the layers above."""
        y = jax.nn.relu(self.dense.finish(y))
        y = y if self.norms is None else self.norms[0](y)
        memories = self.gru(y, memory, fresh)
        return memories, memories if self.norms is None else self.norms[1](memories)


class Net(eqx.Module):
    """The parameters of one body: dense layers (`head`), after a recurrent part if there is one."""

    torso: Recurrent | None
    head: MLP


class Body(eqx.Module):
    """The network of all agents, split where its inputs meet.

    `context` is all that does not depend on what is added later: the pre-activations of the
    head's first layer from features, ids and memory. `finish` turns them, plus what the caller
    added, into outputs.
    """

    net: Net
    agents: int = eqx.field(static=True)
    ids: bool = eqx.field(static=True)
    separate: bool = eqx.field(static=True)
    memory: int = eqx.field(static=True)
    """Features of the recurrent memory; 0 if there is none."""

    @classmethod
    def create(
        cls,
        key: PRNGKeyArray,
        *,
        agents: int,
        features: int,
        others: int = 0,
        outputs: int,
        core: Literal["mlp", "gru"],
        hidden: int,
        layers: int,
        gain: float,
        init: Init,
        norm: bool,
        ids: bool,
        separate: bool,
    ) -> Body:
        """A body for `agents`, each with `features` inputs and `others` added to the head's.

        `mlp`: `layers` hidden layers. `gru`: `layers` hidden layers and a GRU, above them the
        output; where others join, a hidden layer in which they meet.
        """
        ids = ids and not separate and agents > 1
        id_rows = agents if ids else 0

        def net(key: PRNGKeyArray) -> Net:
            key_dense, key_gru, key_head = jax.random.split(key, 3)
            if core == "mlp":
                head = MLP.create(
                    key_head, features, id_rows + others, (hidden,) * layers, outputs,
                    init=init, gain=gain, norm=norm,
                )  # fmt: skip
                return Net(None, head)
            dense = MLP.create(
                key_dense, features, id_rows, (hidden,) * (layers - 1), hidden,
                init=init, gain=2**0.5, norm=norm,
            )  # fmt: skip
            gru = GRU.create(key_gru, hidden, hidden, init)
            norms = (LayerNorm.create(hidden), LayerNorm.create(hidden)) if norm else None
            head = MLP.create(
                key_head, hidden, others, (hidden,) if others else (), outputs,
                init=init, gain=gain, norm=False,
            )  # fmt: skip
            return Net(Recurrent(dense, gru, norms), head)

        built = jax.vmap(net)(jax.random.split(key, agents)) if separate else net(key)
        return cls(built, agents, ids, separate, hidden if core == "gru" else 0)

    def blank(self, batch: tuple[int, ...]) -> Float[Array, "*batch agent hidden"]:
        """The memory before an episode's first step."""
        return jnp.zeros((*batch, self.agents, self.memory))

    def each(self, f: Callable, *arrays: Array) -> Any:
        """`f(net, *arrays)`, with every agent's own net where there are several."""
        if not self.separate:
            return f(self.net, *arrays)
        return jax.vmap(f, in_axes=(0,) + (-2,) * len(arrays), out_axes=-2)(self.net, *arrays)

    def context(
        self,
        x: Float[Array, "time *batch agent_or_1 feature"],
        memory: Float[Array, "*batch agent hidden"],
        fresh: Bool[Array, time * batch],
    ) -> tuple[Float[Array, "time *batch agent width"], Float[Array, "time *batch agent hidden"]]:
        """The head's first pre-activations and the memory after each step.

        `x` may have an agent axis of one, for inputs that all agents share: they are multiplied
        once. Where `fresh`, an episode begins and the memory is blank.
        """
        if self.separate:
            x = jnp.broadcast_to(x, (*x.shape[:-2], self.agents, x.shape[-1]))
        else:
            fresh = fresh[..., None]

        def begin(net, x):
            return (net.head if net.torso is None else net.torso.dense).begin(x)

        y = self.each(begin, x)
        if self.ids:
            first = self.net.head if self.net.torso is None else self.net.torso.dense
            y = y + along(first.rows[: self.agents], y)
        y = jnp.broadcast_to(y, (*y.shape[:-2], self.agents, y.shape[-1]))
        if self.memory == 0:
            return y, jnp.zeros((*y.shape[:-1], 0))

        def recur(net, y, memory):
            memories, features = net.torso.finish(y, memory, fresh)
            return net.head.begin(features), memories

        return self.each(recur, y, memory)

    def finish(self, y: Float[Array, "*batch agent width"]) -> Float[Array, "*batch agent out"]:
        """The outputs, from the head's complete first pre-activations."""
        return self.each(lambda net, y: net.head.finish(y), y)

    @property
    def rows(self) -> Float[Array, "*agent other width"]:
        """The head's weights of the inputs that the caller adds; per agent where separate."""
        skip = self.agents if self.ids and self.memory == 0 else 0
        head = self.net.head
        return head.layers[0].weight[..., head.features + skip :, :]
