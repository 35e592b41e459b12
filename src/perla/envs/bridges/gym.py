"""Multi-agent environments of Gymnasium, whose spaces are tuples with one space per agent.

Ids are `gym:lbforaging:Foraging-8x8-2p-2f-coop-v3`, a module to import and the id that it
registers, or `gym:SomeId-v0`. The environment is made without Gymnasium's `TimeLimit`: the bridge
counts the steps. Some environments report their own time limit as a termination; the limit of the
known ones (`LIMIT_ATTRIBUTES`) is disabled, so that `terminated` means a terminal state.
`tests/test_gym.py` compares with the original step by step.
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

from perla.envs.bridges import masks, optional, results, spaces
from perla.envs.bridges.results import RESET, STEP
from perla.envs.checks import explain_errors
from perla.envs.options import OF_GYMNASIUM, fit
from perla.envs.protocol import Observation, Spec, TimeStep
from perla.envs.values import Fault, to_numbers
from perla.errors import UserError
from perla.plugins import install_command

EXAMPLES = {
    "lbforaging:Foraging-8x8-2p-2f-coop-v3": "the original of lbf:Foraging-8x8-2p-2f-coop-v3",
    "rware:rware-tiny-2ag-v2": "robots that fetch shelves; also -small, -4ag, -easy, -hard, …",
}
"""Names of environments, with a description."""
REQUIRES = install_command("gym")

LIMIT_ATTRIBUTES = {"lbforaging": "_max_episode_steps", "rware": "max_steps"}
"""Packages whose environments fold their limit into `terminated`, and the limit's attribute."""

NO_LIMIT = 2**30
"""A limit that no episode reaches."""

RESERVED_OPTIONS = ("id", "render_mode", "disable_env_checker", "max_episode_steps")
"""Arguments of `gymnasium.make` that the bridge sets."""

LOADERS = ("GymV21Environment-v0", "GymV26Environment-v0")
"""Environments that import and call whatever code their options name."""


class Gym:
    """A Gymnasium environment with tuple spaces as a [`HostEnv`][perla.envs.protocol.HostEnv].

    `limit` is the number of steps after which an episode is truncated; by default it is read from
    the environment. With `reward` "common" every agent receives the sum of all agents' rewards. The
    action mask is in an agent's observation or in `info["action_mask"]`, with an entry for each
    agent; it may have any name that `masks.is_mask` knows. The global state is the environment's
    `state()`, if it has one, or the concatenated observations. With `images` false pictures are
    rows of numbers like any others (`spaces.Spaces`).

    `folds_limit` says that the environment reports its own limit as a termination, so that a
    termination at that step is a truncation. It is true by default, unless Gymnasium's registry
    has the limit or the bridge disables it.

    Raises `UserError` for a single-agent environment, if a space is not numeric, or if `reset` is
    not Gymnasium's.
    """

    def __init__(
        self,
        id: str,
        env: Any,
        *,
        limit: Any = None,
        reward: Any = "individual",
        images: Any = True,
        folds_limit: bool | None = None,
        rules: Mapping[str, Any] | None = None,
    ) -> None:
        self.env = env
        with explain_errors(f"{id} has no spaces"):
            both = env.observation_space, env.action_space
        observed, acted = (_tuple(id, space) for space in both)
        agents = len(acted)
        if len(observed) != agents:
            raise UserError(f"{id} has {len(observed)} observations and {agents} actions")
        names = [f"agent {i}" for i in range(agents)]
        self.spaces = spaces.Spaces(id, names, observed, acted, images=images)
        inner = env.unwrapped
        limit = spaces.limit(id, limit, env.spec, inner)
        package = type(inner).__module__.partition(".")[0]
        disabled = package in LIMIT_ATTRIBUTES
        if disabled:
            setattr(inner, LIMIT_ATTRIBUTES[package], NO_LIMIT)
        registered = getattr(env.spec, "max_episode_steps", None) is not None
        self.folds_limit = not (disabled or registered) if folds_limit is None else folds_limit
        self.has_state = callable(getattr(inner, "state", None))
        self.time = 0
        first = results.first_reset(id, self.reset, seed=0)
        self.spec = Spec(
            id=id,
            agents=agents,
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
            image=self.spaces.image,
            state_image=self.spaces.state_image(inner.state() if self.has_state else None),
        )

    def reset(self, seed: int) -> Observation:
        """Begin an episode."""
        self.time = 0
        observations, info = results.unpack("reset", self.env.reset(seed=seed), RESET)
        return self._observation(observations, info)

    def step(self, action: np.ndarray) -> TimeStep:
        """One step of the environment."""
        native = tuple(
            act.to_native(a) for act, a in zip(self.spaces.agent_actions, action, strict=True)
        )
        observations, rewards, *flags, info = results.unpack("step", self.env.step(native), STEP)
        self.time += 1
        at_limit = self.time == self.spec.limit
        terminated, truncated = (
            results.common_flag(name, flag, self.spec.agents)
            for name, flag in zip(("terminated", "truncated"), flags, strict=True)
        )
        terminated = terminated and not (at_limit and self.folds_limit)
        truncated = (truncated or at_limit) and not terminated
        observation = self._observation(observations, info)
        return TimeStep(
            observation, self._reward(rewards), np.bool_(terminated), np.bool_(truncated),
            observation,
        )  # fmt: skip

    def render(self) -> np.ndarray:
        """The environment's own image. Raises `UserError` if it has none."""
        inner = self.env.unwrapped
        # Environments for older versions of Gym take the mode as an argument.
        takes_mode = "mode" in inspect.signature(inner.render).parameters
        draw = (lambda: inner.render(mode="rgb_array")) if takes_mode else self.env.render
        return spaces.check_picture(self.spec.id, draw)

    def close(self) -> None:
        """Close the environment."""
        self.env.close()

    def _observation(self, observations: Any, info: Any) -> Observation:
        agents = len(self.spaces.agent_actions)
        infos: list[dict[str, Any]] = [{} for _ in range(agents)]
        for name, each in masks.take(results.info("info", info)).items():
            entries = results.in_order(f"entries of info[{name!r}]", each, agents)
            for own, mask in zip(infos, entries, strict=True):
                own[name] = mask
        state = self.env.unwrapped.state() if self.has_state else None
        observed = results.in_order("observations", observations, agents)
        return self.spaces.observation(observed, infos, state)

    def _reward(self, rewards: Any) -> np.ndarray:
        each, agents = to_numbers("rewards", rewards), self.spec.agents
        if each.ndim == 0 and self.spec.reward == "individual":
            raise Fault(f"{self.spec.id} has one reward for all agents: --env-option reward=common")
        if each.ndim and each.shape != (agents,):
            raise Fault(f"rewards of shape {each.shape} for {agents} agents")
        return np.full(agents, each.sum()) if self.spec.reward == "common" else each


