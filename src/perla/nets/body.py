"""What actors and critics share: from the features that every agent sees to a last hidden layer.

A body serves all agents at once. Its parameters are shared by the agents, or stacked, one set for
each group of them; those that share a set may be told apart by their ids.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from perla.config import Groups
from perla.nets.layers import GRU, MLP, Init, LayerNorm, expand_dims_like, product
from perla.types import Array, Bool, Float, PRNGKeyArray


class Torso(eqx.Module):
    """Dense layers, and a GRU above them if there is one."""

    dense: MLP
    gru: GRU | None
    norm: LayerNorm | None
    """Between the two."""

    def finish(self, y, hidden_state, is_first):
        """The output and the memory after each step, from the first layer's pre-activations."""
        y = jax.nn.relu(self.dense.finish(y))
        if self.gru is None:
            return y, jnp.zeros((*y.shape[:-1], 0))
        y = y if self.norm is None else self.norm(y)
        hidden_states = self.gru(y, hidden_state, is_first)
        return hidden_states, hidden_states


class Net(eqx.Module):
    """The parameters of one body: the head, in whose first layer other inputs may join, and the
    torso below it if there is one."""

    torso: Torso | None
    head: MLP

    @property
    def bottom(self) -> MLP:
        """What reads the features and the ids."""
        return self.head if self.torso is None else self.torso.dense


