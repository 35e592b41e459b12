"""Many copies of a world, episode after episode: the one place where auto-reset lives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic

import jax
import jax.numpy as jnp

from perla.envs.protocol import Env, Observation, Spec, State, TimeStep
from perla.types import Actions, Array, Bool, PRNGKeyArray


def sample_actions(
    key: PRNGKeyArray, spec: Spec, avail: Bool[Array, "*batch agent action"]
) -> Actions:
    """Uniform actions among those that `avail` allows, or numbers in [-1, 1]: in JAX, what
    `perla.envs.processes.pool.sample_actions` is in NumPy."""
    if spec.continuous:
        return jax.random.uniform(key, avail.shape, minval=-1.0)
    # A random number for each agent, not for each action: the rank of its choice among the allowed.
    rank = jax.random.uniform(key, avail.shape[:-1]) * avail.sum(-1)
    return (avail.cumsum(-1) <= rank[..., None]).sum(-1)


@dataclass(frozen=True)
class AutoReset(Generic[State]):
    """`copies` of `env` stepped side by side; a copy whose episode ends begins the next at once.

    Drawing a first state is often dearer than a step, and few copies need one at any step, so
    fresh states are drawn for the ended copies only: `chunk` at a time, as often as it takes.
    Every copy draws from its own key, so `chunk` changes the speed and nothing else.
    """

    env: Env[State]
    copies: int

    @property
    def spec(self) -> Spec:
        """The facts of the world."""
        return self.env.spec

    @property
    def chunk(self) -> int:
        """Copies that are reset together: about as many as end at one step of desynchronised
        copies, all where an episode is one step, and enough to fill a vector register."""
        return min(self.copies, max(8, self.copies // min(32, self.spec.limit or 32)))

    def reset(self, key: PRNGKeyArray) -> tuple[State, Observation]:
        """Begin an episode in every copy: state and observation `[env, ...]`."""
        return jax.vmap(self.env.reset)(jax.random.split(key, self.copies))

    def step(self, key: PRNGKeyArray, state: State, action: Actions) -> tuple[State, TimeStep]:
        """Step every copy; where an episode ended, `observation` is the next one's first and
        `final` the last of the one that ended."""
        key_step, key_reset = jax.random.split(key)
        state, timestep = jax.vmap(self.env.step)(
            jax.random.split(key_step, self.copies), state, self.spec.bounded(action)
        )
        ended = timestep.terminated | timestep.truncated

        def reset_some(carry):
            todo, current = carry
            (who,) = jnp.nonzero(todo, size=self.chunk, fill_value=self.copies)
            keys = jax.vmap(lambda copy: jax.random.fold_in(key_reset, copy))(who)
            fresh = jax.vmap(self.env.reset)(keys)
            current = jax.tree.map(
                lambda old, new: old.at[who].set(new, mode="drop"), current, fresh
            )
            return todo.at[who].set(False, mode="drop"), current

        _, (state, observation) = jax.lax.while_loop(
            lambda carry: carry[0].any(), reset_some, (ended, (state, timestep.observation))
        )
        return state, timestep._replace(observation=observation)
