"""Conversion between Gymnasium's spaces and perla's arrays, shared by the bridges that use them.

Worker processes import this module, so it does not import JAX. Gymnasium is imported only when an
environment is made.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from perla.config import Count, convert
from perla.envs.protocol import Observation
from perla.errors import UserError

Reward = Literal["common", "individual"]

LIMITS = (
    "max_cycles",
    "max_steps",
    "max_episode_steps",
    "_max_episode_steps",
    "episode_limit",
    "time_limit",
    "horizon",
)
"""Attributes in which environments keep their time limit."""


class AgentObservation(NamedTuple):
    """The conversion of one agent's observations."""

    size: int
    to_row: Callable[[Any], Float[np.ndarray, " feature"]]
    masked: bool
    """Observations are dictionaries with `observation` and `action_mask`."""


class AgentAction(NamedTuple):
    """The conversion of one agent's actions."""

    size: int
    """Number of discrete actions, or of dimensions of a continuous action."""
    continuous: bool
    to_native: Callable[[Any], Any]
    """From an action's index, or from numbers in [-1, 1] that may be followed by padding."""


class Spaces:
    """The observation and action spaces of all agents, padded to the largest.

    Boxes are flattened and other spaces encoded by Gymnasium's `flatten`, discrete ones one-hot. A
    `MultiDiscrete` action becomes one discrete action for each combination of its parts; a `Box`
    action is scaled from [-1, 1] to its bounds. Raises `UserError` for spaces that cannot be
    encoded in a vector of fixed size.
    """

    def __init__(
        self, id: str, names: Sequence[str], observed: Sequence[Any], acted: Sequence[Any]
    ) -> None:
        self.names = list(names)
        self.observations = [
            _agent_observation(f"{id}: {name}", space)
            for name, space in zip(names, observed, strict=True)
        ]
        self.agent_actions = [
            _agent_action(f"{id}: {name}", space) for name, space in zip(names, acted, strict=True)
        ]
        self.continuous = self.agent_actions[0].continuous
        if any(act.continuous != self.continuous for act in self.agent_actions):
            raise UserError(
                f"{id}: some agents' actions are discrete and others' continuous; learners here "
                "need one kind"
            )
        self.actions = tuple(act.size for act in self.agent_actions)
        self.sizes = tuple(observation.size for observation in self.observations)
        self.existing = np.arange(max(self.actions)) < np.array(self.actions)[:, None]
        """`[agent, action]`: False for padding."""

    def observation(
        self,
        native: Sequence[Any],
        masks: Sequence[Any],
        state: Any = None,
        alive: Bool[np.ndarray, " agent"] | None = None,
    ) -> Observation:
        """The observation from the agents' `native` observations and action masks (None: all
        actions). Without a `state` the state is the concatenated observations. Agents that are not
        `alive` observe zeros, and only their first action is available."""
        agents = len(self.observations)
        obs = np.zeros((agents, max(self.sizes)), np.float32)
        avail = self.existing.copy()
        for i, (agent, size) in enumerate(zip(self.observations, self.actions, strict=True)):
            if alive is not None and not alive[i]:
                if not self.continuous:
                    avail[i, 1:] = False
                continue
            value, mask = native[i], masks[i]
            if agent.masked:
                value, mask = value["observation"], value["action_mask"]
            row = agent.to_row(value)
            if row.shape != (agent.size,):
                raise ValueError(
                    f"{self.names[i]} observes {row.size} numbers, its space has {agent.size}"
                )
            obs[i, : agent.size] = row
            if mask is not None:
                if np.shape(mask) != (size,):
                    raise ValueError(
                        f"{self.names[i]}'s action_mask has shape {np.shape(mask)}, expected "
                        f"{(size,)}"
                    )
                avail[i, :size] = np.asarray(mask, bool)
        if state is None:
            parts = [row[:size] for row, size in zip(obs, self.sizes, strict=True)]
            state = np.concatenate(parts)
        return Observation(obs, np.array(state, np.float32).ravel(), avail, alive)


