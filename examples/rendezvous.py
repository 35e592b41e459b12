"""A custom JAX environment: agents on a circle of cells have to meet.

    $ cd examples
    $ perla train perla-ippo --env rendezvous:make --steps 200000
    $ perla train perla-ippo --env rendezvous:make --env-option cells=9 --steps 200000

docs/your-own-environment.md goes through it line by line.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from perla.envs.protocol import Observation, Spec, TimeStep
from perla.envs.render import draw_table


class State(NamedTuple):
    at: jax.Array  # the cell of each agent: int32 [agent]
    time: jax.Array  # steps taken: int32 []


@dataclass(frozen=True)
class Rendezvous:
    agents: int
    cells: int
    limit: int = 20

    @property
    def spec(self):
        return Spec(
            id="rendezvous",
            agents=self.agents,
            obs=self.cells,  # features of one agent's observation
            state=self.agents * self.cells,  # features of the state, for centralised critics
            actions=(3,) * self.agents,  # stay, left, right
            limit=self.limit,
            early_truncation=False,
            reward="common",
            rules={"cells": self.cells},  # all that changes the meaning of results
        )

    def reset(self, key):
        at = jax.random.randint(key, (self.agents,), 0, self.cells)
        state = State(at, jnp.int32(0))
        return state, self.observe(state)

    def step(self, key, state, action):
        moves = jnp.array([0, -1, 1])[action]
        state = State((state.at + moves) % self.cells, state.time + 1)
        met = (state.at == state.at[0]).all()
        seen = self.observe(state)
        return state, TimeStep(
            observation=seen,
            reward=jnp.full(self.agents, met, jnp.float32),
            terminated=met,  # a terminal state: nothing follows
            truncated=(state.time >= self.limit) & ~met,  # the time limit: values bootstrap
            final=seen,
        )

    def observe(self, state):
        own = jax.nn.one_hot(state.at, self.cells)
        # Each agent observes its own cell and the number of agents in every cell.
        seen = own + own.sum(0, keepdims=True) / self.agents
        return Observation(
            obs=seen,
            state=own.reshape(-1),
            avail=jnp.ones((self.agents, 3), bool),
        )

    def render(self, state):
        standing = np.eye(self.cells)[np.asarray(state.at)]
        return draw_table(np.where(standing == 0, np.nan, standing), marked=())


def make(agents: int = 2, cells: int = 5):
    return Rendezvous(agents, cells)
