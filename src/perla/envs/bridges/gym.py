"""Gymnasium's environments of several agents: those whose spaces are tuples, one for each agent.

`gym:lbforaging:Foraging-8x8-2p-2f-coop-v3`, a module to import and the id that it registers, or
`gym:SomeId-v0`. The environment is as it was registered, without Gymnasium's clock: the steps are
counted here. Some worlds report their own time limit as an ordinary end; of those that are known
(`CLOCKS`) the limit is lifted, so that an end is an end. `tests/test_gym.py` steps both side by
side.
"""

from __future__ import annotations

import contextlib
import difflib
import inspect
import io
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

from perla.envs.bridges import optional, spaces
from perla.envs.protocol import Observation, Spec, TimeStep
from perla.errors import UserError

EXAMPLES = {
    "lbforaging:Foraging-8x8-2p-2f-coop-v3": "the original of lbf:Foraging-8x8-2p-2f-coop-v3",
    "rware:rware-tiny-2ag-v2": "robots that fetch shelves; also -small, -4ag, -easy, -hard, …",
}
"""Names of worlds, and what they are."""

CLOCKS = {"lbforaging": "_max_episode_steps", "rware": "max_steps"}
"""Packages whose worlds fold their limit into `terminated`, and what they call it."""

FAR = 2**30
"""A limit that no episode meets."""

OURS = ("id", "render_mode", "disable_env_checker", "max_episode_steps")
"""Arguments of `gymnasium.make` that are set here."""

LOADERS = ("GymV21Environment-v0", "GymV26Environment-v0")
"""Environments that import and make whatever their options name."""


class Gym:
    """A Gymnasium environment with tuples for spaces, a [`HostEnv`][perla.envs.protocol.HostEnv].

    `limit` is the number of steps after which an episode is truncated, found in the environment by
    default. With `reward` "common" every agent earns the sum of all agents' rewards. Legal moves
    are those of `info["action_mask"]`, an entry for each agent, where there is one; the global
    state is what the environment's `state()` returns, or else the observations one after another.
    `folds` says that the environment reports its own limit as an end, so that an end at that step
    is taken for the limit; by default it does, unless Gymnasium keeps the limit or it is lifted.
    Raises `UserError` for an environment of a single agent, or with spaces that are no numbers.
    """

    def __init__(
        self,
        id: str,
        env: Any,
        *,
        limit: Any = None,
        reward: Any = "individual",
        folds: bool | None = None,
        rules: Mapping[str, Any] | None = None,
    ) -> None:
        self.env = env
        seen, done = (_tuple(id, space) for space in (env.observation_space, env.action_space))
        if len(seen) != len(done):
            raise UserError(f"{id} has {len(seen)} observations and {len(done)} actions")
        self.spaces = spaces.Spaces(id, [f"agent {i}" for i in range(len(done))], seen, done)
        bare = env.unwrapped
        limit = spaces.limit(id, limit, env.spec, bare)
        package = type(bare).__module__.partition(".")[0]
        if package in CLOCKS:
            setattr(bare, CLOCKS[package], FAR)
        told = package in CLOCKS or getattr(env.spec, "max_episode_steps", None) is not None
        self.folds = not told if folds is None else folds
        self.offers = callable(getattr(bare, "state", None))
        self.time = 0
        first = self.reset(0)
        self.spec = Spec(
            id=id,
            agents=len(done),
            obs=first.obs.shape[1],
            state=first.state.size,
            actions=self.spaces.actions,
            limit=limit,
            reward=spaces.reward(id, reward),
            rules={
                "reward": reward,
                "limit": limit,
                **(rules or {}),
                **optional.versions("gymnasium", package),
            },
            continuous=self.spaces.continuous,
        )

    def reset(self, seed: int) -> Observation:
        """Begin an episode."""
        self.time = 0
        return self._observation(*self.env.reset(seed=seed))

    def step(self, action: np.ndarray) -> TimeStep:
        """One step of the environment."""
        theirs = tuple(act.to_native(a) for act, a in zip(self.spaces.acts, action, strict=True))
        seen, rewards, terminated, truncated, info = self.env.step(theirs)
        self.time += 1
        last = self.time == self.spec.limit
        over, cut = self._all(terminated), self._all(truncated)
        if cut and not (over or last):
            raise spaces.early_truncation(self.spec.id, self.time, int(self.spec.limit or 0))
        over = over and not (last and self.folds)
        observation = self._observation(seen, info)
        return TimeStep(
            observation, self._reward(rewards), np.bool_(over), np.bool_(last and not over),
            observation,
        )  # fmt: skip

    def render(self) -> np.ndarray:
        """The environment's own picture; `UserError` where it has none."""
        bare = self.env.unwrapped
        # Some are asked for a picture at every call, as was the custom once.
        asks = "mode" in inspect.signature(bare.render).parameters
        draw = (lambda: bare.render(mode="rgb_array")) if asks else self.env.render
        return spaces.check_picture(self.spec.id, draw)

    def close(self) -> None:
        """Let go of the environment."""
        self.env.close()

    def _observation(self, seen: Any, info: Mapping[str, Any]) -> Observation:
        masks = info.get("action_mask", [None] * len(self.spaces.acts))
        state = self.env.unwrapped.state() if self.offers else None
        return self.spaces.observation(list(seen), list(masks), state)

    def _reward(self, rewards: Any) -> np.ndarray:
        each, agents = np.asarray(rewards, np.float32), self.spec.agents
        if each.ndim == 0 and self.spec.reward == "individual":
            raise ValueError(
                f"{self.spec.id} has one reward for all agents: --env-option reward=common"
            )
        if each.ndim and each.shape != (agents,):
            raise ValueError(f"rewards of shape {each.shape} for {agents} agents")
        return np.full(agents, each.sum()) if self.spec.reward == "common" else each

    def _all(self, flags: Any) -> bool:
        """One truth of a flag for each agent, which must be the same."""
        ended = np.asarray(flags, bool)
        if ended.any() != ended.all():
            raise ValueError("some agents' episode ends and others' goes on; gym: ends it for all")
        return bool(ended.all())


