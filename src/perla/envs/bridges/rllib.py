"""Environments with the interface of RLlib's `MultiAgentEnv`: dictionaries by agent.

They become parallel environments of PettingZoo, which differ in little: `reset` and `step` return
dictionaries by agent, and the flags have an entry `__all__` for the end of the episode. RLlib
itself is not needed. All agents that are in an episode act at every step.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from perla.envs.bridges import results
from perla.envs.bridges.pettingzoo import PettingZoo
from perla.envs.bridges.results import STEP
from perla.envs.checks import explain_errors
from perla.envs.values import Fault
from perla.errors import UserError


def has_interface(env: Any) -> bool:
    """True if `env` is a `MultiAgentEnv`, or has spaces by agent as one has."""
    kinds = [f"{kind.__module__}.{kind.__name__}" for kind in type(env).__mro__]
    if any(kind.startswith("ray.rllib.") and kind.endswith(".MultiAgentEnv") for kind in kinds):
        return True
    agents = _space_keys(env, "action")
    return bool(agents) and set(agents) == set(_space_keys(env, "observation"))


def wrap(id: str, env: Any, options: Mapping[str, Any], **bridge_options: Any) -> PettingZoo:
    """The environment `env`, made with `options`, as one of perla's. Raises `UserError` as
    `PettingZoo` does, and if agents have no names or spaces."""
    rules = {"options": dict(options)}
    return PettingZoo(id, Parallel(id, env), **bridge_options, rules=rules, library="ray")


class Parallel:
    """The members of PettingZoo's `ParallelEnv` that the bridge uses, of a `MultiAgentEnv`."""

    def __init__(self, id: str, env: Any) -> None:
        self.unwrapped = env
        self.possible_agents = _agents(id, env)
        self.agents: list[Any] = []

    def observation_space(self, agent: Any) -> Any:
        """The space of an agent's observations."""
        return _space(self.unwrapped, "observation", agent)

    def action_space(self, agent: Any) -> Any:
        """The space of an agent's actions."""
        return _space(self.unwrapped, "action", agent)

    def reset(self, seed: int) -> Any:
        """Observations and infos by agent. Raises `Fault` if some agents do not observe: they would
        act in turns, or join later."""
        result = self.unwrapped.reset(seed=seed)
        observations, _ = results.unpack("reset", result, results.RESET)
        observing = results.by_agent("observations", observations, ())
        for agent in self.possible_agents:
            if agent not in observing:
                raise Fault(
                    f"reset gives {agent!r} no observation; learners here need agents that act at "
                    "once, from the first step on"
                )
        self.agents = list(self.possible_agents)
        return result

    def step(self, actions: Mapping[Any, Any]) -> Any:
        """Observations, rewards, terminations, truncations and infos by agent."""
        result = self.unwrapped.step(dict(actions))
        _, _, *flags, _ = results.unpack("step", result, STEP)
        ended = [
            results.agents_flags(name, flag, actions, ())
            for name, flag in zip(STEP[2:4], flags, strict=True)
        ]
        self.agents = [agent for agent in actions if not any(flag[agent] for flag in ended)]
        return result

    def state(self) -> Any:
        """The environment's own global state. Raises `AttributeError` if it has none."""
        state = getattr(self.unwrapped, "state", None)
        if not callable(state):
            raise AttributeError("state")
        return state()

    def render(self) -> Any:
        """The environment's own image."""
        return self.unwrapped.render()

    def close(self) -> None:
        """Close the environment, if it can be closed."""
        getattr(self.unwrapped, "close", lambda: None)()


def _agents(id: str, env: Any) -> list[Any]:
    """The names of all agents, in the environment's order."""
    with explain_errors(f"{id} does not list its agents"):
        named = getattr(env, "possible_agents", None) or _space_keys(env, "action")
        if not named and callable(getattr(env, "get_agent_ids", None)):
            named = sorted(env.get_agent_ids(), key=str)
    if not named:
        raise UserError(f"{id} does not list its agents: it lacks possible_agents")
    return list(named)


def _space(env: Any, kind: str, agent: Any) -> Any:
    """The `observation` or `action` space of an agent: its own, or the one of all agents."""
    spaces = getattr(env, f"{kind}_spaces", None)
    if isinstance(spaces, Mapping):
        return spaces[agent]
    space = getattr(env, f"{kind}_space")
    return space[agent] if agent in _space_keys(env, kind) else space


def _space_keys(env: Any, kind: str) -> list[Any]:
    """The agents that have `observation` or `action` spaces of their own."""
    spaces = getattr(env, f"{kind}_spaces", None) or getattr(env, f"{kind}_space", None)
    return list(spaces) if isinstance(spaces, Mapping) else []  # Gymnasium's Dict is one, too.
