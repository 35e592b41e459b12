"""Vectorised environments in JAX with auto-reset."""

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
    """Uniform available actions, or, if continuous, uniform numbers in [-1, 1].

    `perla.envs.processes.pool.sample_actions` does the same in NumPy.
    """
    if spec.continuous:
        return jax.random.uniform(key, avail.shape, minval=-1.0)
    # One random number per agent, not per action: the rank of its action among the available.
    rank = jax.random.uniform(key, avail.shape[:-1]) * avail.sum(-1)
    return (avail.cumsum(-1) <= rank[..., None]).sum(-1)


@dataclass(frozen=True)
class AutoReset(Generic[State]):
    """`num_envs` environments in one batch, each reset when its episode ends.

    A reset often costs more than a step, and few environments need one at any step. So only the
    environments whose episode ended are reset, in batches of `reset_batch`, as many as it takes.
    Every environment has its own key, so `reset_batch` affects the speed only.
    """

    env: Env[State]
    num_envs: int

    @property
    def spec(self) -> Spec:
        """Sizes and rules of the environment."""
        return self.env.spec

    @property
    def reset_batch(self) -> int:
        """Environments that are reset together: about as many as end at one step when episodes are
        desynchronised, all if an episode is one step, and enough to fill a vector register."""
        return min(self.num_envs, max(8, self.num_envs // min(32, self.spec.limit or 32)))

    def reset(self, key: PRNGKeyArray) -> tuple[State, Observation]:
        """Begin an episode in every environment: state and observation `[env, ...]`."""
        return jax.vmap(self.env.reset)(jax.random.split(key, self.num_envs))

    def step(self, key: PRNGKeyArray, state: State, action: Actions) -> tuple[State, TimeStep]:
        """Step every environment `[env, ...]`. If an episode ends, `observation` is the first of
        the next episode and `final` the last of the ended one."""
        key_step, key_reset = jax.random.split(key)
        state, timestep = jax.vmap(self.env.step)(
            jax.random.split(key_step, self.num_envs), state, self.spec.bounded(action)
        )
        ended = timestep.terminated | timestep.truncated

        def reset_some(carry):
            todo, current = carry
            (indices,) = jnp.nonzero(todo, size=self.reset_batch, fill_value=self.num_envs)
            keys = jax.vmap(lambda index: jax.random.fold_in(key_reset, index))(indices)
            first = jax.vmap(self.env.reset)(keys)
            current = jax.tree.map(
                lambda old, new: old.at[indices].set(new, mode="drop"), current, first
            )
            return todo.at[indices].set(False, mode="drop"), current

        _, (state, observation) = jax.lax.while_loop(
            lambda carry: carry[0].any(), reset_some, (ended, (state, timestep.observation))
        )
        return state, timestep._replace(observation=observation)