def make_env(name: str, /, **options: Any) -> Gym:
    """The environment of a name such as `lbforaging:Foraging-8x8-2p-2f-coop-v3`.

    Options: `limit` and `reward` (`individual` or `common`), see `Gym`; all others are the
    environment's own. Raises `UserError` for a name or option that is none, where Gymnasium or the
    module is not installed, and for an environment of a single agent.
    """
    gymnasium = optional.import_optional("gymnasium", extra="gym")
    id = f"gym:{name}"
    module, _, world = name.rpartition(":")
    if module:
        optional.import_module(module, id=id)
    if world not in gymnasium.registry:
        (close,) = difflib.get_close_matches(world, list(gymnasium.registry), n=1, cutoff=0.0)
        raise UserError(f"unknown environment of Gymnasium {world!r}; did you mean {close!r}?")
    for option in OURS:
        if option in options:
            hint = "; the limit is called limit" if option == "max_episode_steps" else ""
            raise UserError(f"{id}: {option} is no option{hint}")
    ours = {name: options[name] for name in ("limit", "reward") if name in options}
    own = {name: value for name, value in options.items() if name not in ours}
    if world in LOADERS:
        raise UserError(f"{id} makes what its options name; give that one's own id")
    spec = gymnasium.spec(world)
    return Gym(
        id,
        _built(id, gymnasium, spec, own),
        limit=ours.get("limit", spec.max_episode_steps),
        reward=ours.get("reward", "individual"),
        folds=None if spec.max_episode_steps is None else False,
        rules={"options": own},
    )


def _built(id: str, gymnasium: Any, spec: Any, options: dict[str, Any]) -> Any:
    """The environment as registered, without Gymnasium's clock and checks, which know one agent."""
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            entry = spec.entry_point
            load = gymnasium.envs.registration.load_env_creator
            creator = load(entry) if isinstance(entry, str) else entry
            draws = "rgb_array" in getattr(creator, "metadata", {}).get("render_modes", ())
            return gymnasium.make(
                spec,
                max_episode_steps=-1,
                disable_env_checker=True,
                **({"render_mode": "rgb_array"} if draws else {}),
                **options,
            )
    except Exception as error:  # Each environment refuses in its own way.
        raise optional.construction_error(id, options, error) from None


def _tuple(id: str, space: Any) -> list[Any]:
    from gymnasium.spaces import Tuple

    if not isinstance(space, Tuple):
        raise UserError(
            f"{id} has one agent: its space is a {type(space).__name__}; where there are several, "
            "it is a Tuple, one space for each"
        )
    return list(space)
