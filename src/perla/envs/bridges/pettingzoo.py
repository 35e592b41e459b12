"""PettingZoo's parallel environments: `pettingzoo:mpe2.simple_spread_v3`.

The name is a module with a function `parallel_env`, or with a function `env` whose environment can
be converted to a parallel one. `tests/test_pettingzoo.py` compares with the original step by step.
"""

from __future__ import annotations

import contextlib
import io
import re
import warnings
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import numpy as np

from perla.config import convert
from perla.envs import makers
from perla.envs.bridges import masks, optional, results, spaces
from perla.envs.bridges.results import RESET, STEP
from perla.envs.checks import explain_errors
from perla.envs.options import OF_PETTINGZOO, fit
from perla.envs.protocol import Observation, Spec, TimeStep
from perla.envs.values import Fault, to_numbers
from perla.errors import UserError, nearest
from perla.plugins import install_command

EXAMPLES = {
    "mpe2.simple_spread_v3": "particles that cover landmarks; continuous_actions=true",
    "mpe2.simple_speaker_listener_v4": "one sees the goal, the other can move",
    "mpe2.simple_reference_v3": "each knows where the other should go",
    "pettingzoo.butterfly.knights_archers_zombies_v11": "archers and knights who may die",
    "pettingzoo.butterfly.cooperative_pong_v6": "two paddles keep a ball in play; sees pixels",
    "pettingzoo.butterfly.pistonball_v6": "pistons move a ball; sees pixels",
    "pettingzoo.sisl.pursuit_v5": "pursuers surround evaders",
    "pettingzoo.sisl.multiwalker_v9": "walkers carry a package together; continuous",
}
"""Names of environments, with a description. Some need packages of their own."""
REQUIRES = install_command("pettingzoo")

COMPETITIVE = {
    "simple_adversary", "simple_crypto", "simple_push", "simple_tag", "simple_world_comm",
    "chess", "connect_four", "gin_rummy", "go", "leduc_holdem", "rps", "texas_holdem",
    "texas_holdem_no_limit", "tictactoe", "basketball_pong", "boxing", "combat_plane",
    "combat_tank", "double_dunk", "entombed_competitive", "flag_capture", "foozpong",
    "ice_hockey", "maze_craze", "othello", "pong", "quadrapong", "space_war", "surround",
    "tennis", "video_checkers", "volleyball_pong", "warlords",
}  # fmt: skip
"""Competitive environments of PettingZoo."""


