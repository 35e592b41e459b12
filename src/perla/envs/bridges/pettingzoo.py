"""PettingZoo's environments, whose agents act at once: `pettingzoo:mpe2.simple_spread_v3`.

What follows the colon is a module with a function `parallel_env`, or with `env` alone, if its
agents' turns can be played at once. `tests/test_pettingzoo.py` steps both side by side.
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
from perla.envs.bridges import optional, spaces
from perla.envs.protocol import Observation, Spec, TimeStep
from perla.errors import UserError, nearest

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
"""Names of worlds, and what they are. Some need packages of their own."""

COMPETITIVE = {
    "simple_adversary", "simple_crypto", "simple_push", "simple_tag", "simple_world_comm",
    "chess", "connect_four", "gin_rummy", "go", "leduc_holdem", "rps", "texas_holdem",
    "texas_holdem_no_limit", "tictactoe", "basketball_pong", "boxing", "combat_plane",
    "combat_tank", "double_dunk", "entombed_competitive", "flag_capture", "foozpong",
    "ice_hockey", "maze_craze", "othello", "pong", "quadrapong", "space_war", "surround",
    "tennis", "video_checkers", "volleyball_pong", "warlords",
}  # fmt: skip
"""Worlds of PettingZoo that set their agents against each other."""


class PettingZoo:
    """A parallel environment of PettingZoo, a [`HostEnv`][perla.envs.protocol.HostEnv].

    `limit` is the number of steps after which an episode is truncated, found in the environment by
    default. With `reward` "common" every agent earns the sum of all agents' rewards. Whoever leaves
    while others go on is no longer `alive`; `mortal` false says that nobody does, and it is a fault
    if somebody does nevertheless. `state` says what the global state is: "own", what the
    environment's `state()` returns; "observations", these one after another; by default the former
    where it is offered. Legal moves are those of `action_mask`, in the observation or the info.
    Raises `UserError` for spaces that are no numbers.
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
        rules: Mapping[str, Any] | None = None,
    ) -> None:
        self.env = env
        self.agents: list[Any] = list(_possible(id, env))
        self.spaces = spaces.Spaces(
            id,
            [str(agent) for agent in self.agents],
            [env.observation_space(agent) for agent in self.agents],
            [env.action_space(agent) for agent in self.agents],
        )
        bare = env.unwrapped
        limit = spaces.limit(id, limit, bare, getattr(bare, "env", None))
        self.mortal = convert(mortal, bool, name=f"{id}: mortal")
        self.time = 0
        self.living = dict.fromkeys(self.agents, True)
        """Who takes part."""
        self.offers = False
        self.env.reset(seed=0)
        self.offers = _offers(id, env, state)
        first = self.reset(0)
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
                "state": "own" if self.offers else "observations",
                **(rules or {}),
                **optional.versions("pettingzoo", type(bare).__module__.partition(".")[0]),
            },
            continuous=self.spaces.continuous,
            mortal=self.mortal,
        )

    def reset(self, seed: int) -> Observation:
        """Begin an episode."""
        seen, infos = self.env.reset(seed=seed)
        self.time = 0
        self.living = {agent: agent in self.env.agents for agent in self.agents}
        self._check_mortal()
        return self._observation(seen, infos)

    def step(self, action: np.ndarray) -> TimeStep:
        """One step of the environment."""
        actions = {
            agent: act.to_native(a)
            for agent, act, a in zip(self.agents, self.spaces.acts, action, strict=True)
            if agent in self.env.agents
        }
        seen, rewards, terminations, truncations, infos = self.env.step(actions)
        self.time += 1
        going = [
            agent
            for agent, lives in self.living.items()
            if lives
            and not terminations.get(agent, False)
            and (agent in self.env.agents or truncations.get(agent, False))
        ]
        cut = [agent for agent in going if truncations.get(agent, False)]
        ended = not going
        over = ended or len(cut) == len(going)
        if not over:
            # Who is cut while others go on has left, as if it had come to its end.
            going = [agent for agent in going if agent not in cut]
            if any(agent not in self.living for agent in self.env.agents) or any(
                not self.living[agent] and agent in self.env.agents for agent in self.agents
            ):
                raise ValueError(f"{self.spec.id}: an agent joins in the middle of an episode")
        last = self.time == self.spec.limit
        if over and not ended and not last:
            raise spaces.early_truncation(self.spec.id, self.time, int(self.spec.limit or 0))
        if self.mortal or not over:
            self.living = {agent: agent in going for agent in self.agents}
        self._check_mortal()
        observation = self._observation(seen, infos)
        each = np.array([rewards.get(agent, 0.0) for agent in self.agents], np.float32)
        if self.spec.reward == "common":
            each = np.full_like(each, each.sum())
        return TimeStep(
            observation, each, np.bool_(ended), np.bool_(last and not ended), observation
        )

    def render(self) -> np.ndarray:
        """The environment's own picture; `UserError` where it has none."""
        return spaces.check_picture(self.spec.id, self.env.render)

    def close(self) -> None:
        """Let go of the environment."""
        self.env.close()

    def _observation(self, seen: Mapping[Any, Any], infos: Mapping[Any, Any]) -> Observation:
        living = np.array(list(self.living.values()))
        return self.spaces.observation(
            [seen[agent] if lives else None for agent, lives in self.living.items()],
            [infos.get(agent, {}).get("action_mask") for agent in self.agents],
            self.env.state() if self.offers else None,
            living if self.mortal else None,
        )

    def _check_mortal(self) -> None:
        if not self.mortal and not all(self.living.values()):
            left = next(agent for agent, lives in self.living.items() if not lives)
            raise ValueError(
                f"{left} has left while others go on; --env-option mortal=true allows for that"
            )


