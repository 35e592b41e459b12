"""A trained policy in one's own loop: NumPy in, NumPy out."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from perla.envs.protocol import Observation, Spec
from perla.errors import UserError
from perla.nets.actors import AnyActor

PerAgent: TypeAlias = Any
"""An array `[agent, …]` or `[env, agent, …]`, or, for one environment, a mapping from the names of
the agents, in the environment's order, to their arrays."""


class Policy:
    """The policies of all agents, which act on observations of one environment or of several.

    It keeps its own hidden state: call `reset` where an episode begins. It can be pickled.
    """

    def __init__(self, actor: AnyActor, spec: Spec, *, seed: int = 0) -> None:
        self.actor, self.spec = actor, spec
        self._key = jax.random.key(seed)
        self._acts = 0
        self._hidden: Any = None
        self._is_first: np.ndarray | None = None

    def reset(self, done: Any = None) -> None:
        """Begin an episode: in every environment, or in those of the mask `done` `[env]`.

        Raises `UserError` if `done` is not of the environments acted in before.
        """
        if done is None or self._is_first is None:
            self._hidden = self._is_first = None
            return
        mask = np.asarray(done, bool)
        if mask.shape != self._is_first.shape:
            raise UserError(
                f"policy.reset: done has shape {mask.shape}; the last observations were of "
                f"{_environments(self._is_first.shape)}"
            )
        self._is_first = self._is_first | mask

    def act(
        self, obs: PerAgent, *, avail: PerAgent = None, alive: Any = None, greedy: bool = True
    ) -> Any:
        """The actions of all agents: the most likely ones, or sampled if not `greedy`.

        `obs`: `[agent, feature]` or `[env, agent, feature]`. `avail`: `[…, agent, action]`, the
        actions that are available; None: all that the agent has. `alive`: `[…, agent]`; None: all.
        Returns int32 `[…, agent]`, or float32 `[…, agent, dimension]` in [-1, 1] if the actions are
        continuous. Of a mapping of the agents' observations it returns a mapping. Raises
        `UserError` for a wrong shape.
        """
        names = list(obs) if isinstance(obs, Mapping) else None
        observation = self._observation(obs, avail, alive)
        batch = observation.obs.shape[:-2]
        if self._is_first is None:
            self._hidden, self._is_first = self.actor.initial_state(batch), np.ones(batch, bool)
        if self._is_first.shape != batch:
            raise UserError(
                f"policy.act: observations of {_environments(batch)}, and the episodes so far are "
                f"of {_environments(self._is_first.shape)}; call policy.reset() first"
            )
        key = jax.random.fold_in(self._key, self._acts)
        action, self._hidden = _act(
            self.actor, observation, self._hidden, jnp.asarray(self._is_first), key, greedy=greedy
        )
        self._acts += 1
        self._is_first = np.zeros(batch, bool)
        action = self.spec.bounded(np.asarray(action))
        return action if names is None else dict(zip(names, action, strict=True))

    def _observation(self, obs: PerAgent, avail: PerAgent, alive: Any) -> Observation:
        """The observation with these parts; its `state`, which no policy reads, is zero."""
        spec = self.spec
        features = _stack(obs, spec.obs)
        if features.ndim not in (2, 3) or features.shape[-2:] != (spec.agents, spec.obs):
            raise UserError(
                f"policy.act: obs has shape {features.shape}; expected [agent, feature] or "
                f"[env, agent, feature], here {[spec.agents, spec.obs]} for one environment"
            )
        batch = features.shape[:-2]
        own = np.arange(spec.max_actions) < np.array(spec.actions)[:, None]
        masks = own if avail is None else _stack(avail, spec.max_actions, bool)
        living = np.ones(spec.agents, bool) if alive is None else np.asarray(alive, bool)
        return Observation(
            jnp.asarray(features, jnp.float32),
            jnp.zeros((*batch, spec.state)),
            jnp.asarray(_expand("avail", masks, (*batch, *own.shape))),
            jnp.asarray(_expand("alive", living, (*batch, spec.agents))) if spec.mortal else None,
        )

    def __getstate__(self) -> dict[str, Any]:
        key = np.asarray(jax.random.key_data(self._key))
        return vars(self) | {"_key": key, "_hidden": jax.tree.map(np.asarray, self._hidden)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state | {"_key": jax.random.wrap_key_data(jnp.asarray(state["_key"]))})


@partial(jax.jit, static_argnames="greedy")
def _act(actor, observation, hidden_state, is_first, key, *, greedy):
    """The actions of one step, and the hidden state after it."""
    key_action, key_actor = jax.random.split(key)
    policy, hidden_state = actor(observation, hidden_state, is_first, key_actor)
    action = policy.mode() if greedy else policy.sample(key_action)
    return action, actor.update_state(hidden_state, action)


def _stack(values: PerAgent, width: int, dtype: Any = np.float32) -> np.ndarray:
    """The agents' arrays as one, those of a mapping padded to `width`."""
    if not isinstance(values, Mapping):
        return np.asarray(values, dtype)
    rows = [np.ravel(np.asarray(value, dtype)) for value in values.values()]
    if any(len(row) > width for row in rows):
        longest = max(map(len, rows))
        raise UserError(f"policy.act: an agent has {longest} numbers; expected at most {width}")
    return np.stack([np.pad(row, (0, width - len(row))) for row in rows])


def _expand(name: str, values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    if values.shape not in (shape, shape[1:]):
        raise UserError(f"policy.act: {name} has shape {values.shape}; expected {list(shape)}")
    return np.broadcast_to(values, shape)


def _environments(batch: tuple[int, ...]) -> str:
    return f"{batch[0]} environments" if batch else "one environment"
