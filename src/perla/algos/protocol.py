"""What a learner is handed, and what it offers to the training loop."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol, runtime_checkable

from perla.envs.protocol import Observation
from perla.nets.actors import AnyActor
from perla.types import Array, Bool, Float, Int, Metrics, PRNGKeyArray


class Trajectory(NamedTuple):
    """Consecutive steps of all copies, and where they lead."""

    observation: Observation
    """`[time, env, ...]`, what each action was chosen from."""
    is_first: Bool[Array, "time env"]
    """An episode begins at this step."""
    valid: Bool[Array, "time env"]
    """The step counts: false only for what pads whole episodes to the longest."""
    hidden_state: Float[Array, "time env agent hidden"]
    """The actor's memory before each step."""
    action: Int[Array, "time env agent"] | Float[Array, "time env agent dimension"]
    policy: Any
    """The policies `[time, env, agent, ...]` that the actions were drawn from: the actor's own."""
    reward: Float[Array, "time env agent"]
    terminated: Bool[Array, "time env"]
    truncated: Bool[Array, "time env"]
    final: Observation
    """`[time, env, ...]`, what each step led to: the last of its episode where one ended."""
    last: Observation
    """`[env, ...]`, what the next action will be chosen from."""
    last_is_first: Bool[Array, " env"]
    last_hidden_state: Float[Array, "env agent hidden"]


@runtime_checkable
class LearnerState(Protocol):
    """All that learning changes: a pytree of arrays, of which the loop needs the actor."""

    @property
    def actor(self) -> AnyActor:
        """The policies."""
        ...


@runtime_checkable
class Algorithm(Protocol):
    """A learner for one world."""

    def init(self, key: PRNGKeyArray) -> Any:
        """A learner state that has seen nothing."""
        ...

    def update(
        self, learner: Any, trajectory: Trajectory, key: PRNGKeyArray, progress: Float[Array, ""]
    ) -> tuple[Any, Metrics]:
        """Learn from a trajectory, `progress` (0 to 1) of the run being done."""
        ...
