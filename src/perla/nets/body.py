"""The network shared by actors and critics: from the features of every agent to its outputs.

A body serves all agents at once. Parameters are shared by all agents, or stacked, one set for each
parameter group. Agents that share parameters may be distinguished by an id among the inputs.
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
from perla.keys import apart
from perla.nets.layers import GRU, MLP, Init, LayerNorm, expand_dims_like, product
from perla.nets.pictures import Pictures, output_features
from perla.types import Array, Bool, Float, PRNGKeyArray


class Torso(eqx.Module):
    """Dense layers, followed by an optional GRU."""

    dense: MLP
    gru: GRU | None
    norm: LayerNorm | None
    """Between the dense layers and the GRU."""

    def finish(self, y, hidden_state, is_first):
        """The output and the hidden state after each step, from the first layer's
        pre-activations."""
        y = jax.nn.relu(self.dense.finish(y))
        if self.gru is None:
            return y, jnp.zeros((*y.shape[:-1], 0))
        y = y if self.norm is None else self.norm(y)
        hidden_states = self.gru(y, hidden_state, is_first)
        return hidden_states, hidden_states


class Net(eqx.Module):
    """One set of parameters of a body: an optional torso and the head above it, whose first layer
    is the fusion layer of extra inputs."""

    torso: Torso | None
    head: MLP
    pictures: Pictures | None = None
    """Below all other layers, where the features begin with pictures."""

    def begin(self, x):
        """The bottom's first pre-activations from the features `x`."""
        return self.bottom.begin(x if self.pictures is None else self.pictures(x))

    @property
    def bottom(self) -> MLP:
        """The layers that read the features and the ids."""
        return self.head if self.torso is None else self.torso.dense


