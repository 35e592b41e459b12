"""Interfaces of environments.

An environment written in JAX is an [`Env`][]: unbatched, stateless, jittable.
`perla.envs.wrappers.AutoReset` steps many of them with `jax.vmap` and resets those whose episode
ends.

Any other environment is a [`HostEnv`][]: unbatched, with a state of its own, NumPy arrays in and
out. `perla.envs.processes.pool.Pool` steps many in worker processes. These import no JAX, so this
module does not either.
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
    """A JAX array; a NumPy array in a host environment."""


class Observation(NamedTuple):
    """The inputs of agents and critics at one time step."""

    obs: Float[Array, "*batch agent feature"]
    """Each agent's own observation τᵢ."""
    state: Float[Array, "*batch state"]
    """The global state s, for centralised critics."""
    avail: Bool[Array, "*batch agent action"]
    """Discrete actions: the action mask; every agent has at least one available action.
    Continuous actions: the dimensions that an agent's action has."""
    alive: Bool[Array, "*batch agent"] | None = None
    """Agents that are alive; steps of dead agents are not trained on. None: all, always."""


class TimeStep(NamedTuple):
    """The outcome of one environment transition."""

    observation: Observation
    """The observation that the next action is chosen from."""
    reward: Float[Array, "*batch agent"]
    """The reward of this transition; equal for all agents if the reward is common."""
    terminated: Bool[Array, "*batch"]
    """The episode ended in a terminal state, whose value is zero."""
    truncated: Bool[Array, "*batch"]
    """The episode was cut, at its limit or before: learners bootstrap from the value of `final`."""
    final: Observation
    """The observation of the successor state. It differs from `observation` only if an episode
    ended and auto-reset began another."""
    won: Float[Array, "*batch"] | None = None
    """1 if the episode ends here and is won, else 0; None or NaN if the environment does not say.
    Evaluations report its mean as `win_rate`; learners do not use it."""


@dataclass(frozen=True)
class Spec:
    """Sizes and rules of an environment, for learners, evaluations and result files."""

    id: str
    """The environment's name with its family: `lbf:Foraging-8x8-2p-2f-coop-v2`."""
    agents: int
    """Number of agents."""
    obs: int
    """Features of one agent's observation."""
    state: int
    """Features of the global state."""
    actions: tuple[int, ...]
    """Number of discrete actions of each agent, or of dimensions of its continuous action."""
    limit: int | None
    """Steps after which an episode is truncated if it has not ended; None if there is no limit."""
    reward: Literal["common", "individual"]
    """`common`: every agent gets the same reward; `individual`: its own."""
    rules: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """Everything that changes the dynamics or the reward; written into every result."""
    continuous: bool = False
    """Actions are vectors in [-1, 1], not discrete choices."""
    mortal: bool = False
    """Agents may die before the episode ends; observations then have an `alive` mask."""
    early_truncation: bool = True
    """Episodes may be truncated before the limit. False promises that they are not: replay buffers
    then need less room."""
    image: tuple[int, ...] | None = None
    """Height, width and channels of the picture that an observation begins with, as a row of
    numbers; networks then begin with convolutions. Of several pictures, their number stands in
    front. None: no picture."""
    state_image: tuple[int, ...] | None = None
    """The same of the global state."""

    @property
    def max_actions(self) -> int:
        """The padded size of the action axis."""
        return max(self.actions)

    def max_truncations(self, steps: int) -> int:
        """The most truncations in `steps` consecutive steps of one environment."""
        if self.early_truncation:
            return steps
        return 0 if self.limit is None else 1 + (steps - 1) // self.limit

    def bounded(self, action: Any) -> Any:
        """`action`, clipped to [-1, 1] if it is continuous. The environment receives the clipped
        action; learners keep the sampled one, whose log-probability they know."""
        return action.clip(-1.0, 1.0) if self.continuous else action


State = TypeVar("State")
"""The state of an `Env`: any pytree of arrays."""


@runtime_checkable
class Env(Protocol[State]):
    """An environment in JAX: unbatched, without auto-reset."""

    @property
    def spec(self) -> Spec:
        """Sizes and rules of the environment."""
        ...

    def reset(self, key: PRNGKeyArray) -> tuple[State, Observation]:
        """Begin an episode."""
        ...

    def step(self, key: PRNGKeyArray, state: State, action: Actions) -> tuple[State, TimeStep]:
        """Make one transition. After the end of an episode the result is undefined: reset first."""
        ...

    def render(self, state: State) -> np.ndarray:
        """An image of `state`: uint8 `[height, width, 3]`."""
        ...


# `type(Protocol)` because the metaclass of protocols has no public name, which mypy rejects as a
# base class.
class _HostEnvMeta(type(Protocol)):  # type: ignore[misc]
    """Tells a `HostEnv` from an `Env` with a `close` method: its `step` takes an action alone."""

    def __instancecheck__(cls, env: Any) -> bool:
        if not super().__instancecheck__(env):
            return False
        with suppress(ValueError):  # Functions not written in Python may lack a signature.
            try:
                inspect.signature(env.step).bind(None)
            except TypeError:
                return False
        return True


@runtime_checkable
class HostEnv(Protocol, metaclass=_HostEnvMeta):
    """An environment outside JAX: unbatched, without auto-reset, with NumPy arrays.

    An exception or a number that is not finite ends the episode, not the run.
    """

    @property
    def spec(self) -> Spec:
        """Sizes and rules of the environment."""
        ...

    def reset(self, seed: int) -> Observation:
        """Begin an episode. Everything random in it is determined by `seed` (0 to 2³¹ − 1)."""
        ...

    def step(self, action: np.ndarray) -> TimeStep:
        """Make one transition; its `observation` and `final` are the same.

        `action`: int32 `[agent]`, or, if continuous, float32 `[agent, dimension]` in [-1, 1].
        `step` is never called after the end of an episode.
        """
        ...

    def render(self) -> np.ndarray:
        """An image of the current state: uint8 `[height, width, 3]`."""
        ...

    def close(self) -> None:
        """Release all resources. No other method is called afterwards."""
        ...
