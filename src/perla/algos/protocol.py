"""The interface between learners and the training loop."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol, runtime_checkable

from perla.envs.protocol import Observation
from perla.nets.actors import AnyActor
from perla.types import Array, Bool, Float, Int, Metrics, PRNGKeyArray


class Trajectory(NamedTuple):
    """Consecutive steps of all environments, with their successor states."""

    observation: Observation
    """`[time, env, ...]`, the observations that the actions were chosen from."""
    is_first: Bool[Array, "time env"]
    """True at the first step of an episode."""
    valid: Bool[Array, "time env"]
    """False at steps that pad a whole episode to the longest, and at dropped ones."""
    hidden_state: Float[Array, "time env agent hidden"]
    """The actor's hidden state before each step."""
    action: Int[Array, "time env agent"] | Float[Array, "time env agent dimension"]
    """The actions taken: discrete, or continuous in [-1, 1]."""
    policy: Any
    """The distributions `[time, env, agent, ...]` that the actions were sampled from: the actor's
    policies `given` the actions."""
    reward: Float[Array, "time env agent"]
    """The reward of each step."""
    terminated: Bool[Array, "time env"]
    """True where the step ended the episode, and nothing follows."""
    truncated: Bool[Array, "time env"]
    """True where the episode was cut short, and returns bootstrap."""
    final: Observation
    """`[time, env, ...]`, the successor of each step: the episode's last one where it ended."""
    last: Observation
    """`[env, ...]`, the observation that the next action will be chosen from."""
    last_is_first: Bool[Array, " env"]
    """True where `last` begins an episode."""
    last_hidden_state: Float[Array, "env agent hidden"]
    """The actor's hidden state before `last`."""


@runtime_checkable
class LearnerState(Protocol):
    """The state of a learner: a pytree of arrays, of which the loop needs the actor."""

    @property
    def actor(self) -> AnyActor:
        """The policies."""
        ...


@runtime_checkable
class Algorithm(Protocol):
    """A learner for one environment."""

    def init(self, key: PRNGKeyArray) -> Any:
        """The initial learner state."""
        ...

    def update(
        self, learner: Any, trajectory: Trajectory, key: PRNGKeyArray, progress: Float[Array, ""]
    ) -> tuple[Any, Metrics]:
        """Learn from a trajectory; `progress` is the share (0 to 1) of the run that is done."""
        ...


@runtime_checkable
class DataParallel(Protocol):
    """A learner whose environments can be divided over devices: its means and gradients are those
    of `perla.parallel`."""

    by_env: tuple[str, ...]
    """The fields of its state that are arrays `[env, ...]`; all others are common."""


class CriticValues(NamedTuple):
    """A learner's values along a trajectory, in the units that its critic learns."""

    value: Float[Array, "time env agent"]
    """The value of each agent at the joint action taken, or of the state if it sees no actions."""
    marginal: Float[Array, "time env agent"] | None = None
    """The average over the other agents' policies, of policy-embedded critics."""


@runtime_checkable
class HasCritic(Protocol):
    """A learner whose critic can be asked about a trajectory."""

    def critic_values(
        self, learner: Any, trajectory: Trajectory, key: PRNGKeyArray
    ) -> CriticValues:
        """The values of the trajectory's steps, which begins with an episode."""
        ...