def reward(id: str, option: Any) -> Reward:
    """The option `reward`: `individual`, or `common`, where all agents receive the sum."""
    return convert(option, Reward, name=f"{id}: reward")


def limit(id: str, option: Any, *sources: Any) -> int:
    """The time limit in steps: the `option`, or else an attribute in `LIMITS` of one of `sources`.
    Raises `UserError` if there is none."""
    if option is not None:
        return convert(option, Count, name=f"{id}: limit")
    for source in sources:
        for name in LIMITS:
            value = getattr(source, name, None)
            if isinstance(value, (int, np.integer)) and not isinstance(value, bool) and value > 0:
                return int(value)
    raise UserError(
        f"{id} does not say after how many steps its episodes are truncated; set "
        "--env-option limit=N"
    )


def early_truncation(id: str, time: int, limit: int) -> ValueError:
    """The error for an environment that truncates an episode before its `limit`."""
    return ValueError(
        f"{id} truncates an episode after {time} steps, but its limit is {limit}; set "
        f"--env-option limit={time}"
    )


def check_picture(id: str, draw: Callable[[], Any]) -> np.ndarray:
    """The image that `draw` returns. Raises `UserError` if it fails or returns no image."""
    try:
        image = draw()
    except Exception as error:  # Renderers raise anything.
        text = " ".join(str(error).split())
        raise UserError(f"{id} cannot be drawn here ({type(error).__name__}: {text})") from None
    if not (isinstance(image, np.ndarray) and image.ndim == 3 and image.shape[2] in (3, 4)):
        raise UserError(
            f"{id} draws no image; an environment that can is made with render_mode='rgb_array'"
        )
    return np.array(image[..., :3], np.uint8)


def _agent_observation(agent: str, space: Any) -> AgentObservation:
    from gymnasium import spaces

    masked = isinstance(space, spaces.Dict) and set(space) == {"observation", "action_mask"}
    if masked:
        space = space["observation"]
    if not space.is_np_flattenable:
        raise UserError(f"{agent} observes {_short(space)}, which is no vector of fixed size")

    def to_row(value: Any) -> Float[np.ndarray, " feature"]:
        flat = value if isinstance(space, spaces.Box) else spaces.flatten(space, value)
        return np.asarray(flat, np.float32).ravel()

    return AgentObservation(int(spaces.flatdim(space)), to_row, masked)


def _agent_action(agent: str, space: Any) -> AgentAction:
    from gymnasium import spaces

    if isinstance(space, spaces.Discrete):
        first = int(space.start)
        return AgentAction(int(space.n), False, lambda action: first + int(action))
    if isinstance(space, spaces.MultiDiscrete) and space.nvec.ndim == 1:
        parts, firsts = tuple(int(n) for n in space.nvec), space.start

        def combination(action: Any) -> np.ndarray:
            return firsts + np.array(np.unravel_index(int(action), parts), space.dtype)

        return AgentAction(int(np.prod(parts)), False, combination)
    if not isinstance(space, spaces.Box) or not np.issubdtype(space.dtype, np.floating):
        raise UserError(
            f"{agent} acts by {_short(space)}; learners here need Discrete or float Box"
        )
    low, high = space.low.ravel(), space.high.ravel()
    with np.errstate(over="ignore"):
        if low.size == 0 or not np.isfinite(high - low).all():
            raise UserError(
                f"{agent} acts by {_short(space)}; actions are scaled from [-1, 1] and need "
                "finite bounds"
            )

    def scaled(action: Any) -> np.ndarray:
        point = low + (action[: low.size] + 1) / 2 * (high - low)
        # Rounding may exceed the bounds.
        return np.clip(point, low, high).astype(space.dtype).reshape(space.shape)

    return AgentAction(low.size, True, scaled)


def _short(space: Any) -> str:
    return f"{space!r}"[:60]
