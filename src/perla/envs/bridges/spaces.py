"""Conversion between Gymnasium's spaces and perla's arrays, shared by the bridges that use them.

Worker processes import this module, so it does not import JAX. Gymnasium is imported only when an
environment is made.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Bool, Float

from perla.config import Count, convert
from perla.envs.bridges import masks, results
from perla.envs.bridges.images import Image, find_image, image_of
from perla.envs.checks import explain_errors
from perla.envs.protocol import Observation
from perla.envs.values import Fault, describe_value, to_numbers
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


Masks: TypeAlias = list[tuple[str, Any]]
"""The action masks found in an observation, with their names."""
Flatten: TypeAlias = Callable[[Any, Masks], list[Float[np.ndarray, " feature"]]]
"""The rows of an observation; its masks are appended to the list that is given."""


class AgentObservation(NamedTuple):
    """The conversion of one agent's observations."""

    size: int
    to_row: Callable[[Any], tuple[Float[np.ndarray, " feature"], Masks]]
    """The features and the action masks of an observation."""


class AgentAction(NamedTuple):
    """The conversion of one agent's actions."""

    size: int
    """Number of discrete actions, or of dimensions of a continuous action."""
    continuous: bool
    to_native: Callable[[Any], Any]
    """From an action's index, or from numbers in [-1, 1] that may be followed by padding."""
    parts: tuple[int, ...] = ()
    """Numbers of choices of the parts, if an action is a combination of several."""


class Spaces:
    """The observation and action spaces of all agents, padded to the largest.

    Boxes are flattened and other spaces encoded as by Gymnasium's `flatten`, discrete ones one-hot;
    entries of dictionaries that are action masks (`masks.is_mask`) are no features. A
    `MultiDiscrete` action becomes one discrete action for each combination of its parts; a `Box`
    action is scaled from [-1, 1] to its bounds. With `images`, agents that all observe pictures of
    one shape (`images.image_of`) have them as height × width × channel, and bytes between 0 and 1.
    Raises `UserError` for spaces that cannot be encoded in a vector of fixed size.
    """

    def __init__(
        self,
        id: str,
        names: Sequence[str],
        observed: Sequence[Any],
        acted: Sequence[Any],
        *,
        images: Any = True,
    ) -> None:
        self.names = list(names)
        self.images = convert(images, bool, name=f"{id}: images")
        described = zip(names, observed, strict=True)
        layouts = {_image(f"{id}: {name}", space) for name, space in described if self.images}
        image = layouts.pop() if len(layouts) == 1 else None
        self.image = None if image is None else image.shape
        """The shape of the picture that an observation is."""
        self.observations = [
            _agent_observation(f"{id}: {name}", space, image)
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
        infos: Sequence[Mapping[str, Any]],
        state: Any = None,
        alive: Bool[np.ndarray, " agent"] | None = None,
    ) -> Observation:
        """The observation from the agents' `native` observations and the action masks in their
        `infos`, by name; with no mask all actions are available. Without a `state` the state is the
        concatenated observations. Agents that are not `alive` observe zeros, and only their first
        action is available.

        Raises `Fault` for observations that are not of their space, and for wrong masks."""
        agents = len(self.observations)
        obs = np.zeros((agents, max(self.sizes)), np.float32)
        avail = self.existing.copy()
        for i, (agent, size) in enumerate(zip(self.observations, self.actions, strict=True)):
            if alive is not None and not alive[i]:
                if not self.continuous:
                    avail[i, 1:] = False
                continue
            try:
                obs[i, : agent.size], found = agent.to_row(native[i])
                self._write_masks(avail[i, :size], i, [*found, *infos[i].items()])
            except Fault as fault:
                raise Fault(f"{self.names[i]}: {fault}") from None
        if state is None:
            parts = [row[:size] for row, size in zip(obs, self.sizes, strict=True)]
            return Observation(obs, np.concatenate(parts), avail, alive)
        image, numbers = self._state_image(state), np.array(to_numbers("state", state))
        row = numbers.ravel() if image is None else image.to_row(numbers)
        return Observation(obs, row, avail, alive)

    def state_image(self, state: Any = None) -> tuple[int, ...] | None:
        """The shape of the picture that a `state` is; without one, that of the agents' pictures, of
        which the state then consists. None: there is no picture."""
        if state is None:
            return None if self.image is None else (len(self.names), *self.image)
        image = self._state_image(state)
        return None if image is None else image.shape

    def _state_image(self, state: Any) -> Image | None:
        if not (self.images and isinstance(state, np.ndarray)):
            return None
        return find_image(state.shape, state.dtype)

    def _write_masks(self, avail: Bool[np.ndarray, " action"], i: int, found: Masks) -> None:
        """Write the mask of agent `i`. Raises `Fault` if there are two that differ."""
        action = self.agent_actions[i]
        given = [
            masks.read(name, mask, action.size, action.parts)
            for name, mask in found
            if mask is not None
        ]
        if any((mask != given[0]).any() for mask in given):
            names = " and ".join(repr(name) for name, _ in found)
            raise Fault(f"{names} are action masks that differ, expected one")
        if given:
            avail[:] = given[0]


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