def make_env(name: str, /, **options: Any) -> PettingZoo:
    """The environment of the module `name`, such as `mpe2.simple_spread_v3`.

    Options: `limit`, `reward` (`individual` or `common`), `mortal` and `state`, see `PettingZoo`;
    all others are the environment's own. Raises `UserError` for a module or option that is none,
    where one that is needed is not installed, and for environments whose agents compete or take
    turns.
    """
    optional.import_optional("pettingzoo")
    id = f"pettingzoo:{name}"
    if re.sub(r"_v\d+$", "", name.rpartition(".")[2]) in COMPETITIVE:
        raise UserError(f"{id} sets its agents against each other, and learners here cooperate")
    module = optional.import_module(name, id=id)
    if "render_mode" in options:
        raise UserError(f"{id}: render_mode is no option; whoever asks for a picture gets one")
    ours = {name: options[name] for name in OURS if name in options}
    own = {name: value for name, value in options.items() if name not in ours}
    return PettingZoo(id, _built(id, module, own), **ours, rules={"options": own})


OURS = ("limit", "reward", "mortal", "state")
"""Options that are not the environment's."""


def parallel(id: str, env: Any) -> Any:
    """`env`, made parallel if it is written in turns; `UserError` if they cannot be at once."""
    from pettingzoo.utils.conversions import aec_to_parallel
    from pettingzoo.utils.env import AECEnv

    if not isinstance(env, AECEnv):
        return env
    if not env.metadata.get("is_parallelizable", False):
        raise UserError(f"{id}: its agents take turns; learners here need agents that act at once")
    return aec_to_parallel(env)


def _built(id: str, module: ModuleType, options: dict[str, Any]) -> Any:
    function = getattr(module, "parallel_env", None) or getattr(module, "env", None)
    if function is None:
        raise UserError(f"{id}: the module has neither parallel_env nor env")
    makers.check_maker(id, function)

    def build(**more: Any) -> Any:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return parallel(id, function(**options, **more))

    try:
        try:
            return build(render_mode="rgb_array")
        except TypeError as error:
            if "render_mode" not in str(error):
                raise
            return build()
    except UserError:
        raise
    except Exception as error:  # Each environment refuses in its own way.
        raise optional.construction_error(id, options, error) from None


def _possible(id: str, env: Any) -> list[Any]:
    agents = getattr(env, "possible_agents", None)
    if not agents:
        raise UserError(f"{id} does not say which agents there may be: it lacks possible_agents")
    return list(agents)


def _offers(id: str, env: Any, wanted: Any) -> bool:
    """Whether the global state is the environment's own."""
    if wanted not in (None, "own", "observations"):
        raise nearest(str(wanted), ("own", "observations"), what=f"state of {id}")
    if wanted == "observations":
        return False
    try:
        env.state()
    except (NotImplementedError, AttributeError):  # The base class, and wrappers, say so thus.
        if wanted == "own":
            raise UserError(f"{id} offers no state() of its own") from None
        return False
    return True
