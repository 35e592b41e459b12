"""perla's worlds for other libraries: `parallel(env)` is a PettingZoo parallel environment."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from perla.envs.bridges import optional
from perla.envs.protocol import Env, Observation


def parallel(env: Env) -> Any:
    """`env` as a PettingZoo `ParallelEnv`: agents `agent_0`, `agent_1`, … on NumPy arrays.

    Every agent observes its float32 row; which actions it may choose, int8, is its
    `info["action_mask"]`. All agents stay until the episode ends. `state()` is the global state,
    and `render()` a picture. An episode begins from the seed that `reset` is given, or, without
    one, where the seeds before led to. Raises `UserError` where PettingZoo is not installed.
    """
    optional.import_optional("pettingzoo")
    from gymnasium import spaces
    from pettingzoo import ParallelEnv

    spec = env.spec

    class Parallel(ParallelEnv):
        """One copy of a world, stepped from outside."""

        metadata = {"name": spec.id, "render_modes": ["rgb_array"], "is_parallelizable": True}
        render_mode = "rgb_array"
        possible_agents = [f"agent_{index}" for index in range(spec.agents)]
        state_space = spaces.Box(-np.inf, np.inf, (spec.state,), np.float32)

        def __init__(self) -> None:
            self.agents: list[str] = []
            self.observation_spaces = {
                name: spaces.Box(-np.inf, np.inf, (spec.obs,), np.float32)
                for name in self.possible_agents
            }
            self.action_spaces = {
                name: spaces.Box(-1.0, 1.0, (number,), np.float32)
                if spec.continuous
                else spaces.Discrete(number)
                for name, number in zip(self.possible_agents, spec.actions, strict=True)
            }
            self._key = jax.random.key(np.random.default_rng().integers(2**31))
            self._reset, self._step = jax.jit(env.reset), jax.jit(env.step)

        def observation_space(self, agent: str) -> Any:
            return self.observation_spaces[agent]

        def action_space(self, agent: str) -> Any:
            return self.action_spaces[agent]

        def reset(self, seed: int | None = None, options: dict | None = None) -> tuple[dict, dict]:
            if seed is not None:
                self._key = jax.random.key(seed)
                for index, space in enumerate(self.action_spaces.values()):
                    space.seed(seed + index)
            self._key, key = jax.random.split(self._key)
            self._state, self._seen = self._reset(key)
            self.agents = list(self.possible_agents)
            return self._shown(self._seen)

        def step(self, actions: dict[str, Any]) -> tuple[dict, dict, dict, dict, dict]:
            self._key, key = jax.random.split(self._key)
            self._state, timestep = self._step(key, self._state, self._joint(actions))
            self._seen = timestep.final
            reward, seen = np.asarray(timestep.reward), self._shown(self._seen)
            rewards = {name: float(reward[i]) for i, name in enumerate(self.agents)}
            terminated = dict.fromkeys(self.agents, bool(timestep.terminated))
            truncated = dict.fromkeys(self.agents, bool(timestep.truncated))
            if timestep.terminated | timestep.truncated:
                self.agents = []
            return seen[0], rewards, terminated, truncated, seen[1]

        def state(self) -> np.ndarray:
            return np.asarray(self._seen.state)

        def render(self) -> np.ndarray:
            return env.render(self._state)

        def _joint(self, actions: dict[str, Any]) -> jax.Array:
            if not spec.continuous:
                return jnp.asarray([actions[name] for name in self.agents], jnp.int32)
            most = spec.max_actions
            each = [np.asarray(actions[name], np.float32) for name in self.agents]
            joint = [np.pad(action, (0, most - action.size)) for action in each]
            return spec.bounded(jnp.asarray(joint))

        def _shown(self, seen: Observation) -> tuple[dict, dict]:
            obs, avail = np.asarray(seen.obs), np.asarray(seen.avail)
            masks = [
                {} if spec.continuous else {"action_mask": avail[i, :number].astype(np.int8)}
                for i, number in enumerate(spec.actions)
            ]
            return {name: obs[i] for i, name in enumerate(self.agents)}, dict(
                zip(self.agents, masks, strict=True)
            )

    return Parallel()