def make_env(name: str, /, **options: Any) -> Gym:
    """The environment of a name such as `lbforaging:Foraging-8x8-2p-2f-coop-v3`.

    Options: `limit`, `reward` (`individual` or `common`) and `images` as in `Gym`; all others are
    the environment's own. Raises `UserError` for an unknown name or option, if Gymnasium or the
    module is not installed, and for a single-agent environment.
    """
    gymnasium = optional.import_optional("gymnasium", extra="gym")
    id = f"gym:{name}"
    module, _, env_name = name.rpartition(":")
    if module:
        optional.import_module(module, id=id)
    if env_name not in gymnasium.registry:
        (close,) = difflib.get_close_matches(env_name, list(gymnasium.registry), n=1, cutoff=0.0)
        raise UserError(f"unknown environment of Gymnasium {env_name!r}; did you mean {close!r}?")
    for option in RESERVED_OPTIONS:
        if option in options:
            hint = "; the limit is called limit" if option == "max_episode_steps" else ""
            raise UserError(f"{id}: {option} is no option{hint}")
    env_options = {name: value for name, value in options.items() if name not in OF_GYMNASIUM}
    if env_name in LOADERS:
        raise UserError(f"{id} makes what its options name; give that one's own id")
    spec = gymnasium.spec(env_name)
    return Gym(
        id,
        _build(id, gymnasium, spec, env_options),
        limit=options.get("limit", spec.max_episode_steps),
        reward=options.get("reward", "individual"),
        images=options.get("images", True),
        folds_limit=None if spec.max_episode_steps is None else False,
        rules={"options": env_options},
    )


def _build(id: str, gymnasium: Any, spec: Any, options: dict[str, Any]) -> Any:
    """The registered environment, without Gymnasium's time limit and its single-agent checks."""
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            entry = spec.entry_point
            load = gymnasium.envs.registration.load_env_creator
            creator = load(entry) if isinstance(entry, str) else entry
            arguments = fit(id, creator, options, spec.kwargs)
            draws = "rgb_array" in getattr(creator, "metadata", {}).get("render_modes", ())
            return gymnasium.make(
                spec,
                max_episode_steps=-1,
                disable_env_checker=True,
                **({"render_mode": "rgb_array"} if draws else {}),
                **arguments,
            )
    except UserError:
        raise
    except Exception as error:  # Environments raise anything for bad arguments.
        raise optional.construction_error(id, options, error) from None


def _tuple(id: str, space: Any) -> list[Any]:
    from gymnasium.spaces import Tuple

    if not isinstance(space, Tuple):
        raise UserError(
            f"{id} has one agent: its space is a {type(space).__name__}; a multi-agent environment "
            "has a Tuple with one space per agent"
        )
    return list(space)
