"""What learners that replay have in common: what they have been through, and the networks that
they go through it again with."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from perla.algos.normalise import RunningMeanStd
from perla.algos.protocol import Trajectory
from perla.algos.replay import Replay, Sequences, sequences
from perla.envs.protocol import Spec
from perla.methods.recipes import Replaying
from perla.nets.actors import Utilities, Views
from perla.nets.body import Body
from perla.nets.layers import SMALL
from perla.nets.messages import Messages
from perla.types import Array, Float, Int, Key, PRNGKeyArray


class ReplayState(NamedTuple):
    """What a learner has been through."""

    replay: Replay
    rewards: RunningMeanStd
    """Of the rewards of all steps seen."""
    steps: Int[Array, ""]
    """Environment steps seen."""

    @classmethod
    def create(
        cls, config: Replaying, spec: Spec, *, hidden_state: int, values: int, state: bool
    ) -> ReplayState:
        """None yet, of an actor with a `hidden_state` for each agent and a reward for each of `values`;
        with the global state or without."""
        replay = Replay.create(
            spec, config.buffer_size, config.length(spec.limit),
            hidden_state=hidden_state, values=values, state=state, successors=config.gamma > 0,
        )  # fmt: skip
        return cls(replay, RunningMeanStd.create(), jnp.int32(0))

    def add(
        self, trajectory: Trajectory, reward: Float[Array, "time env value"], spec: Spec
    ) -> ReplayState:
        """With the trajectory, of which `reward` is what was earned, in the place of the oldest."""
        replay = self.replay
        new = sequences(
            trajectory, reward, spec, state=replay.sees_state, successors=replay.sees_successors
        )
        return ReplayState(
            replay.add(new),
            self.rewards.update(reward, trajectory.valid),
            self.steps + trajectory.valid.sum(),
        )

    def sample(self, config: Replaying, keys: Key[Array, " step"]) -> Sequences:
        """What gradient steps are made of, `[step, ...]`, each with a key of its own."""
        batches = self.replay.sample(keys, config.batch_size)
        if config.normalize_rewards:
            batches = batches._replace(reward=self.rewards.standardise(batches.reward))
        return batches


def create_utilities(
    config: Replaying,
    spec: Spec,
    key: PRNGKeyArray,
    *,
    messages: Messages | None = None,
) -> Utilities:
    """Fresh utilities for a world, of agents that tell each other `messages`."""
    recalls = spec.max_actions if config.last_action else 0
    body = Body.create(
        key, agents=spec.agents, features=spec.obs + recalls, outputs=spec.max_actions,
        core=config.actor_network, hidden=config.hidden_size, layers=config.num_layers,
        gain=SMALL, init=config.init, norm=config.layer_norm,
        ids=config.agent_ids, groups=config.nets(spec.agents),
    )  # fmt: skip
    return Utilities(body, messages, recalls)


def look(
    utilities: Utilities, steps: Sequences, hidden_state: Float[Array, "sequence agent memory"]
) -> Views:
    """The agents' own views at all places, from the memory before the first step on."""
    time, obs, sources = len(steps.is_first), steps.observation.obs, steps.sources
    expand_dims_like, hidden_states = utilities.unroll(
        obs[:time], steps.action, hidden_state, steps.is_first
    )
    before = hidden_states[sources, jnp.arange(sources.shape[1])[None]]
    beyond, _ = utilities(obs[time:], before, jnp.zeros(sources.shape, bool))
    return jax.tree.map(lambda *parts: jnp.concatenate(parts), expand_dims_like, beyond)


def bootstrapped(
    steps: Sequences, values: Float[Array, "place sequence value"], gamma: float
) -> Float[Array, "time sequence value"]:
    """What every step is worth by the `values` of all places."""
    if gamma == 0:
        return steps.reward
    # y = r + γ (1 − d) V(s′)
    following = jnp.take_along_axis(values, steps.next_place[..., None], 0)
    following = jnp.where(steps.terminated[..., None], 0.0, following)
    return steps.reward + gamma * following