class Body(eqx.Module):
    """The network of all agents, split where its inputs meet.

    `context` is all that does not depend on what is added later: the pre-activations of the
    head's first layer from features, ids and memory. `finish` turns them, plus what the caller
    added, into outputs.
    """

    net: Net
    agents: int = eqx.field(static=True)
    ids: int = eqx.field(static=True)
    """Inputs that say which agent of its group is served; 0 if nothing does."""
    groups: Groups = eqx.field(static=True)
    """Whose parameters are whose; none: all agents have the same, and nothing is stacked."""
    hidden_state: int = eqx.field(static=True)
    """Features of the recurrent memory; 0 if there is none."""

    @classmethod
    def create(
        cls,
        key: PRNGKeyArray,
        *,
        agents: int,
        features: int,
        others: int = 0,
        joins: Literal["first", "last"] = "last",
        outputs: int,
        core: Literal["mlp", "gru"],
        hidden: int,
        layers: int,
        gain: float,
        init: Init,
        norm: bool,
        ids: bool,
        groups: Groups,
    ) -> Body:
        """A body for `agents`, each with `features` inputs, and `others` which join them at the
        first or the last hidden layer.

        `mlp`: `layers` hidden layers. `gru`: `layers` hidden layers and a GRU, above them the
        output; where others join, a hidden layer in which they meet, which is first and last.
        """
        largest = agents if groups is None else max(map(groups.count, groups))
        id_rows = largest if ids and largest > 1 else 0
        if core == "gru":
            below, above = layers, 1 if others else 0
        else:
            below = layers - 1 if others and joins == "last" else 0
            above = layers - below

        def net(key: PRNGKeyArray) -> Net:
            key_dense, key_gru, key_head = jax.random.split(key, 3)

            # One matrix reads what comes from below and the others' inputs, and is drawn as one:
            # at first an action moves the layer as much as any other input of size one does, the
            # same at every layer, because each hands on about the norm that it was given.
            def head(features: int, others: int) -> MLP:
                return MLP.create(
                    key_head, features, others, (hidden,) * above, outputs,
                    init=init, gain=gain, norm=norm,
                )  # fmt: skip

            if below == 0:
                return Net(None, head(features, id_rows + others))
            dense = MLP.create(
                key_dense, features, id_rows, (hidden,) * (below - 1), hidden,
                init=init, gain=2**0.5, norm=norm,
            )  # fmt: skip
            if core == "mlp":
                return Net(Torso(dense, None, None), head(hidden, others))
            gru = GRU.create(key_gru, hidden, hidden, init)
            torso = Torso(dense, gru, LayerNorm.create(hidden) if norm else None)
            return Net(torso, head(hidden, others))

        keys = key if groups is None else jax.random.split(key, len(set(groups)))
        built = net(keys) if groups is None else jax.vmap(net)(keys)
        return cls(built, agents, id_rows, groups, hidden if core == "gru" else 0)

    @property
    def nets(self) -> int:
        """How many sets of parameters there are."""
        return 1 if self.groups is None else len(set(self.groups))

    @property
    def separate(self) -> bool:
        """Whether every agent has a net of its own, stacked in the agents' order."""
        return self.groups == tuple(range(self.agents))

    def initial_state(self, batch: tuple[int, ...]) -> Float[Array, "*batch agent hidden"]:
        """The memory before an episode's first step."""
        return jnp.zeros((*batch, self.agents, self.hidden_state))

    def apart(self) -> Body:
        """The agents' bodies, where each has its own, stacked on a leading axis of all parameters:
        any one of them serves one agent alone."""
        assert self.separate, "what agents share cannot be parted"
        return replace(self, agents=1, groups=None)

    def own(self, parameters: Any) -> Any:
        """Every agent's own of parameters of all nets: those of its group."""
        if self.groups is None or self.separate:
            return parameters
        return jax.tree.map(lambda x: x[np.array(self.groups)], parameters)

    def dealt(self) -> Body:
        """The same for all that comes after `context`, with a net for each agent where agents
        share some: so that a loop over joint actions need not look them up at every one."""
        if self.groups is None:
            return self
        return replace(self, net=self.own(self.net), groups=tuple(range(self.agents)))

    def each(self, f: Callable, *arrays: Array) -> Any:
        """`f(net, *arrays)`, with every agent's own net where there are several."""
        if self.groups is None:
            return f(self.net, *arrays)
        nets = self.own(self.net)
        return jax.vmap(f, in_axes=(0,) + (-2,) * len(arrays), out_axes=-2)(nets, *arrays)

    def context(
        self,
        x: Float[Array, "time *batch agent_or_1 feature"],
        hidden_state: Float[Array, "*batch agent hidden"],
        is_first: Bool[Array, "time *batch"],
    ) -> tuple[Float[Array, "time *batch agent width"], Float[Array, "time *batch agent hidden"]]:
        """The head's first pre-activations and the memory after each step.

        `x` may have an agent axis of one, for inputs that all agents share: they are multiplied
        once. Where `is_first`, an episode begins and the memory is blank.
        """
        if self.groups is None:
            is_first = is_first[..., None]
        else:
            x = jnp.broadcast_to(x, (*x.shape[:-2], self.agents, x.shape[-1]))

        y = self.each(lambda net, x: net.bottom.begin(x), x)
        if self.ids:
            y = y + expand_dims_like(self.marks, y)
        y = jnp.broadcast_to(y, (*y.shape[:-2], self.agents, y.shape[-1]))
        if self.net.torso is None:
            return y, jnp.zeros((*y.shape[:-1], 0))

        def rise(net, y, hidden_state):
            features, hidden_states = net.torso.finish(y, hidden_state, is_first)
            return net.head.begin(features), hidden_states

        return self.each(rise, y, hidden_state)

    def hidden(self, y: Float[Array, "*batch agent width"]) -> Float[Array, "*batch agent width"]:
        """The last hidden layer's output, from the head's complete first pre-activations."""
        return self.each(lambda net, y: net.head.hidden(y), y)

    def known(
        self,
        y: Float[Array, "*batch agent width"],
        hidden_state: Float[Array, "*batch agent hidden"],
    ) -> Float[Array, "*batch agent known"]:
        """What the outputs are linear in: the head's last hidden layer, or, if it has none, the
        memory after the step."""
        return self.hidden(y) if len(self.net.head.layers) > 1 else hidden_state

    def output(self, y: Float[Array, "*batch agent width"]) -> Float[Array, "*batch agent out"]:
        """The outputs, which are linear in what the last hidden layer puts out."""
        return self.each(lambda net, y: net.head.output(y), y)

    def finish(self, y: Float[Array, "*batch agent width"]) -> Float[Array, "*batch agent out"]:
        """The outputs, from the head's complete first pre-activations."""
        return self.each(lambda net, y: net.head.finish(y), y)

    @property
    def marks(self) -> Float[Array, "agent width"]:
        """The bottom's weights of each agent's id: the row of its place in its group."""
        bottom = self.net.bottom
        rows = bottom.layers[0].weight[..., bottom.features : bottom.features + self.ids, :]
        if self.groups is None:
            return rows
        places = [self.groups[:agent].count(group) for agent, group in enumerate(self.groups)]
        return rows[np.array(self.groups), np.array(places)]

    @property
    def rows(self) -> Float[Array, "*agent other width"]:
        """The head's weights of the inputs that the caller adds; each agent's own where nets are
        stacked."""
        head = self.net.head
        skip = self.ids if self.net.torso is None else 0
        return self.own(head.layers[0].weight[..., head.features + skip :, :])

    def join(
        self, others: Float[Array, "*batch agent_or_1 other"]
    ) -> Float[Array, "*batch _ width"]:
        """What other inputs add to the head's first pre-activations; those that all agents share
        may have an agent axis of one."""
        if self.groups is None:
            return product(others, self.rows)
        others = jnp.broadcast_to(others, (*others.shape[:-2], self.agents, others.shape[-1]))
        return jnp.einsum("...io,iow->...iw", others, self.rows)