class PettingZoo:
    """A parallel environment of PettingZoo as a [`HostEnv`][perla.envs.protocol.HostEnv].

    `limit` is the number of steps after which an episode is truncated; by default it is read from
    the environment. With `reward` "common" every agent receives the sum of all agents' rewards. An
    agent that leaves while others stay is no longer `alive`; with `mortal` false this is an error.
    The global `state` is "own", the environment's `state()`, or "observations", the concatenated
    observations; by default the former if the environment has it. The action mask is in the
    observation or the info, under any name that `masks.is_mask` knows. With `images` false pictures
    are rows of numbers like any others (`spaces.Spaces`). Raises `UserError` if a
    space is not numeric, or if `reset` is not PettingZoo's.
    """

    def __init__(
        self,
        id: str,
        env: Any,
        *,
        limit: Any = None,
        reward: Any = "individual",
        mortal: Any = True,
        state: Any = None,
        images: Any = True,
        rules: Mapping[str, Any] | None = None,
        library: str = "pettingzoo",
    ) -> None:
        self.env = env
        self.agents: list[Any] = list(_possible_agents(id, env))
        with explain_errors(f"{id} has no space for an agent"):
            observed = [env.observation_space(agent) for agent in self.agents]
            acted = [env.action_space(agent) for agent in self.agents]
        names = [str(agent) for agent in self.agents]
        self.spaces = spaces.Spaces(id, names, observed, acted, images=images)
        inner = env.unwrapped
        limit = spaces.limit(id, limit, inner, getattr(inner, "env", None))
        self.mortal = convert(mortal, bool, name=f"{id}: mortal")
        self.time = 0
        self.alive = dict.fromkeys(self.agents, True)
        results.first_reset(id, env.reset, seed=0)
        self.has_state = _has_state(id, env, state)
        first = results.first_reset(id, self.reset, seed=0)
        self.spec = Spec(
            id=id,
            agents=len(self.agents),
            obs=first.obs.shape[1],
            state=first.state.size,
            actions=self.spaces.actions,
            limit=limit,
            reward=spaces.reward(id, reward),
            rules={
                "reward": reward,
                "limit": limit,
                "state": "own" if self.has_state else "observations",
                **(rules or {}),
                **optional.versions(library, type(inner).__module__.partition(".")[0]),
            },
            continuous=self.spaces.continuous,
            mortal=self.mortal,
            image=self.spaces.image,
            state_image=self.spaces.state_image(env.state() if self.has_state else None),
        )

    def reset(self, seed: int) -> Observation:
        """Begin an episode."""
        observations, infos = results.unpack("reset", self.env.reset(seed=seed), RESET)
        self.time = 0
        self.alive = {agent: agent in self.env.agents for agent in self.agents}
        self._check_mortal()
        return self._observation(observations, infos)

    def step(self, action: np.ndarray) -> TimeStep:
        """One step of the environment: `[agent]`, or `[agent, dimension]` if continuous."""
        actions = {
            agent: act.to_native(a)
            for agent, act, a in zip(self.agents, self.spaces.agent_actions, action, strict=True)
            if agent in self.env.agents
        }
        observations, rewards, *flags, infos = results.unpack("step", self.env.step(actions), STEP)
        self.time += 1
        rewards = results.by_agent("rewards", rewards, actions)
        staying = [agent for agent in actions if agent in self.env.agents]
        terminated, truncated = self._update_alive(
            *(
                results.agents_flags(name, flag, actions, staying)
                for name, flag in zip(STEP[2:4], flags, strict=True)
            )
        )
        observation = self._observation(observations, infos)
        reward = to_numbers("rewards", [rewards.get(agent, 0.0) for agent in self.agents])
        if self.spec.reward == "common":
            reward = np.full_like(reward, reward.sum())
        truncated = truncated or (self.time == self.spec.limit and not terminated)
        return TimeStep(observation, reward, np.bool_(terminated), np.bool_(truncated), observation)

    def _update_alive(
        self, terminations: Mapping[Any, bool], truncations: Mapping[Any, bool]
    ) -> tuple[bool, bool]:
        """Update `alive` after a step; return whether the episode has terminated or is truncated.

        Raises `Fault` if an agent joins or, where `mortal` is false, leaves during the episode.
        """
        staying = [
            agent
            for agent, alive in self.alive.items()
            if alive
            and not terminations[agent]
            and (agent in self.env.agents or truncations[agent])
        ]
        cut = [agent for agent in staying if truncations[agent]]
        terminated = not staying
        truncated = not terminated and len(cut) == len(staying)
        if not (terminated or truncated):
            # An agent that is truncated while others stay has left, as if it had terminated.
            staying = [agent for agent in staying if agent not in cut]
            if any(not self.alive.get(agent, False) for agent in self.env.agents):
                raise Fault(f"{self.spec.id}: an agent joins in the middle of an episode")
        if self.mortal or not (terminated or truncated):
            self.alive = {agent: agent in staying for agent in self.agents}
        self._check_mortal()
        return terminated, truncated

    def render(self) -> np.ndarray:
        """The environment's own image: uint8 `[height, width, 3]`. Raises `UserError` if there is
        none."""
        return spaces.check_picture(self.spec.id, self.env.render)

    def close(self) -> None:
        """Close the environment."""
        self.env.close()

    def _observation(self, observations: Any, infos: Any) -> Observation:
        alive = [agent for agent, alive in self.alive.items() if alive]
        observations = results.by_agent("observations", observations, alive)
        infos = results.info("infos", infos)
        others = {key: info for key, info in infos.items() if key not in self.alive}
        for name in masks.take(others):
            raise Fault(f"the action mask {name!r} in infos belongs to no agent")
        return self.spaces.observation(
            [observations[agent] if alive else None for agent, alive in self.alive.items()],
            [
                masks.take(results.info(f"the info of {agent!r}", infos.get(agent, {})))
                if alive
                else {}
                for agent, alive in self.alive.items()
            ],
            self.env.state() if self.has_state else None,
            np.array(list(self.alive.values())) if self.mortal else None,
        )

    def _check_mortal(self) -> None:
        if not self.mortal and not all(self.alive.values()):
            left = next(agent for agent, alive in self.alive.items() if not alive)
            raise Fault(
                f"{left} has left while others go on; set --env-option mortal=true to allow it"
            )


