"""What worlds with Gymnasium's spaces share: from what each agent sees and does to rows of numbers,
and back.

Worker processes import this: no JAX. Gymnasium itself is imported where a world is made.
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
"""What worlds call the number of steps after which they cut an episode."""


class Sense(NamedTuple):
    """How one agent's observation becomes a row."""

    size: int
    row: Callable[[Any], Float[np.ndarray, " feature"]]
    masked: bool
    """Whether it comes as a dictionary, `observation` and `action_mask`."""


class Act(NamedTuple):
    """How one agent's action becomes the world's."""

    size: int
    """Choices, or dimensions where actions are continuous."""
    continuous: bool
    to_native: Callable[[Any], Any]
    """From an index, or numbers in [-1, 1] that may be followed by padding."""


class Spaces:
    """What the agents of a world see and do, padded to the largest.

    Boxes are flattened and other spaces encoded as Gymnasium's `flatten` does, one-hot where they
    are discrete. Of actions, the parts of a `MultiDiscrete` are chosen all at once, one of their
    combinations; bounds of a `Box` are scaled from [-1, 1]. Raises `UserError` for spaces that no
    row of numbers can hold.
    """

    def __init__(
        self, id: str, names: Sequence[str], seen: Sequence[Any], done: Sequence[Any]
    ) -> None:
        self.names = list(names)
        self.senses = [_sense(f"{id}: {a}", space) for a, space in zip(names, seen, strict=True)]
        self.acts = [_act(f"{id}: {a}", space) for a, space in zip(names, done, strict=True)]
        self.continuous = self.acts[0].continuous
        if any(act.continuous != self.continuous for act in self.acts):
            raise UserError(
                f"{id}: some agents' actions are discrete and others' continuous; learners here "
                "need one kind"
            )
        self.actions = tuple(act.size for act in self.acts)
        self.sizes = tuple(sense.size for sense in self.senses)
        self.has = np.arange(max(self.actions)) < np.array(self.actions)[:, None]
        """`[agent, action]`: what agents have at all, and what is padding."""

    def observation(
        self,
        seen: Sequence[Any],
        masks: Sequence[Any],
        state: Any = None,
        alive: Bool[np.ndarray, " agent"] | None = None,
    ) -> Observation:
        """What every agent has `seen`, and the moves that are allowed by its mask (all, if it is
        none); without a `state` that is the observations one after another. Those that are not
        `alive` see zeros, and may do their first action alone."""
        agents = len(self.senses)
        obs = np.zeros((agents, max(self.sizes)), np.float32)
        avail = self.has.copy()
        for i, (sense, size) in enumerate(zip(self.senses, self.actions, strict=True)):
            if alive is not None and not alive[i]:
                if not self.continuous:
                    avail[i, 1:] = False
                continue
            one, mask = seen[i], masks[i]
            if sense.masked:
                one, mask = one["observation"], one["action_mask"]
            row = sense.row(one)
            if row.shape != (sense.size,):
                raise ValueError(
                    f"{self.names[i]} observes {row.size} numbers, its space has {sense.size}"
                )
            obs[i, : sense.size] = row
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


def reward(id: str, given: Any) -> Reward:
    """The option `reward`: each agent's own, or `common`, the sum of all of them for each."""
    return convert(given, Reward, name=f"{id}: reward")


def limit(id: str, given: Any, *places: Any) -> int:
    """The steps after which an episode is cut: what is `given`, or what one of `places` says of
    itself by a name of `LIMITS`. `UserError` where neither says anything."""
    if given is not None:
        return convert(given, Count, name=f"{id}: limit")
    for place in places:
        for name in LIMITS:
            value = getattr(place, name, None)
            if isinstance(value, (int, np.integer)) and not isinstance(value, bool) and value > 0:
                return int(value)
    raise UserError(
        f"{id} does not say after how many steps its episodes are cut; --env-option limit=N does"
    )


def early_truncation(id: str, time: int, limit: int) -> ValueError:
    """The error for a world that cuts an episode before its `limit`."""
    return ValueError(
        f"{id} cuts an episode after {time} steps, and its limit is said to be {limit}: "
        f"--env-option limit={time}"
    )


def check_picture(id: str, draw: Callable[[], Any]) -> np.ndarray:
    """What a world draws of itself; `UserError` where it cannot, or draws something else."""
    try:
        drawn = draw()
    except Exception as error:  # Each way of drawing fails in its own way.
        text = " ".join(str(error).split())
        raise UserError(f"{id} cannot be drawn here ({type(error).__name__}: {text})") from None
    if not (isinstance(drawn, np.ndarray) and drawn.ndim == 3 and drawn.shape[2] in (3, 4)):
        raise UserError(
            f"{id} draws no picture; a world that can is made with render_mode='rgb_array'"
        )
    return np.array(drawn[..., :3], np.uint8)


def _sense(who: str, space: Any) -> Sense:
    from gymnasium import spaces

    masked = isinstance(space, spaces.Dict) and set(space) == {"observation", "action_mask"}
    if masked:
        space = space["observation"]
    if not space.is_np_flattenable:
        raise UserError(f"{who} observes {_a(space)}, which is no row of numbers of one length")

    def row(one: Any) -> Float[np.ndarray, " feature"]:
        flat = one if isinstance(space, spaces.Box) else spaces.flatten(space, one)
        return np.asarray(flat, np.float32).ravel()

    return Sense(int(spaces.flatdim(space)), row, masked)


def _act(who: str, space: Any) -> Act:
    from gymnasium import spaces

    if isinstance(space, spaces.Discrete):
        first = int(space.start)
        return Act(int(space.n), False, lambda action: first + int(action))
    if isinstance(space, spaces.MultiDiscrete) and space.nvec.ndim == 1:
        parts, firsts = tuple(int(n) for n in space.nvec), space.start

        def combination(action: Any) -> np.ndarray:
            return firsts + np.array(np.unravel_index(int(action), parts), space.dtype)

        return Act(int(np.prod(parts)), False, combination)
    if not isinstance(space, spaces.Box) or not np.issubdtype(space.dtype, np.floating):
        raise UserError(f"{who} acts by {_a(space)}; learners here need Discrete or float Box")
    low, high = space.low.ravel(), space.high.ravel()
    with np.errstate(over="ignore"):
        if low.size == 0 or not np.isfinite(high - low).all():
            raise UserError(
                f"{who} acts by {_a(space)}; actions are scaled from [-1, 1] and need finite bounds"
            )

    def scaled(action: Any) -> np.ndarray:
        point = low + (action[: low.size] + 1) / 2 * (high - low)
        # Rounding may lead beyond the bounds.
        return np.clip(point, low, high).astype(space.dtype).reshape(space.shape)

    return Act(low.size, True, scaled)


def _a(space: Any) -> str:
    return f"{space!r}"[:60]
