"""An environment family: two agents on a line of cells meet, `meeting:9` on nine cells."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from perla.envs.protocol import Observation, Spec, TimeStep
from perla.errors import UserError

EXAMPLES = {"5": "two agents on five cells meet", "9": "two agents on nine cells meet"}


def make_env(name: str, *, limit: int = 20) -> "Meeting":
    """The environment on `name` cells, with episodes of at most `limit` steps."""
    if not name.isdecimal() or int(name) < 2:
        raise UserError(f"meeting:{name}: expected a number of cells from 2 on, such as meeting:5")
    return Meeting(int(name), limit)


class State(NamedTuple):
    """The cells of both agents, and the steps so far."""

    cells: jax.Array
    time: jax.Array


class Meeting:
    """Each agent moves left, stays or moves right; both earn 1 when they are on the same cell."""

    def __init__(self, size: int, limit: int) -> None:
        self.size = size
        self.spec = Spec(f"meeting:{size}", 2, 2, 2, (3, 3), limit, "common", {"size": size})

    def reset(self, key):
        """Begin an episode, on two different cells."""
        cells = jax.random.choice(key, self.size, (2,), replace=False)
        return State(cells, jnp.int32(0)), self.observe(cells)

    def step(self, key, state, action):
        """Move both agents."""
        cells = jnp.clip(state.cells + action - 1, 0, self.size - 1)
        time, met = state.time + 1, cells[0] == cells[1]
        observation = self.observe(cells)
        reward = jnp.where(met, 1.0, 0.0) * jnp.ones(2)
        truncated = (time >= self.spec.limit) & ~met
        step = TimeStep(observation, reward, met, truncated, observation)
        return State(cells, time), step

    def observe(self, cells) -> Observation:
        """Each agent's own cell and the distance to the other; the state is both cells."""
        distance = (cells[::-1] - cells) / self.size
        obs = jnp.stack([cells / self.size, distance], -1)
        return Observation(obs, cells / self.size, jnp.ones((2, 3), bool))

    def render(self, state):
        """A picture of the line: the agents are blue and orange."""
        image = np.full((40, 40 * self.size, 3), 255, np.uint8)
        for agent, color in enumerate([(31, 119, 180), (255, 127, 14)]):
            left = 40 * int(state.cells[agent]) + 20 * agent
            image[10:30, left : left + 20] = color
        return image