def _image(agent: str, space: Any) -> Image | None:
    """The layout of the picture that an agent observes. Raises `UserError` for a mask of actions
    that are not available."""
    with explain_errors(f"{agent} observes {_short(space)}"):
        return image_of(space)


def _agent_observation(agent: str, space: Any, image: Image | None) -> AgentObservation:
    with explain_errors(f"{agent} observes {_short(space)}"):
        size, flatten = _flattened(space)
        if size == 0:
            raise Fault("which holds no numbers but action masks")

    def to_row(value: Any) -> tuple[Float[np.ndarray, " feature"], Masks]:
        found: Masks = []
        rows = flatten(value, found)
        row = rows[0] if len(rows) == 1 else np.concatenate(rows)
        return row if image is None else image.to_row(row.reshape(image.native)), found

    return AgentObservation(size, to_row)


def _flattened(space: Any) -> tuple[int, Flatten]:
    """The number of features of `space`, and the function that flattens its values.

    The order is that of Gymnasium's `flatten`, which casts what is of another type and would make
    features of masks.
    """
    from gymnasium import spaces

    if isinstance(space, spaces.Dict):
        return _flattened_dict({key: s for key, s in space.items() if not masks.is_mask(key)})
    if isinstance(space, spaces.Tuple):
        return _flattened_tuple(list(space))
    if not space.is_np_flattenable:
        raise Fault("which is no vector of fixed size")
    size = int(spaces.flatdim(space))

    def flatten(value: Any, found: Masks) -> list[Float[np.ndarray, " feature"]]:
        if isinstance(space, (spaces.Box, spaces.MultiBinary)):
            row = to_numbers("observation", value).ravel()
            if row.size != size:
                raise Fault(f"its observation has {row.size} numbers, its space has {size}")
            return [row]
        if not space.contains(value):
            raise Fault(f"it observes {describe_value(value)}, which is not in {_short(space)}")
        return [np.asarray(spaces.flatten(space, value), np.float32)]

    return size, flatten


def _flattened_dict(entries: Mapping[Any, Any]) -> tuple[int, Flatten]:
    parts = {key: _flattened(space) for key, space in entries.items()}

    def flatten(value: Any, found: Masks) -> list[Float[np.ndarray, " feature"]]:
        if not isinstance(value, Mapping):
            raise Fault(f"it observes {describe_value(value)}, its space is a Dict")
        found += [(key, entry) for key, entry in value.items() if masks.is_mask(key)]
        if missing := [key for key in parts if key not in value]:
            raise Fault(f"its observation lacks {missing[0]!r}")
        return [row for key, (_, part) in parts.items() for row in part(value[key], found)]

    return sum(size for size, _ in parts.values()), flatten


def _flattened_tuple(entries: Sequence[Any]) -> tuple[int, Flatten]:
    parts = [_flattened(space) for space in entries]

    def flatten(value: Any, found: Masks) -> list[Float[np.ndarray, " feature"]]:
        values = results.in_order("parts of its observation", value, len(parts))
        pairs = zip(parts, values, strict=True)
        return [row for (_, part), entry in pairs for row in part(entry, found)]

    return sum(size for size, _ in parts), flatten


def _agent_action(agent: str, space: Any) -> AgentAction:
    from gymnasium import spaces

    if isinstance(space, spaces.Discrete):
        first = int(space.start)
        return AgentAction(int(space.n), False, lambda action: first + int(action))
    if isinstance(space, spaces.MultiDiscrete) and space.nvec.ndim == 1:
        parts, firsts = tuple(int(n) for n in space.nvec), space.start

        def combination(action: Any) -> np.ndarray:
            return firsts + np.array(np.unravel_index(int(action), parts), space.dtype)

        return AgentAction(int(np.prod(parts)), False, combination, parts)
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
