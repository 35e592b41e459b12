"""perla environments for other libraries: `parallel(env)` is a PettingZoo `ParallelEnv`."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from perla.envs.bridges import optional
from perla.envs.protocol import Env, Observation


def parallel(env: Env) -> Any:
    """`env` as a PettingZoo `ParallelEnv`, with agents `agent_0`, `agent_1`, … and NumPy arrays.

    Every agent observes a float32 vector; its action mask, int8, is `info["action_mask"]`. All
    agents stay until the episode ends. `state()` is the global state, and `render()` an image.
    `reset` seeds an episode with its `seed`, or, without one, continues the random sequence of the
    previous episodes. Raises `UserError` if PettingZoo is not installed.
    """
    optional.import_optional("pettingzoo")
    from gymnasium import spaces
    from pettingzoo import ParallelEnv

    spec = env.spec
    agents = [f"agent_{index}" for index in range(spec.agents)]

    class Parallel(_Methods, ParallelEnv):
        metadata = {"name": spec.id, "render_modes": ["rgb_array"], "is_parallelizable": True}
        render_mode = "rgb_array"
        possible_agents = agents
        state_space = spaces.Box(-np.inf, np.inf, (spec.state,), np.float32)

        def __init__(self) -> None:
            self.observation_spaces = {
                agent: spaces.Box(-np.inf, np.inf, (spec.obs,), np.float32) for agent in agents
            }
            self.action_spaces = {
                agent: spaces.Box(-1.0, 1.0, (number,), np.float32)
                if spec.continuous
                else spaces.Discrete(number)
                for agent, number in zip(agents, spec.actions, strict=True)
            }
            _Methods.__init__(self, env)

    return Parallel()


class _Methods:
    """The methods of a `ParallelEnv` that steps an `Env`; the spaces are the subclass's."""

    possible_agents: list[str]
    observation_spaces: dict[str, Any]
    action_spaces: dict[str, Any]

    def __init__(self, env: Env) -> None:
        self._env, self._spec = env, env.spec
        self.agents: list[str] = []
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
        self._state, self._observation = self._reset(key)
        self.agents = list(self.possible_agents)
        return self._by_agent(self._observation)

    def step(self, actions: dict[str, Any]) -> tuple[dict, dict, dict, dict, dict]:
        self._key, key = jax.random.split(self._key)
        self._state, timestep = self._step(key, self._state, self._joint_action(actions))
        self._observation = timestep.final
        reward = np.asarray(timestep.reward)
        observations, infos = self._by_agent(self._observation)
        rewards = {agent: float(reward[i]) for i, agent in enumerate(self.agents)}
        terminated = dict.fromkeys(self.agents, bool(timestep.terminated))
        truncated = dict.fromkeys(self.agents, bool(timestep.truncated))
        if timestep.terminated | timestep.truncated:
            self.agents = []
        return observations, rewards, terminated, truncated, infos

    def state(self) -> np.ndarray:
        return np.asarray(self._observation.state)

    def render(self) -> np.ndarray:
        return self._env.render(self._state)

    def _joint_action(self, actions: dict[str, Any]) -> jax.Array:
        spec = self._spec
        if not spec.continuous:
            return jnp.asarray([actions[agent] for agent in self.agents], jnp.int32)
        vectors = [np.asarray(actions[agent], np.float32) for agent in self.agents]
        padded = [np.pad(vector, (0, spec.max_actions - vector.size)) for vector in vectors]
        return spec.bounded(jnp.asarray(padded))

    def _by_agent(self, observation: Observation) -> tuple[dict, dict]:
        """Observations and infos as dictionaries by agent."""
        obs, avail = np.asarray(observation.obs), np.asarray(observation.avail)
        infos = [
            {} if self._spec.continuous else {"action_mask": avail[i, :number].astype(np.int8)}
            for i, number in enumerate(self._spec.actions)
        ]
        return (
            {agent: obs[i] for i, agent in enumerate(self.agents)},
            dict(zip(self.agents, infos, strict=True)),
        )