class Body(eqx.Module):
    """The network of all agents, split at the fusion layer.

    `context` computes everything that does not depend on the extra inputs: the pre-activations of
    the head's first layer from features, ids and hidden state. `finish` computes the outputs from
    these plus the extra inputs' products, which the caller adds.
    """

    net: Net
    """The parameters, stacked by group if there are groups."""
    agents: int = eqx.field(static=True)
    """Number of agents."""
    ids: int = eqx.field(static=True)
    """Width of the one-hot agent id; 0 without ids."""
    parameter_groups: Groups = eqx.field(static=True)
    """The group of each agent; none: all agents share parameters, and nothing is stacked."""
    hidden_state_size: int = eqx.field(static=True)
    """Features of the recurrent hidden state; 0 without a GRU."""

    @classmethod
    def create(
        cls,
        key: PRNGKeyArray,
        *,
        agents: int,
        features: int,
        extra_inputs: int = 0,
        action_fusion: Literal["first", "last"] = "last",
        outputs: int,
        core: Literal["mlp", "gru"],
        hidden_size: int,
        num_layers: int,
        gain: float,
        init: Init,
        norm: bool,
        norm_inputs: bool = True,
        ids: bool,
        parameter_groups: Groups,
        picture: tuple[int, ...] | None = None,
    ) -> Body:
        """A body for `agents`, each with `features` inputs, and `extra_inputs` (the actions) at the
        first or last hidden layer. `norm` is of hidden layers, and of features if `norm_inputs`;
        `picture`, the shape of the pictures that the features begin with (`Pictures`).

        `mlp`: `num_layers` hidden layers. `gru`: `num_layers` hidden layers and a GRU, then the
        output layer; with extra inputs, one more hidden layer, which is the fusion layer.
        """
        groups = parameter_groups
        largest = agents if groups is None else max(map(groups.count, groups))
        id_rows = largest if ids and largest > 1 else 0
        below, above = _layers(core, num_layers, action_fusion if extra_inputs else None)
        rows = output_features(picture, features)

        def net(key: PRNGKeyArray) -> Net:
            key_dense, key_gru, key_head = jax.random.split(key, 3)
            pictures = None if picture is None else Pictures.create(apart(key), picture, init)

            # Features and extra inputs have one weight matrix: an action changes pre-activations as
            # much as any other input of size one, as each layer about preserves its input's norm.
            def head(features: int, extra_inputs: int) -> MLP:
                return MLP.create(
                    key_head, features, extra_inputs, (hidden_size,) * above, outputs,
                    init=init, gain=gain, norm=norm, norm_inputs=norm_inputs or below > 0,
                )  # fmt: skip

            if below == 0:
                return Net(None, head(rows, id_rows + extra_inputs), pictures)
            dense = MLP.create(
                key_dense, rows, id_rows, (hidden_size,) * (below - 1), hidden_size,
                init=init, gain=2**0.5, norm=norm, norm_inputs=norm_inputs,
            )  # fmt: skip
            if core == "mlp":
                return Net(Torso(dense, None, None), head(hidden_size, extra_inputs), pictures)
            gru = GRU.create(key_gru, hidden_size, hidden_size, init)
            torso = Torso(dense, gru, LayerNorm.create(hidden_size) if norm else None)
            return Net(torso, head(hidden_size, extra_inputs), pictures)

        keys = key if groups is None else jax.random.split(key, len(set(groups)))
        nets = net(keys) if groups is None else jax.vmap(net)(keys)
        return cls(nets, agents, id_rows, groups, hidden_size if core == "gru" else 0)

    @property
    def nets(self) -> int:
        """Number of parameter sets."""
        return 1 if self.parameter_groups is None else len(set(self.parameter_groups))

    @property
    def separate(self) -> bool:
        """True if every agent has its own parameters, stacked in the agents' order."""
        return self.parameter_groups == tuple(range(self.agents))

    def initial_state(self, batch: tuple[int, ...]) -> Float[Array, "*batch agent hidden"]:
        """The hidden state before an episode's first step."""
        return jnp.zeros((*batch, self.agents, self.hidden_state_size))

    def unstack(self) -> Body:
        """Single-agent bodies, stacked on a leading axis of all parameters, for `jax.vmap`.

        Only for separate parameters.
        """
        assert self.separate, "agents that share parameters cannot be unstacked"
        return replace(self, agents=1, parameter_groups=None)

    def gather(self, parameters: Any) -> Any:
        """The parameters of each agent's group, from those of all groups."""
        if self.parameter_groups is None or self.separate:
            return parameters
        return jax.tree.map(lambda x: x[np.array(self.parameter_groups)], parameters)

    def gather_per_agent(self) -> Body:
        """An equal body for everything after `context`, with parameters gathered per agent: a loop
        over joint actions then does not gather them at every one."""
        if self.parameter_groups is None:
            return self
        groups = tuple(range(self.agents))
        return replace(self, net=self.gather(self.net), parameter_groups=groups)

    def apply(self, f: Callable, *arrays: Array) -> Any:
        """`f(net, *arrays)` of arrays `[*batch, agent, feature]`, vectorised over agents and
        parameters where these are stacked."""
        if self.parameter_groups is None:
            return f(self.net, *arrays)
        nets = self.gather(self.net)
        return jax.vmap(f, in_axes=(0,) + (-2,) * len(arrays), out_axes=-2)(nets, *arrays)

    def context(
        self,
        x: Float[Array, "time *batch agent_or_1 feature"],
        hidden_state: Float[Array, "*batch agent hidden"],
        is_first: Bool[Array, "time *batch"],
    ) -> tuple[Float[Array, "time *batch agent width"], Float[Array, "time *batch agent hidden"]]:
        """The head's first pre-activations and the hidden state after each step.

        `x` may have an agent axis of one, for inputs that all agents share: these are multiplied
        once. The hidden state is zeroed before the steps that are `is_first`.
        """
        if self.parameter_groups is None:
            is_first = is_first[..., None]
        else:
            x = jnp.broadcast_to(x, (*x.shape[:-2], self.agents, x.shape[-1]))

        y = self.apply(lambda net, x: net.begin(x), x)
        if self.ids:
            y = y + expand_dims_like(self.id_rows, y)
        y = jnp.broadcast_to(y, (*y.shape[:-2], self.agents, y.shape[-1]))
        if self.net.torso is None:
            return y, jnp.zeros((*y.shape[:-1], 0))

        def from_torso(net, y, hidden_state):
            features, hidden_states = net.torso.finish(y, hidden_state, is_first)
            return net.head.begin(features), hidden_states

        return self.apply(from_torso, y, hidden_state)

    def head_hidden(
        self, y: Float[Array, "*batch agent width"]
    ) -> Float[Array, "*batch agent width"]:
        """The head's last hidden layer, from the head's complete first pre-activations."""
        return self.apply(lambda net, y: net.head.hidden(y), y)

    def last_hidden(
        self,
        y: Float[Array, "*batch agent width"],
        hidden_state: Float[Array, "*batch agent hidden"],
    ) -> Float[Array, "*batch agent last"]:
        """The last hidden layer, in which the outputs are linear: the head's, or, if the head has
        none, the hidden state after the step."""
        return self.head_hidden(y) if len(self.net.head.layers) > 1 else hidden_state

    def output(self, y: Float[Array, "*batch agent width"]) -> Float[Array, "*batch agent out"]:
        """The output layer, linear in the head's last hidden layer."""
        return self.apply(lambda net, y: net.head.output(y), y)

    def finish(self, y: Float[Array, "*batch agent width"]) -> Float[Array, "*batch agent out"]:
        """The outputs, from the head's complete first pre-activations."""
        return self.apply(lambda net, y: net.head.finish(y), y)

    @property
    def id_rows(self) -> Float[Array, "agent width"]:
        """The first layer's weights of each agent's id, which is its index within its group."""
        bottom, groups = self.net.bottom, self.parameter_groups
        rows = bottom.layers[0].weight[..., bottom.features : bottom.features + self.ids, :]
        if groups is None:
            return rows
        indices = [groups[:agent].count(group) for agent, group in enumerate(groups)]
        return rows[np.array(groups), np.array(indices)]

    @property
    def extra_rows(self) -> Float[Array, "*agent extra width"]:
        """The fusion layer's weights of the extra inputs; per agent if parameters are stacked."""
        head = self.net.head
        skip = self.ids if self.net.torso is None else 0
        return self.gather(head.layers[0].weight[..., head.features + skip :, :])

    def project(
        self, extra: Float[Array, "*batch agent_or_1 extra"]
    ) -> Float[Array, "*batch _ width"]:
        """The products of the extra inputs, to be added to the context; inputs that all agents
        share may have an agent axis of one."""
        if self.parameter_groups is None:
            return product(extra, self.extra_rows)
        extra = jnp.broadcast_to(extra, (*extra.shape[:-2], self.agents, extra.shape[-1]))
        return jnp.einsum("...io,iow->...iw", extra, self.extra_rows)


def _layers(
    core: Literal["mlp", "gru"], num_layers: int, action_fusion: Literal["first", "last"] | None
) -> tuple[int, int]:
    """The numbers of hidden layers below and above the place where extra inputs enter; they have no
    `action_fusion` if there are none."""
    if core == "gru":
        return num_layers, 0 if action_fusion is None else 1
    below = num_layers - 1 if action_fusion == "last" else 0
    return below, num_layers - below