def make_env(name: str, /, **options: Any) -> PettingZoo:
    """The environment of the module `name`, such as `mpe2.simple_spread_v3`.

    Options: `limit`, `reward` (`individual` or `common`), `mortal`, `state` and `images` as in
    `PettingZoo`; all others are the environment's own. Raises `UserError` for an unknown module or
    option, for a missing package, and for environments whose agents compete or take turns.
    """
    optional.import_optional("pettingzoo")
    id = f"pettingzoo:{name}"
    if re.sub(r"_v\d+$", "", name.rpartition(".")[2]) in COMPETITIVE:
        raise UserError(f"{id} sets its agents against each other, but learners here cooperate")
    module = optional.import_module(name, id=id)
    if "render_mode" in options:
        raise UserError(f"{id}: render_mode is no option; it is always rgb_array")
    bridge_options = {name: options[name] for name in OF_PETTINGZOO if name in options}
    env_options = {name: options[name] for name in options if name not in OF_PETTINGZOO}
    env = _build(id, module, env_options)
    return PettingZoo(id, env, **bridge_options, rules={"options": env_options})


def parallel(id: str, env: Any) -> Any:
    """`env` as a parallel environment. Raises `UserError` if its agents must take turns."""
    from pettingzoo.utils.conversions import aec_to_parallel
    from pettingzoo.utils.env import AECEnv

    if not isinstance(env, AECEnv):
        return env
    if not env.metadata.get("is_parallelizable", False):
        raise UserError(f"{id}: its agents take turns; learners here need agents that act at once")
    return aec_to_parallel(env)


def _build(id: str, module: ModuleType, options: dict[str, Any]) -> Any:
    function = getattr(module, "parallel_env", None) or getattr(module, "env", None)
    if function is None:
        raise UserError(f"{id}: the module has neither parallel_env nor env")
    makers.check_maker(id, function)
    # PettingZoo's own functions pass what they are given on to the class `raw_env`.
    arguments = fit(id, getattr(module, "raw_env", function), fit(id, function, options))

    def build(**more: Any) -> Any:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return parallel(id, function(**arguments, **more))

    try:
        try:
            return build(render_mode="rgb_array")
        except TypeError as error:
            if "render_mode" not in str(error):
                raise
            return build()
    except UserError:
        raise
    except Exception as error:  # Environments raise anything for bad arguments.
        raise optional.construction_error(id, options, error) from None


def _possible_agents(id: str, env: Any) -> list[Any]:
    agents = getattr(env, "possible_agents", None)
    if not agents:
        raise UserError(f"{id} does not list its agents: it lacks possible_agents")
    return list(agents)


def _has_state(id: str, env: Any, option: Any) -> bool:
    """True if the global state is the environment's own, by the option `state`."""
    if option not in (None, "own", "observations"):
        raise nearest(str(option), ("own", "observations"), what=f"state of {id}")
    if option == "observations":
        return False
    try:
        env.state()
    except (NotImplementedError, AttributeError):  # Raised by the base class and by wrappers.
        if option == "own":
            raise UserError(f"{id} offers no state() of its own") from None
        return False
    return True
