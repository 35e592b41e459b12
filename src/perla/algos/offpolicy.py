"""Components that the off-policy learners share: replay state, agents' networks, targets."""

from __future__ import annotations

from typing import Literal, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from perla.algos.normalise import RunningMeanStd
from perla.algos.protocol import Trajectory
from perla.algos.replay import Replay, Sequences, sequences
from perla.config import Groups
from perla.envs.protocol import Spec
from perla.methods.offpolicy import OffPolicy
from perla.nets.actors import AgentOutputs, Utilities
from perla.nets.body import Body
from perla.nets.layers import SMALL, Init
from perla.nets.messages import Messages
from perla.types import Array, Float, Int, Key, PRNGKeyArray


class ReplayState(NamedTuple):
    """The replay buffer and the statistics of all steps collected."""

    replay: Replay
    rewards: RunningMeanStd
    """Mean and standard deviation of the rewards of all steps so far."""
    steps: Int[Array, ""]
    """Environment steps so far."""

    @classmethod
    def create(
        cls, config: OffPolicy, spec: Spec, *, hidden_state_size: int, values: int, state: bool
    ) -> ReplayState:
        """An empty replay state, with rewards for each of `values`, with or without the global
        state."""
        length = config.length(spec.limit)
        whole_episodes = config.rollout_length is None
        replay = Replay.create(
            spec, config.buffer_size, length,
            max_truncations=1 if whole_episodes else spec.max_truncations(length),
            hidden_state_size=hidden_state_size, values=values, state=state,
            successors=config.gamma > 0,
        )  # fmt: skip
        return cls(replay, RunningMeanStd.create(), jnp.int32(0))

    def add(
        self, trajectory: Trajectory, reward: Float[Array, "time env value"], spec: Spec
    ) -> ReplayState:
        """The replay state after storing the trajectory, with `reward` as its reward."""
        replay = self.replay
        new = sequences(
            trajectory,
            reward,
            spec,
            max_truncations=replay.max_truncations,
            state=replay.stores_state,
            successors=replay.stores_successors,
        )
        return ReplayState(
            replay.add(new),
            self.rewards.update(reward, trajectory.valid),
            self.steps + trajectory.valid.sum(),
        )

    def sample(self, config: OffPolicy, keys: Key[Array, " step"]) -> Sequences:
        """The batches of gradient steps `[step, ...]`, one for each of `keys`."""
        batches = self.replay.sample(keys, config.batch_size)
        if config.normalize_rewards:
            batches = batches._replace(reward=self.rewards.standardise(batches.reward))
        return batches


@runtime_checkable
class UtilitySettings(Protocol):
    """The settings of the agents' networks, which every learner of utilities has. They are
    documented where they are set: `methods.offpolicy`, `algos.pqn`."""

    # fmt: off
    @property
    def actor_network(self) -> Literal["mlp", "gru"]: ...  # noqa: D102
    @property
    def hidden_size(self) -> int: ...  # noqa: D102
    @property
    def num_layers(self) -> int: ...  # noqa: D102
    @property
    def init(self) -> Init: ...  # noqa: D102
    @property
    def layer_norm(self) -> bool: ...  # noqa: D102
    @property
    def agent_ids(self) -> bool: ...  # noqa: D102
    @property
    def last_action(self) -> bool: ...  # noqa: D102
    def nets(self, agents: int) -> Groups: ...  # noqa: D102
    # fmt: on


def create_utilities(
    config: UtilitySettings,
    spec: Spec,
    key: PRNGKeyArray,
    *,
    messages: Messages | None = None,
    norm_inputs: bool = True,
) -> Utilities:
    """Newly initialised utilities for an environment, with optional `messages` between agents, and
    with `norm_inputs` false without layer normalisation of the inputs."""
    last_action_size = spec.max_actions if config.last_action else 0
    body = Body.create(
        key, agents=spec.agents, features=spec.obs + last_action_size, outputs=spec.max_actions,
        core=config.actor_network, hidden_size=config.hidden_size, num_layers=config.num_layers,
        gain=SMALL, init=config.init, norm=config.layer_norm, norm_inputs=norm_inputs,
        ids=config.agent_ids, parameter_groups=config.nets(spec.agents), picture=spec.image,
    )  # fmt: skip
    return Utilities(body, messages, last_action_size)


def unroll_utilities(
    utilities: Utilities, steps: Sequences, hidden_state: Float[Array, "sequence agent memory"]
) -> AgentOutputs:
    """The agents' outputs before communication at all timesteps, from the hidden state before the
    first step on."""
    time, obs, sources = len(steps.is_first), steps.observation.obs, steps.sources
    outputs, hidden_states = utilities.unroll(
        obs[:time], steps.action, hidden_state, steps.is_first
    )
    before = hidden_states[sources, jnp.arange(sources.shape[1])[None]]
    successors, _ = utilities(obs[time:], before, jnp.zeros(sources.shape, bool))
    return jax.tree.map(lambda *parts: jnp.concatenate(parts), outputs, successors)


def one_step_targets(
    steps: Sequences, values: Float[Array, "timestep sequence value"], gamma: float
) -> Float[Array, "time sequence value"]:
    """The one-step target of every step, which bootstraps from the `values` of all timesteps."""
    if gamma == 0:
        return steps.reward
    # y = r + γ (1 − d) V(s′)
    return steps.reward + gamma * successor_values(steps, values)


def successor_values(
    steps: Sequences, values: Float[Array, "timestep sequence value"]
) -> Float[Array, "time sequence value"]:
    """(1 − d) V(s′) of every step, from the `values` V of all timesteps: zero after a termination,
    the value of the final observation after a truncation, and else that of the next step."""
    successor = jnp.take_along_axis(values, steps.successor[..., None], 0)
    return jnp.where(steps.terminated[..., None], 0.0, successor)


def linear_decay(
    start: float, end: float, decay_steps: int, steps: Int[Array, ""]
) -> Float[Array, ""]:
    """The value after `steps` on the line from `start` to `end`, which it keeps after
    `decay_steps`."""
    left = jnp.clip(1.0 - steps / decay_steps, 0.0, 1.0)
    return end + (start - end) * left
