"""Interfaces of environments.

A pure-JAX environment is an [`Env`][]: unbatched, stateless, jittable. `jax.vmap` makes many of it,
and `perla.envs.wrappers.AutoReset` lets one episode follow another.

Any other environment is a [`HostEnv`][]: one copy, which keeps its own state, NumPy in and out.
`perla.envs.processes.pool.Pool` steps many in worker processes, which import no JAX; so nothing
here does.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import (
    TYPE_CHECKING,
    Any,
    Literal,
    NamedTuple,
    Protocol,
    TypeAlias,
    TypeVar,
    runtime_checkable,
)

import numpy as np
from jaxtyping import Bool, Float

if TYPE_CHECKING:
    from perla.types import Actions, PRNGKeyArray

    Array: TypeAlias = Any
    """JAX's; NumPy's, where the world is the host's."""


class Observation(NamedTuple):
    """What agents and critics see at one moment."""

    obs: Float[Array, "*batch agent feature"]
    """Each agent's own observation τᵢ."""
    state: Float[Array, "*batch state"]
    """The global state s, for critics that see it."""
    avail: Bool[Array, "*batch agent action"]
    """Discrete: actions that may be chosen; every agent has at least one. Continuous: dimensions
    that an agent's action has."""
    alive: Bool[Array, "*batch agent"] | None = None
    """Agents that still take part: what the others do is not learnt from. None: all do, always."""


class TimeStep(NamedTuple):
    """The outcome of one environment transition."""

    observation: Observation
    """What the next action is chosen from."""
    reward: Float[Array, "*batch agent"]
    """The reward of this transition; equal for all agents where the reward is common."""
    terminated: Bool[Array, "*batch"]
    """The episode reached an end of its own: nothing follows, its value is zero."""
    truncated: Bool[Array, "*batch"]
    """The episode was cut (a time limit): value learners bootstrap from `final`."""
    final: Observation
    """What this transition led to. It differs from `observation` only where an episode ended
    and another has begun."""
    won: Float[Array, "*batch"] | None = None
    """1 where the episode ends here and is won, else 0; None, or NaN, where the world does not say.
    Of this evaluations make `win_rate`, and learners nothing."""


@dataclass(frozen=True)
class Spec:
    """The facts of a world that learners, evaluators and result files need."""

    id: str
    """The name its users know, after the family: `lbf:Foraging-8x8-2p-2f-coop-v2`."""
    agents: int
    obs: int
    """Features of one agent's observation."""
    state: int
    """Features of the global state."""
    actions: tuple[int, ...]
    """Number of discrete actions of each agent, or dimensions of its continuous action."""
    limit: int | None
    """Steps after which an episode is truncated; None if it never is. It is truncated there and
    nowhere else: learners make room for so many truncations and no more."""
    reward: Literal["common", "individual"]
    rules: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """Everything that changes the dynamics or the reward; stamped into every result."""
    continuous: bool = False
    """Whether actions are vectors, each dimension in [-1, 1], and not one of several choices."""
    mortal: bool = False
    """Whether agents may cease to take part; observations then say who is `alive`."""

    @property
    def max_actions(self) -> int:
        """The padded size of the action axis."""
        return max(self.actions)

    def bounded(self, action: Any) -> Any:
        """What the world is given of an `action`: where it is continuous, the nearest in [-1, 1].
        Learners keep what was drawn, whose probability they know."""
        return action.clip(-1.0, 1.0) if self.continuous else action


State = TypeVar("State")
"""A world's own bookkeeping: any pytree of arrays."""


@runtime_checkable
class Env(Protocol[State]):
    """A pure-JAX world: one copy, no auto-reset."""

    @property
    def spec(self) -> Spec:
        """The facts of this world."""
        ...

    def reset(self, key: PRNGKeyArray) -> tuple[State, Observation]:
        """Begin an episode."""
        ...

    def step(self, key: PRNGKeyArray, state: State, action: Actions) -> tuple[State, TimeStep]:
        """Make one transition. After an episode's end the result is unspecified: reset."""
        ...

    def render(self, state: State) -> np.ndarray:
        """A picture of `state`: uint8 `[height, width, 3]`."""
        ...


# The metaclass of protocols has no public name, and mypy takes no class for a base that it must ask
# for.
class _Hosted(type(Protocol)):  # type: ignore[misc]
    """Worlds of JAX may have all that `HostEnv` names. What tells them apart is that a world that
    keeps its own state can be stepped by an action alone."""

    def __instancecheck__(cls, world: Any) -> bool:
        if not super().__instancecheck__(world):
            return False
        with suppress(ValueError):  # What is not written in Python may not say what it takes.
            try:
                inspect.signature(world.step).bind(None)
            except TypeError:
                return False
        return True


@runtime_checkable
class HostEnv(Protocol, metaclass=_Hosted):
    """A world that is not JAX: one copy, no auto-reset. All arrays are NumPy's.

    Anything that it raises, and numbers that are not finite, cost the episode and not the run.
    """

    @property
    def spec(self) -> Spec:
        """The facts of this world."""
        ...

    def reset(self, seed: int) -> Observation:
        """Begin an episode, all of whose chance follows from `seed` (0 to 2³² − 1)."""
        ...

    def step(self, action: np.ndarray) -> TimeStep:
        """Make one transition, which leads to both `observation` and `final`.

        `action`: int32 `[agent]`, or, where actions are continuous, float32 `[agent, action]` in
        [-1, 1]. It is never called after an episode's end.
        """
        ...

    def render(self) -> np.ndarray:
        """A picture of the present moment: uint8 `[height, width, 3]`."""
        ...

    def close(self) -> None:
        """Let go of what it holds; nothing follows."""
        ...
